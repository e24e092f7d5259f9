"""A tenant's memory as files that anything can read, and back: for moving, for backups, for going back in time.

    nodes.parquet  the rows of the vector store    edges.parquet  from, to, relation, weight, created_at
    gone.parquet   ids that were removed, and when manifest.json  counts, encoder, dimension, SHA-256 of the others

Exporting: 1 write everything under a temporary name, 2 fsync, 3 rename. A directory with a manifest is whole.
Replacing a memory: 1 a note where from, 2 vectors, 3 graph, 4 snapshot, 5 the note goes; a crash does 2 to 5 again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.errors import Reject, Stop
from operators.ids import uuid7
from operators.records import RELATIONS, decode, encode, record
from operators.stores import lance_rows
from operators.stores.durable import sync
from operators.stores.ports import Edge, Node
from operators.stores.tenants import check_nodes, check_tenant

if TYPE_CHECKING:
    from operators.stores.memory import Memory

FORMAT = 1
FILES = ("nodes.parquet", "edges.parquet", "gone.parquet")
SLICE = 1024


@record
class Manifest:
    """What an export holds. ``created_at`` is Unix seconds."""

    format: int
    tenant: str
    created_at: float
    encoder: str
    dim: int
    nodes: int
    edges: int
    gone: int
    sha256: dict[str, str]


def export(memory: Memory, tenant: str, directory: Path, encoder: str) -> Manifest:
    """Write the tenant's memory to ``directory``, which must not be there yet; nobody writes to the tenant meanwhile.

    ``encoder`` is what made its vectors. Raises ``Reject`` if ``directory`` exists or the tenant has nothing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_tenant("memory", tenant)
    if not memory.vectors.count(tenant):
        raise Reject("memory", f"nothing is stored for tenant {tenant!r}", "add documents first", 404)
    temporary = directory.with_name(f".{directory.name}.{uuid7()}")
    try:
        if directory.exists():
            raise Reject("memory", f"{directory} exists", "name a new directory")
        temporary.mkdir(parents=True, mode=0o700)
        with memory.writing(tenant):
            # 1
            nodes, dim = 0, memory.vectors.dim
            with pq.ParquetWriter(temporary / "nodes.parquet", lance_rows.schema(dim)) as writer:
                for batch in memory.vectors.scan(tenant):
                    writer.write_table(lance_rows.table(batch, dim))
                    nodes += len(batch)
            ids = sorted(memory.graph.node_ids(tenant))
            edges = memory.graph.edges_at(tenant, ids)
            columns = {field.name: [getattr(edge, field.name) for edge in edges] for field in dataclasses.fields(Edge)}
            types = dict.fromkeys(columns, pa.string()) | {"weight": pa.float64(), "created_at": pa.float64()}
            pq.write_table(pa.table(columns, schema=pa.schema(list(types.items()))), temporary / "edges.parquet")
            gone = memory.graph.gone(tenant, memory.graph.all_gone(tenant))
            columns = {"id": pa.array(gone.keys(), pa.string()), "at": pa.array(gone.values(), pa.float64())}
            pq.write_table(pa.table(columns), temporary / "gone.parquet")
        manifest = Manifest(
            format=FORMAT,
            tenant=tenant,
            created_at=memory.clock(),
            encoder=encoder,
            dim=dim,
            nodes=nodes,
            edges=len(edges),
            gone=len(gone),
            sha256={name: _digest(temporary / name) for name in FILES},
        )
        (temporary / "manifest.json").write_bytes(encode(manifest))
        # 2
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        # 3
        os.rename(temporary, directory)
        sync(directory.parent)
        return manifest
    except OSError as e:
        raise Stop(
            "memory", f"can't export to {directory}: {e.strerror}", "free space there, or name another place"
        ) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_manifest(memory: Memory, directory: Path, encoder: str) -> Manifest:
    """The checked manifest of an export. Raises ``Reject`` when it is damaged or doesn't fit this memory."""
    try:
        manifest = decode(Manifest, (directory / "manifest.json").read_bytes())
    except OSError:
        raise Reject("memory", f"no export in {directory}", "name a directory that an export made", 404) from None
    except ValueError as e:
        raise Reject("memory", f"{directory}/manifest.json is damaged", "use another export") from e
    if manifest.format != FORMAT:
        raise Reject("memory", f"an export of format {manifest.format}", f"this version reads {FORMAT}")
    if (manifest.encoder, manifest.dim) != (encoder, memory.vectors.dim):
        got = f"vectors of {manifest.encoder} ({manifest.dim}), this memory has {encoder} ({memory.vectors.dim})"
        raise Reject("memory", got, "import into a service with that encoder, or ingest the documents anew")
    for name in FILES:
        if manifest.sha256.get(name) != _digest(directory / name):
            raise Reject("memory", f"{directory / name} is damaged: its SHA-256 differs", "use another export")
    try:  # all of it is read before anything is replaced by it
        ids = {n.node_id for batch in _nodes(directory) for n in check_nodes("memory", batch, manifest.dim)}
        ends = {end for edge in _edges(directory) for end in (edge.source_id, edge.target_id)}
        _gone(directory)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Reject("memory", f"{directory} holds what is no memory: {e}", "use another export") from e
    if lost := sorted(ends - ids):
        raise Reject("memory", f"{directory} has edges to {lost[0]!r}, which is not there", "use another export")
    return manifest


