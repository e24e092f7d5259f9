"""The one place that knows which class runs which engine name of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from operators.engines.ports import Engine
from operators.tiers import ModelFile

EngineName = Literal["llama_server", "llama_cpp"]


def make_engine(
    name: EngineName, model: ModelFile, cache_dir: Path, *, context_tokens: int, parallel: int = 1, threads: int = 0
) -> Engine:
    """The engine, not started. ``parallel`` counts requests at a time; ``llama_cpp`` serves one whatever it says."""
    if name == "llama_cpp":
        from operators.engines.llama_cpp import LlamaCpp

        return LlamaCpp(model, cache_dir=cache_dir, context_tokens=context_tokens, threads=threads)
    from operators.engines.llama_server import LlamaServer

    return LlamaServer(model, cache_dir=cache_dir, context_tokens=context_tokens, parallel=parallel, threads=threads)
