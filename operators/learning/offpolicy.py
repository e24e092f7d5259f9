"""What a policy of the router is worth on turns that another policy took, each valued doubly robust.

Dudík, Langford and Li 2011 (arXiv:1103.4601), with the tier's mean in the set as the model of the reward::

    v = Σ_a π(a) q̂(a) + min(π(a′)/p, clip) · (q(a′) − q̂(a′))      a′ the tier that was taken, with propensity p

A turn on which every tier's quality is known is valued exactly: Σ_a π(a) q(a). Differences have the interval of a
paired bootstrap (Efron and Tibshirani 1993, ch. 16) over sessions, because turns of one session are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from operators.errors import Reject
from operators.networks.exemplars import AT
from operators.networks.fastgrnn import Outputs, Snapshot
from operators.records import F32, FEATURES, HIDDEN, I32, record
from operators.route import Router
from operators.tiers import SLOTS

Values = npt.NDArray[np.float64]
TIERS = len(SLOTS)


@record
class EvaluationSet:
    """n judged turns, none of them among the exemplars of what is valued. ``features`` float32[n, 128]; ``hidden``
    float32[n, 64], the state before the turn; ``quality`` float32[n, 4] by slot, NaN where no verdict is known;
    ``tier`` int32[n] the slot that was taken and ``propensity`` float32[n] the chance it had; ``session`` int32[n]
    turns of one session have the same number."""

    name: str
    features: F32
    hidden: F32
    quality: F32
    tier: I32
    propensity: F32
    session: I32


@record
class Difference:
    """Candidate minus active: the mean, and the bounds of its interval, each surely (one-sided) not crossed."""

    mean: float
    low: float
    high: float


def forward(snapshot: Snapshot, one: EvaluationSet) -> Outputs:
    """What ``snapshot`` says of every turn, from the state before it and with its own exemplars, whatever decided."""
    x = one.features.copy()
    x[:, AT] = 0.0 if snapshot.exemplars is None else snapshot.exemplars.recall_all(one.features)
    with np.errstate(all="ignore"):  # what overflows is for the caller to look for
        return snapshot.forward(x, one.hidden)


def policy(snapshot: Snapshot, out: Outputs, prices: Values, router: Router.Config) -> Values:
    """The chance of each slot, float64[n, 4], as ``Router`` draws it at the neutral ``quality_bias`` with all tiers up.

    ``out`` is what ``snapshot`` said. ``prices`` float64[4]: cost divided by the dearest, NaN for an absent slot.
    """
    there = np.flatnonzero(np.isfinite(prices))
    logits = np.array(snapshot.preference(out.tier), np.float64)[:, there] - router.cost_weight * prices[there]
    safe = int(np.argmin([abs(slot - router.safe.slot) - 0.1 * (slot > router.safe.slot) for slot in there]))
    cautious = (out.confidence < router.confidence_threshold) & (not snapshot.learned)
    choice = np.where(cautious, safe, logits.argmax(axis=1))
    certain = np.eye(len(there))[choice]
    if router.deterministic:
        chances = certain
    else:
        soft = np.exp((logits - logits.max(axis=1, keepdims=True)) / router.temperature)
        soft /= soft.sum(axis=1, keepdims=True)
        chances = (1 - router.epsilon) * np.where(cautious[:, None], certain, soft) + router.epsilon / len(there)
    full = np.zeros((len(chances), TIERS))
    full[:, there] = chances
    return full


def value(chances: Values, reward: Values, one: EvaluationSet, clip: float) -> Values:
    """The doubly robust value of a policy on every turn, float64[n]; ``chances`` and ``reward`` float64[n, 4], reward
    NaN where unknown."""
    known = np.isfinite(reward)
    rows = np.arange(len(reward))
    taken = reward[rows, one.tier]
    means = np.array([reward[known[:, a], a].mean() if known[:, a].any() else taken.mean() for a in range(TIERS)])
    weight = np.minimum(chances[rows, one.tier] / one.propensity, clip)
    robust = chances @ means + weight * (taken - means[one.tier])
    whole = (known | (chances == 0)).all(axis=1)
    exact = np.where(chances > 0, np.nan_to_num(reward) * chances, 0.0).sum(axis=1)
    return np.asarray(np.where(whole, exact, robust))


def difference(values: Values, groups: npt.NDArray[Any], confidence: float, rounds: int, seed: int) -> Difference:
    """The mean of ``values`` float64[n] and its bounds: ``rounds`` draws of the bootstrap over ``groups`` int[n]."""
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    random, n, means = np.random.default_rng(seed), len(sums), np.empty(rounds)
    step = max(1, 1_000_000 // n)  # so many draws at once as fit into a few megabytes
    for begin in range(0, rounds, step):
        drawn = random.integers(n, size=(min(step, rounds - begin), n))
        means[begin : begin + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (1 - confidence, confidence))
    return Difference(mean=float(values.mean()), low=float(low), high=float(high))


def check(one: EvaluationSet, prices: Values) -> None:
    """Raises ``Reject`` if ``one`` can't be valued; ``prices`` as in ``policy``."""
    n = len(one.features)
    shapes: dict[str, tuple[int, ...]] = {"features": (n, FEATURES), "hidden": (n, HIDDEN), "quality": (n, TIERS)}
    shapes |= dict.fromkeys(("tier", "propensity", "session"), (n,))
    for name, shape in shapes.items():
        if getattr(one, name).shape != shape:
            got = f"set {one.name}: {name} of shape {getattr(one, name).shape}"
            raise Reject("gate", got, f"give {list(shape)}")
    taken = one.quality[np.arange(n), one.tier] if (one.tier < TIERS).all() and (one.tier >= 0).all() else None
    if taken is None or not np.isfinite(taken).all() or not np.isfinite(prices[one.tier]).all():
        raise Reject("gate", f"set {one.name}: a turn without a verdict on the tier it took", "leave it out")
    if not ((one.propensity > 0) & (one.propensity <= 1)).all() or not np.isfinite(one.features).all():
        raise Reject("gate", f"set {one.name}: a propensity outside (0, 1] or features with NaN", "leave those out")
    if not np.isfinite(one.hidden).all():
        raise Reject("gate", f"set {one.name}: hidden states with NaN", "leave those out")
