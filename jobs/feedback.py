"""Users' feedback becomes verdicts: what a user says of an answer outranks what a model says.

``ruvllm.feedback.v1`` → ``ruvllm.judgements.v1``, under the same key, so that the verdicts on one answer stay in order.
It needs no model. The interaction is looked for backwards from the end of its partition, for feedback comes soon or
never; what is not found there (removed by retention, or never said by us) becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence

from jobs.consumer import Consumer, Out, read_record
from operators.documents import NAMESPACE
from operators.errors import Skip
from operators.records import Feedback, Interaction, Verdict, encode
from operators.stores.ports import Event, EventLog
from operators.stores.topics import (
    FEEDBACK,
    INTERACTIONS,
    JUDGEMENTS,
    event_headers,
    partition_of,
    session_key,
)

SOURCE = "/ruvllm/feedback"
SLICE = 256
"""Events that one look backwards reads."""


def feedback_consumer(
    log: EventLog,
    *,
    idle_s: float = 1.0,
    clock: Callable[[], float] = time.time,
    partitions: Sequence[int] | None = None,
) -> Consumer:
    """The consumer that turns feedback into verdicts, not yet running."""

    async def handle(event: Event) -> Sequence[Out]:
        given = read_record(Feedback, event)
        if not 0 <= given.score <= 1:
            where = f"{event.topic}/{event.partition} offset {event.offset}"
            raise Skip(where, f"score {given.score}", "send one from 0 to 1")
        found = await asyncio.to_thread(find, log, given)
        verdict = Verdict(
            event_id=str(uuid.uuid5(NAMESPACE, f"feedback {given.event_id}")),
            interaction_id=given.interaction_id,
            tenant=given.tenant,
            session=given.session,
            created_at=clock(),
            status="judged",
            score=given.score,
            uncertainty=0.0,
            judge="user",
            by="user",
            correction=given.correction,
        )
        headers = event_headers(verdict.event_id, JUDGEMENTS, SOURCE, clock())
        headers |= {"src.topic": found.topic, "src.partition": str(found.partition), "src.offset": str(found.offset)}
        key = session_key(given.tenant, given.session)
        return [Out(topic=JUDGEMENTS, key=key, value=encode(verdict), headers=headers)]

    return Consumer(log, FEEDBACK, "feedback", handle, partitions=partitions, idle_s=idle_s)


def find(log: EventLog, given: Feedback) -> Event:
    """The event of the interaction that ``given`` is about. Raises ``Skip`` if that tenant's session has none such."""
    partition = partition_of(session_key(given.tenant, given.session), log.topics()[INTERACTIONS])
    end, wanted = log.end(INTERACTIONS, partition), given.interaction_id.encode()
    while end > 0:
        begin = max(0, end - SLICE)
        events = [event for event in log.read(INTERACTIONS, partition, begin, end - begin) if event.offset < end]
        for event in reversed(events):
            if wanted in event.value:
                said = read_record(Interaction, event)
                if (said.interaction_id, said.tenant, said.session) == (
                    given.interaction_id,
                    given.tenant,
                    given.session,
                ):
                    return event
        if not events:
            break  # retention took the rest
        end = begin
    got = f"no interaction {given.interaction_id!r} in that session"
    raise Skip("feedback", got, "name the interaction and session that the answer came with")
