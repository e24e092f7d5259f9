"""An engine's process may be killed, frozen or led astray: ours says so and goes on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gguf
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.engines.child import base, frames
from operators.engines.child.frames import Kind
from operators.engines.make import make_engine
from operators.errors import Reject, Retry, Skip, Stop
from operators.tiers import ModelFile
from tests.operators.engines import kit, weights
from tests.operators.engines import tiny_gguf as tiny

PROMPT = "The capital of the sea is in a"
MUTATIONS = 500 if os.environ.get("RUVLLM_TEST_FAULTS") == "all" else 8


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    found: ModelFile = tiny.write(gguf, tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return found


def make(kind: Any, model: ModelFile, cache: Path, **options: Any) -> Any:
    return make_engine(kind, model, cache, **({"context_tokens": 1024, "parallel": 2, "threads": 1} | options))


@pytest.fixture(params=["llama_cpp", "llama_server"])
async def engine(request: pytest.FixtureRequest, model: ModelFile, tmp_path: Path) -> AsyncIterator[Any]:
    made = make(request.param, model, tmp_path)
    await made.start()
    yield made
    await made.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama_cpp", "llama_server"])
async def test_a_killed_process_ends_its_streams_and_no_others(kind: str, model: ModelFile, tmp_path: Path) -> None:
    # A real model: the tiny one's answer would be over before the kill.
    engine, other = make(kind, weights.SMOLLM2, tmp_path), make("llama_server", model, tmp_path)
    await engine.start()
    await other.start()
    try:
        async with (
            aclosing(engine.generate(kit.request(engine, max_tokens=900))) as stream,
            aclosing(other.generate(kit.request(other, PROMPT, max_tokens=900))) as unharmed,
        ):
            await anext(stream)
            await anext(unharmed)
            psutil.Process(engine.pid).kill()
            with pytest.raises(Retry, match="SIGKILL"):
                async for _ in stream:
                    pass
            assert [piece.finish_reason async for piece in unharmed][-1] in ("length", "stop")
        for fails in (engine.check(), engine.score([1, 2], ["a"]), kit.collect(engine, kit.request(other, PROMPT))):
            with pytest.raises(Retry, match="SIGKILL"):
                await fails
        with pytest.raises(Retry):
            engine.tokenize("a")
        assert (engine.queue(), engine.memory_bytes()) == (0, 0)
    finally:
        await engine.close()
        await other.close()


def freeze(child: int) -> None:
    """Stop it, and see that it has stopped."""
    os.kill(child, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])


async def test_a_frozen_process_is_given_up(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine._words.settimeout(0.05)
    freeze(engine.pid)
    with pytest.raises(Retry, match="no word"):
        engine.tokenize("a")
    monkeypatch.setattr(base, "END_S", 0.05)
    await engine.close()
    assert not psutil.pid_exists(engine.pid)


async def test_closing_leaves_no_process_and_no_file(engine: Any, tmp_path: Path) -> None:
    assert engine.memory_bytes() > 10_000_000
    assert psutil.Process(engine.pid).parent() == psutil.Process()
    await engine.close()
    assert not psutil.pid_exists(engine.pid)
    assert {path.name for path in tmp_path.rglob("*") if path.is_dir()} <= {"states"}


async def test_words_are_what_the_engine_itself_makes_of_them(engine: Any) -> None:
    assert engine.tokenize(" the") == [tiny.vocabulary().index("Ġthe")]
    assert engine.tokenize("\ud800") == engine.tokenize("?")
    texts = [f"the {i} in a" for i in range(20)]
    together = await asyncio.gather(*(asyncio.to_thread(engine.tokenize, text) for text in texts))
    assert together == [engine.tokenize(text) for text in texts]


PARENT = """
import asyncio, sys
from pathlib import Path
from operators.engines.make import make_engine
from operators.tiers import ModelFile

async def main():
    model = ModelFile.model_validate_json(sys.argv[1])
    engine = make_engine("llama_server", model, Path(sys.argv[2]), context_tokens=256, threads=1, states_bytes=1000000)
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_ends_with_a_killed_parent(model: ModelFile, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, model.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    assert psutil.wait_procs([child], 10.0)[1] == []
    assert [path for path in tmp_path.rglob("*") if path.name.endswith((".sock", ".state"))] == []


@pytest.fixture
def dead() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


async def test_what_a_killed_parent_and_its_engine_left_is_swept(model: ModelFile, tmp_path: Path, dead: int) -> None:
    (left := tmp_path / "states" / f"{dead}-x").mkdir(parents=True)
    (kept := tmp_path / "states" / f"{os.getpid()}-x").mkdir()
    made = make("llama_server", model, tmp_path)
    await made.start()
    await made.close()
    assert (left.exists(), kept.exists()) == (False, True)


@pytest.mark.timeout(3600)
async def test_no_mutated_file_harms_us(model: ModelFile, tmp_path: Path) -> None:
    """Whatever llama.cpp makes of it, an abort included, the parent gets a ``Stop``, or an engine that answers."""
    whole, draw = Path(model.path).read_bytes(), random.Random(7)
    bad, ended = tmp_path / "bad.gguf", set()
    for i in range(MUTATIONS):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 4, 32))):
            data[draw.randrange(len(data) if i % 2 else 6000)] = draw.randrange(256)
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        bad.write_bytes(data)
        made = make(
            ("llama_cpp", "llama_server")[i % 2], ModelFile(id="bad", path=str(bad), sha256="unchecked"), tmp_path
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is unchecked
                await made.start()
            async with asyncio.timeout(60):
                await kit.collect(made, kit.request(made, PROMPT, max_tokens=4))
            ended.add("served")
        except Stop as error:
            ended.add("process" if "ended its process" in error.got else "refused")
        except Retry as error:
            ended.add(f"died: {error.got[:40]}")
        finally:
            await made.close()
    assert "refused" in ended, ended


@given(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=300))
def test_frames_arrive_as_they_were_sent(kind: Kind, call: int, body: bytes) -> None:
    async def read() -> list[frames.Frame | None]:
        reader = asyncio.StreamReader()
        data = frames.pack(kind, call, body) * 2
        reader.feed_data(data[:-1])
        reader.feed_eof()
        return [await frames.read(reader), await frames.read(reader)]

    whole, cut = asyncio.run(read())
    assert whole == (kind, call, body)
    assert cut is None


@pytest.mark.parametrize("data", [b"\xff" * 9, frames.HEAD.pack(3, 99, 1) + b"abc"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        await frames.read(reader)

    with pytest.raises(ValueError):  # noqa: PT011 - a length or a kind: two messages
        asyncio.run(read())


@pytest.mark.parametrize(
    "error",
    [Retry("a", "b", "c", 2.5, 429), Reject("a", "b", "c", 404, "p", "code"), Stop("a", "b", "c"), Skip("a", "b", "c")],
)
def test_errors_cross_whole(error: Any) -> None:
    found = frames.load_error(frames.dump_error(error, "x"))
    assert (type(found), found.args) == (type(error), error.args)


@pytest.mark.parametrize("body", [b"3", b"[]", b'["Exit", "a"]', b'["Stop", "only one"]', b"{", b'{"a": 1}'])
def test_what_is_no_error_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - from json, or ours
        frames.load_error(body)
