"""Say which features moved a routing decision."""

from __future__ import annotations

import numpy as np

from operators.networks.fastgrnn import Snapshot
from operators.networks.features import TABLE, Row, Vector
from operators.records import FeatureEffect


def explain(snapshot: Snapshot, x: Vector, hidden: Vector, slot: int, top: int) -> tuple[FeatureEffect, ...]:
    """The ``top`` features by what the logit of ``slot`` loses without them, largest effect first.

    Occlusion (Zeiler & Fergus 2014, arXiv:1311.2901; as erasure Li et al. 2016, arXiv:1612.08220): each feature is set
    to 0 in turn and the logit computed again, so an effect is an exact difference, not a local slope. The query
    embedding counts as one feature; its value is the length of its projection. Features at 0 have no effect.
    """
    rows = [row for row in TABLE if x[row.start : row.stop].any()]
    occluded = np.tile(x, (len(rows) + 1, 1))
    for i, row in enumerate(rows):
        occluded[i, row.start : row.stop] = 0.0
    logits = snapshot.forward(occluded, np.tile(hidden, (len(rows) + 1, 1))).tier[:, slot]
    effects = (logits[-1] - logits[:-1]).tolist()
    ranked = sorted(zip(rows, effects, strict=True), key=lambda pair: -abs(pair[1]))[:top]
    return tuple(FeatureEffect(feature=row.name, value=_value(x, row), effect=effect) for row, effect in ranked)


def _value(x: Vector, row: Row) -> float:
    part = x[row.start : row.stop]
    return float(part[0]) if row.width == 1 else float(np.linalg.norm(part))
