"""How fast this machine loads and runs the models of a profile, through the same port as the service."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from operators.engines.make import EngineName, make_engine
from operators.engines.native import cores
from operators.engines.ports import Engine, Generated, Generation
from operators.errors import RuvError
from operators.tiers import Tier

PROMPT_TOKENS, NEW_TOKENS = 256, 64
TEXT = "The harbour of a small town by the sea. In the morning the boats come home, and the market opens at eight. "
BUSY = 0.25
"""Work a core that waits already, from which the figures tell of the neighbours too."""


async def bench(
    tiers: Sequence[Tier], cache_dir: Path, rounds: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each tier and each engine: ``load_s``, ``first_token_s``, ``prompt_per_s`` and ``generated_per_s``
    (tokens per second), medians over ``rounds`` after one that isn't counted; ``memory_bytes``; ``error`` where the
    engine can't run the tier.
    """
    rows = []
    for tier in tiers:
        kinds: tuple[EngineName, ...] = ("llama_server", "llama_cpp")
        for name in kinds if tier.engine in kinds else (tier.engine,):
            progress(f"{tier.name} in {name}")
            row: dict[str, Any] = {"tier": tier.name, "model": tier.model.id, "engine": name, "error": ""}
            try:
                row |= await _measured(tier, name, cache_dir, rounds)
            except RuvError as error:
                row["error"] = str(error)
            rows.append(row)
    return rows


def machine() -> dict[str, Any]:
    """``cores`` this process may use, ``load`` (mean of what ran or waited in the last minute), and ``busy``."""
    load, count = os.getloadavg()[0], cores()
    return {"cores": count, "load": round(load, 2), "busy": load / count > BUSY}


async def _measured(tier: Tier, name: EngineName, cache_dir: Path, rounds: int) -> dict[str, Any]:
    engine = make_engine(
        name,
        tier.model,
        cache_dir,
        context_tokens=tier.context_tokens,
        parallel=tier.parallel,
        threads=tier.threads,
        tokenizer=tier.tokenizer,
        vllm=tier.vllm,
    )
    try:
        began = time.perf_counter()
        await engine.start()
        row: dict[str, Any] = {"load_s": time.perf_counter() - began}
        seen = [await _round(engine, number) for number in range(rounds + 1)][1:]
        for key in ("first_token_s", "prompt_per_s", "generated_per_s", "prompt_tokens", "generated_tokens"):
            found = [one[key] for one in seen if one[key] is not None]
            row[key] = statistics.median(found) if found else None
        return row | {"memory_bytes": engine.memory_bytes()}
    finally:
        await engine.close()


async def _round(engine: Engine, number: int) -> dict[str, Any]:
    size = min(PROMPT_TOKENS, engine.context_tokens - NEW_TOKENS)
    # Another beginning each time: nothing of an earlier prompt's state can be used again.
    words = engine.tokenize(f"{number} {TEXT}" + TEXT * (size // 8))
    prompt = (*engine.bos(), *words)[:size]
    request = Generation(prompt=prompt, max_tokens=NEW_TOKENS, temperature=0.0, top_p=1.0)
    first, last = None, Generated(text="")
    began = time.perf_counter()
    async with aclosing(cast("AsyncGenerator[Generated, None]", engine.generate(request))) as pieces:
        async for last in pieces:
            if first is None and last.text:
                first = time.perf_counter()
    end = time.perf_counter()
    first = end if first is None else first
    more = last.completion_tokens - 1
    return {
        "first_token_s": first - began,
        "prompt_per_s": (last.prompt_tokens - last.cached_tokens) / (first - began),
        "generated_per_s": more / (end - first) if more > 0 and end > first else None,
        "prompt_tokens": last.prompt_tokens,
        "generated_tokens": last.completion_tokens,
    }
