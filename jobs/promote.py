"""How trained weights come to decide, and how they go again (design §9).

    candidate ─ gate ─→ shadow ─ judged turns ─→ share of the sessions ─ judged turns ─→ active
                            └────────── alarm: dropped ──────────┘          └─ alarm: back to what was active before

``step`` is the rule: the present rollout and what is known of each version give the next rollout, or none. It reads no
clock and no file. ``Promoter`` keeps what is known, from judged interactions, and carries the rule out. An alarm means
that a mean verdict fell below that of the version it is compared with, by enough and surely (Welch's standard error).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from conf.promotion import Promotion
from jobs.evidence import Evidence, Tally, recall
from operators.learning import rollout as changes
from operators.learning.gate import GATE, GateResult
from operators.learning.rollout import Why
from operators.records import Interaction, Rollout, Verdict, encode
from operators.stores.checkpoints import Registry
from operators.stores.ports import EventLog
from operators.stores.rollouts import announce


def step(now: Rollout, evidence: Evidence, config: Promotion, at: float) -> Rollout | None:
    """The next rollout, or ``None`` if all stays as it is. ``at`` is Unix seconds."""
    if now.before and (why := _fell(evidence, now.active, now.before[0], config)):
        return changes.roll_back(now, Why("alarm", at, why))
    if now.canary is not None:
        if why := _fell(evidence, now.canary, now.active, config):
            return changes.drop(now, Why("alarm", at, why))
        seen = len(evidence.verdicts.get(now.canary, ()))
        if seen >= config.canary_events and not now.frozen:
            return changes.activate(now, now.canary, Why("learn", at, f"{now.canary} decided {seen} judged turns well"))
    elif now.shadow is not None:
        gains = evidence.watched.get(now.shadow, ())
        if why := _fails(now.shadow, gains, config):
            return changes.drop(now, Why("alarm", at, why))
        if len(gains) >= config.shadow_events and not now.frozen:
            why = f"{now.shadow} was watched for {len(gains)} judged turns"
            return _tried(now, now.shadow, config, Why("learn", at, why))
    return None


def offered(now: Rollout, version: str, config: Promotion, at: float) -> Rollout | None:
    """The rollout with a candidate that passed the gate, or ``None`` if it has to wait: for the one that is watched or
    tried, or for a person, because promotion is frozen or not automatic."""
    if now.frozen or not config.automatic or now.shadow or now.canary or version == now.active:
        return None
    why = Why("learn", at, f"{version} passed the gate")
    return changes.offer(now, version, why) if config.shadow_events else _tried(now, version, config, why)


def _tried(now: Rollout, version: str, config: Promotion, why: Why) -> Rollout:
    if config.canary_events:
        return changes.widen(now, version, config.canary_share, why)
    return changes.activate(now, version, why)


def _fell(evidence: Evidence, version: str, against: str, config: Promotion) -> str:
    """Why ``version`` does surely worse than ``against``, in words; empty if it does not, or too little is known."""
    new, old = (list(evidence.verdicts.get(name, ())) for name in (version, against))
    if min(len(new), len(old)) < config.alarm_min:
        return ""
    drop, error = fmean(new) - fmean(old), math.sqrt(variance(new) / len(new) + variance(old) / len(old))
    if drop > -config.alarm_drop or drop > -config.alarm_sigmas * error:
        return ""
    return (
        f"the mean verdict of {version} is {fmean(new):.3f} over {len(new)} turns, "
        f"that of {against} {fmean(old):.3f} over {len(old)}"
    )


def _fails(version: str, gains: Sequence[float], config: Promotion) -> str:
    """The same for a version that was only watched."""
    if len(gains) < config.alarm_min:
        return ""
    gain, error = fmean(gains), math.sqrt(variance(gains) / len(gains))
    if gain > -config.alarm_drop or gain > -config.alarm_sigmas * error:
        return ""
    return f"{version} would have changed the mean verdict by {gain:+.3f}, as {len(gains)} watched turns say"


class Promoter:
    """Carries the rule out on ``registry`` and tells ``log``; for the process that learns.

    Args:
        start: name of the weights that act before anything was promoted.
        clock: Unix seconds.
    """

    def __init__(
        self,
        registry: Registry,
        log: EventLog,
        start: str,
        config: Promotion,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry, self._log, self._start, self._config, self._clock = registry, log, start, config, clock
        self._tally = Tally(config.alarm_events)

    def recall(self) -> int:
        """At the start: see the last judged turns of the log again; returns how many. Blocks."""
        return recall(self._log, self._tally, self._config.alarm_events)

    def seen(self, interaction: Interaction, verdict: Verdict) -> None:
        """A judged turn."""
        self._tally.add(interaction, verdict)

    def publish(
        self,
        files: Mapping[str, bytes],
        result: GateResult,
        *,
        parent: str,
        window: Mapping[str, tuple[int, int]],
        metrics: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> str:
        """Publish a candidate with what the gate said of it, and offer it if it passed; returns its version.

        One that was refused is kept too: it can be looked at, compared and, with force, promoted.
        """
        about = {**(metrics or {}), GATE: json.loads(encode(result))}
        version = self._registry.publish(files, parent=parent, metrics=about, window=window, note=note)
        if result.passed:
            self.offer(version)
        return version

    def offer(self, version: str) -> Rollout | None:
        """A published candidate that passed the gate; ``None`` if it has to wait."""
        return self._change(lambda now: offered(now, version, self._config, self._clock()))

    def step(self) -> Rollout | None:
        """Go on, or back, if what was seen says so; then remove checkpoints nobody needs. Blocks: it writes files.

        Raises ``Retry`` while the event log takes nothing: what was decided stands, and a later call announces it.
        """
        evidence = self._tally.evidence()
        changed = self._change(lambda now: step(now, evidence, self._config, self._clock()))
        self._registry.prune(self._config.keep)
        return changed

    def _change(self, make: Callable[[Rollout], Rollout | None]) -> Rollout | None:
        rollouts = self._registry.rollouts
        changed = rollouts.change(lambda now: make(changes.present(now, rollouts.name, self._start)))
        announce(self._log, rollouts)
        return changed
