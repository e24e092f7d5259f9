"""Judged turns that are never learned from: what candidates are measured on (design §9).

Whole sessions are held out, by a hash of the session, so that no turn of a conversation helps to judge another. They
make three sets: ``rolling``, the last; ``golden``, the first, which never change again; ``old-tasks``, a sample over
everything that was ever asked, evenly over regions of queries and slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from operators.base import Knobs
from operators.learning.arrays import Arrays
from operators.learning.offpolicy import EvaluationSet
from operators.learning.reservoir import Reservoir
from operators.learning.turns import SCHEMA, Columns, strata

_SHARES = 1000


class HoldoutConfig(Knobs):
    """Which turns are kept for measuring."""

    share: float = Field(0.2, gt=0, lt=1)
    """Share of the sessions that are held out."""
    rolling: int = Field(500, ge=1)
    """Turns of the rolling set."""
    golden: int = Field(300, ge=1)
    """Turns of the golden set, once it is full."""
    old_tasks: int = Field(600, ge=1)
    """Turns of the set of old tasks."""
    seed: int = 0
    """Seed of the sample of old tasks."""


class Holdout:
    """The held-out turns. One thread."""

    def __init__(self, config: HoldoutConfig) -> None:
        self.config = config
        self._lists: dict[str, dict[str, npt.NDArray[Any]]] = {"rolling": _none(), "golden": _none()}
        self._old = Reservoir(SCHEMA, capacity=config.old_tasks, seed=config.seed)

    def held(self, turns: Columns) -> npt.NDArray[np.bool_]:
        """Which of ``turns`` belong here: bool[n]."""
        return np.asarray((turns["session"] % _SHARES) < round(self.config.share * _SHARES))

    def add(self, turns: Columns) -> None:
        """Take turns that were ``held``."""
        room = max(self.config.golden - len(self._lists["golden"]["id"]), 0)
        for name, of in self._lists.items():
            new = {column: turns[column][:room] if name == "golden" else turns[column] for column in SCHEMA}
            both = {column: np.concatenate((of[column], new[column])) for column in SCHEMA}
            most = self.config.golden if name == "golden" else self.config.rolling
            self._lists[name] = {column: value[-most:] for column, value in both.items()}
        self._old.add_many(strata(turns), {column: turns[column] for column in SCHEMA})

    def forget(self, values: npt.NDArray[np.int64], column: str) -> int:
        """Remove the turns whose ``column`` is among ``values``; returns how many there were."""
        gone = self._old.forget(values.tolist(), column)
        for name, of in self._lists.items():
            keep = ~np.isin(of[column], values)
            gone += int((~keep).sum())
            self._lists[name] = {each: value[keep] for each, value in of.items()}
        return gone

    def sets(self, least: int) -> list[EvaluationSet]:
        """The sets that have at least ``least`` turns."""
        old = self._old.state()
        columns = {**self._lists, "old-tasks": {name: old[f"rows/{name}"] for name in SCHEMA}}
        return [as_set(name, of) for name, of in columns.items() if len(of["id"]) >= least]

    def state(self) -> Arrays:
        """All of it as arrays."""
        made = {f"{name}/{column}": value for name, of in self._lists.items() for column, value in of.items()}
        return made | {f"old/{name}": value for name, value in self._old.state().items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become what gave ``state``. Raises ``KeyError`` or ``Stop`` if it can't be that."""
        for name in self._lists:
            self._lists[name] = {column: np.array(state[f"{name}/{column}"]) for column in SCHEMA}
        old = {path[4:]: value for path, value in state.items() if path.startswith("old/")}
        self._old = Reservoir.from_state(old, SCHEMA, capacity=self.config.old_tasks)


def _none() -> dict[str, npt.NDArray[Any]]:
    return {name: np.zeros((0, *shape), dtype) for name, (dtype, shape) in SCHEMA.items()}


def as_set(name: str, of: Columns) -> EvaluationSet:
    """Turns as a set to measure on."""
    _, session = np.unique(of["session"], return_inverse=True)
    return EvaluationSet(
        name=name,
        features=np.array(of["features"]),
        hidden=np.array(of["hidden"]),
        quality=np.where(of["known"] > 0, of["quality"], np.nan).astype(np.float32),
        tier=of["slot"].astype(np.int32),
        propensity=of["propensity"].astype(np.float32),
        session=session.astype(np.int32),
    )
