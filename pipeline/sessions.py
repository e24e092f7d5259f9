"""What the gateway remembers of each conversation: the router's hidden state and the last turn.

Held in memory, bounded by count and age. Losing it costs a cold router state, never an answer: the conversation itself
travels in the request's messages.
"""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable

from operators.records import SessionState


class Sessions:
    """Sessions by (tenant, session): one tenant can't reach another's. Used from one event loop only."""

    def __init__(self, max_sessions: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_sessions = max_sessions
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], tuple[float, SessionState]] = OrderedDict()

    def get(self, tenant: str, session: str) -> SessionState:
        """The session's state; a new one for a session that is unknown or too old."""
        entry = self._entries.get((tenant, session))
        if entry is None or self._clock() - entry[0] > self._ttl_s:
            return SessionState.new()
        return entry[1]

    def put(self, tenant: str, session: str, state: SessionState) -> None:
        """Remember ``state`` as the session's newest."""
        self._entries[(tenant, session)] = (self._clock(), state)
        self._entries.move_to_end((tenant, session))
        oldest_allowed = self._clock() - self._ttl_s
        while self._entries:
            when, _ = next(iter(self._entries.values()))
            if len(self._entries) <= self._max_sessions and when >= oldest_allowed:
                break
            self._entries.popitem(last=False)

    def judged(self, tenant: str, session: str, interaction_id: str, score: float) -> None:
        """Note the verdict on the session's last turn; on any other turn, or for a session that is gone, do nothing."""
        entry = self._entries.get((tenant, session))
        if entry is not None and entry[1].last_interaction == interaction_id:
            self._entries[(tenant, session)] = (entry[0], dataclasses.replace(entry[1], last_verdict=score))

    def forget(self, tenant: str, session: str | None = None) -> None:
        """Forget one session of the tenant, or all of them."""
        gone = [key for key in self._entries if key[0] == tenant and session in (None, key[1])]
        for key in gone:
            del self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)
