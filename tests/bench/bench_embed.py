"""embed against its peers on the same texts in the same run: how fast, and how near to fp32.

Peers: a plain torch fp32 forward of the same model's safetensors, and sentence-transformers where it is installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from operators.embed import Embed
from operators.engines.models import resolve

HERE = Path(__file__).parent
QUERY = ["What did the committee decide about the new harbour bridge, and when will it open?"]
TEXTS = [
    " ".join(
        f"Sentence {i} of paragraph {n} tells how the harbour of town {n * 7 + i} was rebuilt."
        for i in range(1 + n % 6)
    )
    for n in range(24)
]
CASES = {"1 query of 19 tokens": QUERY, "24 texts of 16 to 110 tokens": TEXTS}


def load(path: Path) -> ModuleType:
    """A helper file of the tests; tests/ is not a package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peers(cache: Path, weights: ModuleType) -> dict[str, Callable[[list[str]], Any]]:
    """What ours is compared with; each takes texts and gives float32[n, 384]."""
    torch_model = load(HERE.parent / "operators/engines/minilm_fp32.py").MiniLm(
        resolve(weights.MINILM_FP32, cache), resolve(weights.MINILM_TOKENIZER, cache)
    )
    found: dict[str, Callable[[list[str]], Any]] = {"torch fp32": lambda texts: torch_model.encode(texts, 256)}
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        st = SentenceTransformer(str(resolve(weights.MINILM_FP32, cache).parent), device="cpu")
        found["sentence-transformers"] = lambda texts: st.encode(texts, normalize_embeddings=True)
    else:
        print("sentence-transformers is not installed: that peer is skipped")
    return found


async def measure(rounds: int) -> dict[str, Any]:
    """Seconds of ours and of every peer in ``rounds`` interleaved rounds, and cosines to fp32."""
    weights = load(HERE.parent / "operators/engines/weights.py")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        embed = Embed(Embed.Config(model=weights.MINILM, tokenizer=weights.MINILM_TOKENIZER, threads=1), cache)
        await embed.start()
        others = peers(cache, weights)
        report: dict[str, Any] = {}
        for case, texts in CASES.items():
            times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
            for _ in range(rounds + 1):
                began = time.perf_counter()
                ours = (await embed.texts(texts, query=False)).vectors
                times["ours"].append(time.perf_counter() - began)
                for name, encode in others.items():
                    began = time.perf_counter()
                    theirs = encode(texts)
                    times[name].append(time.perf_counter() - began)
                    if name == "torch fp32":
                        cosine = (ours * theirs).sum(axis=1)
            warm = {name: np.array(seconds[1:]) for name, seconds in times.items()}
            report[case] = {
                "ours_ms": 1e3 * statistics.median(warm["ours"]),
                "cosine_to_fp32_min": float(cosine.min()),
                "speedup": {
                    name: np.quantile(warm[name] / warm["ours"], [0.5, 0.05, 0.95]).round(3).tolist() for name in others
                },
            }
        await embed.close()
        return report


def main() -> None:
    """Print the table and, as the last line, JSON. ``bench_embed.py [rounds]``."""
    report = asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
    for case, row in report.items():
        print(f"{case}: ours {row['ours_ms']:.1f} ms, cosine to fp32 at least {row['cosine_to_fp32_min']:.4f}")
        for peer, (median, low, high) in row["speedup"].items():
            print(f"    {median:.2f} times as fast as {peer} (5 % to 95 %: {low:.2f} to {high:.2f})")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
