"""What moves a judge's scores at equal truth: differences of scores between items that vary in one thing only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from jobs.judging.gold import AUTHORS, POSITIONS, Item
from jobs.judging.metrics import Array, Bounds, mean, slope
from jobs.judging.ratings import facts

Report: TypeAlias = dict[str, Bounds]
PLACES = ("first", "middle", "last")


def biases(items: Sequence[Item], scores: Array, likelihoods: Array) -> Report:
    """Name → effect on the score, in points of [0, 1].

    ``position_*``, ``author_*``: one against the mean of all; ``*_spread``: highest minus lowest of the same answer;
    ``length``: with a harmless tail minus without; ``self``: the judge's own words minus people's; ``likelihood``: for
    one standard deviation more of ln p(answer | query) under the judge's model. ``likelihoods`` float64[n], NaN where
    not measured.
    """
    made: Report = {}
    by_position = _table(items, scores, "position", lambda item: item.position, range(POSITIONS))
    by_length = _table(items, scores, "length", lambda item: item.long, (False, True))
    by_author = _table(items, scores, "author", lambda item: item.author, AUTHORS)
    for place, column in zip(PLACES, _minus_mean(by_position[0]), strict=True):
        made[f"position_{place}"] = mean(column, by_position[1])
    made["position_spread"] = mean(np.ptp(by_position[0], axis=1), by_position[1])
    made["length"] = mean(by_length[0][:, 1] - by_length[0][:, 0], by_length[1])
    for author, column in zip(AUTHORS, _minus_mean(by_author[0]), strict=True):
        made[f"author_{author}"] = mean(column, by_author[1])
    made["author_spread"] = mean(np.ptp(by_author[0], axis=1), by_author[1])
    own, about = _table(items, scores, "author", lambda item: item.author, (*AUTHORS, "judge"))
    if len(own):
        made["self"] = mean(own[:, -1] - own[:, :-1].mean(1), about)
    known = [int(i) for i in np.flatnonzero(np.isfinite(likelihoods))]
    if len(known) > 1:
        some = [items[i] for i in known]
        right = np.array([item.truth == "right" for item in some], np.int64)
        made["likelihood"] = slope(scores[known], likelihoods[known], right, facts(some))
    return made


def _table(
    items: Sequence[Item], scores: Array, role: str, of: Callable[[Item], object], levels: Sequence[object]
) -> tuple[Array, np.ndarray]:
    """Scores of what ``role`` varies, a row a fact and truth, a column a level; rows that lack a level are left out."""
    found: dict[tuple[int, str], dict[object, float]] = {}
    for item, score in zip(items, scores, strict=True):
        if item.role == role:
            found.setdefault((item.fact, item.truth), {})[of(item)] = float(score)
    whole = {key: row for key, row in found.items() if all(level in row for level in levels)}
    table = np.array([[row[level] for level in levels] for row in whole.values()]).reshape(-1, len(levels))
    return table, np.array([fact for fact, _ in whole], np.int64)


def _minus_mean(table: Array) -> Array:
    """Each column less the mean of its row, a row a column: float64[levels, n]."""
    return np.asarray((table - table.mean(1, keepdims=True)).T, np.float64)
