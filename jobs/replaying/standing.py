"""Which verdict stands for an interaction: a user's before a model's, and of each kind the last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from jobs.consumer import read_record
from jobs.replaying.archive import Archive
from operators.errors import Skip
from operators.records import Interaction, Verdict
from operators.stores.ports import Event
from operators.stores.topics import JUDGEMENTS

Key: TypeAlias = tuple[str, str]
"""Tenant and interaction id."""


def key_of(said: Verdict | Interaction) -> Key:
    """Which interaction it is."""
    return said.tenant, said.interaction_id


def standing(events: Archive | Iterable[Event]) -> dict[Key, Verdict]:
    """The verdict that stands for each interaction, of all in ``events``, which are in the log's order."""
    found: dict[Key, Verdict] = {}
    for event in events.events(JUDGEMENTS) if isinstance(events, Archive) else events:
        try:
            verdict = read_record(Verdict, event)
        except Skip:
            continue  # another job's dead letter
        before = found.get(key_of(verdict))
        if before is None or before.by != "user" or verdict.by == "user":
            found[key_of(verdict)] = verdict
    return found
