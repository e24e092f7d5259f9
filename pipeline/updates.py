"""Follows the checkpoint registry in every process that routes: what was rolled out acts there within a second.

The watcher looks at one small file a few times a second, loads what it names off the event loop, and replaces the
router's reference; no decision waits. What is missing or damaged is refused and logged, and what acted goes on. It is
tried again with every look, so it is taken as soon as it is whole. At the start, with nothing acting yet, the versions
that were active before are tried in turn, and then the router's own start acts.
"""

from __future__ import annotations

import asyncio
import logging

from operators.errors import RuvError, Stop
from operators.learning.weights import weights
from operators.networks.acting import Active
from operators.networks.fastgrnn import Snapshot
from operators.records import Rollout
from operators.route import Router
from operators.stores.checkpoints import Registry

_log = logging.getLogger("ruvllm.route")


class Updates:
    """Keeps the started ``router`` at what ``registry`` has rolled out. ``look`` is for one thread at a time."""

    def __init__(self, router: Router, registry: Registry, poll_s: float) -> None:
        self._router, self._registry, self._poll_s = router, registry, poll_s
        self._start = router.snapshot
        self._begun = False
        self._followed = self._said = ""
        self._refused: set[str] = set()

    def look(self) -> bool:
        """Take over what was rolled out since the last look; whether anything changed. Never raises for bad files."""
        try:
            rollout = self._registry.rollouts.current()
        except RuvError as damaged:
            return self._refuse(str(damaged))
        if rollout is None or rollout.event_id == self._followed:
            return False
        try:
            active = weights(self._registry, rollout.active, self._start)
        except Stop as damaged:
            self._refuse(f"version {rollout.version} of the rollout keeps what acts: {damaged}")
            if not self._begun:  # later on, something better may act
                self._begun = True
                self._fall_back(rollout)
            return False
        shadow, canary = self._optional(rollout.shadow), self._optional(rollout.canary)
        self._router.act(Active(active, shadow, canary, rollout.share))
        whole = (shadow is None) == (rollout.shadow is None) and (canary is None) == (rollout.canary is None)
        self._begun = True
        if whole:
            self._followed = rollout.event_id
            self._refused.clear()
        if self._said != rollout.event_id:
            self._said = rollout.event_id
            _log.info("route: %s acts (version %d: %s)", active.checkpoint, rollout.version, rollout.reason)
        return True

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await asyncio.to_thread(self.look)
            except Exception:  # a watcher that ends would freeze the weights
                _log.exception("route: could not look for new weights")

    def _fall_back(self, rollout: Rollout) -> None:
        for version in rollout.before:
            try:
                self._router.act(Active(weights(self._registry, version, self._start)))
                break
            except Stop as damaged:
                self._refuse(str(damaged))
        _log.warning("route: %s acts instead of %s", self._router.snapshot.checkpoint, rollout.active)

    def _optional(self, version: str | None) -> Snapshot | None:
        """The weights of a shadow or canary; without them the active ones do all the work."""
        try:
            return None if version is None else weights(self._registry, version, self._start)
        except Stop as damaged:
            self._refuse(f"not watched or tried: {damaged}")
            return None

    def _refuse(self, why: str) -> bool:
        if why not in self._refused:  # said once, not with every look
            self._refused.add(why)
            _log.error("route: %s", why)
        return False
