"""LFM2's short convolutions run in both engines: its real weights are in no package, so a tiny random one stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from operators.engines.make import make_engine
from operators.engines.ports import Engine
from operators.tiers import ModelFile
from tests.operators.engines import kit
from tests.operators.engines import tiny_gguf as tiny

PROMPT = "The capital of the sea is in a"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    found: ModelFile = tiny.write(gguf, tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return found


def engine(kind: Any, model: ModelFile, cache: Path) -> Engine:
    return make_engine(kind, model, cache, context_tokens=256, parallel=2, threads=1)


@pytest.mark.parametrize("kind", ["llama_cpp", "llama_server"])
async def test_an_engine_runs_it(kind: str, model: ModelFile, tmp_path: Path) -> None:
    made = engine(kind, model, tmp_path)
    await made.start()
    try:
        assert made.bos() == (1,)
        assert made.tokenize(" the") == [tiny.vocabulary().index("Ġthe")]
        await kit.check_control_tokens_only_when_asked(made, "<|im_end|>")
        await kit.check_max_tokens_1(made)
        await kit.check_concurrent_requests_get_their_own_answers(made)
        first = await kit.text_of(made, kit.request(made, PROMPT, max_tokens=40))
        assert len(first) > 10
        # Again after another prompt, and after its own beginning: no state of the convolutions is left over.
        await kit.collect(made, kit.request(made, "def main():"))
        assert await kit.text_of(made, kit.request(made, PROMPT, max_tokens=40)) == first
        await kit.collect(made, kit.request(made, PROMPT[:12]))
        assert await kit.text_of(made, kit.request(made, PROMPT, max_tokens=40)) == first
    finally:
        await made.close()


async def test_the_engines_agree(model: ModelFile, tmp_path: Path) -> None:
    scores = []
    for kind in ("llama_cpp", "llama_server"):
        made = engine(kind, model, tmp_path)
        await made.start()
        try:
            choices = list("abcdefgh0123")
            scores.append(await made.score(kit.request(made, PROMPT).prompt, choices))
        finally:
            await made.close()
    np.testing.assert_allclose(scores[0], scores[1], atol=0.02)
    assert np.ptp(scores[0]) > 1, "the model has no opinion, so agreeing proves nothing"


def test_the_same_seed_makes_the_same_file(model: ModelFile, tmp_path: Path) -> None:
    assert tiny.write(gguf, tmp_path / "again.gguf").sha256 == model.sha256
    assert tiny.write(gguf, tmp_path / "other.gguf", seed=1).sha256 != model.sha256
