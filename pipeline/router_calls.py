"""What an administrator does with the router's checkpoints: list, show, compare, promote, go back, freeze.

It works on the checkpoints' directory, which any process may do: changes are made under its lock, and running gateways
follow by themselves. What is answered is JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from conf.schema import Settings
from operators.errors import Reject, RuvError, Stop
from operators.learning import rollout as changes
from operators.learning.gate import GATE
from operators.learning.rollout import Why
from operators.learning.weights import weights
from operators.networks.acting import starting
from operators.networks.fastgrnn import Snapshot
from operators.records import Rollout, encode
from operators.stores.checkpoints import Registry
from operators.stores.make import open_log
from operators.stores.rollouts import announce
from pipeline.host import make_registry

_log = logging.getLogger("ruvllm.route")


class RouterCalls:
    """The calls for one profile. All of them block: they read and write files."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry: Registry = make_registry(settings)

    def list(self) -> dict[str, Any]:
        """Every version, newest first, with its part (active, shadow, canary, before, pinned), and what acts now."""
        now = self._now()
        parts = {now.active: "active", now.shadow: "shadow", now.canary: "canary"}
        before, pinned = set(now.before), self._registry.pinned()
        rows = []
        for version in [*reversed(self._registry.versions()), self._start().checkpoint]:
            row: dict[str, Any] = {
                "version": version,
                "part": parts.get(version, "before" if version in before else ""),
            }
            row |= {"pinned": version in pinned, "created_at": None, "parent": "", "passed": None, "note": "the start"}
            with contextlib.suppress(Stop):
                if version in self._registry.versions():
                    row["note"] = "damaged"
                    manifest = self._registry.manifest(version)
                    row |= {"created_at": manifest.created_at, "parent": manifest.parent, "note": manifest.note}
                    row["passed"] = _passed(manifest.metrics)
            rows.append(row)
        return {"rollout": _json(now), "versions": rows}

    def show(self, version: str) -> dict[str, Any]:
        """The manifest of ``version``, and whether its files are whole. Raises ``Reject`` if it is not there."""
        self._known(version)
        try:
            manifest = self._registry.manifest(version)
            for file in manifest.files:
                self._registry.read(version, file)
        except Stop as damaged:
            return {"version": version, "whole": False, "damage": str(damaged), "manifest": None}
        return {"version": version, "whole": True, "damage": "", "manifest": _json(manifest)}

    def diff(self, a: str, b: str) -> dict[str, Any]:
        """How far ``b`` is from ``a``: for each parameter the norm of the change, by that of ``a``.

        With the number of exemplars and the metrics of both.
        """
        first, second = self._weights(a), self._weights(b)
        if first.tied != second.tied:
            raise Reject("diff", f"{a} and {b} have other parameters", "compare two of the same form (route.tied)")
        rows = {}
        for name, value in first.params.items():
            change, size = np.linalg.norm(second.params[name] - value), np.linalg.norm(value)
            rows[name] = {"change": float(change), "relative": float(change / size) if size else None}
        held = {name: len(one.exemplars.keys) if one.exemplars else 0 for name, one in ((a, first), (b, second))}
        metrics = {a: self._metrics(a), b: self._metrics(b)}
        return {"a": a, "b": b, "parameters": rows, "exemplars": held, "metrics": metrics}

    def promote(self, version: str, force: bool, reason: str) -> dict[str, Any]:
        """Let ``version`` decide at once, without shadow and canary.

        Raises ``Reject`` if it is not there, is active already, or did not pass the gate and is not forced.
        """
        self._weights(version)  # damaged weights are refused here, not by every gateway
        if version != self._start().checkpoint and _passed(self._metrics(version)) is not True and not force:
            remedy = "see what spoke against it with show; force and a reason promote it all the same"
            raise Reject("promote", f"{version} did not pass the gate", remedy)
        if force and not reason.strip():
            raise Reject("promote", "forced without a reason", "say why", param="reason")
        return self._change(lambda now, at: changes.activate(now, version, Why("admin", at, reason or "by hand")))

    def rollback(self, reason: str) -> dict[str, Any]:
        """One step back: end what is watched or tried, else let what was active before decide again.

        Raises ``Reject`` if there is neither.
        """

        def back(now: Rollout, at: float) -> Rollout:
            why = Why("admin", at, reason or "by hand")
            return changes.drop(now, why) if now.shadow or now.canary else changes.roll_back(now, why)

        return self._change(back)

    def freeze(self, frozen: bool, reason: str) -> dict[str, Any]:
        """Stop automatic promotion, or let it go on; an alarm still goes back."""
        return self._change(lambda now, at: changes.freeze(now, Why("admin", at, reason or "by hand"), frozen=frozen))

    def _change(self, make: Callable[[Rollout, float], Rollout]) -> dict[str, Any]:
        name, start = self._registry.rollouts.name, self._start().checkpoint
        at = time.time()
        changed = self._registry.rollouts.change(lambda now: make(changes.present(now, name, start), at))
        return {**_json(changed), "announced": self._announce()}

    def _announce(self) -> bool:
        events = self._settings.events
        try:
            with contextlib.closing(open_log(events)) as log:
                announce(log, self._registry.rollouts)
        except RuvError as away:  # what was decided stands, and the next change or the learner announces it
            _log.warning("router: not announced yet: %s", away)
            return False
        return True

    def _now(self) -> Rollout:
        rollouts = self._registry.rollouts
        return changes.present(rollouts.current(), rollouts.name, self._start().checkpoint)

    def _start(self) -> Snapshot:
        return starting(self._settings.route.checkpoint, tied=self._settings.route.tied)

    def _weights(self, version: str) -> Snapshot:
        start = self._start()
        if version != start.checkpoint:
            self._known(version)
        return weights(self._registry, version, start)

    def _metrics(self, version: str) -> dict[str, Any]:
        known = version in self._registry.versions()
        return self._registry.manifest(version).metrics if known else {}

    def _known(self, version: str) -> None:
        if version not in self._registry.versions():
            got = f"no checkpoint {version!r}"
            raise Reject("router", got, "see ruvllm router list", 404, "version", "checkpoint_not_found")


def _passed(metrics: dict[str, Any]) -> bool | None:
    """What the gate said, ``None`` if it was not asked."""
    gate = metrics.get(GATE)
    return gate["passed"] is True if isinstance(gate, dict) and "passed" in gate else None


def _json(value: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(value))
    return found
