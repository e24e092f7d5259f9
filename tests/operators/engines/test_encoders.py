"""The encoders: the int8 MiniLM against a plain torch forward of its fp32 weights, and llama.cpp's on a real GGUF."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.engines.child.gguf_encoder import GgufEncoder
from operators.engines.files.models import resolve
from operators.engines.onnx.bert_encoder import batches
from operators.engines.onnx.encoder import OnnxEncoder, pool
from operators.engines.ports import Encoder
from operators.errors import Reject, Retry, Stop
from operators.tiers import ModelFile
from tests.operators.engines import minilm_fp32 as fp32
from tests.operators.engines import weights

TEXTS = [
    "What is the capital of France?",
    "Paris is the capital of France.",
    "How do I reset my password?",
    "def add(a, b):\n    return a + b",
    "¿Dónde está la biblioteca? 図書館はどこですか",
    "The harbour bridge was closed for repairs in March, and the ferry ran every ten minutes instead.",
    "x",
    "",
    "HTTP 503 Retry-After: 120 — the upstream is overloaded; clients should back off exponentially.",
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def minilm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OnnxEncoder]:
    cache = tmp_path_factory.mktemp("cache")
    made = OnnxEncoder(weights.MINILM, weights.MINILM_TOKENIZER, cache_dir=cache, threads=1, max_tokens=256)
    await made.start()
    yield made
    await made.close()


@pytest.fixture(scope="module")
async def gguf(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GgufEncoder]:
    """A language model as encoder: its vectors mean little, but its weights, tokens and pooling are real."""
    cache = tmp_path_factory.mktemp("cache")
    made = GgufEncoder(
        weights.SMOLLM2, cache_dir=cache, threads=1, max_tokens=24, batch_tokens=64, query_prefix="query: "
    )
    await made.start()
    yield made
    await made.close()


@pytest.fixture(scope="module", params=["minilm", "gguf"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.mark.slow
async def test_vectors_are_normalised_float32_in_order(encoder: Encoder) -> None:
    texts = [t for t in TEXTS if t]
    made = await encoder.encode(texts, query=False)
    assert made.vectors.shape == (len(texts), encoder.dim)
    assert made.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([(await encoder.encode([text], query=False)).vectors for text in texts])
    assert (made.vectors * alone).sum(axis=1).min() > 0.999
    assert list(made.tokens) == [encoder.count(text) for text in texts]


@pytest.mark.slow
async def test_nothing_gives_nothing(encoder: Encoder) -> None:
    made = await encoder.encode([], query=True)
    assert (made.vectors.shape, made.tokens.shape, made.truncated) == ((0, encoder.dim), (0,), ())


@pytest.mark.slow
async def test_long_texts_are_cut_and_say_so(encoder: Encoder) -> None:
    word = "harbour "
    long = word * 1000
    cut = await encoder.encode([long, word, long + "and a different end"], query=False)
    assert cut.truncated == (True, False, True)
    assert cut.tokens[0] == encoder.count(long) >= 1000
    assert cut.vectors[0] @ cut.vectors[2] > 0.9999


@pytest.mark.slow
async def test_int8_is_within_099_of_fp32(minilm: OnnxEncoder, tmp_path: Path) -> None:
    reference = fp32.MiniLm(resolve(weights.MINILM_FP32, tmp_path), resolve(weights.MINILM_TOKENIZER, tmp_path))
    long = " ".join(TEXTS) * 5
    made = (await minilm.encode([*TEXTS, long], query=False)).vectors
    cosine = (made * reference.encode([*TEXTS, long], max_tokens=256)).sum(axis=1)
    assert cosine.min() >= 0.99, cosine


@pytest.mark.slow
async def test_meaning(minilm: OnnxEncoder) -> None:
    v = (await minilm.encode(TEXTS, query=False)).vectors
    assert v[0] @ v[1] > 0.7
    assert v[0] @ v[2] < 0.2


@pytest.mark.slow
async def test_the_window_counts_special_tokens(minilm: OnnxEncoder) -> None:
    fits = "harbour " * 254
    made = await minilm.encode([fits, fits + "harbour"], query=False)
    assert list(made.tokens) == [254, 255]
    assert made.truncated == (False, True)


@pytest.mark.slow
async def test_a_prefix_is_put_before_queries_only(gguf: GgufEncoder) -> None:
    plain, asked, by_hand = (
        await gguf.encode(["the sea"], query=False),
        await gguf.encode(["the sea"], query=True),
        await gguf.encode(["query: the sea"], query=False),
    )
    np.testing.assert_allclose(asked.vectors, by_hand.vectors, atol=1e-5)
    assert plain.vectors[0] @ asked.vectors[0] < 0.999
    assert asked.tokens[0] > plain.tokens[0]


@pytest.mark.slow
async def test_a_text_without_tokens_is_refused(gguf: GgufEncoder) -> None:
    with pytest.raises(Reject, match="no tokens in ''"):
        await gguf.encode(["a", ""], query=False)


@pytest.mark.slow
async def test_a_gguf_is_parsed_in_a_process_of_its_own_and_that_is_replaced(gguf: GgufEncoder) -> None:
    before, first = await gguf.encode(["the sea"], query=False), gguf.pid
    assert first not in (0, os.getpid())
    os.kill(first, signal.SIGKILL)
    after = before
    while gguf.pid == first:
        with contextlib.suppress(Retry):  # asked before its death was noticed
            after = await gguf.encode(["the sea"], query=False)
    assert np.array_equal(before.vectors, after.vectors)


async def test_a_gguf_that_is_none_stops(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model")
    encoder = GgufEncoder(ModelFile(id="bad", path=str(bad), sha256="unchecked"), cache_dir=tmp_path)
    with pytest.raises(Stop, match="begins with"):
        await encoder.start()
    await encoder.close()


async def test_files_that_are_no_model_stop(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    encoder = OnnxEncoder(
        ModelFile(id="bad", path=str(bad), sha256="unchecked"), weights.MINILM_TOKENIZER, cache_dir=tmp_path
    )
    with pytest.warns(UserWarning, match="unchecked"), pytest.raises(Stop, match="encoder bad"):
        await encoder.start()


@given(lengths=st.lists(st.integers(1, 300), max_size=60), most=st.integers(1, 16), tokens=st.integers(1, 600))
def test_batches_hold_every_text_once_within_the_limits(lengths: list[int], most: int, tokens: int) -> None:
    groups = batches(lengths, most, tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) <= most
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens


def test_pooling_ignores_padding() -> None:
    hidden = np.array([[[1, 0], [0, 1], [9, 9]]], np.float32)
    mask = np.array([[1, 1, 0]])
    np.testing.assert_allclose(pool(hidden, mask, "mean"), [[2**-0.5, 2**-0.5]], atol=1e-6)
    np.testing.assert_allclose(pool(hidden, mask, "cls"), [[1, 0]])
