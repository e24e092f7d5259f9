"""The promotion gate: may these weights decide in place of the active ones? (design §9)

The candidate passes if on every set of judged turns it is surely not worse by more than a margin, in quality and in
cost: the bound of a paired bootstrap over sessions, of values as ``offpolicy`` estimates them. It may be dearer, up to
a ceiling, where that surely pays: where its utility, quality − λ·cost, is better. λ is what the router itself trades
with, its ``cost_weight`` divided by ``SHARPNESS``. A candidate that makes no difference has a difference of exactly
zero, and passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from operators.base import Knobs
from operators.errors import Reject, Stop
from operators.learning.offpolicy import Difference, EvaluationSet, Values, check, difference, forward, policy, value
from operators.networks.fastgrnn import SHARPNESS, Outputs, Snapshot, Vector
from operators.records import record
from operators.route import Router

GATE = "gate"
"""Under this name a checkpoint's metrics have the ``GateResult``."""


class GateConfig(Knobs):
    """When new weights of the router may decide."""

    quality_margin: float = Field(0.01, ge=0)
    """How much worse in mean verdict the candidate may surely be on any set."""
    cost_margin: float = Field(0.02, ge=0)
    """How much dearer it may surely be, in shares of the dearest tier's cost, without being better for it."""
    cost_ceiling: float = Field(0.25, ge=0)
    """How much dearer one promotion may be at most, in the same shares, where its quality is worth it."""
    confidence_margin: float = Field(0.1, ge=0)
    """How much more than the active weights it may overrate itself: mean confidence minus the share of good turns."""
    good: float = Field(0.75, ge=0, le=1)
    """Verdict from which a turn is good; what the confidence predicts."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """How sure it must be that it is not worse (one-sided)."""
    rounds: int = Field(2000, ge=100)
    """Draws of the bootstrap."""
    clip: float = Field(20.0, ge=1)
    """Largest importance weight of a turn."""
    min_turns: int = Field(50, ge=1)
    """Fewest turns a set must have; with fewer, chance would decide."""
    largest: float = Field(50.0, gt=0)
    """Largest logit that is believed; beyond it the weights have exploded."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""


@record
class SetResult:
    """One set: means of both policies (``utility``, ``quality``, ``cost``: active, candidate) and their differences.

    ``overconfidence``: mean confidence minus the share of good turns, of active and candidate. ``worst_weight`` is the
    largest importance weight before clipping.
    """

    name: str
    turns: int
    sessions: int
    utility: tuple[float, float]
    quality: tuple[float, float]
    cost: tuple[float, float]
    utility_gain: Difference
    quality_gain: Difference
    cost_gain: Difference
    overconfidence: tuple[float, float]
    worst_weight: float


@record
class GateResult:
    """The decision with every figure; ``reasons`` says, if it did not pass, all that spoke against it."""

    passed: bool
    active: str
    reasons: tuple[str, ...]
    sets: tuple[SetResult, ...]


def gate(
    candidate: Snapshot | Mapping[str, Vector],
    active: Snapshot,
    sets: Sequence[EvaluationSet],
    cost: npt.NDArray[Any],
    router: Router.Config,
    config: GateConfig,
) -> GateResult:
    """Compare ``candidate`` (or its parameters) with ``active`` on every set, under the policy of ``router``.

    ``cost`` float[4] by slot, NaN for a slot that the profile has no tier in. Raises ``Reject`` if there is no set, or
    one can't be read.
    """
    if not sets:
        raise Reject("gate", "no set to decide on", "give at least the rolling holdout")
    prices = np.asarray(cost, np.float64) / np.nanmax(cost)
    for one in sets:
        check(one, prices)
    try:
        weights = candidate if isinstance(candidate, Snapshot) else Snapshot(candidate, "candidate")
    except Stop as unfit:
        return GateResult(passed=False, active=active.checkpoint, reasons=(str(unfit),), sets=())
    results: list[SetResult] = []
    reasons: list[str] = []
    for one in sets:
        if len(one.features) < config.min_turns:
            reasons.append(f"{one.name}: {len(one.features)} turns decide nothing, {config.min_turns} are needed")
            continue
        outputs = [forward(snapshot, one) for snapshot in (active, weights)]
        if why := _exploded(outputs[1], config.largest):
            reasons.append(f"{one.name}: {why}")
            continue
        chances = [policy(*each, prices, router) for each in zip((active, weights), outputs, strict=True)]
        results.append(_compare(one, outputs, chances, prices, router.cost_weight / SHARPNESS, config))
        reasons += _against(results[-1], config)
    return GateResult(passed=not reasons, active=active.checkpoint, reasons=tuple(reasons), sets=tuple(results))


def _compare(
    one: EvaluationSet,
    outputs: Sequence[Outputs],
    chances: Sequence[Values],
    prices: Values,
    cost_weight: float,
    config: GateConfig,
) -> SetResult:
    reward = one.quality.astype(np.float64)
    good = np.where(np.isfinite(reward), reward >= config.good, np.nan)
    quality = [value(each, reward, one, config.clip) for each in chances]
    cost = [each @ np.nan_to_num(prices) for each in chances]
    utility = [q - cost_weight * c for q, c in zip(quality, cost, strict=True)]
    reached = [value(each, good, one, config.clip).mean() for each in chances]
    claimed = [float(out.confidence.mean()) for out in outputs]
    weights = [each[np.arange(len(reward)), one.tier] / one.propensity for each in chances]

    def gain(values: Sequence[Values]) -> Difference:
        return difference(values[1] - values[0], one.session, config.confidence, config.rounds, config.seed)

    return SetResult(
        name=one.name,
        turns=len(reward),
        sessions=len(np.unique(one.session)),
        utility=_means(utility),
        quality=_means(quality),
        cost=_means(cost),
        utility_gain=gain(utility),
        quality_gain=gain(quality),
        cost_gain=gain(cost),
        overconfidence=(claimed[0] - float(reached[0]), claimed[1] - float(reached[1])),
        worst_weight=float(max(each.max() for each in weights)),
    )


def _against(result: SetResult, config: GateConfig) -> list[str]:
    """What speaks against the candidate on this set, in words."""
    quality, cost, over = result.quality_gain, result.cost_gain, result.overconfidence
    found = []
    if quality.low < -config.quality_margin:
        found.append(f"quality may be worse: {_words(quality)}, margin {config.quality_margin}")
    if cost.high > max(config.cost_margin, config.cost_ceiling):
        found.append(f"cost may be higher: {_words(cost)}, ceiling {config.cost_ceiling}")
    elif cost.high > config.cost_margin and result.utility_gain.low <= 0:
        found.append(
            f"cost may be higher: {_words(cost)}, margin {config.cost_margin}, "
            f"and may not be worth it: utility {_words(result.utility_gain)}"
        )
    if over[1] > max(over[0], 0.0) + config.confidence_margin:
        found.append(f"it overrates itself by {over[1]:+.3f}, the active one by {over[0]:+.3f}")
    return [f"{result.name}: {why}" for why in found]


def _words(gain: Difference) -> str:
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def _means(values: Sequence[Values]) -> tuple[float, float]:
    return float(values[0].mean()), float(values[1].mean())


def _exploded(out: Outputs, largest: float) -> str:
    for name, values in out._asdict().items():
        if not np.isfinite(values).all():
            return f"{name} has NaN or infinite values"
    top = max(float(np.abs(out.tier).max()), float(np.abs(out.context).max()))
    return f"a logit of {top:.3g}, more than {largest:g}" if top > largest else ""
