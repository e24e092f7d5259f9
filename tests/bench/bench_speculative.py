"""What xllamacpp's speculative decoding and 8-bit keys and values would give: tokens per second and whether the greedy
answer stays the same, beside the plain server, in turns. The service uses neither.

Speculation from the text itself (n-grams) needs no second model. A draft model must share the vocabulary of the large
one; of the models that are here none does, so the model drafts for itself: that shows that it works and how often a
draft is taken at best, not what a smaller draft model would gain.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from operators.engines.files.models import open_model, resolve
from tests.bench.engine_kit import Told, arguments, interval, shown, story, watched
from tests.operators.engines.weights import GEMMA, SMOLLM2

WINDOW = 2048
PLAIN, EIGHT = "plain", "8-bit keys and values"
NOTE = (
    "Note {}: the harbour of {} was rebuilt in the year 18{:02} by the farmers of the valley, and the lamp of its "
    "lighthouse was lit for the first time in the same winter. The keeper got {} letters."
)
LAYOUT = "<|im_start|>system\nBe exact.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def notes(number: int, count: int) -> str:
    """Some facts, each told once."""
    places = ("Ormsay", "Tamber", "Vell", "Quorl", "Brask", "Lind")
    return "\n".join(NOTE.format(i, places[(number + i) % 6], (7 * number + i) % 100, i) for i in range(count))


TASKS: dict[str, Callable[[int], str]] = {
    "a story": story,
    "repeating a text": lambda number: f"Repeat this text word for word, three times:\n{notes(number, 2)}",
    "a long prompt": lambda number: f"{notes(number, 12)}\nList all notes again, one a line, word for word.",
}
"""Nothing to copy, all to copy, and much to attend to."""


def ways() -> dict[str, Callable[[Any], None]]:
    """Name → what it sets in the server's parameters."""
    import xllamacpp

    kinds, flash = xllamacpp.common_speculative_type, xllamacpp.llama_flash_attn_type

    def eight_bits(params: Any) -> None:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        params.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_ENABLED

    def speculate(kind: str) -> Callable[[Any], None]:
        def change(params: Any) -> None:
            params.speculative.types = [getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{kind}")]
            if kind == "DRAFT_SIMPLE":
                params.speculative.draft.mparams.path = params.model.path
                for cpu in (params.speculative.draft.cpuparams, params.speculative.draft.cpuparams_batch):
                    cpu.n_threads = params.cpuparams.n_threads

        return change

    grams = {f"n-grams: {kind}": speculate(f"NGRAM_{kind.upper()}") for kind in ("simple", "map_k", "mod", "cache")}
    return {PLAIN: lambda params: None, EIGHT: eight_bits, **grams, "draft: itself": speculate("DRAFT_SIMPLE")}


class Server:
    """xllamacpp's server in this process."""

    def __init__(self, path: Path, door: Path, change: Callable[[Any], None], threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = WINDOW, 1, 0, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cpuparams.poll = params.cpuparams_batch.poll = 0
        params.fit_params, params.cache_ram_mib, params.ui, params.n_threads_http = False, 0, False, 1
        params.hostnames = [str(door)]
        change(params)
        self._server = xllamacpp.Server(params)

    def ask(self, question: str, most: int) -> tuple[Told, dict[str, Any]]:
        """The greedy answer, and what the server says of its work."""
        began, text, last, first = time.perf_counter(), "", dict[str, Any](), 0.0

        def on_chunk(chunk: dict[str, Any]) -> bool:
            nonlocal text, first
            last.update(chunk)
            for choice in chunk.get("choices", ()):
                first = first or time.perf_counter() - began
                text += choice["text"]
            return False

        body = {"prompt": LAYOUT.format(question), "max_tokens": most, "temperature": 0.0, "stream": True}
        self._server.handle_completions(body | {"cache_prompt": False, "timings_per_token": True}, on_chunk)
        assert "error" not in last, last
        timings = last["timings"]
        end = time.perf_counter() - began
        return Told(first, end, timings["predicted_n"], text, timings["prompt_n"]), timings


def alike(a: str, b: str) -> float:
    """Share of ``b``'s characters until the first one that differs."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same / max(len(b), 1)


def measure(report: dict[str, Any], rounds: int, tokens: int, threads: int, tasks: list[str]) -> None:
    """Every round gives every task to every way, in another order."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = resolve(SMOLLM2, root)
        words = {}
        for model in (SMOLLM2, GEMMA):
            with open_model(model, root) as opened:
                words[model.id] = vocabulary(opened.path)
        report["vocabularies"] = words
        servers, report["failed"] = {}, {}
        for i, (name, change) in enumerate(ways().items()):
            try:
                servers[name] = Server(path, root / f"{i}.sock", change, threads)
            except (RuntimeError, ValueError) as error:
                report["failed"][name] = str(error)
        with watched(report):
            for turn in range(rounds + 1):
                names = list(servers)
                for task in tasks:
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        told, timings = servers[name].ask(TASKS[task](turn), tokens)
                        drafted = {key: timings.get(key, 0) for key in ("draft_n", "draft_n_accepted")}
                        speed = (told.tokens - 1) / (told.end_s - told.first_s)
                        found = {"turn": turn, "task": task, "way": name, "speed": speed, "text": told.text}
                        rows += [found | drafted | {"prompt": told.prompt_tokens}] if turn else []
        servers.clear()
    report["tasks"] = {
        task: {name: summary(rows, task, name) for name in dict.fromkeys(row["way"] for row in rows)} for task in tasks
    }


def vocabulary(path: Path) -> int:
    """How many tokens a GGUF's vocabulary has."""
    from gguf import GGUFReader

    field = GGUFReader(path).fields["tokenizer.ggml.tokens"]
    return len(field.data)


def summary(rows: list[dict[str, Any]], task: str, name: str) -> dict[str, Any]:
    """One way's answers to one task, beside the plain ones to the same questions."""
    mine, plain = ([row for row in rows if (row["task"], row["way"]) == (task, way)] for way in (name, PLAIN))
    pairs = list(zip(mine, plain, strict=True))
    drafted = sum(row["draft_n"] for row in mine)
    return {
        "tokens_per_s": interval([row["speed"] for row in mine]),
        "ratio": interval([a["speed"] / b["speed"] for a, b in pairs]),
        "same_text": float(np.mean([a["text"] == b["text"] for a, b in pairs])),
        "same_beginning": float(np.mean([alike(a["text"], b["text"]) for a, b in pairs])),
        "drafted": drafted,
        "taken": sum(row["draft_n_accepted"] for row in mine) / drafted if drafted else None,
        "prompt_tokens": int(np.median([row["prompt"] for row in mine])),
    }


def main() -> None:
    """Print the table and, as the last line, JSON."""
    asked = arguments(__doc__, rounds=8, tokens=96, threads=1)
    report: dict[str, Any] = {}
    tasks = list(TASKS)[:2] if asked.quick else list(TASKS)
    measure(report, 1 if asked.quick else asked.rounds, asked.tokens, asked.threads, tasks)
    print(f"vocabularies: {', '.join(f'{name} {size:,}' for name, size in report['vocabularies'].items())} tokens")
    for name, error in report["failed"].items():
        print(f"{name} could not be loaded: {error}")
    for task, found in report["tasks"].items():
        print(f"\n{task}, prompt of {found[PLAIN]['prompt_tokens']} tokens: tokens per second, ratio to plain")
        for name, row in found.items():
            taken = "" if row["taken"] is None else f", {row['taken']:.0%} of {row['drafted']} drafted tokens taken"
            same = f"{row['same_text']:.0%} the same text (on average {row['same_beginning']:.0%} of it)"
            print(f"{name:24}{row['tokens_per_s']['median']:>7.1f}  {shown(row['ratio'])}  {same}{taken}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
