"""What a router is worth, from what it believes of every tier and what the tiers did.

A router that values tier k at v_k takes argmax(v_k − λ · price_k). As λ falls from ∞ to −∞ every prompt climbs from
the cheapest tier to the dearest, so the sweep draws a curve of cost and quality. Cost is counted from 0 (every prompt
to the cheapest tier) to 1 (every prompt to the dearest); of two tiers with fixed prices that is the share of calls to
the strong one. Prompts that climb at the same λ climb in random order: on average, a straight line.

    apgr                mean over cost 0…1 of the performance gap recovered, (quality − cheapest's) / (dearest's −
                        cheapest's) (RouteLLM: Ong et al. 2024, arXiv:2406.18665); 0.5 is chance, above 1 is possible
    cpt50, cpt80, cpt95 least cost at which 50, 80, 95 % of that gap are recovered (the same paper)
    aiq                 mean quality over cost 0…1 of the non-decreasing concave hull of the curve (RouterBench: Hu et
                        al. 2024, arXiv:2403.12031)
    accuracy_matched    quality where the cost is ½: what sending prompts at random to the ends half and half costs
    ece                 expected calibration error (Naeini et al. 2015) of the quality that the router predicts for the
                        tier it takes at its own 50 % threshold, over ten bins of equal mass
    accuracy, cost      quality and cost at that threshold: the λ at which its choices cost nearest to ½ by mean prices
    paraphrase_agreement  share of choices at that λ that an edit which keeps the meaning leaves as they are
    apgr_edited         ``apgr`` with every prompt edited so
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from jobs.routing.outcomes import WHO, Array
from operators.errors import Reject
from operators.records import record

METRICS = (
    *("apgr", "cpt50", "cpt80", "cpt95", "aiq", "accuracy_matched", "ece", "paraphrase_agreement", "apgr_edited"),
    *("accuracy", "cost"),
)
BINS = 10
Choices: TypeAlias = npt.NDArray[np.int64]
Measured: TypeAlias = Mapping[str, float | None]


@record
class Beliefs:
    """What a router says of n prompts: ``values`` float64[n, tiers], larger is better, read beside ``prices``
    float64[tiers] or [n, tiers]; ``edited`` the same of the edited prompts, None if it does not read prompts.

    ``qualities``: the values are qualities that it predicts. ``always``: it takes this tier whatever the prices.
    """

    values: Array
    prices: Array
    edited: Array | None = None
    qualities: bool = False
    always: int | None = None

    def of(self, rows: npt.NDArray[np.bool_]) -> Beliefs:
        """The same of some rows: ``rows`` bool[n]."""
        return Beliefs(
            values=self.values[rows],
            prices=self.prices[rows] if self.prices.ndim == 2 else self.prices,
            edited=None if self.edited is None else self.edited[rows],
            qualities=self.qualities,
            always=self.always,
        )


@record
class Climb:
    """One prompt's step to a dearer tier: at ``slope`` (the λ), in ``row``, from tier ``old`` to ``new``. All [m]."""

    slope: Array
    row: Choices
    old: Choices
    new: Choices


def climbs(values: Array, prices: Array) -> tuple[Choices, Climb]:
    """Where every prompt begins (λ = ∞), int64[n], and its steps up the concave hull of value over price, λ falling.

    Of tiers that cost the same only the one valued most is ever taken.
    """
    n = len(values)
    price = np.broadcast_to(prices, values.shape)
    rows = np.arange(n)
    cheapest = price == price.min(axis=1, keepdims=True)
    at = np.where(cheapest, values, -np.inf).argmax(axis=1)
    begin, steps = at.copy(), []
    for _ in range(values.shape[1] - 1):
        rise, run = values - values[rows, at][:, None], price - price[rows, at][:, None]
        slopes = np.where(run > 0, rise / np.where(run > 0, run, 1.0), -np.inf)
        # of equally steep steps the shorter goes first, so that ties can be parted
        best = slopes.max(axis=1)
        to = np.where((slopes == best[:, None]) & (run > 0), run, np.inf).argmin(axis=1)
        moves = np.isfinite(best)
        steps.append(Climb(slope=best[moves], row=rows[moves], old=at[moves], new=to[moves]))
        at = np.where(moves, to, at)
    together = Climb(
        **{f: np.concatenate([getattr(step, f) for step in steps]) for f in ("slope", "row", "old", "new")}
    )
    order = np.argsort(-together.slope, kind="stable")
    return begin, Climb(**{f: getattr(together, f)[order] for f in ("slope", "row", "old", "new")})


def ends(cost: Array) -> tuple[float, float]:
    """Mean cost of the cheapest and of the dearest tier. Raises ``Reject`` if there is nothing between."""
    low, high = float(cost[:, 0].mean()), float(cost[:, -1].mean())
    if not high > low:
        got = f"of {len(cost)} prompts on one side the dearest tier costs {high:g} on average, the cheapest {low:g}"
        raise Reject(WHO, got, "give more prompts, or tiers that differ more in cost")
    return low, high


def _last_of_ties(climb: Climb) -> Choices:
    """The last of each run of steps with the same λ."""
    return np.append(np.flatnonzero(np.diff(climb.slope)), len(climb.slope) - 1)


