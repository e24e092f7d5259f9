"""The graph, declared once: which stages there are, what each reads and writes, and which of them share a process.

    Query, SessionState, Load ─ embed ─ search ─ expand ─ route ─ attend ─ generate ─→ Answer
                                          Interaction (the completed turn) ─ judge ─→ Verdict

The edges are the types: a stage's input type names the records it reads, its output type the record it writes.
``check`` compares them when the graph is built, so a stage that reads what nobody wrote fails at start-up and not at
the first request. A *chain* is a run of stages fused into one process; a *plan* is the list of chains of a profile.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from operators import FLOW
from operators.attend import Attend
from operators.base import Operator
from operators.embed import Embed
from operators.errors import Stop
from operators.expand import Expand
from operators.generate import Generate
from operators.judge import Judge
from operators.records import Interaction, Load, Query, SessionState, record
from operators.route import Router
from operators.search import Search
from pipeline.batching import Batcher

StageClass = type[Operator[Any, Any]]
Trail = dict[type[Any], Any]
"""The records of one query so far, by type. Private to the runner: stages see only their input."""

STAGES: dict[str, StageClass] = {
    stage.name: stage for stage in (Embed, Search, Expand, Router, Attend, Generate, Judge)
}
SOURCES: tuple[type[Any], ...] = (Query, SessionState, Load)
"""What the ingress puts in before the first stage."""
COMPLETED: tuple[type[Any], ...] = (Interaction,)
"""What the ingress makes of the records when the user has the answer."""
ANSWER_PATH = FLOW[:-1]
"""The stages the user waits for; ``judge`` runs afterwards."""


def check(stages: Mapping[str, StageClass] = STAGES) -> None:
    """Hold the stages against ``FLOW`` and each stage's reads against what is written before it.

    Raises ``Stop`` naming the stage and the record that is missing or written twice.
    """
    if tuple(stages) != FLOW:
        raise Stop("graph", f"stages {', '.join(stages)}", f"they must be, in this order: {', '.join(FLOW)}")
    written: set[type[Any]] = set(SOURCES)
    for name, stage in stages.items():
        if name == FLOW[-1]:
            written |= set(COMPLETED)
        for needed in stage.reads():
            if needed not in written:
                raise Stop(
                    f"graph: {name}",
                    f"reads {needed.__name__}, which no earlier stage writes",
                    f"it can read {', '.join(sorted(w.__name__ for w in written))}",
                )
        if stage.writes() in written:
            raise Stop(f"graph: {name}", f"writes {stage.writes().__name__} again", "each record has one writer")
        written.add(stage.writes())


Plan = tuple[tuple[str, ...], ...]

PLANS: dict[str, Plan] = {
    # One process does everything: edge devices, unit tests.
    "inproc": (ANSWER_PATH,),
    # Separate where the batching axis (embed), the owner of a file (search, expand) or the model (generate) differs;
    # route and attend cost less than a hop, so they live in the gateway.
    "fused": (("embed",), ("search", "expand"), ("route", "attend"), ("generate",)),
    # For comparison and for unusual scaling: every stage its own deployment.
    "per_stage": tuple((name,) for name in ANSWER_PATH),
}
LOCAL_TO_GATEWAY = ("route", "attend")
"""The chain of the fused plan that needs no deployment of its own."""


def plan(name: Literal["inproc", "fused", "per_stage"]) -> Plan:
    """The chains of plan ``name``; together they are exactly the answer path, in order."""
    chains = PLANS[name]
    if tuple(stage for chain in chains for stage in chain) != ANSWER_PATH:
        raise Stop(f"plan {name}", f"has the chains {chains}", f"together they must be {ANSWER_PATH}")
    return chains


@record
class Step:
    """What a chain made of one query: the records it wrote, and the seconds every stage took."""

    written: tuple[Any, ...]
    timings: dict[str, float]


class Chain:
    """Stages that run one after another in this process, for one query at a time; a stage that batches gets a
    ``Batcher`` in front, which makes batches of the queries that are under way together."""

    def __init__(self, stages: Sequence[Operator[Any, Any]]) -> None:
        self.stages = tuple(stages)
        self._calls = {stage.name: _single(stage) for stage in stages}

    async def prepare(self, records: Sequence[Any]) -> Step:
        """Run one query, given as records in any order: what the chain ``needs``, or more."""
        trail: Trail = {type(item): item for item in records}
        timings: dict[str, float] = {}
        written = []
        for stage in self.stages:
            began = time.perf_counter()
            item = await self.call(stage.name, assemble(type(stage), trail))
            timings[stage.name] = time.perf_counter() - began
            trail[type(item)] = item
            written.append(item)
        return Step(written=tuple(written), timings=timings)

    async def call(self, name: str, item: Any) -> Any:
        """Run one stage alone on its input."""
        return await self._calls[name](item)


def _single(stage: Operator[Any, Any]) -> Callable[[Any], Awaitable[Any]]:
    if stage.max_batch > 1:
        return Batcher(stage, stage.max_batch)

    async def one(item: Any) -> Any:
        return (await stage([item]))[0]

    return one


def assemble(stage: StageClass, trail: Trail) -> Any:
    """The input of ``stage`` from the records so far: the record itself, or its bundle filled field by field."""
    needed = stage.reads()
    wanted = stage.input_type()
    if needed == (wanted,):
        return trail[wanted]
    return wanted(**dict(zip(wanted.__dataclass_fields__, (trail[part] for part in needed), strict=True)))


def needs(chain: Sequence[str]) -> tuple[type[Any], ...]:
    """The records that a chain of these stages has to be sent: what it reads and does not write itself."""
    inner = {STAGES[name].writes() for name in chain}
    return tuple(dict.fromkeys(part for name in chain for part in STAGES[name].reads() if part not in inner))
