"""From an archive to what the learner reads: its turns as columns, with the verdicts that stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.schema import Settings
from jobs.consumer import read_record
from jobs.learning.turns import row, together
from jobs.replaying.archive import Archive
from jobs.replaying.rejudge import fingerprint, verdicts
from jobs.replaying.removed import Removed
from jobs.replaying.standing import Key, key_of, standing
from operators.errors import Skip
from operators.learning.turns import Columns
from operators.networks.fastgrnn import Vector
from operators.records import Interaction, Verdict
from operators.stores.topics import INTERACTIONS

Row = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(slots=True)
class Counts:
    """The archive's interactions: ``turns`` that teach something; the others were said twice, removed since, not
    judged, broken, or tell nothing of the router (another producer's, or the caller chose the tier)."""

    interactions: int = 0
    turns: int = 0
    repeats: int = 0
    removed: int = 0
    unjudged: int = 0
    broken: int = 0
    not_routed: int = 0
    judges: list[str] = dataclasses.field(default_factory=list)


def turns(archive: Archive, settings: Settings, *, rejudged: bool) -> tuple[Columns, Counts]:
    """The turns, by partition and offset, and what became of every interaction.

    With ``rejudged`` a model's verdicts are those of the judge of ``settings``; users' stand. Raises ``Reject`` if it
    has not judged.
    """
    counts = Counts()
    stand = standing(archive)
    if rejudged:
        stand = {key: verdict for key, verdict in stand.items() if verdict.by == "user"}
        for _, _, verdict in verdicts(archive.path / f"verdicts-{fingerprint(settings)}"):
            stand.setdefault(key_of(verdict), verdict)
    found = list(_rows(archive, settings, stand, counts))
    counts.turns = len(found)
    counts.judges.sort()
    return together(found), counts


def _rows(archive: Archive, settings: Settings, stand: dict[Key, Verdict], counts: Counts) -> Iterator[Row]:
    slots = {tier.name: tier.slot for tier in settings.tiers}
    removed, seen = Removed(memory_of(settings)), set()
    for event in archive.events(INTERACTIONS):
        counts.interactions += 1
        interaction = read_record(Interaction, event)
        verdict = stand.get(key_of(interaction))
        if key_of(interaction) in seen:
            counts.repeats += 1
        elif removed.has(interaction.tenant, interaction.interaction_id, event.timestamp):
            counts.removed += 1
        elif verdict is None or verdict.score is None:
            counts.unjudged += 1
        else:
            try:
                made = row(interaction, verdict, slots)
            except Skip:
                counts.broken += 1
                continue
            finally:
                seen.add(key_of(interaction))
            if made is None:
                counts.not_routed += 1
                continue
            if verdict.judge not in counts.judges:
                counts.judges.append(verdict.judge)
            yield made


def memory_of(settings: Settings) -> Path:
    """The directory of the memory, where the receipts of removals are."""
    return settings.data_dir / "memory"


def costs_of(settings: Settings) -> npt.NDArray[np.float64]:
    """What an answer of each slot costs, float64[4]; NaN where there is no tier."""
    costs = np.full(4, np.nan)
    for tier in settings.tiers:
        costs[tier.slot] = tier.cost
    return costs


def logits_of(costs: npt.NDArray[np.float64], settings: Settings) -> Vector:
    """The same in logits of the policy, float32[4], as the learner reads it."""
    dearest = np.nanmax(costs) or 1.0
    return np.asarray(np.where(np.isnan(costs), 1e3, settings.route.cost_weight * costs / dearest), np.float32)
