"""A vLLM server for tests: `RUVLLM_TEST_VLLM` is the Python of its environment, which `make test-vllm` makes."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import httpx

from operators.engines.files.models import resolve
from operators.engines.vllm.server import VllmServer
from operators.tiers import ModelFile

PYTHON = os.environ.get("RUVLLM_TEST_VLLM", "")
REASON = "make test-vllm installs vLLM and runs this"
WINDOW = 512
DEADLINE_S = 60.0


def beside(name: str) -> ModuleType:
    """A helper file of this folder; tests/ is not a package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hf_model, tiny, weights = map(beside, ("hf_model", "tiny_gguf", "weights"))


def model(name: str, home: Path) -> tuple[ModelFile, ModelFile]:
    """``smollm2`` or ``tiny-lfm2`` in vLLM's layout, and the GGUF it was made from."""
    wide = {"width": 128, "heads": 2}  # heads of 64, the smallest that vLLM's kernels for the CPU know
    source = weights.SMOLLM2 if name == "smollm2" else tiny.write(gguf, home / "tiny.gguf", **wide)
    return hf_model.convert(gguf, resolve(source, home), home / name, name), source


PLAIN = ("--dtype=float32", "--enforce-eager")
EXTRA = {
    # The smallest blocks on the CPU, where 128 tokens are the default: only whole blocks are found again.
    "smollm2": (*PLAIN, "--block-size=32"),
    # 0.32.0's own kernel for rotary positions is wrong for LFM2 on the CPU; PyTorch's operations are right.
    "tiny-lfm2": (*PLAIN, '--compilation-config={"custom_ops": ["none"]}'),
}


def config(**knobs: Any) -> VllmServer.Config:
    return VllmServer.Config(**({"python": PYTHON, "start_timeout_s": 900, "kv_bytes": 1 << 29} | knobs))


async def start(model: ModelFile, home: Path, **knobs: Any) -> VllmServer:
    """The engine on a server of its own."""
    knobs = {"extra_args": EXTRA[model.id]} | knobs
    made = VllmServer(model, config(**knobs), cache_dir=home, context_tokens=WINDOW, parallel=4)
    await made.start()
    return made


def alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def http(engine: VllmServer) -> httpx.Client:
    """A client beside the engine's."""
    assert engine._launched is not None
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(engine._launched.socket)), base_url="http://vllm")


def metric(engine: VllmServer, name: str) -> float:
    with http(engine) as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}{{"))


async def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, f"no {what}"
