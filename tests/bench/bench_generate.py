"""generate against the bare engine library on the same GGUF and prompt: what share of its tokens per second is left."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from operators.engines.files.models import resolve
from operators.generate import Generate, GenerateInput
from operators.records import Context, Message, Query, Route, Sampling
from operators.tiers import Tier

HERE = Path(__file__).parent
TOKENS = 64
WINDOW = 1024
ENGINES = ("llama_server", "llama_cpp")


def weights() -> ModuleType:
    """The tests' model files; tests/ is not a package, so they are loaded by path."""
    spec = importlib.util.spec_from_file_location("weights", HERE.parent / "operators/engines/weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ask(engine: str, text: str) -> GenerateInput:
    """A question for ``engine``'s tier that is answered greedily with many tokens."""
    query = Query(
        interaction_id="i",
        tenant="t",
        session="s",
        text=text,
        messages=(Message(role="user", content=text),),
        sampling=Sampling(max_tokens=TOKENS, temperature=0.0),
        created_at=0.0,
    )
    route = Route(
        tier=engine,
        context_tokens=512,
        temperature=0.0,
        top_p=1.0,
        confidence=1.0,
        probabilities={},
        propensity=1.0,
        propensities={},
        checkpoint="none",
        reason="caller",
        hidden=np.zeros(64, np.float32),
        features=np.zeros(128, np.float32),
    )
    return GenerateInput(query=query, route=route, context=Context(passages=(), tokens=0, ranking="none"))


def bare(path: Path) -> dict[str, Callable[[list[int]], float]]:
    """The two libraries alone: each takes a prompt and gives tokens per second, streaming as ours does."""
    import llama_cpp
    import xllamacpp

    llama = llama_cpp.Llama(str(path), n_ctx=WINDOW, n_batch=128, n_threads=1, n_threads_batch=1, verbose=False)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = WINDOW, 1, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def with_llama_cpp(prompt: list[int]) -> float:
        began, count = time.perf_counter(), 0
        for token in llama.generate(prompt, temp=0.0):
            count += 1
            if count == TOKENS or token == llama.token_eos():
                break
            llama.detokenize([token])
        return count / (time.perf_counter() - began)

    def with_xllamacpp(prompt: list[int]) -> float:
        began, last = time.perf_counter(), {}

        def on_chunk(chunk: dict[str, Any]) -> bool:
            last.update(chunk)
            return False

        request = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0.0, "stream": True}
        server.handle_completions(request, on_chunk)
        return float(last["usage"]["completion_tokens"]) / (time.perf_counter() - began)

    return {"llama_server": with_xllamacpp, "llama_cpp": with_llama_cpp}


async def measure(rounds: int) -> dict[str, Any]:
    """Tokens per second of ours and the bare library, alternating, every round with a prompt of its own."""
    model = weights().SMOLLM2
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        common: dict[str, Any] = {
            "model": model,
            "template": "smollm2",
            "context_tokens": WINDOW,
            "threads": 1,
            "parallel": 1,
        }
        tiers = [Tier(name=engine, slot=i, engine=engine, **common) for i, engine in enumerate(ENGINES)]
        stage = Generate(Generate.Config(), tiers, cache)
        await stage.start()
        alone = bare(resolve(model, cache))
        report: dict[str, Any] = {}
        for engine in ENGINES:
            ours, theirs = [], []
            for i in range(rounds + 1):
                one = ask(engine, f"Tell a long story about the {i + 2} ships in the harbour of a small town.")
                prompt = list(stage._prompt(engine, one, TOKENS).tokens)
                if i % 2:  # who goes second finds the caches as the other left them, so they take turns
                    theirs.append(await asyncio.to_thread(alone[engine], prompt))
                began = time.perf_counter()
                [answer] = await stage([one])
                ours.append(answer.completion_tokens / (time.perf_counter() - began))
                if not i % 2:
                    theirs.append(await asyncio.to_thread(alone[engine], prompt))
            ratio = np.array(ours[1:]) / np.array(theirs[1:])
            drawn = np.random.default_rng(0).choice(ratio, (2000, len(ratio)))
            report[engine] = {
                "ours_tokens_per_s": float(np.median(ours[1:])),
                "bare_tokens_per_s": float(np.median(theirs[1:])),
                "ratio": float(np.median(ratio)),
                "interval": np.quantile(np.median(drawn, axis=1), [0.025, 0.975]).round(3).tolist(),
            }
        await stage.close()
        return report


def main() -> None:
    """Print the table and, as the last line, JSON. ``bench_generate.py [rounds]``."""
    report = asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
    for engine, row in report.items():
        low, high = row["interval"]
        speeds = f"ours {row['ours_tokens_per_s']:.1f}, bare {row['bare_tokens_per_s']:.1f} tokens/s"
        print(f"{engine}: {speeds}, ratio {row['ratio']:.3f} (95 % interval of the median {low:.3f} to {high:.3f})")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
