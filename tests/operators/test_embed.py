"""embed: queries and documents in one space, through one adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.embed import Embed, adapt, projection
from operators.errors import Stop
from operators.records import Message, Query
from tests.operators.engines import weights

MINILM = {"model": weights.MINILM, "tokenizer": weights.MINILM_TOKENIZER, "threads": 1}


def query(text: str) -> Query:
    message = Message(role="user", content=text)
    return Query(interaction_id="i", tenant="t", session="s", text=text, messages=(message,), created_at=0.0)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def embed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Embed]:
    made = Embed(Embed.Config(**MINILM), tmp_path_factory.mktemp("cache"))
    await made.start()
    yield made
    await made.close()


@pytest.mark.slow
async def test_queries_and_documents_share_a_space(embed: Embed) -> None:
    [asked] = await embed([query("When does the library open?")])
    assert (asked.vector.shape, asked.vector.dtype) == ((384,), np.float32)
    assert (asked.encoder, asked.truncated, asked.tokens) == ("all-MiniLM-L6-v2-int8", False, 6)
    near = "The library opens at nine."
    documents = await embed.texts([near, "Bread needs flour and water."], query=False)
    assert asked.vector @ documents.vectors[0] > 0.5 > asked.vector @ documents.vectors[1]
    assert documents.tokens[0] == embed.count_tokens(near)
    assert embed.stats.records == 1


@pytest.mark.slow
async def test_a_batch_keeps_its_order_and_lone_surrogates_do_no_harm(embed: Embed) -> None:
    texts = ["short", "a much longer text about harbours " * 20, "", "\ud800 broken", "short"]
    made = await embed([query(text) for text in texts])
    assert len(made) == 5
    assert made[0].vector @ made[4].vector > 0.9999
    assert made[0].vector @ made[1].vector < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("dim", [128, 768])
async def test_output_dim_goes_through_the_adapter(embed: Embed, tmp_path: Path, dim: int) -> None:
    other = Embed(Embed.Config(**MINILM, output_dim=dim), tmp_path)
    await other.start()
    texts = ["the sea is calm", "the ocean is quiet", "tax forms are due in May"]
    made, plain = await other.texts(texts, query=False), await embed.texts(texts, query=False)
    await other.close()
    assert made.vectors.shape == (3, dim)
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-5)
    a, b = made.vectors @ made.vectors.T, plain.vectors @ plain.vectors.T
    assert (a[0, 1] > a[0, 2]) == (b[0, 1] > b[0, 2])
    assert np.abs(a - b).max() < 0.25


async def test_use_before_start_and_missing_tokenizer_stop(tmp_path: Path) -> None:
    with pytest.raises(Stop, match=r"await start\(\) first"):
        await Embed(Embed.Config(**MINILM), tmp_path).texts(["x"], query=True)
    with pytest.raises(Stop, match=r"tokenizer\.json"):
        await Embed(Embed.Config(model=weights.MINILM), tmp_path).start()


@given(a=st.integers(2, 40), b=st.integers(2, 40), seed=st.integers(0, 100))
def test_the_projection_is_orthonormal_and_fixed_by_its_seed(a: int, b: int, seed: int) -> None:
    matrix = projection(a, b, seed)
    assert matrix.shape == (a, b)
    gram = matrix.T @ matrix if a >= b else matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(min(a, b)), atol=1e-5)
    np.testing.assert_array_equal(matrix, projection(a, b, seed))
    assert not np.allclose(matrix, projection(a, b, seed + 1))


def test_the_adapter_is_layer_norm_and_l2() -> None:
    made = adapt(np.array([[1.0, 2.0, 3.0]], np.float32), np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(made, [[-(2**-0.5), 0, 2**-0.5]], atol=1e-6)
