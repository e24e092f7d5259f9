"""The write-back job: answers that were judged good become memory, each once.

    1 read the verdict, and the interaction that it is about where it stands in its topic
    2 gate: unjudged, below the threshold, taken back by its user, or suspicious (``operators.quarantine``): not written
    3 mask personal data; question and answer become one text
    4 the memory's owner, the running service, embeds it, finds near-copies, writes vectors, then the graph
    5 the outcome goes to ``ruvllm.writebacks.v1``, then the offset is committed

A verdict by a user stands against a model's: a good one is written whatever the model said, a bad one takes the answer
back, for good, and a correction is remembered in its place. While the service is away verdicts wait (``Retry``). A
crash anywhere does 1 to 5 again, which changes nothing: ids are deterministic, and the memory knows what it counted.
A verdict that stands in the topic twice is settled once: its outcome, with an id of its own, is in the topic already.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Protocol

from conf.schema import Settings
from jobs.consumer import Consumer, Out, Seen, dead_letter, read_record
from jobs.door import ServiceDoor
from jobs.evidence import interaction_of
from jobs.process import main
from operators.documents import NAMESPACE
from operators.errors import Reject, Stop
from operators.privacy.masker import FAILED, Masker
from operators.quarantine import Quarantine
from operators.records import Interaction, Outcome, Verdict, Writeback, encode
from operators.stores.make import open_log
from operators.stores.ports import Event, EventLog
from operators.stores.topics import JUDGEMENTS, WRITEBACKS, event_headers, session_key

SOURCE = "/ruvllm/writeback"
MOST_CITES = 64
"""Most cites that the memory's owner takes with an answer."""
SETTLED = 10_000
"""Outcomes that are remembered, to know repeats by; so many are read again at the start."""
REMEMBER, WITHDRAW = "/v1/admin/memory/remember", "/v1/admin/memory/withdraw"


class Posts(Protocol):
    """What is needed of the way to the memory's owner. A blocking call; raises ``Retry``, ``Reject`` or ``Stop``."""

    def post_json(self, path: str, body: Any) -> Any:
        """The JSON answered to ``body``."""


class Suspects(Protocol):
    """What is needed of the quarantine."""

    def check(self, tenant: str, principal: str, question: str, answer: str, now: float) -> str | None:
        """Why this must not be remembered; ``None`` if nothing speaks against it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """An event that waits for the rest of its batch: ``item`` to remember, ``None`` to withdraw."""

    event: Event
    verdict: Verdict
    item: dict[str, Any] | None


class Writer:
    """Handles judgements; ``take`` and ``finish`` are for a ``Consumer``. ``outcomes`` counts since the start.

    ``min_quality``: least score that is remembered. One event loop; ``door`` is called on a thread.
    """

    def __init__(
        self,
        log: EventLog,
        door: Posts,
        masker: Masker,
        quarantine: Suspects,
        min_quality: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._log, self._door, self._masker, self._quarantine = log, door, masker, quarantine
        self._min_quality, self._clock = min_quality, clock
        self._waiting: list[_Waiting] = []
        self._settled_before: Seen | None = None

    async def take(self, event: Event) -> Sequence[Out]:
        """Settle the verdict at once, or put it aside for ``finish``; a repeat is passed over."""
        verdict = read_record(Verdict, event)
        if verdict.others:  # the same verdict again, with what other tiers would have got: for the learner alone
            return []
        if self._settled_before is None:
            self._settled_before = await asyncio.to_thread(_recalled, self._log)
        if outcome_id(verdict) in self._settled_before:
            return []
        outs = await self._taken(event, verdict)
        self._settled_before.add(outcome_id(verdict))  # only now: after a Retry the same event comes again
        return outs

    async def _taken(self, event: Event, verdict: Verdict) -> Sequence[Out]:
        if verdict.status == "unjudged" or verdict.score is None:
            return [self._settled(verdict, "unjudged", verdict.reason)]
        score = 1.0 if verdict.correction else verdict.score
        if score < self._min_quality:
            if verdict.by == "user":
                self._waiting.append(_Waiting(event, verdict, None))
                return []
            got = f"{verdict.judge} gave {verdict.score:.2f}, {self._min_quality:g} is asked for"
            return [self._settled(verdict, "below_threshold", got)]
        interaction = await asyncio.to_thread(interaction_of, self._log, event, verdict)
        said = verdict.correction or interaction.answer
        question, answer = await asyncio.to_thread(lambda: (self._mask(interaction.query), self._mask(said)))
        if not answer.strip() or FAILED in (question, answer):
            return [self._settled(verdict, "below_threshold", "there is no text to remember")]
        principal = interaction.user or interaction.session
        if verdict.by == "model":  # what a user vouches for is the user's own
            reason = await asyncio.to_thread(
                self._quarantine.check, verdict.tenant, principal, question, answer, self._clock()
            )
            if reason is not None:
                return [self._settled(verdict, "quarantined", reason)]
        self._waiting.append(
            _Waiting(event, verdict, _item(event, verdict, interaction, score, f"{question}\n{answer}"))
        )
        return []

    async def finish(self) -> Sequence[Out]:
        """Hand what was put aside to the memory's owner, tenant by tenant, in the order of the events."""
        outs: list[Out] = []
        counted = self.outcomes.copy()
        try:
            for (tenant, good), some in groupby(self._waiting, key=lambda one: (one.verdict.tenant, bool(one.item))):
                outs += await self._send(tenant, good, list(some))
        except BaseException:
            self.outcomes = counted  # it is all done again
            raise
        self._waiting = []
        return outs

    async def _send(self, tenant: str, good: bool, some: Sequence[_Waiting]) -> list[Out]:
        try:
            if not good:
                ids = [one.verdict.interaction_id for one in some]
                await self._post(WITHDRAW, {"tenant": tenant, "interaction_ids": ids})
                return [self._settled(one.verdict, "withdrawn", "its user said so") for one in some]
            answer = await self._post(REMEMBER, {"tenant": tenant, "items": [one.item for one in some]})
        except Reject as error:
            if len(some) == 1:  # this one is what the memory refuses
                return [self._settled(some[0].verdict, "failed", str(error)), dead_letter(some[0].event, error, 1)]
            return [out for one in some for out in await self._send(tenant, good, [one])]
        results = answer["results"]
        if [result["interaction_id"] for result in results] != [one.verdict.interaction_id for one in some]:
            raise Stop(
                "writeback", f"{len(results)} results for {len(some)} items", "use service and job of one version"
            )
        named = ("node_id", "partner", "similarity", "jaccard")
        return [
            self._settled(one.verdict, result["outcome"], **{name: result[name] for name in named})
            for one, result in zip(some, results, strict=True)
        ]

    async def _post(self, path: str, body: Any) -> Any:
        return await asyncio.to_thread(self._door.post_json, path, body)

    def _mask(self, text: str) -> str:
        return self._masker(text)

    def _settled(self, verdict: Verdict, outcome: Outcome, reason: str = "", **rest: Any) -> Out:
        self.outcomes[outcome] += 1
        done = Writeback(
            event_id=outcome_id(verdict),
            interaction_id=verdict.interaction_id,
            tenant=verdict.tenant,
            session=verdict.session,
            created_at=self._clock(),
            outcome=outcome,
            reason=reason,
            **rest,
        )
        headers = event_headers(done.event_id, WRITEBACKS, SOURCE, self._clock())
        return Out(topic=WRITEBACKS, key=session_key(done.tenant, done.session), value=encode(done), headers=headers)


