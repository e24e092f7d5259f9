"""The one place that knows which class runs which engine name of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from operators.engines.files.models import OpenModel
from operators.engines.ports import Engine
from operators.engines.vllm.config import VllmConfig
from operators.errors import Stop
from operators.tiers import ModelFile

EngineName = Literal["llama_server", "llama_cpp", "executorch", "vllm"]


def make_engine(
    engine: EngineName,
    model: ModelFile,
    cache_dir: Path,
    *,
    context_tokens: int,
    parallel: int = 1,
    threads: int = 0,
    states_bytes: int = 0,
    tokenizer: ModelFile | None = None,
    vllm: VllmConfig | None = None,
) -> Engine:
    """The engine, not started, in a process of its own that will be locked in; ``vllm``'s is not.

    ``parallel`` counts requests at a time; ``llama_cpp`` and ``executorch`` serve one whatever it says.
    ``states_bytes`` of sessions' states are kept on disk beside those in the slots (``llama_server`` alone).
    ``tokenizer`` and ``vllm`` are what those engines need besides.
    """
    if engine == "vllm":
        from operators.engines.vllm.server import VllmServer

        if vllm is None:
            raise Stop(f"model {model.id}", "engine vllm without its settings", "set the tier's vllm")
        return VllmServer(
            model, vllm, cache_dir=cache_dir, context_tokens=context_tokens, parallel=parallel, threads=threads
        )
    if engine == "llama_server":
        from operators.engines.llama.slotted import SlottedProcess

        return SlottedProcess(
            model,
            cache_dir,
            context_tokens=context_tokens,
            parallel=parallel,
            threads=threads,
            states_bytes=states_bytes,
        )
    from operators.engines.child.engine import EngineProcess

    return EngineProcess(engine, model, cache_dir, context_tokens=context_tokens, threads=threads, tokenizer=tokenizer)


def make_here(
    engine: Literal["llama_server", "llama_cpp", "executorch"],
    model: OpenModel,
    states: Path,
    *,
    context_tokens: int,
    parallel: int = 1,
    threads: int = 0,
    tokenizer: OpenModel | None = None,
) -> Engine:
    """An engine in this process; ``states`` is a directory of its own, for ``llama_server``."""
    if engine == "llama_server":
        from operators.engines.llama.llama_server import LlamaServer

        return LlamaServer(model, states=states, context_tokens=context_tokens, parallel=parallel, threads=threads)
    if engine == "llama_cpp":
        from operators.engines.llama.llama_cpp import LlamaCpp

        return LlamaCpp(model, context_tokens=context_tokens, threads=threads)
    from operators.engines.executorch.llm import ExecuTorchLLM

    if tokenizer is None:
        raise Stop(f"model {model.id}", "a .pte without a tokenizer", "set the tier's tokenizer to its tokenizer.json")
    return ExecuTorchLLM(model, tokenizer, context_tokens=context_tokens, threads=threads)