def curve(beliefs: Beliefs, quality: Array, cost: Array) -> tuple[Array, Array]:
    """Cost (0…1 between cheapest and dearest tier) and mean quality along the sweep, float64[m] each, cost rising.

    ``quality`` and ``cost`` float64[n, tiers], the cheapest tier first, the dearest last.
    """
    begin, climb = climbs(beliefs.values, beliefs.prices)
    rows = np.arange(len(quality))
    low, high = ends(cost)
    last = _last_of_ties(climb)

    def along(of: Array) -> Array:
        steps = np.cumsum(of[climb.row, climb.new] - of[climb.row, climb.old])
        made: Array = of[rows, begin].mean() + np.concatenate(([0.0], steps[last] / len(of)))
        return made

    x, y = (along(cost) - low) / (high - low), along(quality)
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def at_cost(x: Array, y: Array, costs: Array) -> Array:
    """Quality at the given costs, between the points of a curve in straight lines."""
    return np.asarray(np.interp(costs, x, y))


def area(x: Array, y: Array) -> float:
    """∫ y dx over [0, 1]; beyond its ends the curve goes on level."""
    inside = (x > 0.0) & (x < 1.0)
    grid = np.concatenate(([0.0], x[inside], [1.0]))
    values = np.concatenate((at_cost(x, y, np.array([0.0])), y[inside], at_cost(x, y, np.array([1.0]))))
    return float(np.trapezoid(values, grid))


def first_reach(x: Array, y: Array, wanted: float) -> float | None:
    """Least cost in [0, 1] at which a curve has reached ``wanted``; None if it never does."""
    there = np.flatnonzero((y >= wanted - 1e-12) & (x <= 1.0 + 1e-9))
    if not len(there):
        return None
    i = int(there[0])
    if i == 0 or y[i] <= y[i - 1]:
        return float(max(x[i], 0.0))
    return float(max(x[i - 1] + (wanted - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]), 0.0))


def hull(x: Array, y: Array) -> tuple[Array, Array]:
    """The non-decreasing concave hull of a curve's points."""
    kept: list[tuple[float, float]] = []
    for px, py in zip(x.tolist(), np.maximum.accumulate(y).tolist(), strict=True):
        while kept and kept[-1][0] == px and kept[-1][1] <= py:
            kept.pop()
        while len(kept) > 1 and (kept[-1][1] - kept[-2][1]) * (px - kept[-2][0]) <= (py - kept[-2][1]) * (
            kept[-1][0] - kept[-2][0]
        ):
            kept.pop()
        kept.append((px, py))
    made = np.array(kept)
    return made[:, 0], made[:, 1]


def threshold(values: Array, prices: Array) -> float:
    """The λ at which the choices cost nearest to half way between all prompts' cheapest and dearest, by prices."""
    _, climb = climbs(values, prices)
    price = np.broadcast_to(prices, values.shape)
    paid = np.cumsum(price[climb.row, climb.new] - price[climb.row, climb.old])
    last = _last_of_ties(climb)
    off = np.abs(np.append(0.0, paid[last]) - paid[-1] / 2)
    best = int(off.argmin())
    return float("inf") if best == 0 else float(climb.slope[last[best - 1]])


def choices(values: Array, prices: Array, threshold: float) -> Choices:
    """The tier taken of every prompt at that λ, int64[n]; of equals the dearer."""
    begin, climb = climbs(values, prices)
    taken, made = begin.copy(), climb.slope >= threshold
    taken[climb.row[made]] = climb.new[made]  # a prompt's own steps are in order: the last one counts
    return taken


def calibration_error(predicted: Array, happened: Array) -> float:
    """Σ |mean predicted − mean happened| over ``BINS`` bins of equal mass, by their share. Both float64[n]."""
    bins = np.array_split(np.argsort(predicted, kind="stable"), BINS)
    gaps = [len(b) * abs(predicted[b].mean() - happened[b].mean()) for b in bins if len(b)]
    return float(sum(gaps) / len(predicted))


def measure(beliefs: Beliefs, quality: Array, cost: Array) -> dict[str, float | None]:
    """All ``METRICS``; None where one does not apply: no curve of a fixed choice, no gap to recover, no prediction."""
    found: dict[str, float | None] = dict.fromkeys(METRICS)
    rows, (low, high) = np.arange(len(quality)), ends(cost)
    taken: Choices
    if beliefs.always is not None:
        taken = np.full(len(rows), beliefs.always)
    else:
        x, y = curve(beliefs, quality, cost)
        cut = threshold(beliefs.values, beliefs.prices)
        taken = choices(beliefs.values, beliefs.prices, cut)
        found |= _recovered(x, y, quality)
        found["aiq"] = area(*hull(x, y))
        found["accuracy_matched"] = float(at_cost(x, y, np.array([0.5]))[0])
        if beliefs.qualities:
            found["ece"] = calibration_error(beliefs.values[rows, taken], quality[rows, taken])
        if beliefs.edited is not None:
            edited = Beliefs(values=beliefs.edited, prices=beliefs.prices)
            found["paraphrase_agreement"] = float((choices(edited.values, edited.prices, cut) == taken).mean())
            found["apgr_edited"] = _recovered(*curve(edited, quality, cost), quality)["apgr"]
    found["accuracy"] = float(quality[rows, taken].mean())
    found["cost"] = float((cost[rows, taken].mean() - low) / (high - low))
    return found


def _recovered(x: Array, y: Array, quality: Array) -> dict[str, float | None]:
    """What is read off the gap between the cheapest and the dearest tier; None where the dearest is not better."""
    names = {"cpt50": 0.5, "cpt80": 0.8, "cpt95": 0.95}
    low, high = quality[:, 0].mean(), quality[:, -1].mean()
    if high - low < 1e-12:
        return dict.fromkeys(("apgr", *names))
    gap = (y - low) / (high - low)
    return {"apgr": area(x, gap), **{name: first_reach(x, gap, share) for name, share in names.items()}}