def outcome_id(verdict: Verdict) -> str:
    """Event id of what became of ``verdict``."""
    return str(uuid.uuid5(NAMESPACE, f"writeback {verdict.event_id}"))


def _recalled(log: EventLog) -> Seen:
    """The ids of the last outcomes. Blocks."""
    seen, partitions = Seen(SETTLED), log.topics()[WRITEBACKS]
    for partition in range(partitions):
        most = SETTLED // partitions
        for event in log.read(WRITEBACKS, partition, max(0, log.end(WRITEBACKS, partition) - most), most):
            seen.add(event.headers.get("ce_id", ""))
    return seen


def _item(event: Event, verdict: Verdict, interaction: Interaction, score: float, text: str) -> dict[str, Any]:
    """A ``RememberItem`` of the service's API."""
    route = interaction.route
    origin = {
        "origin": interaction.origin,
        "tier": route.tier if route else "",
        "checkpoint": route.checkpoint if route else "",
        "judge": "user" if verdict.by == "user" else verdict.judge,
        "verdict": verdict.event_id,
        "uncertainty": "" if verdict.uncertainty is None else f"{verdict.uncertainty:.3f}",
    }
    return {
        "interaction_id": interaction.interaction_id,
        "session": interaction.session,
        "user": interaction.user,
        "turn": interaction.turn,
        "text": text,
        "quality": score,
        "model": "user" if verdict.correction else interaction.model,
        "created_at": interaction.created_at,
        "rated_at": verdict.created_at,
        "cites": [passage.node_id for passage in interaction.context if passage.node_id][:MOST_CITES],
        "metadata": {name: value for name, value in origin.items() if value},
        "partition": f"{event.topic}/{event.partition}",
        "offset": event.offset,
    }


def writeback_consumer(
    log: EventLog,
    job: Writer,
    *,
    batch: int = 64,
    idle_s: float = 1.0,
    before_commit: Callable[[], None] = lambda: None,
) -> Consumer:
    """The consumer that writes back, not yet running."""
    return Consumer(
        log,
        JUDGEMENTS,
        "writeback",
        job.take,
        batch=batch,
        idle_s=idle_s,
        before_commit=before_commit,
        finish=job.finish,
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """The job of a profile, until ``stop``."""
    config = settings.writeback
    log = open_log(settings.events)
    with contextlib.closing(log), contextlib.closing(ServiceDoor(settings)) as door:
        masker, quarantine = Masker(settings.privacy), Quarantine(settings.quarantine)
        job = Writer(log, door, masker, quarantine, config.min_quality)
        await writeback_consumer(log, job, batch=config.batch, idle_s=config.flush_s).run(stop)


if __name__ == "__main__":
    main("writeback", serve)
