"""Removing nodes from everything that holds them, so that a crash in the middle leaves no half.

    1 intent    what is to go, in a file of its own, fsynced
    2 vectors   the rows of the vector store, and of the index in memory
    3 graph     the nodes and their edges; their ids stay as gone, so that a replayed event can't bring them back
    4 snapshot  published anew, the older ones deleted
    5 receipt   the intent becomes the receipt: what was removed where

``resume`` does 2 to 5 again for every intent that it finds; each may be done twice. What a removal does not reach: old
versions of the vector store's files until ``purge_due`` (``purge`` does it at once), backups, and the event log, whose
events are immutable and go with its retention.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

from operators.errors import Stop
from operators.ids import uuid7
from operators.records import Filter, decode, encode, record
from operators.stores.durable import sync
from operators.stores.tenants import check_tenant

if TYPE_CHECKING:  # the memory uses this module
    from operators.stores.memory import Memory


@record
class Receipt:
    """What a removal did. ``node_ids`` were asked for; the counts say what was there. Times are Unix seconds.

    ``purged``: nothing of it is left in the vector store's files either; in an intent, that this was asked for.
    """

    receipt_id: str
    tenant: str
    reason: str
    asked_at: float
    node_ids: tuple[str, ...]
    whole_tenant: bool = False
    vectors: int = 0
    graph_nodes: int = 0
    graph_edges: int = 0
    snapshot: int = 0
    purged: bool = False
    done_at: float = 0.0


def remove(memory: Memory, tenant: str, node_ids: list[str], reason: str, *, purge: bool = False) -> Receipt:
    """Remove nodes of a tenant; durable when it returns. Unknown ids are no error: the receipt has the counts."""
    check_tenant("memory", tenant)
    intent = _intent(memory, tenant, node_ids, reason, purge=purge)
    with memory.writing(tenant):
        return _carry_out(memory, intent)


def drop(memory: Memory, tenant: str, reason: str) -> Receipt:
    """Remove a tenant with all it has, its files included."""
    check_tenant("memory", tenant)
    with memory.writing(tenant):
        ids = sorted(memory.graph.node_ids(tenant) | {i for _, i in memory.vectors.listed(tenant, Filter())})
        return _carry_out(memory, _intent(memory, tenant, ids, reason, purge=True, whole_tenant=True))


def resume(memory: Memory) -> list[Receipt]:
    """Finish what a crash interrupted."""
    intents = [decode(Receipt, path.read_bytes()) for path in sorted(_folder(memory, "removing").glob("*.json"))]
    if intents:
        memory.forget_ingested()  # which were documents can't be told any more
    return [_carry_out(memory, intent) for intent in intents]


def purge_due(memory: Memory, tenant: str) -> bool:
    """Leave nothing of removed nodes in the files, if one of them is due for that; returns whether it was done."""
    waiting = [one for one in receipts(memory, tenant) if not one.purged]
    ages = [memory.clock() - one.done_at for one in waiting]
    if all(0 <= age < memory.config.purge_after_s for age in ages):  # from the future: the clock was wrong then, or is
        return False
    with memory.writing(tenant):
        memory.optimize(tenant, purge=True)
    for one in waiting:
        _write(_folder(memory, "removed") / f"{one.receipt_id}.json", encode(dataclasses.replace(one, purged=True)))
    return True


def receipts(memory: Memory, tenant: str) -> list[Receipt]:
    """The receipts of a tenant's removals, newest first."""
    return [receipt for receipt in written(memory.directory.parent) if receipt.tenant == tenant][::-1]


def written(root: Path, known: Container[str] = ()) -> list[Receipt]:
    """The receipts of the memory under ``root``, the oldest first; for processes that hold copies of their own.

    Those whose ids are ``known`` are not read again.
    """
    paths = (path for path in sorted((root / "removed").glob("*.json")) if path.stem not in known)
    return [decode(Receipt, path.read_bytes()) for path in paths]


def _intent(
    memory: Memory, tenant: str, node_ids: list[str], reason: str, *, purge: bool, whole_tenant: bool = False
) -> Receipt:
    # 1
    intent = Receipt(
        receipt_id=str(uuid7()),
        tenant=tenant,
        reason=reason,
        asked_at=memory.clock(),
        node_ids=tuple(dict.fromkeys(node_ids)),
        whole_tenant=whole_tenant,
        purged=purge,
    )
    _write(_folder(memory, "removing") / f"{intent.receipt_id}.json", encode(intent))
    memory.at("intent")
    return intent


def _carry_out(memory: Memory, intent: Receipt) -> Receipt:
    tenant, ids = intent.tenant, list(intent.node_ids)
    with memory.writing(tenant) as state:
        known = list(memory.vectors.get(tenant, ids).values()) if ids else []
        # 2
        if intent.whole_tenant:
            vectors = memory.vectors.count(tenant)
            memory.vectors.drop(tenant)
        else:
            vectors = memory.vectors.remove(tenant, ids)
        memory.at("removed vectors")
        # 3
        nodes, edges = memory.graph.remove(tenant, ids, gone_at=intent.asked_at)
        memory.at("removed from graph")
        # 4
        state.maker.forget(known)
        if intent.whole_tenant or any(node.kind == "document" for node in known):
            memory.forget_ingested()
        state.domains.learn(known, -1)
        snapshot = memory.publish(tenant, keep=1)
        if intent.purged and not intent.whole_tenant:
            memory.optimize(tenant, purge=True)
        if intent.whole_tenant:
            memory.forget(tenant)
        memory.at("removed from snapshot")
    # 5
    receipt = Receipt(
        receipt_id=intent.receipt_id,
        tenant=tenant,
        reason=intent.reason,
        asked_at=intent.asked_at,
        node_ids=intent.node_ids,
        whole_tenant=intent.whole_tenant,
        vectors=vectors,
        graph_nodes=nodes,
        graph_edges=edges,
        snapshot=snapshot,
        purged=intent.purged,
        done_at=memory.clock(),
    )
    _write(_folder(memory, "removed") / f"{receipt.receipt_id}.json", encode(receipt))
    with contextlib.suppress(FileNotFoundError):
        (_folder(memory, "removing") / f"{receipt.receipt_id}.json").unlink()
    return receipt


def _folder(memory: Memory, name: str) -> Path:
    return memory.directory.parent / name


def _write(path: Path, data: bytes) -> None:
    """``data`` as a file that is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as e:
        raise Stop("memory", f"{path} can't be written: {e.strerror}", "free some space there") from e
