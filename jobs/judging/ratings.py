"""Has a judge rate the items of a gold set, as it rates interactions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from jobs.judging.gold import VALUE, Item
from operators.judge import RATINGS, Judge
from operators.judge_correction import Correction
from operators.records import Interaction, Passage

Array = npt.NDArray[np.float64]
Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Ratings:
    """Of n items: ``probabilities`` float64[n, 5], NaN where unjudged."""

    probabilities: Array

    def scores(self, correction: Correction | None = None) -> Array:
        """float64[n]; unjudged is worth 0 here: nothing is remembered or learned as good because of it."""
        p = self.probabilities
        if correction is not None:
            p = np.stack([correction(row) for row in p])
        return np.asarray(np.nan_to_num((p @ np.arange(1.0, 6.0) - 1.0) / 4.0), np.float64)


async def rate(judge: Judge, items: Sequence[Item], advance: Advance) -> Ratings:
    """The started ``judge``'s ratings of ``items``; ``advance`` is told of each."""
    found = np.full((len(items), len(RATINGS)), np.nan)
    for number, item in enumerate(items):
        (verdict,) = await judge([interaction(item, str(number))])
        if verdict.status == "judged":
            found[number] = [verdict.probabilities[rating] for rating in RATINGS]
        advance(1)
    return Ratings(found)


def interaction(item: Item, name: str) -> Interaction:
    """``item`` as a completed turn."""
    return Interaction(
        event_id=name,
        interaction_id=name,
        tenant="gold",
        session=str(item.fact),
        turn=0,
        created_at=0.0,
        query=item.query,
        answer=item.answer,
        context=tuple(
            Passage(node_id=str(place), source="", text=text, tokens=len(text) // 4, score=1.0)
            for place, text in enumerate(item.context)
        ),
    )


def worth(items: Sequence[Item]) -> Array:
    """What a judge should say of ``items``, float64[n]."""
    return np.array([VALUE[item.truth] for item in items], np.float64)


def facts(items: Sequence[Item]) -> npt.NDArray[np.int64]:
    """The facts of ``items``, int64[n]."""
    return np.array([item.fact for item in items], np.int64)
