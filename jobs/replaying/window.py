"""Which events a replay reads: a window of time or of offsets becomes a range of offsets for every partition.

A window is of interactions. The verdicts on them stand later in the log, so judgements are read from the window's
beginning to the log's end as it was then. Times are those at which the log took an event; between events whose clocks
went back the bounds are not sharp.
"""

from __future__ import annotations

import datetime
import re
from typing import TypeAlias

from operators.errors import Reject
from operators.records import record
from operators.stores.ports import EventLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS

Ranges: TypeAlias = dict[str, tuple[int, int]]
"""``"TOPIC/PARTITION"`` → the first offset and the one after the last."""

WHO = "replay"
SLACK_S = 3600.0
"""How much earlier than its interaction a verdict's time may be, for clocks that differ."""
_OFFSETS = re.compile(r"\d+:\d+(,\d+:\d+)*")


@record
class Window:
    """What was asked for. ``begin`` and ``end``: a time (ISO 8601, UTC if it names no zone), or ``PARTITION:OFFSET``,
    several with commas between; empty is the log's own. ``end`` itself is not read. ``tenant``: whose, or all."""

    begin: str = ""
    end: str = ""
    tenant: str = ""


def ranges(log: EventLog, window: Window) -> Ranges:
    """What ``window`` means in ``log`` now. Where offsets are given, partitions that are not named are left out.

    Raises ``Reject`` for a window that can't be read, or a partition that is not there. Blocks.
    """
    begin, end = _point(window.begin), _point(window.end)
    named = [set(point) for point in (begin, end) if isinstance(point, dict)]
    count = log.topics()[INTERACTIONS]
    wanted = set.intersection(*named) if named else set(range(count))
    if any(one != wanted for one in named) or not wanted <= set(range(count)):
        got = f"partitions {sorted(set.union(*named))} of 0 to {count - 1}"
        raise Reject(WHO, got, "name the same ones in --from and --to, each of those that there are")
    found: Ranges = {}
    since = begin if isinstance(begin, float) else float("inf")
    for partition in sorted(wanted):
        first = _offset(log, INTERACTIONS, partition, begin, 0)
        after = _offset(log, INTERACTIONS, partition, end, log.end(INTERACTIONS, partition))
        there = log.read(INTERACTIONS, partition, first, 1)
        first = there[0].offset if there else after  # retention may have taken the oldest
        found[f"{INTERACTIONS}/{partition}"] = (min(first, after), after)
        if there:
            since = min(since, there[0].timestamp)
    for partition in range(log.topics()[JUDGEMENTS]):
        after = log.end(JUDGEMENTS, partition)
        found[f"{JUDGEMENTS}/{partition}"] = (min(_at(log, JUDGEMENTS, partition, since - SLACK_S), after), after)
    return found


def split(name: str) -> tuple[str, int]:
    """Topic and partition of a key of ``Ranges``."""
    topic, _, partition = name.rpartition("/")
    return topic, int(partition)


def _point(text: str) -> float | dict[int, int] | None:
    """Unix seconds, or partition → offset."""
    if not text:
        return None
    if _OFFSETS.fullmatch(text):
        return {int(one.split(":")[0]): int(one.split(":")[1]) for one in text.split(",")}
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        remedy = "give a time like 2026-11-20T08:00, or PARTITION:OFFSET like 0:120,1:98"
        raise Reject(WHO, f"{text!r} is neither a time nor offsets", remedy) from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()


def _offset(log: EventLog, topic: str, partition: int, point: float | dict[int, int] | None, usual: int) -> int:
    if point is None:
        return usual
    if isinstance(point, dict):
        return min(point[partition], log.end(topic, partition))
    return _at(log, topic, partition, point)


def _at(log: EventLog, topic: str, partition: int, time: float) -> int:
    """The offset of the first event that the log took at ``time`` or later, by bisection."""
    low, high = 0, log.end(topic, partition)
    while low < high:
        middle = (low + high) // 2
        events = log.read(topic, partition, middle, 1)
        if events and events[0].timestamp < time:
            low = events[0].offset + 1
        else:
            high = middle
    return low
