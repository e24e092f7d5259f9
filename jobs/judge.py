"""The judge job: interactions in, verdicts out, on the cores that requests leave over.

Interactions are read from ``ruvllm.interactions.v1``, verdicts written to ``ruvllm.judgements.v1`` under the same key.
The verdict's event id follows from the interaction's, so judging again after a crash adds no second verdict for anyone
who drops repeats. When the judge's engine is away (``Retry``), interactions wait; they don't become ``unjudged``.

Interactions of outside producers are judged as ours are. One that comes with the score its user gave needs no judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from conf.schema import Settings
from jobs.consumer import Consumer, Out, Seen, always, read_record
from jobs.counterfactual import Counterfactuals, counterfactual_consumer
from jobs.door import ServiceDoor
from jobs.feedback import feedback_consumer
from jobs.process import main
from operators.engines.make import make_engine
from operators.errors import RuvError
from operators.judge import Judge, verdict_id
from operators.records import Interaction, Verdict, encode
from operators.stores.events import Events
from operators.stores.make import open_log
from operators.stores.ports import Event, EventLog
from operators.stores.topics import (
    INTERACTIONS,
    JUDGEMENTS,
    ROUTER_UPDATES,
    event_headers,
    session_key,
)

SOURCE = "/ruvllm/judge"


def step_back(nice: int) -> None:
    """Lower this process' priority by ``nice``; on Linux also take only time that nobody else wants.

    Before engines start: on Linux only threads begun later inherit it.
    """
    if nice:
        os.nice(nice)
        if sys.platform == "linux":
            # Niceness still takes a share of a busy core, and that share is what a first token waits for.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def judge_consumer(
    log: EventLog,
    judge: Judge,
    *,
    group: str = "judge",
    idle_s: float = 1.0,
    may_work: Callable[[], bool] = always,
    clock: Callable[[], float] = time.time,
    before_commit: Callable[[], None] = lambda: None,
    partitions: Sequence[int] | None = None,
) -> Consumer:
    """The consumer that judges, not yet running; its ``counts`` and ``lag()`` are for the metrics.

    Several processes share the work by ``partitions``; a session is in one of them, so its order is kept.
    """
    seen = Seen()

    async def handle(event: Event) -> Sequence[Out]:
        interaction = read_record(Interaction, event)
        if interaction.event_id in seen:
            return []
        (verdict,) = [rated(interaction, clock())] if interaction.score is not None else await judge([interaction])
        seen.add(interaction.event_id)  # only now: after a Retry the same event comes again
        headers = event_headers(
            verdict.event_id, JUDGEMENTS, SOURCE, clock(), traceparent=event.headers.get("traceparent", "")
        )
        # A verdict holds no text: whoever needs the interaction reads it where it stands.
        headers |= {"src.topic": event.topic, "src.partition": str(event.partition), "src.offset": str(event.offset)}
        key = session_key(verdict.tenant, verdict.session)
        return [Out(topic=JUDGEMENTS, key=key, value=encode(verdict), headers=headers)]

    # One event a step: a verdict takes far longer than a commit, and a crash should cost one verdict, not a batch.
    return Consumer(
        log,
        INTERACTIONS,
        group,
        handle,
        partitions=partitions,
        batch=1,
        may_work=may_work,
        idle_s=idle_s,
        before_commit=before_commit,
    )


def rated(interaction: Interaction, now: float) -> Verdict:
    """The verdict that came with ``interaction``, as a user's, with the id that the judge's would have."""
    return Verdict(
        event_id=verdict_id(interaction.event_id),
        interaction_id=interaction.interaction_id,
        tenant=interaction.tenant,
        session=interaction.session,
        created_at=now,
        status="judged",
        score=interaction.score,
        uncertainty=0.0,
        judge="user",
        by="user",
    )


async def run(
    log: EventLog,
    judge: Judge,
    stop: asyncio.Event,
    may_work: Callable[[], bool] = always,
    *,
    nice: int = 10,
    idle_s: float = 1.0,
    partitions: Sequence[int] | None = None,
    beside: Sequence[Consumer] = (),
) -> None:
    """The whole job in its own process: step back, load the judge, judge until ``stop``, free the judge.

    ``may_work`` is asked before each interaction, e.g. whether no request waits. ``log`` is open. ``beside``: more
    consumers that use the judge.
    """
    step_back(nice)
    await judge.start()
    try:
        judging = judge_consumer(log, judge, idle_s=idle_s, may_work=may_work, partitions=partitions)
        await asyncio.gather(*(one.run(stop) for one in (judging, *beside)))
    finally:
        await judge.close()


TIDY_S = 3600.0
"""Seconds between two removals of events that are older than ``events.retention_days``."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """The job of a profile, until ``stop``."""
    job = settings.judge_job
    engine = make_engine(
        job.engine, settings.judge_model, settings.data_dir / "cache", context_tokens=job.context_tokens
    )
    with contextlib.closing(open_log(settings.events)) as log, contextlib.ExitStack() as closing:
        tidy = asyncio.create_task(_tidy(log, settings.events))
        try:
            judge = Judge(settings.judge, engine)
            beside = _beside(log, judge, settings, closing)
            mine = job.partitions
            judging = run(log, judge, stop, nice=job.nice, idle_s=job.poll_s, partitions=mine, beside=beside)
            await asyncio.gather(judging, feedback_consumer(log, idle_s=job.poll_s, partitions=mine).run(stop))
        finally:
            tidy.cancel()


def _beside(log: EventLog, judge: Judge, settings: Settings, closing: contextlib.ExitStack) -> list[Consumer]:
    """What the process does while there is nothing to judge."""
    config = settings.counterfactual
    if not config.enabled or len(settings.tiers) < 2:
        return []
    door = closing.enter_context(contextlib.closing(ServiceDoor(settings, settings.http.request_timeout_s)))
    work = Counterfactuals(log, door.post_json, judge, judge.title, settings)
    return [counterfactual_consumer(log, work, config.poll_s, settings.judge_job.partitions)]


async def _tidy(log: EventLog, events: Events) -> None:
    while events.kind == "sqlite":  # Kafka removes by itself what is old
        try:
            for topic in log.topics():
                if topic != ROUTER_UPDATES:  # compacted: its newest event is the state, however old
                    await asyncio.to_thread(log.retain, topic, max_age_s=events.retention_days * 86400)
        except RuvError as error:
            print(f"judge: could not remove old events: {error}", file=sys.stderr)
        await asyncio.sleep(TIDY_S)


if __name__ == "__main__":
    main("judge", serve)
