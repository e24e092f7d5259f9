"""The endpoints of the administrator: jobs write through them, and they act for any tenant.

They take the administrator's key, never an API key, and are not counted among the requests of users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request

from operators.documents import node_id
from operators.engines.ports import Encoded
from operators.errors import Reject
from operators.stores import lance_rows
from operators.stores.backups import Backup
from operators.stores.consistency import Consistency
from operators.stores.portable import Manifest
from operators.stores.ports import Node
from operators.stores.remembering import Memo, Remembered
from operators.stores.tenants import check_tenant
from pipeline import memory_schema as api
from pipeline.guard import Admin
from pipeline.memory_api import fields_of
from pipeline.service import Service

PREFIX = "/v1/admin"

Encoder = Annotated[str, Query(alias="encoder", min_length=1, max_length=200, description="What made the vectors.")]


def install(app: FastAPI, service: Service) -> None:
    """Add the endpoints to ``app``."""
    manage, encoder = service.backend.manage, service.settings.embed.model.id

    @app.get(f"{PREFIX}/memory/tenants", tags=["Admin"])
    async def tenants(_: Admin) -> list[str]:
        """Tenants that have a memory."""
        found: list[str] = await manage("tenants")
        return found

    @app.post(f"{PREFIX}/memory/nodes", tags=["Admin"])
    async def add_nodes(
        request: Request, _: Admin, tenant: Annotated[str, Query(min_length=1, max_length=64)], made_by: Encoder
    ) -> api.AddedOut:
        """Add nodes that are embedded already: an Arrow IPC stream with the columns of the vector store."""
        check_tenant("tenant", tenant)
        if made_by != encoder:
            got, remedy = f"vectors of {made_by!r}, this memory has those of {encoder}", "embed with that encoder"
            raise Reject("memory", got, remedy, 400, "encoder", "bad_encoder")
        added = await service.backend.add(tenant, _nodes(await request.body()))
        return api.AddedOut(added=len(added.new), duplicates=len(added.duplicate), edges=added.edges)

    @app.post(f"{PREFIX}/memory/remember", tags=["Admin"])
    async def remember(body: api.RememberRequest, _: Admin) -> api.RememberResponse:
        """Remember judged answers: each once, near-copies strengthen what is there."""
        check_tenant("tenant", body.tenant)
        encoded = await service.backend.encode([item.text for item in body.items])
        results: list[Remembered] = await manage("remember", body.tenant, memos(body, encoded))
        return remembered(body, results)

    @app.post(f"{PREFIX}/memory/withdraw", tags=["Admin"])
    async def withdraw(body: api.Withdrawal, _: Admin) -> dict[str, int]:
        """Remove remembered answers for good, those too that are yet to come."""
        ids = [node_id(body.tenant, one, "interaction") for one in body.interaction_ids]
        receipt = await manage("remove", check_tenant("tenant", body.tenant), ids, "withdrawn by the user", False)
        return {"removed": receipt.vectors}

    @app.post(f"{PREFIX}/memory/maintain", tags=["Admin"])
    async def maintain(body: api.TenantIn, _: Admin) -> dict[str, int]:
        """Remove what has expired, fold new rows into the indexes, remove old versions."""
        done: dict[str, int] = await manage("maintain", check_tenant("tenant", body.tenant))
        return done

    @app.post(f"{PREFIX}/memory/check", tags=["Admin"])
    async def check(body: api.CheckIn, _: Admin) -> api.ConsistencyOut:
        """Compare the stores of a tenant's memory; with ``repair`` mend what differs."""
        found: Consistency = await _call("check", body.tenant, body.repair)
        return api.ConsistencyOut(**fields_of(found), sound=found.sound)

    @app.post(f"{PREFIX}/memory/export", tags=["Admin"])
    async def export(body: api.ExportIn, _: Admin) -> api.ManifestOut:
        """Write a tenant's memory to a new directory on this machine, as Parquet."""
        return manifest_out(await _call("export", body.tenant, body.directory, encoder))

    @app.post(f"{PREFIX}/memory/import", tags=["Admin"])
    async def import_(body: api.ImportIn, _: Admin) -> api.AddedOut:
        """Read an export from a directory on this machine."""
        return api.AddedOut(**await _call("import", body.tenant, body.directory, encoder, body.replace))

    @app.get(f"{PREFIX}/memory/backups", tags=["Admin"])
    async def backups(_: Admin, tenant: Annotated[str, Query(min_length=1, max_length=64)]) -> list[api.ManifestOut]:
        """The tenant's backups, oldest first."""
        kept: list[Backup] = await _call("backups", tenant)
        return [manifest_out(one.manifest, one.name) for one in kept]

    @app.post(f"{PREFIX}/memory/backups", tags=["Admin"])
    async def back_up(body: api.BackupIn, _: Admin) -> api.ManifestOut:
        """Keep the present state of a tenant's memory under a name."""
        kept: Backup = await _call("back_up", body.tenant, body.name, encoder)
        return manifest_out(kept.manifest, kept.name)

    @app.post(f"{PREFIX}/memory/backups/restore", tags=["Admin"])
    async def restore(body: api.BackupIn, _: Admin) -> api.ManifestOut:
        """Go back to a backup; what came since is gone."""
        kept: Backup = await _call("restore_backup", body.tenant, body.name, encoder)
        return manifest_out(kept.manifest, kept.name)

    @app.post(f"{PREFIX}/memory/backups/delete", tags=["Admin"])
    async def remove_backup(body: api.BackupIn, _: Admin) -> dict[str, str]:
        """Remove a backup."""
        await _call("remove_backup", body.tenant, body.name)
        return {"removed": body.name}

    async def _call(call: str, tenant: str, *args: Any) -> Any:
        return await manage(call, check_tenant("tenant", tenant), *args)


def memos(body: api.RememberRequest, encoded: Encoded) -> list[Memo]:
    """The items of ``body`` with the vectors of their texts, as the memory takes them."""
    return [
        Memo(
            node=Node(
                node_id=node_id(body.tenant, item.interaction_id, "interaction"),
                kind="interaction",
                text=item.text,
                vector=encoded.vectors[i],
                domain=item.domain,
                session=item.session,
                user=item.user,
                position=item.turn,
                tokens=int(encoded.tokens[i]),
                created_at=item.created_at,
                quality=item.quality,
                model=item.model,
                metadata={**(item.metadata or {}), "interaction": item.interaction_id},
            ),
            cites=item.cites,
            rated_at=item.rated_at,
            partition=item.partition,
            offset=item.offset,
        )
        for i, item in enumerate(body.items)
    ]


def remembered(body: api.RememberRequest, results: Sequence[Remembered]) -> api.RememberResponse:
    """The answer to ``body``."""
    pairs = zip(body.items, results, strict=True)
    return api.RememberResponse(
        results=[api.RememberedOut(interaction_id=item.interaction_id, **fields_of(result)) for item, result in pairs]
    )


def _nodes(data: bytes) -> list[Node]:
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(data) as stream:
            table = stream.read_all()
            table.validate(full=True)  # offsets that point elsewhere would end the process
            return lance_rows.checked(table)
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        got = f"{len(data)} bytes that are no nodes: {error}"
        raise Reject("nodes", got, f"send an Arrow IPC stream with {', '.join(lance_rows.COLUMNS)}", 400) from error


def manifest_out(manifest: Manifest, name: str = "") -> api.ManifestOut:
    """The record as it is answered."""
    fields = {key: value for key, value in fields_of(manifest).items() if key not in ("format", "sha256")}
    return api.ManifestOut(name=name, **fields)
