"""What was removed from the memory, so that a replay does not bring it back."""

from __future__ import annotations

from pathlib import Path

from operators.documents import node_id
from operators.stores import removal


class Removed:
    """The removals that the memory in the directory ``memory`` has receipts of now."""

    def __init__(self, memory: Path) -> None:
        self._nodes: set[str] = set()
        self._tenants: dict[str, float] = {}
        for receipt in removal.written(memory):
            self._nodes.update(receipt.node_ids)
            if receipt.whole_tenant:  # what the tenant says later is new
                self._tenants[receipt.tenant] = max(receipt.done_at, self._tenants.get(receipt.tenant, 0.0))

    def has(self, tenant: str, interaction_id: str, time: float) -> bool:
        """Whether this interaction was removed; ``time``: Unix seconds at which the log took the event."""
        if time <= self._tenants.get(tenant, -1.0):
            return True
        return node_id(tenant, interaction_id, "interaction") in self._nodes
