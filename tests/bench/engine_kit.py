"""What the benchmarks of the engines share: how an answer is told, medians with intervals, and who else used the
processor meanwhile."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from operators.engines.ports import Engine, Generation
from operators.prompts import Conversation, chatml

SYSTEM = "You tell stories."
STORY = "Tell a long story about the {} ships in the harbour of a small town called {}."
PLACES = ("Ormsay", "Tamber", "Harrowmere", "Vell", "Quorl", "Brask", "Lind", "Esk", "Morrow", "Ansty", "Pell")
BUSY = 0.1
"""From this share of the processor on, taken by others, figures are marked."""


@dataclasses.dataclass
class Told:
    """One answer. Seconds count from the moment its volley was sent; ``tokens`` are those of the answer."""

    first_s: float
    end_s: float
    tokens: int
    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0


def arguments(about: str | None, rounds: int, **more: int) -> argparse.Namespace:
    """``--rounds``, ``--quick`` (to see whether it runs: its figures mean nothing) and ``more``, all whole numbers."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="few and short rounds")
    for name, value in {"rounds": rounds, **more}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def story(number: int) -> str:
    """A question that nobody was asked yet, of nearly the same length whatever the number."""
    return STORY.format(100 + number, PLACES[number % len(PLACES)])


def prompt(engine: Engine, question: str, system: str = SYSTEM) -> tuple[int, ...]:
    """The tokens that the service makes of it for SmolLM2."""
    parts = chatml(Conversation(system, (), (), question))
    words = [token for part in parts for token in engine.tokenize(part.text, special=part.control)]
    return (*engine.bos(), *words)


def greedy(tokens: Sequence[int], most: int, **rest: Any) -> Generation:
    """A request whose answer is the same every time."""
    return Generation(prompt=tuple(tokens), max_tokens=most, temperature=0.0, top_p=1.0, **rest)


def interval(values: Sequence[float] | npt.NDArray[Any]) -> dict[str, Any]:
    """The median, and 95 % of the medians of 2,000 samples drawn with replacement."""
    array = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).choice(array, (2000, len(array)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": float(np.median(array)), "low": float(low), "high": float(high), "n": len(array)}


def shown(found: dict[str, Any], digits: int = 2) -> str:
    """``interval`` in words."""
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _processor() -> float:
    """Seconds that all processors together have worked."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _ours() -> float:
    """Seconds that this process and all it started have worked."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])  # of the children that have ended, too
    return total


@contextlib.contextmanager
def watched(report: dict[str, Any]) -> Iterator[None]:
    """Write into ``report`` which share of the processor others used; at the end of the block all that was started must
    still run, or have been waited for."""
    all_before, ours_before, before = _processor(), _ours(), time.monotonic()
    yield
    wall = (time.monotonic() - before) * (psutil.cpu_count() or 1)
    report["others"] = round(max(0.0, (_processor() - all_before) - (_ours() - ours_before)) / wall, 3)
    mark = " BUSY MACHINE" if report["others"] > BUSY else ""
    print(f"other programs took {report['others']:.0%} of the processor during the measurements{mark}", flush=True)
