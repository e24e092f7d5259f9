"""How well a ranking finds what it should: pure functions of ids. ``gold`` is never empty."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def recall(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """The share of ``gold`` among the first ``k`` of ``ranked``."""
    return len(set(gold).intersection(ranked[:k])) / len(set(gold))


def all_gold(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """1 if all of ``gold`` is among the first ``k`` of ``ranked``, else 0."""
    return float(set(gold).issubset(ranked[:k]))


def ndcg(ranked: Sequence[str], gold: Collection[str], k: int) -> float:
    """Normalised discounted cumulative gain of the first ``k``, every gold id being worth 1 (Järvelin, Kekäläinen
    2002). An id that stands twice counts once, at its first place."""
    wanted = set(gold)
    places = [rank for rank, node_id in enumerate(dict.fromkeys(ranked[:k]), start=1) if node_id in wanted]
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(wanted)) + 1))
    return sum(1 / math.log2(1 + rank) for rank in places) / ideal
