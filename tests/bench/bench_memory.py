"""The memory: does it find the turn of a long conversation that holds the evidence, by way of searching?

Runs ``evaluate memory`` on two families of invented conversations (``conversations.py``, ``chats.py``). The parameters
of ranking were chosen on seed 0; this is seed 1, which they never saw. The lines ``bm25`` and ``vector`` are the peers
of the default one.

And how fast is it as it grows (``memory_speed.py``, a process for each size)?

    python -m tests.bench memory [--sizes=1000,10000,100000,1000000] [--ours]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.load import load
from pipeline.cli_evaluate import table
from pipeline.evaluate import evaluate_memory
from tests.bench import chats, conversations

SEED, CONVERSATIONS = 1, 3
SIZES = (1000, 10_000, 100_000)


def main() -> None:
    """Make the conversations, evaluate, print the tables and JSON."""
    results = {}
    for family in (conversations, chats):
        name = family.__name__.rpartition(".")[2]
        report = _evaluate(family.make(SEED, CONVERSATIONS))
        print(f"{name}\n{table(report)}\n")
        results[name] = report["results"]
    for size in _sizes(sys.argv[1:]):
        results[str(size)] = speed = _speed(size)
        print("\n".join(_lines(speed)) + "\n", flush=True)
    print(json.dumps(results))


def _sizes(words: list[str]) -> list[int]:
    given = [word.removeprefix("--sizes=") for word in words if word.startswith("--sizes=")]
    return [int(size) for size in given[0].split(",")] if given else list(SIZES)


def _speed(size: int) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("memory_speed.py")), str(size)]
    command += ["--ours"] * ("--ours" in sys.argv)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _lines(speed: dict[str, Any]) -> Iterator[str]:
    """The figures of one size as text."""
    alone = {name: value for name, value in speed.items() if not isinstance(value, dict)}
    yield ", ".join(f"{name} {value}" for name, value in alone.items())
    yield f"{'':24} {'p50 ms':>8} {'p99 ms':>8} {'recall':>8} {'/ ours':>8}"
    for name, line in speed.items():
        if isinstance(line, dict):
            figures = (line.get(key, "") for key in ("p50", "p99", "recall", "ours_over"))
            rest = {key: value for key, value in line.items() if key in ("max", "build_s", "set", "work_done")}
            yield f"{name:24} " + " ".join(f"{figure:>8}" for figure in figures) + (f"  {rest}" if rest else "")


def _evaluate(made: conversations.Conversations) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        settings = load("local", overrides=[f"data_dir={root}/data"], env={}).settings
        files = {"corpus": made.turns, "queries": made.questions}
        for name, rows in files.items():
            (Path(root) / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return asyncio.run(evaluate_memory(Path(root) / "corpus", Path(root) / "queries", settings))


if __name__ == "__main__":
    main()
