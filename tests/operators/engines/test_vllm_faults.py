"""What vLLM's engine does when its server is killed, can't start, or belongs to somebody else: `make test-vllm`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from operators.engines.vllm.server import VllmServer
from operators.errors import Retry, Stop
from operators.tiers import ModelFile


def beside(name: str) -> ModuleType:
    """A helper file of this folder; tests/ is not a package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kit, rig = map(beside, ("kit", "vllm_rig"))
pytestmark = [pytest.mark.skipif(not rig.PYTHON, reason=rig.REASON), pytest.mark.timeout(1800)]
WINDOW = rig.WINDOW


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def model(home: Path) -> ModelFile:
    found: ModelFile = rig.model("tiny-lfm2", home)[0]
    return found


@pytest.fixture
async def engine(model: ModelFile, home: Path) -> AsyncIterator[VllmServer]:
    made = await rig.start(model, home)
    yield made
    await made.close()


@pytest.mark.parametrize("victim", ["server", "engine"])
async def test_a_killed_server_is_worth_another_try_elsewhere(engine: VllmServer, victim: str) -> None:
    assert engine._launched is not None
    pids = engine._launched.child.pids()
    names = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in pids}
    engines = [pid for pid, name in names.items() if "EngineCore" in name]
    servers = [pid for pid, name in names.items() if "api_server" in name and "leash" not in name]
    assert (len(engines), len(servers)) == (1, 1), names
    stream = engine.generate(kit.request(engine, "zzzz", max_tokens=WINDOW - 100))  # it writes on and on
    await anext(stream)
    os.kill(*(engines if victim == "engine" else servers), signal.SIGKILL)
    with pytest.raises(Retry) as caught:
        async for _ in stream:
            pass
    assert "try again" in str(caught.value)

    async def gone() -> bool:
        try:
            await engine.check()
        except Retry:
            return True
        return False

    end = time.monotonic() + rig.DEADLINE_S
    while not await gone():
        assert time.monotonic() < end
    assert engine.queue() == 0
    await engine.close()
    assert not any(map(rig.alive, pids))


async def test_a_server_by_url(engine: VllmServer, home: Path) -> None:
    """The child's server behind a TCP port, as if somebody else ran it."""
    assert engine._launched is not None
    behind = await asyncio.start_server(relay(engine._launched.socket), "127.0.0.1", 0)
    async with behind:
        url = f"http://127.0.0.1:{behind.sockets[0].getsockname()[1]}"
        words = str(Path(engine._file.path).with_name("tokenizer.json"))
        knobs = {"url": url, "tokenizer": words, "python": "", "extra_args": ()}
        nowhere = ModelFile(id="tiny-lfm2", path="none", sha256="unchecked")
        made = VllmServer(nowhere, rig.config(**knobs), cache_dir=home, context_tokens=WINDOW)
        await made.start()
        assert await kit.text_of(made, kit.request(made)) == await kit.text_of(engine, kit.request(engine))
        assert (made.bos(), made.memory_bytes()) == (engine.bos(), 0)
        await made.close()
        for wrong in ({"served_name": "LFM2-1.2B"}, {}):
            other = VllmServer(
                nowhere, rig.config(**knobs | wrong), cache_dir=home, context_tokens=WINDOW + (not wrong)
            )
            with pytest.raises(Stop, match="tiny-lfm2" if wrong else "512 tokens"):
                await other.start()


def relay(socket: Path) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_unix_connection(socket)
        await asyncio.gather(one_way(reader, outer), one_way(inner, writer), return_exceptions=True)

    return both


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"sleep": True}, "Sleep mode is not supported"),
        ({"extra_args": ("--dtype=nonsense",)}, "nonsense"),
        ({"extra_args": ("--dtype=float32", "--quantization=awq")}, "awq"),
    ],
)
async def test_a_start_that_fails_says_why(model: ModelFile, home: Path, knobs: dict[str, Any], told: str) -> None:
    with pytest.raises(Stop, match=told):
        await rig.start(model, home, **knobs)


async def test_a_kernel_that_is_wrong_is_found_at_the_start(model: ModelFile, home: Path) -> None:
    """The day this fails, vLLM has mended LFM2 on the CPU: take ``custom_ops`` out of ``vllm_rig``."""
    with pytest.raises(Stop, match="wrongly"):
        await rig.start(model, home, extra_args=rig.PLAIN)
