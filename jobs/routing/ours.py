"""The production router in an evaluation: its embedder, its features, its training, its heads.

A prompt is read as the first turn of a session in which memory found nothing and no tier is warm or busy. It learns in
two settings: told how every tier did (full), or only how the one did that was drawn for the prompt, with its propensity
logged (bandit), as in service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from conf.schema import Settings
from jobs.routing.outcomes import Array, Rows
from operators.embed import Embed
from operators.learning.config import FitConfig
from operators.learning.fit import fit
from operators.learning.turns import Columns, blank
from operators.networks import reading
from operators.networks.exemplars import AT
from operators.networks.fastgrnn import Snapshot
from operators.networks.features import TIERS
from operators.networks.prior import prior
from operators.records import F32, HIDDEN, Hits, Load, Message, Neighbourhood, Query, SessionState, record

SLICE = 64
"""Prompts embedded at a time."""
UNTAKEN = 1e3
"""Price, in logits, of a slot that has no tier: it is never taken."""


@record
class Prompts:
    """What is read of n prompts: ``vectors`` float32[n, dim] of the embedder, ``features`` float32[n, 128]."""

    vectors: F32
    features: F32

    def of(self, rows: Rows) -> Prompts:
        """The same of some rows: ``rows`` int64[m]."""
        return Prompts(vectors=self.vectors[rows], features=self.features[rows])


async def read(texts: Sequence[str], settings: Settings, advance: Callable[[int], None]) -> Prompts:
    """Embed and read ``texts``; ``advance`` is told how many are done. Raises ``Stop`` if the encoder can't be had."""
    session, load, hits, around = SessionState.new(), Load(tiers=()), Hits.none(), Neighbourhood.none()
    vectors, features = [], []
    embed = Embed(settings.embed, settings.data_dir / "cache")
    try:
        await embed.start()
        for begin in range(0, len(texts), SLICE):
            queries = [_query(text) for text in texts[begin : begin + SLICE]]
            for query, embedded in zip(queries, await embed.run(queries), strict=True):
                vectors.append(embedded.vector)
                features.append(reading.read(query, session, load, embedded, hits, around, {}))
            advance(len(vectors))
    finally:
        await embed.close()
    return Prompts(vectors=np.stack(vectors), features=np.stack(features))


def learn(
    features: F32,
    quality: Array,
    slots: Sequence[int],
    prices: Array,
    config: FitConfig,
    *,
    bandit: bool,
    tied: bool,
    seed: int,
) -> Snapshot:
    """A router trained from the prior, ``tied`` or not, on ``features`` float32[n, 128], ``quality`` float64[n, tiers].

    ``slots``: the tiers' slots. ``prices`` float64[tiers]: what they cost, in logits of the policy. With ``bandit`` one
    tier a prompt is drawn, each with the same chance, and the others' qualities are not looked at.
    """
    drawn = np.random.default_rng(seed).integers(len(slots), size=len(features)) if bandit else None
    priced = np.full(TIERS, UNTAKEN, np.float32)
    priced[list(slots)] = prices
    return fit(turns(features, quality, slots, drawn), prior(tied), f"evaluation-{seed}", priced, config, seed)


def turns(features: F32, quality: Array, slots: Sequence[int], drawn: Rows | None) -> Columns:
    """The turns that ``learn`` learns from; ``drawn`` int64[n] is the one tier whose quality is known, None: all."""
    n = len(features)
    made = blank(n)
    made["features"] = np.array(features)
    if drawn is None:
        made["known"][:, list(slots)] = 1.0
        made["quality"][:, list(slots)] = quality
        return made
    rows, slot = np.arange(n), np.array(slots)[drawn]
    made["known"][rows, slot] = 1.0
    made["quality"][rows, slot] = quality[rows, drawn]
    made["slot"][:] = slot
    made["propensity"][:] = 1.0 / len(slots)
    return made


def predict(snapshot: Snapshot, features: F32, slots: Sequence[int]) -> Array:
    """The quality that the router expects of every tier, float64[n, tiers], for ``features`` float32[n, 128]."""
    x = features.copy()
    if snapshot.exemplars is not None:
        x[:, AT] = snapshot.exemplars.recall_all(x)
    logits = snapshot.forward(x, np.zeros((len(x), HIDDEN), np.float32)).tier[:, list(slots)].astype(np.float64)
    made: Array = 0.5 + 0.5 * np.tanh(0.5 * logits)  # σ that can't overflow
    return made


def _query(text: str) -> Query:
    return Query(
        interaction_id="evaluation",
        tenant="evaluation",
        session="evaluation",
        text=text,
        messages=(Message(role="user", content=text),),
        created_at=0.0,
    )
