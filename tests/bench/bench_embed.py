"""embed against its peers on the same texts in the same run: how fast, and how near to fp32.

Peers: a plain torch fp32 forward of the same model's safetensors; where they are installed, sentence-transformers, and
ExecuTorch in fp32 and int8 (the export takes one to two minutes).
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
from operators.engines.files.models import resolve

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
    files = resolve(weights.MINILM_FP32, cache), resolve(weights.MINILM_TOKENIZER, cache)
    torch_model = load(HERE.parent / "operators/engines/minilm_fp32.py").MiniLm(*files)
    found: dict[str, Callable[[list[str]], Any]] = {"torch fp32": lambda texts: torch_model.encode(texts, 256)}
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        st = SentenceTransformer(str(files[0].parent), device="cpu")
        found["sentence-transformers"] = lambda texts: st.encode(texts, normalize_embeddings=True)
    else:
        print("sentence-transformers is not installed: that peer is skipped")
    if importlib.util.find_spec("executorch"):
        for name, int8 in (("executorch fp32", False), ("executorch int8", True)):
            model = load(HERE / "executorch_encoder.py").ExecutorchMiniLm(*files, cache, int8=int8)
            size = model.path.stat().st_size / 1e6
            print(f"{name}: exported in {model.export_s:.0f} s to {size:.1f} MB, loaded in {model.load_s:.3f} s")
            found[name] = model.encode
    else:
        print("executorch is not installed: that peer is skipped")
    return found


async def measure(rounds: int) -> dict[str, Any]:
    """Milliseconds of ours, ratios of every peer to it in ``rounds`` interleaved rounds, and cosines to torch fp32."""
    weights = load(HERE.parent / "operators/engines/weights.py")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        embed = Embed(Embed.Config(model=weights.MINILM, tokenizer=weights.MINILM_TOKENIZER, threads=1), cache)
        await embed.start()
        others = peers(cache, weights)
        report: dict[str, Any] = {}
        for case, texts in CASES.items():
            times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
            vectors: dict[str, Any] = {}
            for _ in range(rounds + 1):
                began = time.perf_counter()
                vectors["ours"] = (await embed.texts(texts, query=False)).vectors
                times["ours"].append(time.perf_counter() - began)
                for name, encode in others.items():
                    began = time.perf_counter()
                    vectors[name] = encode(texts)
                    times[name].append(time.perf_counter() - began)
            cosines = {name: (made * vectors["torch fp32"]).sum(axis=1) for name, made in vectors.items()}
            warm = {name: np.array(seconds[1:]) for name, seconds in times.items()}
            report[case] = {
                "ours_ms": 1e3 * statistics.median(warm["ours"]),
                "cosine_to_fp32": {name: [float(c.min()), float(c.mean())] for name, c in cosines.items()},
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
        lowest, mean = row["cosine_to_fp32"]["ours"]
        print(f"{case}: ours {row['ours_ms']:.1f} ms, cosine to torch fp32 at least {lowest:.4f}, mean {mean:.4f}")
        for peer, (median, low, high) in row["speedup"].items():
            lowest, mean = row["cosine_to_fp32"][peer]
            near = f"its cosine at least {lowest:.4f}, mean {mean:.4f}"
            print(f"    {median:.2f} times as fast as {peer} (5 % to 95 %: {low:.2f} to {high:.2f}; {near})")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
