"""The operator: one stage of the flow, and the loop that every stage shares.

A stage writes ``run`` and nothing around it; timing, counting and translation of unforeseen errors live here, once.
What a stage reads is the type of its input: a record, or a record whose fields are records (``SearchInput``); the graph
compares that with what earlier stages write when it is built.
"""

from __future__ import annotations

import abc
import dataclasses
import time
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from operators import records
from operators.errors import RuvError, Stop

In = TypeVar("In")
Out = TypeVar("Out")


class Knobs(BaseModel):
    """Base of every ``Config``: frozen, unknown keys refused. Under each field stands its description, for the docs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclasses.dataclass(slots=True)
class Stats:
    """What a stage did since it started: calls, records in, errors, seconds spent in ``run``."""

    calls: int = 0
    records: int = 0
    errors: int = 0
    seconds: float = 0.0


Observer = Callable[[str, int, float, BaseException | None], None]
"""Called after every batch with (stage, records, seconds, error)."""


class Operator(abc.ABC, Generic[In, Out]):
    """One stage. Live objects (engines, stores) come through ``__init__``; heavy libraries load in ``start``.

    ``run`` answers every input with exactly one output, in order; it neither changes its inputs nor keeps them.
    """

    name: ClassVar[str]
    max_batch: int = 1
    """Queries worth running in one call; above 1, whoever calls puts together what is under way at the same time."""

    class Config(Knobs):
        """The knobs of the stage; every subclass has its own."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.observers: list[Observer] = []

    async def start(self) -> None:
        """Load what is heavy. Raises ``Stop`` when the stage can't work as configured."""

    @abc.abstractmethod
    async def run(self, batch: Sequence[In]) -> list[Out]:
        """One output for every input, in order."""

    async def check(self) -> None:
        """Raise if the stage can't work any more; cheap, and no query notices. A stage with nothing of its own to
        lose keeps this."""

    async def close(self) -> None:
        """Give back what ``start`` took; safe to call twice."""

    async def __call__(self, batch: Sequence[In]) -> list[Out]:
        """``run`` with the shared loop around it: timed, counted, checked for one output an input."""
        began = time.perf_counter()
        error: BaseException | None = None
        try:
            out = await self.run(batch)
            if len(out) != len(batch):
                raise Stop(self.name, f"{len(out)} outputs for {len(batch)} inputs", "this is a bug in the stage")
            return out
        except BaseException as e:
            error = e
            raise
        finally:
            self.count(len(batch), time.perf_counter() - began, error)

    def count(self, n: int, seconds: float, error: BaseException | None) -> None:
        """Add a batch to the stats and tell the observers."""
        self.stats.calls += 1
        self.stats.records += n
        self.stats.seconds += seconds
        self.stats.errors += error is not None
        for observe in self.observers:
            observe(self.name, n, seconds, error)

    @classmethod
    def reads(cls) -> tuple[type[Any], ...]:
        """The record types this stage needs: the fields of its input type, or the input type itself."""
        return parts(cls.input_type())

    @classmethod
    def input_type(cls) -> type[Any]:
        """``In`` of ``class Stage(Operator[In, Out])``."""
        return _type_arguments(cls)[0]

    @classmethod
    def writes(cls) -> type[Any]:
        """``Out`` of ``class Stage(Operator[In, Out])``."""
        return _type_arguments(cls)[1]


FLOWING: frozenset[type[Any]] = frozenset(
    {
        records.Query,
        records.SessionState,
        records.Load,
        records.Embedded,
        records.Hits,
        records.Neighbourhood,
        records.Route,
        records.Context,
        records.Answer,
        records.Interaction,
        records.Verdict,
    }
)
"""The records that stages hand on. Any other input type is a bundle: a record whose fields are flowing records."""


def parts(input_type: type[Any]) -> tuple[type[Any], ...]:
    """The flowing records in ``input_type``: itself if it is one, else the types of its fields, in order."""
    if input_type in FLOWING:
        return (input_type,)
    hints = typing.get_type_hints(input_type)
    return tuple(hints[field.name] for field in dataclasses.fields(input_type))


def _type_arguments(cls: type[Any]) -> tuple[type[Any], type[Any]]:
    for base in cls.__mro__:
        for parent in getattr(base, "__orig_bases__", ()):
            if typing.get_origin(parent) is Operator:
                return typing.get_args(parent)
    raise RuvError(cls.__name__, "no type arguments", "write class Stage(Operator[In, Out])")
