"""What judged turns say of the checkpoints that decided them, and of one that only watched."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from jobs.consumer import read_record
from operators.errors import Skip
from operators.records import Interaction, Verdict, record
from operators.stores.ports import Event, EventLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS

T = TypeVar("T")


@record
class Evidence:
    """What is known of the versions. ``verdicts``: version → the last scores of turns that it decided. ``watched``:
    version → for each of the last turns that it watched, how much better it would have done, as estimated."""

    verdicts: Mapping[str, Sequence[float]]
    watched: Mapping[str, Sequence[float]]


VERSIONS = 16
"""Versions that are remembered: those that decided or watched last. More than that never act at once."""


class Tally:
    """The evidence of the last ``size`` judged turns of each version. A user's verdict takes the place of a model's."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._scores: dict[str, dict[str, tuple[float, bool]]] = {}
        self._gains: dict[str, deque[tuple[str, float, float]]] = {}

    def add(self, interaction: Interaction, verdict: Verdict) -> None:
        """Take a verdict into account; one on a turn that no router decided, or without a score, says nothing.

        Nor does one that takes another's place: it came later, perhaps from another judge, and is no new traffic.
        """
        route = interaction.route
        if route is None or verdict.score is None or verdict.status != "judged" or route.reason == "caller":
            return
        if verdict.replaces:
            return
        scores = _newest(self._scores, route.checkpoint, {})
        by_user = verdict.by == "user"
        if (known := scores.get(interaction.interaction_id)) and known[1] and not by_user:
            return
        scores[interaction.interaction_id] = (verdict.score, by_user)
        if len(scores) > self._size:
            del scores[next(iter(scores))]
        shadow = route.shadow
        if shadow is not None and not known:
            weight = shadow.propensity / route.propensities["tier"]
            watched = _newest(self._gains, shadow.checkpoint, deque(maxlen=self._size))
            watched.append((interaction.interaction_id, weight, verdict.score))

    def evidence(self) -> Evidence:
        """What is known now.

        A watched version's gain on a turn is (w − 1)·(score − mean score), w being its chance of the tier that was
        taken divided by the real one: the importance-weighted difference of the policies, the mean as baseline.
        """
        watched = {}
        for version, rows in self._gains.items():
            mean = fmean(score for _, _, score in rows)
            watched[version] = [(weight - 1.0) * (score - mean) for _, weight, score in rows]
        verdicts = {name: [score for score, _ in scores.values()] for name, scores in self._scores.items()}
        return Evidence(verdicts=verdicts, watched=watched)


def _newest(of: dict[str, T], version: str, empty: T) -> T:
    """The entry of ``version``, moved to the end; the one unused longest goes when there are too many."""
    of[version] = of.pop(version, empty)
    if len(of) > VERSIONS:
        del of[next(iter(of))]
    return of[version]


def recall(log: EventLog, tally: Tally, events: int) -> int:
    """Add the last ``events`` verdicts of every partition to ``tally``; returns how many turns were found. Blocks."""
    found = 0
    for partition in range(log.topics()[JUDGEMENTS]):
        begin = max(0, log.end(JUDGEMENTS, partition) - events)
        for event in log.read(JUDGEMENTS, partition, begin, events):
            try:
                verdict = read_record(Verdict, event)
                tally.add(interaction_of(log, event, verdict), verdict)
                found += 1
            except Skip:
                continue  # the learner, who reads it too, has put it aside as a dead letter
    return found


def interaction_of(log: EventLog, event: Event, verdict: Verdict) -> Interaction:
    """What the ``verdict`` in ``event`` is about. Raises ``Skip`` when it is not where the event says. Blocks."""
    where = f"{event.topic}/{event.partition} offset {event.offset}"
    try:
        partition, offset = int(event.headers["src.partition"]), int(event.headers["src.offset"])
    except (KeyError, ValueError) as error:
        got = f"no interaction named: {error}"
        raise Skip(where, got, "send src.partition and src.offset of the interaction as headers") from error
    found = log.read(event.headers.get("src.topic", INTERACTIONS), partition, offset, 1)
    if not found or found[0].offset != offset:
        raise Skip(where, f"its interaction, {partition}/{offset}, is gone", "keep events longer than verdicts take")
    interaction = read_record(Interaction, found[0])
    if (interaction.interaction_id, interaction.tenant) != (verdict.interaction_id, verdict.tenant):
        got = f"{partition}/{offset} is another interaction than {verdict.interaction_id}"
        raise Skip(where, got, "send the verdict with the place of its own interaction")
    return interaction
