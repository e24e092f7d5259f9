"""The changes a rollout can go through. Each takes the present one and gives the next; none touches a file or a clock.

nothing ─ offer ─→ shadow ─ widen ─→ canary ─ activate ─→ active        drop: no longer watched or tried
                                                                        roll_back: what was active before
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from operators.errors import Reject
from operators.ids import uuid7
from operators.records import Rollout

By: TypeAlias = Literal["learn", "alarm", "admin"]
KEPT = 4
"""How many of the versions that were active before are remembered to go back to."""


@dataclasses.dataclass(frozen=True, slots=True)
class Why:
    """Who changes it (``by``), when (Unix seconds) and why, in words."""

    by: By
    at: float
    reason: str


def present(now: Rollout | None, router: str, start: str) -> Rollout:
    """``now``, or what acts if nothing was ever rolled out: the router's own start."""
    if now is not None:
        return now
    return Rollout(event_id="", router=router, version=0, active=start, reason="the start", by="admin", created_at=0.0)


def offer(now: Rollout, version: str, why: Why) -> Rollout:
    """Watch ``version`` beside the active one."""
    return _next(now, why, shadow=version, canary=None, share=0.0)


def widen(now: Rollout, version: str, share: float, why: Why) -> Rollout:
    """Let ``version`` decide in ``share`` of the sessions."""
    return _next(now, why, shadow=None, canary=version, share=share)


def activate(now: Rollout, version: str, why: Why) -> Rollout:
    """Let ``version`` decide; what did so until now is what a rollback goes back to. Raises ``Reject`` if it does."""
    if version == now.active:
        raise Reject("promote", f"{version} is active already", "name another version")
    before = [now.active, *(one for one in now.before if one not in (version, now.active))]
    return _next(now, why, active=version, shadow=None, canary=None, share=0.0, before=tuple(before[:KEPT]))


def drop(now: Rollout, why: Why) -> Rollout:
    """Watch and try nothing any more."""
    return _next(now, why, shadow=None, canary=None, share=0.0)


def roll_back(now: Rollout, why: Why) -> Rollout:
    """Let what was active before decide again. Raises ``Reject`` if nothing was."""
    if not now.before:
        raise Reject("rollback", f"nothing was active before {now.active}", "promote a version instead")
    return _next(now, why, active=now.before[0], shadow=None, canary=None, share=0.0, before=now.before[1:])


def freeze(now: Rollout, why: Why, *, frozen: bool = True) -> Rollout:
    """Promote nothing by itself any more; with ``frozen`` false, do so again. What acts stays as it is."""
    return _next(now, why, frozen=frozen)


def _next(now: Rollout, why: Why, **changes: object) -> Rollout:
    stamp = {"event_id": str(uuid7()), "version": now.version + 1}
    about = {"reason": why.reason, "by": why.by, "created_at": why.at}
    return dataclasses.replace(now, **stamp, **about, **changes)  # type: ignore[arg-type]
