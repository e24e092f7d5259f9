"""What the judge in the background costs requests: milliseconds of short completions over HTTP with it on and off.

The judge runs as its job runs it, in a process with niceness 10 that takes only time nobody else wants, without a
pause; the service is as it ships, one request at a time. On and off take turns. What it got of a core is told: on a
machine that is busy otherwise it would get nothing, and cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from tests.bench.engine_kit import arguments, interval, shown, story, watched
from tests.bench.engine_peers import OverHttp, service
from tests.service import ROOT

HERE = Path(__file__).parent
AIM = 0.10
"""Most of its time that a completion may lose to the judge."""


class Judging:
    """The process of the judge."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the judge ended with {self._process.wait()}"
        return dict(json.loads(line))

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def on(self) -> None:
        """Judge from now on."""
        self._say("on")

    def off(self, word: str = "off") -> dict[str, Any]:
        """Stop after the verdict under way; verdicts since ``on``, and seconds."""
        self._say(word)
        return self._read()


@contextlib.contextmanager
def judging(root: Path) -> Iterator[Judging]:
    """The judge, loaded, not judging yet."""
    command = [sys.executable, str(HERE / "judge_beside.py"), str(root)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            judge = Judging(process)
            judge.off()
            yield judge
            judge.off("end")
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(30)


async def measure(report: dict[str, Any], rounds: int, requests: int, tokens: int) -> None:
    """Every round sends the same number of requests with the judge on and with it off."""
    took: dict[str, list[list[float]]] = {"off": [], "on": []}
    verdicts, number = [], 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with service(root, parallel=2, context_tokens=1024, threads=0) as running, judging(root / "judge") as judge:
            report["judge"] = judge.ready
            assert judge.ready["policy"] == judge.ready["idle"], f"it did not step back: {judge.ready}"
            async with aiohttp.ClientSession() as client:
                way = OverHttp(client, running.url, "135M", usage=True)
                with watched(report):
                    for turn in range(rounds + 1):
                        for state in ("off", "on") if turn % 2 else ("on", "off"):
                            if state == "on":
                                judge.on()
                            found = []
                            for _ in range(requests):
                                number += 1
                                [told] = await way.volley([story(number)], tokens)
                                found.append(told.end_s * 1e3)
                            if state == "on":
                                verdicts.append(await asyncio.to_thread(judge.off))
                            took[state].append(found)
    kept = range(1, rounds + 1)  # the first round is a warm-up
    assert all(verdicts[i]["verdicts"] for i in kept), f"the judge came to nothing: {verdicts}"
    for state, lists in took.items():
        pooled = [ms for i in kept for ms in lists[i]]
        report[state] = {f"p{q}_ms": float(np.percentile(pooled, q)) for q in (50, 99)} | {"requests": len(pooled)}
    by_round = {
        q: [np.percentile(took["on"][i], q) / np.percentile(took["off"][i], q) - 1 for i in kept] for q in (50, 99)
    }
    report["cost"] = {f"p{q}": interval(values) for q, values in by_round.items()}
    report["verdicts_per_s"] = interval([verdicts[i]["verdicts"] / verdicts[i]["seconds"] for i in kept])
    report["judge_cores"] = interval([verdicts[i]["processor_s"] / verdicts[i]["seconds"] for i in kept])


def main() -> None:
    """Print the table and, as the last line, JSON."""
    asked = arguments(__doc__, rounds=20, requests=12, tokens=16)
    report: dict[str, Any] = {}
    rounds, requests = (2, 4) if asked.quick else (asked.rounds, asked.requests)
    asyncio.run(measure(report, rounds, requests, asked.tokens))
    print(f"\nmilliseconds of a completion of {asked.tokens} tokens, one at a time")
    for state in ("off", "on"):
        row = report[state]
        print(f"judge {state:4} p50 {row['p50_ms']:.0f}, p99 {row['p99_ms']:.0f} ({row['requests']} requests)")
    cost = report["cost"]["p50"]
    verdict = "kept" if cost["median"] <= AIM else "MISSED"
    print(f"the judge costs {cost['median']:.1%} ({cost['low']:.1%} to {cost['high']:.1%}), aim {AIM:.0%}: {verdict}")
    got = report["judge_cores"]["median"]
    print(f"meanwhile it gave {shown(report['verdicts_per_s'])} verdicts a second and had {got:.2f} cores")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
