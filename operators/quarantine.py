"""What is not remembered: answers that look planted. Asked before an interaction becomes a node of the memory.

A remembered answer is shown to models for as long as it lives, so one that gives orders, or many that say one thing,
cost more than a good one gained. What is refused is not lost: it stays in the event log, it is only not remembered.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
from pydantic import Field

from operators.base import Knobs
from operators.dedupe import PERMUTATIONS, signature
from operators.injections import instruction_in

DAY_S = 86_400


class _Recent:
    """The last texts of a tenant: ``at`` float64[n], Unix seconds, ``digests`` uint32[n, 128], used as a ring."""

    def __init__(self, most: int) -> None:
        self.at = np.full(most, -np.inf)
        self.digests: npt.NDArray[np.uint32] = np.zeros((most, PERMUTATIONS), np.uint32)
        self.next = 0

    def copies(self, digest: npt.NDArray[np.uint32], since: float, min_jaccard: float) -> int:
        """How many texts since ``since`` are near-copies of the one with this digest."""
        recent = self.digests[self.at > since]
        return int(np.count_nonzero((recent == digest).mean(1) >= min_jaccard)) if len(recent) else 0

    def add(self, digest: npt.NDArray[np.uint32], now: float) -> None:
        self.at[self.next], self.digests[self.next] = now, digest
        self.next = (self.next + 1) % len(self.at)


class Quarantine:
    """Says why an answer should not be remembered, or that it may. For one thread; nothing in it outlives the process.

    Memory is bounded: ``tenants`` × ``texts`` × 520 bytes and ``principals`` counters at most. The tenant or principal
    seen longest ago is forgotten first.
    """

    class Config(Knobs):
        """The knobs of what is not remembered."""

        window_s: float = Field(default=3600.0, gt=0)
        """Seconds in which near-copies count as a burst."""
        copies: int = Field(default=5, ge=1)
        """Near-copies that one tenant may have remembered within ``window_s``; more are refused."""
        min_jaccard: float = Field(default=0.6, gt=0, le=1)
        """Jaccard similarity (three-word shingles, by MinHash) from which two texts are near-copies. Lower than that of
        contexts: planted texts vary in a few words."""
        a_day: int = Field(default=200, ge=1)
        """Answers that one principal (a session or user) may have remembered in a day (UTC)."""
        texts: int = Field(default=1000, ge=1)
        """Texts a tenant that are kept to compare with; the oldest goes first, also before ``window_s`` is over."""
        tenants: int = Field(default=64, ge=1)
        """Tenants whose texts are kept."""
        principals: int = Field(default=100_000, ge=1)
        """Principals that are counted."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._counts: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def check(self, tenant: str, principal: str, question: str, answer: str, now: float) -> str | None:
        """Why this answer should not be remembered; ``None`` if it may be, and then it counts for the quota.

        Every text counts for bursts, refused or not, so that one that goes on stays refused. ``now``: Unix seconds.
        """
        for text in (question, answer):
            if (reason := instruction_in(text)) is not None:
                return f"instruction: {reason}"
        if self._bursts(tenant, f"{question}\n{answer}", now):
            return f"burst: more than {self.config.copies} near-copies within {self.config.window_s:g} s"
        return self._quota(tenant, principal, int(now // DAY_S))

    def _bursts(self, tenant: str, text: str, now: float) -> bool:
        recent = self._recent.pop(tenant, None) or _Recent(self.config.texts)
        self._recent[tenant] = recent
        if len(self._recent) > self.config.tenants:
            self._recent.popitem(last=False)
        digest = np.asarray(signature(text).digest(), np.uint32)
        before = recent.copies(digest, now - self.config.window_s, self.config.min_jaccard)
        recent.add(digest, now)
        return before >= self.config.copies

    def _quota(self, tenant: str, principal: str, day: int) -> str | None:
        who = tenant, principal
        since, used = self._counts.pop(who, (day, 0))
        if since != day:
            used = 0
        over = used >= self.config.a_day
        self._counts[who] = day, used + (not over)
        if len(self._counts) > self.config.principals:
            self._counts.popitem(last=False)
        return f"quota: {self.config.a_day} answers a day" if over else None