def add_all(memory: Memory, tenant: str, directory: Path, encoder: str) -> tuple[int, int]:
    """Add an export to what the tenant has; nodes that are there stay. Returns (new nodes, nodes there already)."""
    load_manifest(memory, directory, encoder)
    new = there = 0
    for batch in _nodes(directory):
        added = memory.add(tenant, batch)
        new, there = new + len(added.new), there + len(added.duplicate)
    # With all nodes there, the edges between them: those that adding does not make by itself.
    memory.link(tenant, _edges(directory))
    memory.publish(tenant)
    return new, there


def replace_all(memory: Memory, tenant: str, directory: Path, encoder: str) -> Manifest:
    """Make an export all that the tenant has."""
    check_tenant("memory", tenant)
    manifest = load_manifest(memory, directory, encoder)
    # 1
    note = _notes(memory) / f"{tenant}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_suffix(".new")
    temporary.write_text(json.dumps({"tenant": tenant, "directory": str(directory.resolve())}))
    sync(temporary)
    os.replace(temporary, note)
    sync(note.parent)
    memory.at("replace noted")
    _replace(memory, tenant, directory)
    return manifest


def resume(memory: Memory) -> None:
    """Finish what a crash interrupted. Raises ``Stop`` if the export it came from is no longer there."""
    for half in (memory.directory.parent / "backups").glob("*/.*"):
        shutil.rmtree(half)
    for note in sorted(_notes(memory).glob("*.json")):
        wanted: dict[str, str] = json.loads(note.read_text())
        if not (Path(wanted["directory"]) / "manifest.json").exists():
            got = f"restoring tenant {wanted['tenant']!r} was interrupted, and {wanted['directory']} is gone"
            raise Stop("memory", got, f"bring it back, or remove {note} to keep the memory as it is")
        _replace(memory, wanted["tenant"], Path(wanted["directory"]))


def _replace(memory: Memory, tenant: str, directory: Path) -> None:
    with memory.writing(tenant):
        # 2
        memory.vectors.replace(tenant, _nodes(directory))
        memory.at("replaced vectors")
        # 3
        ids = [(node.node_id, node.kind, node.created_at) for batch in memory.vectors.scan(tenant) for node in batch]
        memory.graph.replace(tenant, ids, _edges(directory), gone=_gone(directory))
        memory.at("replaced graph")
        # 4
        memory.forget_ingested()
        memory.publish(tenant, keep=1)
        memory.forget(tenant)
    # 5
    (_notes(memory) / f"{tenant}.json").unlink(missing_ok=True)


def _nodes(directory: Path) -> Iterator[Sequence[Node]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(directory / "nodes.parquet").iter_batches(SLICE):
        yield lance_rows.checked(batch)


def _edges(directory: Path) -> list[Edge]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(directory / "edges.parquet").to_pylist()
    bad = sorted({row["relation"] for row in rows} - set(RELATIONS))
    if bad:
        raise Reject("memory", f"edges of relation {bad[0]!r}", f"this version knows {', '.join(RELATIONS)}")
    return [Edge(**row) for row in rows]


def _gone(directory: Path) -> dict[str, float]:
    import pyarrow.parquet as pq

    rows = pq.read_table(directory / "gone.parquet")
    return dict(zip(rows["id"].to_pylist(), rows["at"].to_pylist(), strict=True))


def _notes(memory: Memory) -> Path:
    return memory.directory.parent / "replacing"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
