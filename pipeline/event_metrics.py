"""``GET /metrics``: how events leave the answer path, in Prometheus' text format 0.0.4.

The numbers are those of the process that answers; ``ruvllm_spool_events`` and ``ruvllm_spool_bytes`` are of the spool
file, which the processes of a machine share. No label names a tenant or a session.
"""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from operators.errors import RuvError
from operators.stores.spool import SpoolingLog
from pipeline.emit import Emitter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Row = tuple[str, str, str, int]
"""Name, type, what it counts, and its value."""


def install(app: FastAPI, emitter: Emitter) -> None:
    """Give ``app`` the endpoint."""

    @app.get("/metrics", tags=["Health"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """How events leave the answer path, for Prometheus."""
        rows = [*of_emitter(emitter), *(await asyncio.to_thread(of_spool, emitter))]
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


def text(rows: list[Row]) -> str:
    """``rows`` as Prometheus reads them."""
    return "".join(
        f"# HELP {name} {about}\n# TYPE {name} {kind}\n{name} {value}\n" for name, kind, about, value in rows
    )
