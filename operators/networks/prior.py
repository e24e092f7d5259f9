"""The router's weights before it has learned anything: a documented prior, not noise (design §9).

Fifteen hidden units are concepts that each read a few named features; the heads read the concepts. The other units read
a fixed sparse random mixture of all features with heads at zero: they change nothing yet and give learning something to
read. U is zero with a random factor U1, so that its gradient is not (as LoRA starts, Hu et al. 2021, arXiv:2106.09685).

What it believes: a short question that memory covers well wants the smallest tier; long, many-part, code-heavy or
poorly covered ones want a larger tier, the more so after a bad verdict or hard earlier turns; more relevant text wants
a larger context; grounded and exact answers want a lower temperature, invention a higher one. A tier that did well on
neighbouring turns, is warm, or has no queue gains. **Its confidence is a ranking, not calibrated.** The cosine
ranges fit MiniLM. What the choice costs is the router's explicit term, so the prior ignores ``cost_weight``.
"""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from operators.networks.fastgrnn import CONTEXT_TOKENS, HEADS, RANK, Snapshot, shapes
from operators.networks.features import SLOT, TIERS
from operators.records import FEATURES, HIDDEN

_Array: TypeAlias = npt.NDArray[np.float64]

NAME = "prior-2"
"""Checkpoint name of the prior; the number rises when its weights change."""
NONZEROS = FEATURES * HIDDEN // 10
"""At most this many entries of W are not zero: 90 % zeros."""

_HARD = {
    "query_tokens": 2.2,
    "question_count": 0.8,
    "code_fence": 0.8,
    "symbol_share": 1.0,
    "reasoning_words": 0.9,
    "list_items": 0.4,
    "line_count": 0.3,
    "digit_share": 0.3,
    "lookup_form": -0.5,
}
UNITS: dict[str, tuple[float, dict[str, float]]] = {
    # concept: (bias b_h, {feature: weight}); value = tanh(bias + Σ weight · feature)
    "hard": (-1.6, _HARD),
    "covered": (-1.2, {"similarity_max": 2.5, "similarity_mean": 0.5, "text_match": 0.3}),
    "ambiguous": (-0.3, {"similarity_entropy": 1.2, "similarity_margin": -1.2, "source_spread": 0.4}),
    "material": (-4.8, {"relevant_tokens": 4.2, "neighbourhood_tokens": 1.8}),
    "satisfied": (0.0, {"last_verdict": 1.0}),
    "exact": (0.0, {"code_fence": 0.8, "symbol_share": 0.8, "digit_share": 0.6, "lookup_form": 0.5}),
    "inventive": (0.0, {"creative_words": 1.5}),
    "easy_so_far": (1.6, {feature: -weight for feature, weight in _HARD.items()}),
    **{f"tier{k}": (0.0, {f"verdict_tier{k}": 0.6, f"count_tier{k}": 0.2}) for k in range(TIERS)},
    **{f"busy{k}": (0.0, {f"queue_tier{k}": 1.0, f"warm_tier{k}": -0.3}) for k in range(TIERS)},
}
_AT = {concept: i for i, concept in enumerate(UNITS)}

_FORGET, _KEEP, _FRESH = -7.0, 0.0, 1.0
"""b_z of the concepts (gate shut: no memory), of ``easy_so_far``, and of the free units (as in the authors' code).

``easy_so_far`` remembers without U: gate and candidate share W, so a hard turn (negative input) shuts the gate and is
written at once, an easy turn opens it and leaves most of what was there.
"""
_ZETA, _NU = 1.0, -4.0
_AMPLITUDE = 1.0 / (1.0 + math.exp(-_ZETA)) + 1.0 / (1.0 + math.exp(-_NU))
"""Size of h' for c = 1 and a shut gate; heads divide by it, so their weights below are per concept value."""

_TIER_CENTRES = (-0.75, -0.25, 0.25, 0.75)
_DEMAND = {"hard": 0.55, "covered": -0.45, "ambiguous": 0.15, "satisfied": -0.15, "easy_so_far": -0.15}
_CONTEXT_DEMAND = {"material": 1.0, "hard": 0.08}
_SHARPNESS = 8.0


@functools.cache
def prior(tied: bool = True) -> Snapshot:
    """The prior's weights; the same every time. Untied, gate and candidate start as copies of the tied W and U."""
    made: dict[str, _Array] = {name: np.zeros(shape) for name, shape in shapes(True).items()}
    made["b_z"] += _FRESH
    made["zeta"] += _ZETA
    made["nu"] += _NU
    made["u1"][0] = np.random.RandomState(8).standard_normal((HIDDEN, RANK)) / math.sqrt(HIDDEN)
    for unit, (bias, weights) in enumerate(UNITS.values()):
        made["b_h"][unit] = bias
        made["b_z"][unit] = _FORGET
        for feature, weight in weights.items():
            made["w"][0, unit, SLOT[feature]] = weight
    made["b_z"][_AT["easy_so_far"]] = _KEEP
    _free_units(made["w"][0])

    _ordinal(made, "tier", _TIER_CENTRES, _DEMAND)
    for k in range(TIERS):
        made["tier_w"][k, _AT[f"tier{k}"]] = 1.5
        made["tier_w"][k, _AT[f"busy{k}"]] = -2.0
    bias, weights = UNITS["material"]
    per_log = sum(weights.values()) / math.log1p(4096)
    _ordinal(
        made, "context", [math.tanh(bias + per_log * math.log1p(size)) for size in CONTEXT_TOKENS], _CONTEXT_DEMAND
    )
    _head(made, "temperature", -1.1, {"covered": -0.35, "exact": -0.4, "inventive": 0.9})
    _head(made, "top_p", math.log(9.0), {"inventive": 0.3})  # σ(ln 9) = 0.9
    _head(made, "confidence", 0.75, {"covered": 1.0, "hard": -0.35, "ambiguous": -0.3, "satisfied": 0.6})
    for head in HEADS:
        made[f"{head}_w"] /= _AMPLITUDE

    own = {
        name: np.repeat(value, 1 if tied else 2, axis=0) for name, value in made.items() if name in ("w", "u1", "u2")
    }
    return Snapshot({name: np.float32(value) for name, value in (made | own).items()}, NAME)  # type: ignore[misc]


def _free_units(w: _Array) -> None:
    """Spread the entries that W may still have evenly over the units without a concept, at seeded places."""
    random = np.random.RandomState(1901)
    units = range(len(UNITS), HIDDEN)
    each = (NONZEROS - np.count_nonzero(w)) // len(units)
    for unit in units:
        w[unit, random.permutation(FEATURES)[:each]] = random.standard_normal(each) * 2.0 / math.sqrt(each)


def _ordinal(
    made: dict[str, _Array], head: str, centres: tuple[float, ...] | list[float], demand: dict[str, float]
) -> None:
    """Logits of ordered choices: −s (D − m_k)² for demand D and centres m_k, without the D² that softmax ignores."""
    for k, centre in enumerate(centres):
        made[f"{head}_b"][k] = -_SHARPNESS * centre**2
        for concept, weight in demand.items():
            made[f"{head}_w"][k, _AT[concept]] = 2.0 * _SHARPNESS * centre * weight


def _head(made: dict[str, _Array], head: str, bias: float, weights: dict[str, float]) -> None:
    """A head with one output: bias + Σ weight · concept."""
    made[f"{head}_b"][0] = bias
    for concept, weight in weights.items():
        made[f"{head}_w"][0, _AT[concept]] = weight
