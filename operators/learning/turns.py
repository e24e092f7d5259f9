"""What the learner knows of a judged turn: the columns of its replay buffer, and of what it is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from operators.networks.exemplars import Exemplars
from operators.networks.features import TIERS
from operators.records import FEATURES, HIDDEN

Columns: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Column → array [n, …], as ``SCHEMA`` says."""

SCHEMA: dict[str, tuple[str, tuple[int, ...]]] = {
    "id": ("int64", ()),
    "owner": ("int64", ()),
    "node": ("int64", ()),
    "session": ("int64", ()),
    "turn": ("int32", ()),
    "features": ("float32", (FEATURES,)),
    "hidden": ("float32", (HIDDEN,)),
    "quality": ("float32", (TIERS,)),
    "known": ("float32", (TIERS,)),
    "slot": ("int32", ()),
    "propensity": ("float32", ()),
    "context": ("int32", ()),
    "context_propensity": ("float32", ()),
    "temperature": ("float32", ()),
    "top_p": ("float32", ()),
}
"""``id``, ``owner``, ``session`` and ``node``: keys of the interaction, its tenant, its session, and of the memory's
node that it becomes if it is remembered. ``features``: as the router read them, without what exemplars said.
``hidden``: the state before the turn. ``quality`` in [0, 1] and ``known`` (1 or 0) by slot: with one slot known it is
what was logged, with more it is an evaluation or a counterfactual answer. ``slot``, ``context`` (index into
CONTEXT_TOKENS): what was drawn, with which propensity; −1 where no context size was drawn."""


def blank(n: int) -> dict[str, npt.NDArray[Any]]:
    """``n`` turns of nothing: zeros, no slot known, propensities 1, no context size drawn."""
    made = {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in SCHEMA.items()}
    made["propensity"] += 1.0
    made["context_propensity"] += 1.0
    made["context"] -= 1
    return made


def exemplars(turns: Columns, most: int) -> tuple[Exemplars, npt.NDArray[np.int64]]:
    """Exemplars of the last ``most`` turns, and for every turn its row among them (−1: it is not there)."""
    n = len(turns["features"])
    first = max(0, n - most)
    quality = np.where(turns["known"] > 0, turns["quality"], np.nan)
    own = np.arange(n, dtype=np.int64) - first
    own[:first] = -1
    return Exemplars.of(turns["features"][first:], quality[first:]), own


def strata(turns: Columns) -> list[str]:
    """The stratum of each turn in the replay buffer: region of queries and slot, e.g. ``"5/0"``.

    The region stands for the domain, which a query does not state: the signs of the first four coordinates of its
    projection, 16 regions of the space that queries are compared in.
    """
    signs = (turns["features"][:, :4] > 0) @ np.array([1, 2, 4, 8])
    return [f"{region}/{slot}" for region, slot in zip(signs.tolist(), turns["slot"].tolist(), strict=True)]
