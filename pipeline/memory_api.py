"""The endpoints through which a tenant looks after its own memory: list, read, change, remove."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query

from operators.documents import NAMESPACE
from operators.errors import Reject
from operators.privacy.masker import Masker
from operators.records import Feedback, Filter, Kind
from operators.stores.backups import Backup
from operators.stores.lifecycle import HISTORY, history
from operators.stores.ports import Edge, Node
from operators.stores.removal import Receipt
from pipeline import memory_schema as api
from pipeline.guard import Session, Tenant
from pipeline.service import Service

Admitted = Callable[[Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]
"""Waits for a place among the requests that are worked on."""
Names = Annotated[list[Annotated[str, Query(max_length=1000)]], Query(max_length=64)]


def install(app: FastAPI, service: Service, admitted: Admitted) -> None:
    """Add the endpoints to ``app``."""
    manage = service.backend.manage

    @app.post("/v1/feedback", tags=["RuvLLM"], status_code=202)
    async def feedback(body: api.FeedbackIn, who: Tenant, session: Session = None) -> api.FeedbackOut:
        """Rate an answer: a good one is remembered, a bad one forgotten, whatever the judge says."""
        named = body.session or session
        if named is None:
            got, remedy = "no session", "name the answer's (ruvllm.session) in the body or in the header x-session-id"
            raise Reject("session", got, remedy, 400, "session")
        score = body.score if body.score is not None else float(body.rating == "up")
        # The same words about the same answer are the same event.
        said = f"{who} {named} {body.interaction_id} {score} {body.correction}"
        event_id = str(uuid.uuid5(NAMESPACE, said))
        service.feedback(
            Feedback(
                event_id=event_id,
                interaction_id=body.interaction_id,
                tenant=who,
                session=named,
                created_at=time.time(),
                score=score,
                correction=body.correction,
            )
        )
        return api.FeedbackOut(event_id=event_id)

    @app.get("/v1/memory/nodes", tags=["Memory"])
    async def nodes(
        who: Tenant,
        kind: Annotated[list[Kind], Query(max_length=8)] = [],  # noqa: B006 - FastAPI copies defaults
        domain: Names = [],  # noqa: B006
        source: Names = [],  # noqa: B006
        session: Names = [],  # noqa: B006
        user: Names = [],  # noqa: B006
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        after: Annotated[str, Query(max_length=300)] = "",
    ) -> api.NodesOut:
        """List nodes, newest first; expired ones are left out."""
        where = Filter(
            kinds=tuple(kind), domains=tuple(domain), sources=tuple(source), sessions=tuple(session), users=tuple(user)
        )
        page = await admitted(manage("page", who, where, limit, after))
        return api.NodesOut(nodes=[api.NodeOut(**_node(n)) for n in page.nodes], total=page.total, after=page.after)

    @app.get("/v1/memory/nodes/{node_id:path}", tags=["Memory"])
    async def node(node_id: str, who: Tenant) -> api.NodeWithEdges:
        """One node with its edges, where it comes from and what was changed."""
        return _described(*await admitted(manage("describe", who, node_id)))

    @app.patch("/v1/memory/nodes/{node_id:path}", tags=["Memory"])
    async def change(node_id: str, body: api.NodeChange, who: Tenant) -> api.NodeWithEdges:
        """Change a node; durable and findable when it answers."""
        changes = body.model_dump(exclude_unset=True, exclude_none=True)
        vector = None
        if body.text is not None:
            changes["text"] = await asyncio.to_thread(Masker(service.settings.privacy), body.text)
            if not changes["text"].strip():
                raise Reject("text", "blank", "give a text, or delete the node", 400, "text")
            encoded = await admitted(service.backend.encode([changes["text"]]))
            vector, changes["tokens"] = encoded.vectors[0], int(encoded.tokens[0])
        return _described(*await admitted(manage("update", who, node_id, changes, vector)))

    @app.delete("/v1/memory/nodes/{node_id:path}", tags=["Memory"])
    async def delete_one(node_id: str, who: Tenant) -> api.ReceiptOut:
        """Remove one node."""
        await admitted(manage("describe", who, node_id))  # 404, and no receipt for what never was
        receipt: Receipt = await admitted(manage("remove", who, [node_id], "node", False))
        return _receipt(service, receipt, await manage("backups", who))

    @app.post("/v1/memory/delete", tags=["Memory"])
    async def delete(body: api.Removal, who: Tenant) -> api.ReceiptOut:
        """Remove nodes, or all that came from a source, a session or a user, or everything of the tenant."""
        if body.everything:
            service.sessions.forget(who)
            receipt = await manage("drop", who, "everything")
        elif body.node_ids is not None:
            receipt = await manage("remove", who, body.node_ids, "nodes", body.purge)
        else:
            field = next(name for name in ("source", "session", "user") if getattr(body, name) is not None)
            value: str = getattr(body, field)
            if field == "session":
                service.sessions.forget(who, value)
            named = {f"{field}s": (value,)}
            where = Filter(**named)  # type: ignore[arg-type]
            receipt = await manage("remove_where", who, where, f"{field} {value}", body.purge)
        return _receipt(service, receipt, await manage("backups", who))

    @app.get("/v1/memory/receipts", tags=["Memory"])
    async def receipts(who: Tenant) -> list[api.ReceiptOut]:
        """What was removed, newest first."""
        kept = await manage("backups", who)
        return [_receipt(service, receipt, kept) for receipt in await manage("receipts", who)]


def _receipt(service: Service, receipt: Receipt, kept: Sequence[Backup]) -> api.ReceiptOut:
    days = service.settings.events.retention_days
    remains = [f"event log: what was asked and answered, at most {days:g} days from then (events.retention_days)"]
    if not receipt.purged:
        hours = service.settings.memory.purge_after_s / 3600
        remains.append(f"vector store: old versions of its files, at most {hours:g} hours (memory.purge_after_s)")
    remains += [f"backup {one.name}" for one in kept if one.manifest.created_at <= receipt.done_at]
    return api.ReceiptOut(**fields_of(receipt), remains=remains)


def fields_of(item: Any) -> dict[str, Any]:
    """The fields of a record; tuples as lists."""
    values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _node(node: Node) -> dict[str, Any]:
    metadata = dict(node.metadata or {})
    metadata.pop(HISTORY, None)
    fields = {name: getattr(node, name) for name in api.NodeOut.model_fields if name not in ("metadata", "history")}
    return {**fields, "metadata": metadata, "history": history(node)}


def _described(node: Node, edges: Sequence[Edge]) -> api.NodeWithEdges:
    return api.NodeWithEdges(**_node(node), edges=[api.EdgeOut(**fields_of(edge)) for edge in edges])
