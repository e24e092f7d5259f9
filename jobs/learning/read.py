"""Cutting a partition of judgements into batches that repeats do not shift, and which of two verdicts stands.

A judgement that comes again (a producer's second attempt, a spool that was killed) is no new one. Were it counted, the
batches behind it would be others, and so would what is learned from them.
"""

from __future__ import annotations

from jobs.consumer import Seen, read_record
from operators.errors import Skip
from operators.records import Verdict
from operators.stores.ports import Event, EventLog
from operators.stores.topics import JUDGEMENTS

LONGEST = 64
"""So many times a batch's length is read at most; what is new until there makes a shorter batch."""


def whole(log: EventLog, partition: int, position: int, batch: int, seen: Seen) -> list[Event]:
    """The events from ``position`` up to the one that makes ``batch`` of them new; empty while there are fewer.

    What can't be read has no id, and counts as new. Where nothing but repeats is left, these: they are done with.
    """
    found: list[Event] = []
    ids: set[str] = set()
    new = 0
    while len(found) < LONGEST * batch:
        events = log.read(JUDGEMENTS, partition, position, batch)
        for event in events:
            found.append(event)
            event_id = _id(event)
            new += not event_id or (event_id not in seen and event_id not in ids)
            ids.add(event_id)
            if new == batch:
                return found
        if len(events) < batch:
            return [] if new else found
        position = events[-1].offset + 1
    return found


def overruled(verdict: Verdict, seen: Seen) -> bool:
    """Whether a user has spoken of the same turn before; the word of a user is noted in ``seen``.

    The judge works when nobody waits, so it often comes after its user, whose word stands.
    """
    word = f"user {verdict.tenant}|{verdict.interaction_id}"
    if verdict.by == "user":
        seen.add(word)
        return False
    return word in seen


def _id(event: Event) -> str:
    try:
        return read_record(Verdict, event).event_id
    except Skip:
        return ""
