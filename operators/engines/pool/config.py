"""The knobs of the pool, and the budget that follows from them."""

from __future__ import annotations

from pydantic import Field

from operators.base import Knobs
from operators.engines.pool.pressure import Room

SHARE = 0.5
"""Of the machine's memory, or of its cgroup's, the part that models take if ``budget_bytes`` doesn't say. The rest is
for the stores, the encoder, Ray and the page cache."""


class PoolConfig(Knobs):
    """How much memory the models of one process and its children may take, and how long they stay."""

    budget_bytes: int = Field(0, ge=0)
    """Most bytes of all loaded models together: weights, KV and buffers. 0 takes half of the smallest of the machine's
    memory, the cgroup's limit and RLIMIT_AS."""
    headroom_bytes: int = Field(256 * 1024 * 1024, ge=0)
    """Bytes that stay free: below that idle models are given up, and none is loaded that would go below it."""
    idle_s: float = Field(0.0, ge=0)
    """Seconds without a request after which a model is given up, unless it is pinned; 0 keeps it."""
    wait_s: float = Field(10.0, ge=0)
    """Longest time in seconds a request waits for another model to become idle and make room; then 503 with
    Retry-After. Loading itself may take longer."""
    retry_s: float = Field(30.0, gt=0)
    """Seconds until a model that failed to load is tried again; doubles with every failure in a row, up to 64 times."""
    tend_s: float = Field(2.0, gt=0)
    """Seconds between two rounds of upkeep: dead engines, lack of memory, models nobody uses."""
    check_s: float = Field(30.0, gt=0)
    """Seconds an engine may take to say that it works, until it counts as dead."""

    def budget(self, room: Room) -> int:
        """The budget in bytes on a machine with so much memory."""
        return self.budget_bytes or int(room.total_bytes * SHARE)
