"""What can be done to a memory besides searching and adding, by name: the one list of it.

The calls run where the memory's owner is, in another process perhaps, so they go by name and take and give plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from operators.errors import Reject
from operators.records import Filter
from operators.stores import backups, consistency, lifecycle, portable, remembering, removal
from operators.stores.memory import Memory
from operators.stores.removal import Receipt


def _tenants(memory: Memory) -> list[str]:
    return memory.vectors.tenants()


def _remove_where(memory: Memory, tenant: str, where: Filter, reason: str, purge: bool) -> Receipt:
    """Remove what passes ``where``, expired nodes too."""
    ids = [node_id for _, node_id in memory.vectors.listed(tenant, where)]
    return removal.remove(memory, tenant, ids, reason, purge=purge)


def _remove(memory: Memory, tenant: str, node_ids: Sequence[str], reason: str, purge: bool) -> Receipt:
    return removal.remove(memory, tenant, list(node_ids), reason, purge=purge)


def _check(memory: Memory, tenant: str, repair: bool) -> consistency.Consistency:
    return consistency.check(memory, tenant, repair=repair)


def _maintain(memory: Memory, tenant: str) -> dict[str, int]:
    """Remove what has expired, tidy the vector store, fold the graph's log into its file."""
    receipt = lifecycle.expire(memory, tenant)
    purged = removal.purge_due(memory, tenant)
    if not purged:
        memory.optimize(tenant)
    memory.graph.checkpoint()
    expired = receipt.vectors if receipt else 0
    return {"expired": expired, "purged": int(purged), "nodes": memory.vectors.count(tenant)}


def _export(memory: Memory, tenant: str, directory: str, encoder: str) -> portable.Manifest:
    return portable.export(memory, tenant, _place(directory), encoder)


def _import(memory: Memory, tenant: str, directory: str, encoder: str, replace: bool) -> dict[str, int]:
    if replace:
        manifest = portable.replace_all(memory, tenant, _place(directory), encoder)
        return {"added": manifest.nodes, "duplicates": 0}
    added, there = portable.add_all(memory, tenant, _place(directory), encoder)
    return {"added": added, "duplicates": there}


def _place(directory: str) -> Path:
    path = Path(directory)
    if not path.is_absolute() or "\0" in directory:
        remedy = "name it from the root on: the service's working directory is not yours"
        raise Reject("memory", f"directory {directory[:200]!r}", remedy, param="directory")
    return path


CALLS: dict[str, Callable[..., Any]] = {
    "tenants": _tenants,
    "remember": remembering.remember,
    "page": lifecycle.page,
    "describe": lifecycle.describe,
    "update": lifecycle.update,
    "remove": _remove,
    "remove_where": _remove_where,
    "drop": removal.drop,
    "receipts": removal.receipts,
    "check": _check,
    "maintain": _maintain,
    "export": _export,
    "import": _import,
    "back_up": backups.take,
    "backups": backups.listed,
    "restore_backup": backups.restore,
    "remove_backup": backups.remove,
}
"""Name → what it does; the first argument is the memory."""
