"""Whether trained weights may rank: on queries that training never saw they must beat every untrained ranking.

    search     the neighbourhood as it comes: the hits in their order, then the nodes around them
    attended   the order of stage ``attend`` without a network
    trained    the order of stage ``attend`` with the trained network

Of equal texts only the first counts in every line. The stage runs without its limits (relevance, number of passages,
tokens), as in ``evaluate memory``. The network wins
if, against both others, its nDCG@10 is surely better and its recall@5 surely no worse: the lower end of a paired
bootstrap over groups of queries (Efron and Tibshirani 1993, ch. 16; groups, because queries of one session are alike).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.schema import Settings
from conf.train_attention import TrainAttention
from jobs.attending.examples import Example
from operators.attend import Attend, AttendInput
from operators.dedupe import Seen
from operators.errors import Reject
from operators.metrics import ndcg, recall
from operators.networks.attention import AttentionWeights
from operators.records import Neighbourhood, Route

METRICS = ("ndcg@10", "recall@5", "recall@10")
UNTRAINED = ("search", "attended")
DRAWS = 2000
DEPTH = 10
"""How many places of a ranking are looked at."""
MIN_GROUPS = 8
"""Fewest groups to draw from; with fewer the bootstrap is too sure."""
Values = npt.NDArray[np.float64]


def check_size(holdout: Sequence[Example], config: TrainAttention) -> None:
    """Raises ``Reject`` if ``holdout`` is too small to decide anything."""
    groups = {example.group for example in holdout}
    if len(holdout) < config.min_holdout or len(groups) < MIN_GROUPS:
        got = f"{len(holdout)} queries in {len(groups)} groups to decide on (what shares a session is one group)"
        needed = f"{config.min_holdout} queries in {MIN_GROUPS} groups are needed"
        raise Reject("train attention", got, f"{needed}: give more, or raise train_attention.holdout")


async def compare(weights: AttentionWeights, holdout: Sequence[Example], settings: Settings) -> dict[str, Any]:
    """Means of every line on ``holdout``, the differences with their intervals, and ``won``."""
    config = settings.train_attention
    rows = {
        "search": [_found(example.near) for example in holdout],
        "attended": await _attended(None, holdout, settings),
        "trained": await _attended(weights, holdout, settings),
    }
    scores = {line: scored(ranked, holdout) for line, ranked in rows.items()}
    names = [example.group for example in holdout]
    against = {
        line: {
            metric: _difference(scores["trained"][metric] - scores[line][metric], names, config.confidence, config.seed)
            for metric in METRICS
        }
        for line in UNTRAINED
    }
    won = all(row["ndcg@10"]["low"] > 0 and row["recall@5"]["low"] >= 0 for row in against.values())
    means = {line: {metric: float(values.mean()) for metric, values in row.items()} for line, row in scores.items()}
    return {"lines": means, "trained_minus": against, "confidence": config.confidence, "won": won}


def scored(ranked: Sequence[Sequence[str]], examples: Sequence[Example]) -> dict[str, Values]:
    """Metric → float64[number of examples]."""
    pairs = list(zip(ranked, (example.gold for example in examples), strict=True))
    return {
        "ndcg@10": np.array([ndcg(ids, gold, 10) for ids, gold in pairs]),
        **{f"recall@{k}": np.array([recall(ids, gold, k) for ids, gold in pairs]) for k in (5, 10)},
    }


def _found(near: Neighbourhood) -> tuple[str, ...]:
    """The first nodes as they came, without those whose text stood before: the stage drops them too."""
    seen = Seen(1.0)
    rows = zip(near.node_ids, near.texts, strict=True)
    return tuple(islice((node_id for node_id, text in rows if seen.take(text)), DEPTH))


async def _attended(
    weights: AttentionWeights | None, examples: Sequence[Example], settings: Settings
) -> list[tuple[str, ...]]:
    """The stage's order of every neighbourhood, with the network or without."""
    config = settings.attend.unlimited(DEPTH, settings.expand.max_nodes)
    stage = Attend(config.model_copy(update={"ranking": "similarity", "checkpoint": ""}))
    await stage.start()
    stage.weights = weights
    ranked = []
    for example in examples:
        item = AttendInput(query=example.query, embedded=example.embedded, neighbourhood=example.near, route=_ROUTE)
        (context,) = await stage([item])
        ranked.append(tuple(passage.node_id for passage in context.passages))
    await stage.close()
    return ranked


def _difference(differences: Values, groups: Sequence[str], confidence: float, seed: int) -> dict[str, float]:
    """The mean of ``differences``, and the one-sided lower and upper ends of its bootstrap over ``groups``."""
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, differences), np.bincount(group)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [1 - confidence, confidence])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}


_ROUTE = Route(  # a context without a limit; nothing else of it is read
    tier="",
    context_tokens=10**9,
    temperature=0.0,
    top_p=1.0,
    confidence=1.0,
    probabilities={},
    propensity=1.0,
    propensities={},
    checkpoint="",
    reason="caller",
    hidden=np.zeros(0, np.float32),
    features=np.zeros(0, np.float32),
)
