"""Tokens per second of one request with 1, 2 and 4 threads, alone and beside one busy process.

Threads that share a core wait for each other at every step, and where they wait by spinning they keep each other from
working: that is why ``threads: 0`` leaves a core free.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from operators.engines.make import make_engine
from operators.engines.native import cores
from tests.bench.engine_kit import arguments, interval, shown, story, watched
from tests.bench.engine_peers import Port
from tests.operators.engines.weights import SMOLLM2

THREADS = (1, 2, 4)
ENGINES = ("llama_server", "llama_cpp")
SPIN = "while True: pass"


class Busy:
    """A process that is always busy, while it runs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", SPIN])
        self._seen = psutil.Process(self._process.pid)
        self.stop()

    def stop(self) -> None:
        """Hold it up."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go(self) -> None:
        """Let it run."""
        os.kill(self._process.pid, signal.SIGCONT)

    def worked_s(self) -> float:
        """Processor seconds so far."""
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def busy() -> Iterator[Busy]:
    """A busy process, held up."""
    made = Busy()
    try:
        yield made
    finally:
        made.end()


async def measure(report: dict[str, Any], rounds: int, tokens: int) -> None:
    """Every round asks every engine with every number of threads, alone and beside the busy process."""
    found: dict[tuple[str, int, str], list[float]] = {}
    shares, number = [], 0
    with tempfile.TemporaryDirectory() as folder, busy() as other:
        async with contextlib.AsyncExitStack() as stack:
            ways = {}
            for engine in ENGINES:
                for threads in THREADS:
                    sizes = {"context_tokens": 512, "parallel": 1, "threads": threads}
                    made = make_engine(engine, SMOLLM2, Path(folder), **sizes)  # type: ignore[arg-type]
                    await made.start()
                    stack.push_async_callback(made.close)
                    ways[engine, threads] = Port(made)
            with watched(report):
                for turn in range(rounds + 1):
                    number += 1
                    for key in list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]:
                        for beside in ("alone", "beside"):
                            if beside == "beside":
                                other.go()
                            worked, began = other.worked_s(), time.perf_counter()
                            [told] = await ways[key].volley([story(number)], tokens)
                            took, worked = time.perf_counter() - began, other.worked_s() - worked
                            other.stop()
                            if turn:  # the first round warms up
                                speed = (told.tokens - 1) / (told.end_s - told.first_s)
                                found.setdefault((*key, beside), []).append(speed)
                                shares += [worked / took] if beside == "beside" else []
                                assert beside == "beside" or worked < 0.1 * took, "it was to be held up"
    report["busy_share"] = interval(shares)
    report["cores"] = cores()
    report["speeds"] = {
        engine: {
            threads: {
                **{beside: interval(found[engine, threads, beside]) for beside in ("alone", "beside")},
                "left": interval(
                    [
                        b / a
                        for a, b in zip(found[engine, threads, "alone"], found[engine, threads, "beside"], strict=True)
                    ]
                ),
            }
            for threads in THREADS
        }
        for engine in ENGINES
    }


def main() -> None:
    """Print the table and, as the last line, JSON."""
    asked = arguments(__doc__, rounds=10, tokens=64)
    report: dict[str, Any] = {}
    asyncio.run(measure(report, 1 if asked.quick else asked.rounds, 16 if asked.quick else asked.tokens))
    print(f"\ntokens per second of one request on {report['cores']} cores, the prompt not counted")
    print(f"{'engine':14}{'threads':>8}{'alone':>24}{'beside a busy process':>28}{'what is left':>26}")
    for engine, rows in report["speeds"].items():
        for threads, row in rows.items():
            cells = f"{shown(row['alone'], 1):>24}{shown(row['beside'], 1):>28}{shown(row['left']):>26}"
            print(f"{engine:14}{threads:>8}{cells}")
    print(f"the busy process had {shown(report['busy_share'])} of a core while it ran")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
