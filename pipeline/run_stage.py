"""One stage alone, from JSON to JSON: what the stage reads and the input lacks is made by the stages before it."""

from __future__ import annotations

import time
from typing import Any

import orjson
from pydantic import ValidationError

from conf.schema import Settings
from operators.base import FLOWING
from operators.engines.make import make_engine
from operators.errors import Reject
from operators.ids import uuid7
from operators.judge import Judge
from operators.records import Interaction, Load, Query, SessionState, TierLoad, decode, encode
from pipeline.graph import ANSWER_PATH, SOURCES, STAGES, Trail, assemble
from pipeline.guard import DEFAULT_TENANT
from pipeline.host import Host

_NAMES = {cls.__name__.lower(): cls for cls in FLOWING}
_ALIASES = {"session": "sessionstate"}


async def run(stage: str, data: bytes, settings: Settings) -> bytes:
    """Run ``stage`` on the records in ``data`` and return its record as JSON.

    ``data`` is an object of records by name, e.g. ``{"query": {"text": "…"}}``; a bare query works too.

    Raises ``Reject`` for input that is none.
    """
    if stage not in STAGES:
        raise Reject("run-stage", f"no stage {stage!r}", f"name one of: {', '.join(STAGES)}")
    trail = _read(data)
    if stage == "judge":
        return await _judge(trail, settings)
    trail.setdefault(SessionState, SessionState.new())
    trail.setdefault(Load, Load(tiers=tuple(TierLoad(tier=tier.name) for tier in settings.tiers)))
    if Query not in trail:
        raise Reject("run-stage", "no query", 'give one: {"query": {"text": "…"}}')
    needed = _needed(stage, trail)
    host = Host(needed, settings)
    await host.start()
    try:
        for name in needed:
            if name == "generate":
                async for piece in host.stream(_input(name, trail)):
                    if piece.answer is not None:
                        trail[type(piece.answer)] = piece.answer
            else:
                item = await host.call(name, _input(name, trail))
                trail[type(item)] = item
    finally:
        await host.close()
    return encode(trail[STAGES[stage].writes()])


def _needed(stage: str, trail: Trail) -> list[str]:
    """The stages to run: this one, and before it those whose records are missing."""
    wanted, missing = [stage], [part for part in STAGES[stage].reads() if part not in trail]
    for name in reversed(ANSWER_PATH[: ANSWER_PATH.index(stage)]):
        if STAGES[name].writes() in missing:
            wanted.insert(0, name)
            missing += [part for part in STAGES[name].reads() if part not in trail]
    unknown = [
        part.__name__
        for part in missing
        if part not in SOURCES and not any(STAGES[name].writes() is part for name in wanted)
    ]
    if unknown:
        raise Reject("run-stage", f"{stage} needs {', '.join(unknown)}", "give it in the input")
    return wanted


def _input(name: str, trail: Trail) -> Any:
    return assemble(STAGES[name], trail)


def _read(data: bytes) -> Trail:
    try:
        given = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Reject("run-stage", f"input is no JSON: {error}", 'give e.g. {"query": {"text": "…"}}') from error
    if not isinstance(given, dict):
        raise Reject("run-stage", f"input is a {type(given).__name__}", "give an object of records by name")
    if "text" in given:
        given = {"query": given}
    trail: Trail = {}
    for key, value in given.items():
        cls = _NAMES.get(_ALIASES.get(str(key), str(key)))
        if cls is None:
            raise Reject("run-stage", f"no record {key!r}", f"name one of: {', '.join(sorted(_NAMES))}")
        if cls is Query and isinstance(value, dict):
            value = _defaults(value)
        try:
            trail[cls] = decode(cls, orjson.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([key, *map(str, first["loc"])])
            raise Reject("run-stage", f"{where}: {first['msg']}", "see operators/records.py") from error
    return trail


def _defaults(query: dict[str, Any]) -> dict[str, Any]:
    text = query.get("text", "")
    return {
        "interaction_id": str(uuid7()),
        "tenant": DEFAULT_TENANT,
        "session": "run-stage",
        "messages": [{"role": "user", "content": text}],
        "created_at": time.time(),
        **query,
    }


async def _judge(trail: Trail, settings: Settings) -> bytes:
    if Interaction not in trail:
        raise Reject("run-stage", "no interaction", 'give one: {"interaction": {…}}')
    job = settings.judge_job
    engine = make_engine(
        job.engine, settings.judge_model, settings.data_dir / "cache", context_tokens=job.context_tokens
    )
    judge = Judge(settings.judge, engine)
    try:
        await judge.start()
        (verdict,) = await judge([trail[Interaction]])
    finally:
        await judge.close()
    return encode(verdict)
