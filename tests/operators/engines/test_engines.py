"""Both engines pass the kit on the real SmolLM2-135M, and agree with each other."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.engines.llama.slotted import SlottedProcess
from operators.engines.make import make_engine
from operators.engines.ports import Engine, Generation
from operators.engines.text import Pieces
from operators.errors import Retry, Stop
from operators.tiers import ModelFile
from tests.operators.engines import kit, weights

WINDOW = 256


def make(kind: Any, model: ModelFile, cache: Path) -> Any:
    return make_engine(kind, model, cache, context_tokens=WINDOW, threads=1, parallel=2)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["llama_cpp", "llama_server"])
async def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    made = make(request.param, weights.SMOLLM2, tmp_path_factory.mktemp("cache"))
    await made.start()
    yield made
    await made.close()


@pytest.mark.slow
@pytest.mark.parametrize("check", kit.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_kit(engine: Engine, check: Callable[[Engine], Awaitable[None]]) -> None:
    await check(engine)


@pytest.mark.slow
async def test_control_tokens(engine: Engine) -> None:
    await kit.check_control_tokens_only_when_asked(engine, "<|im_end|>")
    assert engine.model == weights.SMOLLM2.id
    assert 98_000_000 < engine.memory_bytes() < 300_000_000


@pytest.mark.slow
async def test_closing_the_stream_stops_the_work(engine: Any) -> None:
    await kit.check_closing_the_stream_stops_the_work(engine, engine.sampled)


@pytest.mark.slow
async def test_a_cancelled_task_stops_the_work(engine: Any) -> None:
    await kit.check_a_cancelled_task_stops_the_work(engine, engine.sampled)


@pytest.mark.slow
async def test_nothing_listens_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No TCP port, and a Unix socket in a directory that only its owner can enter."""
    made = make("llama_server", weights.SMOLLM2, tmp_path)
    await made.start()
    try:
        process = psutil.Process(made.pid)
        assert process.net_connections("inet") == []
        assert {c.laddr for c in process.net_connections("unix") if c.laddr} == {"door.sock"}
        [door] = tmp_path.rglob("door.sock")
        assert stat.S_IMODE(door.parent.stat().st_mode) == 0o700
        await kit.text_of(made, kit.request(made, max_tokens=2))
    finally:
        await made.close()
    assert not door.parent.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
async def test_engines_agree_on_probabilities(engine: Engine, tmp_path: Path) -> None:
    """Two builds of llama.cpp differ in their kernels, not in what they compute: a wrong softmax would show at once."""
    other = make("llama_cpp" if isinstance(engine, SlottedProcess) else "llama_server", weights.SMOLLM2, tmp_path)
    await other.start()
    try:
        prompt, choices = kit.request(engine).prompt, [" Paris", " London", " the", "1", "5", " zebra"]
        np.testing.assert_allclose(await other.score(prompt, choices), await engine.score(prompt, choices), atol=0.35)
    finally:
        await other.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama_cpp", "llama_server"])
async def test_closing_an_engine_ends_its_streams(kind: str, tmp_path: Path) -> None:
    made = make(kind, weights.SMOLLM2, tmp_path)
    await made.start()
    stream = made.generate(kit.request(made, max_tokens=200))
    assert (await anext(stream)).finish_reason is None
    await made.close()
    await made.close()
    with pytest.raises(Retry, match="closed"):
        async for _ in stream:
            pass
    with pytest.raises(Retry, match="closed"):
        await kit.collect(made, Generation(prompt=(1,), max_tokens=1, temperature=0.0, top_p=1.0))
    with pytest.raises(Retry, match="closed"):
        await made.check()


@pytest.mark.parametrize("kind", ["llama_cpp", "llama_server"])
async def test_a_file_that_is_no_gguf_stops(kind: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(Stop, match=r"bad\.gguf"):
        await make(kind, ModelFile(id="bad", path=str(bad), sha256="unchecked"), tmp_path).start()


@given(
    text=st.text(alphabet="ab😀é", max_size=30), stop=st.text(alphabet="ab😀", min_size=1, max_size=3), data=st.data()
)
def test_pieces_cut_any_text_at_any_byte(text: str, stop: str, data: st.DataObject) -> None:
    """However the bytes are split, the text up to the first stop string comes out, and nothing of it later."""
    raw, pieces, out = text.encode(), Pieces([stop, ""]), ""
    while raw and not pieces.stopped:
        n = data.draw(st.integers(1, len(raw)))
        out += pieces.feed(raw[:n])
        raw = raw[n:]
    out += pieces.rest()
    assert out == text.partition(stop)[0]
    assert pieces.stopped == (stop in text)


def test_pieces_drop_an_unfinished_character() -> None:
    pieces = Pieces([])
    assert pieces.feed("x😀".encode()[:-1]) == "x"
    assert pieces.rest() == ""
