"""The signal ``lift`` beside the rating: fitted to one half of the gold set, reported on the other.

Right answers are worth 1, partly right ones ½, all others 0; the fit is a logistic regression on that, by Newton's
method, weakly held to nothing. Its weights are never negative: a signal that misleads is dropped and not turned round.
No score is above what the best-scored answers of the fitted half were worth: the logistic curve goes on where they end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from jobs.judging import metrics
from jobs.judging.gold import TRUTHS, Item
from jobs.judging.injections import Attack
from jobs.judging.metrics import Array
from jobs.judging.ratings import Advance, facts, interaction, worth
from operators.engines.ports import Engine
from operators.errors import Reject
from operators.judge_lift import Lift, digest, read_answer

Report: TypeAlias = dict[str, Any]
BEST = 0.2
"""Share of the fitted half whose worth is the ceiling; the best few of all failed on other kinds of question."""
PRIOR = 1.0
"""Weight of θ², where both signals have a spread of 1; in items."""


class Reader:
    """Reads items as the judge does, and counts the time; what doesn't fit is NaN."""

    def __init__(self, engine: Engine, max_context_tokens: int, advance: Advance) -> None:
        self._engine, self._most, self._advance = engine, max_context_tokens, advance
        self.seconds = 0.0

    async def __call__(self, items: Sequence[Item]) -> Array:
        """(against, asked) of each, float64[n, 2]. Raises ``Stop`` if the engine tells no likelihoods."""
        found, begun = np.full((len(items), 2), np.nan), time.perf_counter()
        for number, item in enumerate(items):
            read = await read_answer(self._engine, interaction(item, str(number)), self._most)
            if read is not None:
                found[number] = read
            self._advance(1)
        self.seconds += time.perf_counter() - begun
        return found


def fit(model: str, read: Array, value: Array) -> Lift:
    """What ``read`` float64[n, 2] is worth, of answers worth ``value`` float64[n]."""
    columns, spread = [0, 1], np.maximum(read.std(0), 1e-3)
    while True:
        theta = _newton(np.column_stack([(read / spread)[:, columns], np.ones(len(read))]), value)
        kept = [column for column, weight in zip(columns, theta, strict=False) if weight > 0]
        if kept == columns:
            break
        columns = kept
    weights = np.zeros(2)
    weights[columns] = theta[:-1] / spread[columns]
    against, asked, bias = (round(float(number), 4) for number in (*weights, theta[-1]))
    best = np.argsort(-(read @ weights), kind="stable")[: max(int(BEST * len(read)), 1)]
    ceiling = max(round(float(value[best].mean()), 4), 1e-4)
    return Lift(model=model, digest=digest(), against=against, asked=asked, bias=bias, ceiling=ceiling)


def _newton(design: Array, value: Array) -> Array:
    theta = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ theta))
        curvature = (design.T * (p * (1 - p))) @ design + PRIOR * np.eye(len(theta))
        step = np.linalg.solve(curvature, design.T @ (p - value) + PRIOR * theta)
        theta = theta - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return theta


def scores(made: Lift, read: Array) -> Array:
    """float64[n]; what could not be read is worth 0, as what could not be rated."""
    return np.array([made(row) if np.isfinite(row).all() else 0.0 for row in read])


async def measure(
    reader: Reader, model: str, items: Sequence[Item], rated: Array, attacks: Sequence[Attack], threshold: float
) -> tuple[Report, Lift]:
    """The report and the fit. ``items`` are those of the role ``main``, ``rated`` float64[n] their ratings' scores."""
    read = await reader(items)
    ms = 1000 * reader.seconds / len(items)
    half, value, about = np.array([item.half for item in items]), worth(items), facts(items)
    learned = np.flatnonzero((half == "fit") & np.isfinite(read).all(1))
    if not len(learned):
        raise Reject("evaluate judge", f"{model} could read none of {len(items)} items", "raise its context_tokens")
    made = fit(model, read[learned], value[learned])
    tested, found = np.flatnonzero(half == "report"), scores(made, read)
    gain = metrics.auc_gain(found[tested], rated[tested], value[tested], about[tested])
    report: Report = {
        "agreement": metrics.agreement(found[tested], value[tested], about[tested], threshold),
        "auc_against": {
            truth: metrics.auc(found[rows], np.array([float(items[i].truth == "right") for i in rows]))
            for truth in TRUTHS[1:]
            for rows in [[i for i in tested.tolist() if items[i].truth in ("right", truth)]]
        },
        "right_against_all": metrics.auc_gain(found[tested], None, np.floor(value[tested]), about[tested]),
        "auc_minus_rating": gain,
        "better": gain["low"] > 0,
        "ms": ms,
        "lift": made.model_dump(mode="json"),
    }
    harmless = scores(made, await reader([attack.benign for attack in attacks]))
    moved = scores(made, await reader([attack.injected for attack in attacks]))
    aimed = facts([attack.injected for attack in attacks])
    kinds = np.array([attack.kind for attack in attacks])
    report["attacks"] = {
        kind: {
            "shift": metrics.mean((moved - harmless)[rows], aimed[rows]),
            "crossed": float(np.mean((moved[rows] >= threshold) & (harmless[rows] < threshold))),
        }
        for kind in ("all", *dict.fromkeys(kinds.tolist()))
        for rows in [np.flatnonzero((kinds == kind) | (kind == "all"))]
    }
    return report, made
