"""``GET /metrics``: how events leave the answer path, and what others have to tell, as Prometheus' text format 0.0.4.

The numbers are those of the process that answers; ``ruvllm_spool_events`` and ``ruvllm_spool_bytes`` are of the spool
file, which the processes of a machine share, and ``ruvllm_lag_events`` of the embedded event log. No label names a
tenant or a session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from operators.errors import RuvError
from operators.stores.ports import EventLog
from operators.stores.spool import SpoolingLog
from operators.stores.topics import READERS
from pipeline.emit import Emitter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Row = tuple[str, str, str, int]
"""Name, with its labels if it has any; type, what it counts, and its value."""


def install(app: FastAPI, emitter: Emitter, others: Callable[[], Awaitable[list[Row]]]) -> None:
    """Give ``app`` the endpoint. ``others`` are asked for theirs."""

    @app.get("/metrics", tags=["Health"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """How events leave the answer path, for Prometheus."""
        asked = [*(await asyncio.to_thread(of_spool, emitter)), *(await asyncio.to_thread(of_log, emitter.log))]
        rows = [*of_emitter(emitter), *asked, *await others()]
        return PlainTextResponse(text(rows), media_type=CONTENT_TYPE)


def of_emitter(emitter: Emitter) -> list[Row]:
    """Events since the start of this process."""
    counts = emitter.counts
    return [
        ("ruvllm_events_waiting", "gauge", "Events in memory that are not durable yet.", emitter.waiting()),
        ("ruvllm_events_written_total", "counter", "Events that are durable, in the log or the spool.", counts.written),
        ("ruvllm_events_lost_total", "counter", "Events that found the queue full, or were no text.", counts.lost),
        ("ruvllm_events_failures_total", "counter", "Failed attempts to write events.", counts.failures),
    ]


def of_spool(emitter: Emitter) -> list[Row]:
    """The spool, if the log has one. Blocks: it asks the file; what it can't tell now is left out."""
    spool = emitter.log
    if not isinstance(spool, SpoolingLog):
        return []
    counts = spool.counts
    rows = [
        ("ruvllm_spool_spooled_total", "counter", "Events that went to the spool.", counts.spooled),
        ("ruvllm_spool_drained_total", "counter", "Spooled events that reached the log.", counts.drained),
        (
            "ruvllm_spool_refused_total",
            "counter",
            "Events that found no room in the spool; tried again.",
            counts.refused,
        ),
        ("ruvllm_spool_aside_total", "counter", "Events set aside, too large for the log.", counts.aside),
    ]
    with contextlib.suppress(RuvError):  # it is closing, or its disk fails
        rows.append(("ruvllm_spool_events", "gauge", "Events that wait in the spool.", spool.waiting()))
        rows.append(("ruvllm_spool_bytes", "gauge", "Bytes of the spool in use.", spool.used_bytes()))
    return rows


def of_log(log: EventLog) -> list[Row]:
    """What waits for each group of readers in the embedded log. Blocks.

    Nothing of a Kafka cluster: a frozen broker would hold up every scrape; ``ruvllm topics list`` and the cluster's own
    metrics tell it.
    """
    if isinstance(log, SpoolingLog):
        return []
    rows: list[Row] = []
    with contextlib.suppress(RuvError):
        for topic, partitions in log.topics().items():
            for group in READERS.get(topic, ()):
                waits = (log.end(topic, one) - log.committed(group, topic, one) for one in range(partitions))
                name = f'ruvllm_lag_events{{group="{group}",topic="{topic}"}}'
                rows.append((name, "gauge", "Events that a group of readers has not done yet.", sum(waits)))
    return rows


def text(rows: list[Row]) -> str:
    """``rows`` as Prometheus reads them; those of one name stand together."""
    lines: list[str] = []
    told = ""
    for name, kind, about, value in rows:
        base = name.partition("{")[0]
        if base != told:
            lines += [f"# HELP {base} {about}", f"# TYPE {base} {kind}"]
            told = base
        lines.append(f"{name} {value}")
    return "".join(f"{line}\n" for line in lines)
