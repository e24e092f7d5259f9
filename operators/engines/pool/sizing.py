"""What a tier's model will take in memory, before it is loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

from operators.engines.files.models import open_model
from operators.engines.gguf.memory import estimate
from operators.engines.llama.llama_cpp import STEP
from operators.engines.llama.llama_server import BATCH
from operators.engines.vllm.config import VllmConfig
from operators.tiers import ModelFile, Tier

PROCESS_BYTES = 80 << 20
"""Resident bytes of an engine's process without its model: Python, numpy and llama.cpp's code (measured)."""


async def expected(tier: Tier, cache_dir: Path) -> int:
    """Bytes of the weights, the KV memory, the buffers and the process that holds them.

    Raises ``Stop`` if the file is missing or not what the profile says. The first time it reads the whole file, for
    its checksum, in a thread.
    """
    return await asyncio.to_thread(_expected, tier, cache_dir)


def _expected(tier: Tier, cache_dir: Path) -> int:
    if tier.vllm is not None:
        return _of_vllm(tier.model, tier.vllm)
    with open_model(tier.model, cache_dir) as opened:
        header, size = opened.header, opened.bytes
    if header is None:
        return PROCESS_BYTES + size
    server = tier.engine == "llama_server"
    parallel, batch = (tier.parallel, BATCH) if server else (1, STEP)
    return PROCESS_BYTES + estimate(header, tier.context_tokens, parallel, batch_tokens=batch)


def _of_vllm(model: ModelFile, config: VllmConfig) -> int:
    """Nothing for a server that somebody else runs. Of ours the weights, on their way to the GPU, and keys and values
    as far as they are set."""
    if config.url:
        return 0
    folder = Path(model.path).expanduser().parent
    return config.kv_bytes + sum(file.stat().st_size for file in folder.glob("*.safetensors"))
