"""Which session's state is in which slot of llama.cpp's server, and where the others are kept meanwhile.

A slot holds the keys and values of one prompt. A conversation that comes back finds its own slot, or its state is read
back from a file: milliseconds, where computing 1,500 tokens takes seconds. A state is only ever used for requests of
its own scope: a tenant can't even measure what another one has asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from operators.errors import RuvError

_log = logging.getLogger("ruvllm.engine")
WORTH = 64
"""Tokens from which on a state is kept or fetched; fewer are computed as quickly."""
Act = Callable[[int, str, str], Awaitable[int]]
"""Does ``save``, ``restore`` or ``erase`` (slot, action, file name) and says how many bytes were written."""


@dataclass(slots=True, eq=False)
class State:
    """Tokens that were computed for a session. ``file`` is empty for what is in a slot."""

    scope: str = ""
    session: str = ""
    tokens: Sequence[int] = ()
    file: str = ""
    bytes: int = 0
    used: float = 0.0

    def common(self, scope: str, prompt: Sequence[int]) -> int:
        """How many first tokens of ``prompt`` are computed here; none for another scope."""
        if scope != self.scope:
            return 0
        n = min(len(self.tokens), len(prompt))
        differs = np.flatnonzero(np.asarray(self.tokens[:n]) != np.asarray(prompt[:n]))
        return int(differs[0]) if len(differs) else n


class Slots:
    """``n`` slots; requests wait in line for one. Up to ``max_bytes`` of states lie in ``directory``, the longest
    unused goes first; with 0 none is kept. A state that can't be saved or read back only costs its computation."""

    def __init__(
        self,
        n: int,
        act: Act,
        *,
        directory: Path,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.saved = self.restored = self.failed = 0
        """States written, read back, and lost to an error."""
        self._states = [State() for _ in range(n)]
        self._free = set(range(n))
        self._parked: list[State] = []
        self._act, self._directory, self._max_bytes, self._clock = act, directory, max_bytes, clock
        self._turn = asyncio.Semaphore(n)
        self._choosing = asyncio.Lock()
        self._names = 0

    @property
    def bytes(self) -> int:
        """Bytes of the states in files."""
        return sum(state.bytes for state in self._parked)

    def knows(self, scope: str, session: str) -> bool:
        """Whether something of the session is still computed."""
        return any(s.scope == scope and s.session == session and s.tokens for s in [*self._states, *self._parked])

    @contextlib.asynccontextmanager
    async def take(self, scope: str, session: str, prompt: Sequence[int]) -> AsyncGenerator[int, None]:
        """A slot with as much of ``prompt`` in it as is known. Waits in line while all are busy."""
        async with self._turn:
            async with self._choosing:  # one after another: two must not choose the same slot
                slot = self._choose(scope, session, prompt)
                self._free.discard(slot)
                try:
                    await self._prepare(slot, scope, session, prompt)
                except BaseException:
                    self._free.add(slot)
                    raise
            state = self._states[slot]
            try:
                yield slot
            finally:
                state.used = self._clock()
                self._free.add(slot)

    def _choose(self, scope: str, session: str, prompt: Sequence[int]) -> int:
        """The session's own slot that knows most of it, else an empty one, else the one unused for longest.

        Beside a busy one if states are kept in files: llama.cpp computes in one batch what lies in adjacent slots
        alone, and a state is read back as quickly as it is found in a slot (DECISIONS.md).
        """
        busy = set(range(len(self._states))) - self._free

        def order(slot: int) -> tuple[bool, int, bool, bool, float]:
            state = self._states[slot]
            own = state.scope == scope and state.session == session and bool(state.tokens)
            alone = not busy & {slot - 1, slot + 1} and (self._max_bytes > 0 or not state.tokens)
            return not own, -state.common(scope, prompt) if own else 0, bool(state.tokens), alone, state.used

        return min(self._free, key=order)

    async def _prepare(self, slot: int, scope: str, session: str, prompt: Sequence[int]) -> None:
        state = self._states[slot]
        known = state.common(scope, prompt)
        donor = max(self._parked, key=lambda s: s.common(scope, prompt), default=State())
        other = max((self._states[i] for i in self._free), key=lambda s: s.common(scope, prompt), default=State())
        if donor.common(scope, prompt) >= known + WORTH:
            donor.used = self._clock()  # now, or what is put into a file next would push it out
        if (state.scope, state.session) != (scope, session):
            await self._park(slot)
        if other.common(scope, prompt) >= max(known + WORTH, donor.common(scope, prompt) + 1):
            # Another session of this tenant begins alike, and its slot can't be shared: it gets a copy.
            donor = await self._park(self._states.index(other)) or State()
        if donor.common(scope, prompt) >= known + WORTH and await self._try(slot, "restore", donor):
            self.restored += 1
        elif state.scope != scope and state.tokens:
            # The server would see no common prefix in most cases. In all others, it must not.
            await self._act(slot, "erase", "")
        if donor.file and (donor.scope, donor.session) == (scope, session):
            self._drop(donor)
        self._states[slot] = State(scope, session, tuple(prompt), used=self._clock())

    async def _park(self, slot: int) -> State | None:
        """Keep the state of ``slot`` in a file, if it is worth it."""
        state = self._states[slot]
        if len(state.tokens) < WORTH or not self._max_bytes:
            return None
        self._names += 1
        parked = State(state.scope, state.session, state.tokens, f"{self._names}.state", used=state.used)
        if not await self._try(slot, "save", parked):
            return None
        self.saved += 1
        for old in [s for s in self._parked if (s.scope, s.session) == (state.scope, state.session)]:
            self._drop(old)
        self._parked.append(parked)
        while self.bytes > self._max_bytes:
            self._drop(min(self._parked, key=lambda s: s.used))
        return parked if parked in self._parked else None

    async def _try(self, slot: int, action: str, state: State) -> bool:
        """Whether it worked. A full disk, or a file that somebody removed, must not cost an answer."""
        try:
            state.bytes = await self._act(slot, action, state.file) or state.bytes
        except RuvError as error:
            self.failed += 1
            _log.warning("the state of a session is lost: %s", error)
            self._drop(state)
            return False
        return True

    def _drop(self, state: State) -> None:
        if state in self._parked:  # the limit of bytes may have been first
            self._parked.remove(state)
        (self._directory / state.file).unlink(missing_ok=True)
