"""The published snapshot of a tenant's memory: immutable arrays that readers map without a copy.

    <root>/<tenant>/snapshot-<version>/   *.npy, *.utf8 and manifest.json, never changed once there
    <root>/<tenant>/CURRENT               the name of the newest one, replaced atomically

Publishing: 1 write everything under a temporary name and fsync it, 2 rename, 3 replace CURRENT, 4 remove all but the
last two. A crash before 3 leaves the old snapshot in force. A reader that still maps a removed one keeps it until it
lets go. A snapshot is derived: losing it loses nothing but the time to publish again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from operators.errors import Stop
from operators.records import Kind
from operators.stores.csr import Csr, build, walk
from operators.stores.durable import sync
from operators.stores.ports import Node, Subgraph

FORMAT = 1
KEEP = 2
"""Snapshots of a tenant that stay on disk: the current one and the one before."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_ARRAYS = ("indptr", "indices", "relation", "weight", "forward", "vectors", "tokens", "kind", "key", "key_row")
_TEXTS = ("ids", "texts", "sources")

NOTHING = Subgraph(
    node_ids=(),
    kinds=(),
    texts=(),
    sources=(),
    vectors=np.zeros((0, 0), np.float32),
    tokens=np.zeros(0, np.int32),
    hop=np.zeros(0, np.int32),
    seeds=0,
    edge_from=np.zeros(0, np.int32),
    edge_to=np.zeros(0, np.int32),
    edge_relation=np.zeros(0, np.int8),
    edge_weight=np.zeros(0, np.float32),
    snapshot=0,
    truncated=False,
)
"""What lies around nodes that nobody knows."""


def publish(
    directory: Path,
    nodes: Iterable[Node],
    edges: Iterable[tuple[str, str, int, float]],
    stamp: dict[str, Any],
    keep: int = KEEP,
) -> int:
    """Publish ``nodes`` and the ``edges`` among them as the next version, and return it; without nodes none, and 0.

    Edges with an end that is not among the nodes are left out. ``stamp`` is kept in the manifest, for whoever must
    tell later whether the snapshot is stale. ``keep`` snapshots stay on disk: after a removal only the new one may.
    Raises ``Stop`` when the directory can't be written.
    """
    rows = sorted(nodes, key=lambda node: node.node_id)
    if not rows:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
        version = 1 + max((_version(path) for path in directory.glob("snapshot-*")), default=0)
        for left in directory.glob("writing-*"):  # by a process that was killed: nobody else publishes here
            shutil.rmtree(left, ignore_errors=True)
        temporary = directory / f"writing-{os.getpid()}-{version}"
        try:
            temporary.mkdir()
            _write(temporary, rows, edges, {**stamp, "format": FORMAT, "version": version, "nodes": len(rows)})
            os.rename(temporary, directory / f"snapshot-{version}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(directory)
        marker = directory / "CURRENT.new"
        marker.write_text(f"snapshot-{version}")
        sync(marker)
        os.replace(marker, directory / "CURRENT")
        sync(directory)
    except OSError as e:
        remedy = "free some space" if e.errno in (errno.ENOSPC, errno.EDQUOT) else "make the directory writable"
        raise Stop("snapshot", f"can't publish under {directory}: {e}", remedy) from e
    for old in sorted(directory.glob("snapshot-*"), key=_version)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return version


def _write(
    directory: Path, rows: Sequence[Node], edges: Iterable[tuple[str, str, int, float]], manifest: dict[str, Any]
) -> None:
    row_of = {node.node_id: i for i, node in enumerate(rows)}
    inside = sorted((row_of[s], row_of[t], r, w) for s, t, r, w in edges if s in row_of and t in row_of)
    start, end, relation, weight = (
        (list(column) for column in zip(*inside, strict=True)) if inside else ([], [], [], [])
    )
    csr = build(
        len(rows),
        np.array(start, np.int64),
        np.array(end, np.int64),
        np.array(relation, np.int8),
        np.array(weight, np.float32),
    )
    keys = _keys([node.node_id for node in rows])
    order = np.argsort(keys, kind="stable")
    arrays: dict[str, npt.NDArray[Any]] = {
        **csr._asdict(),
        "vectors": np.stack([node.vector for node in rows]).astype(np.float32),
        "tokens": np.array([node.tokens for node in rows], np.int32),
        "kind": np.array([KINDS.index(node.kind) for node in rows], np.int8),
        "key": keys[order],
        "key_row": order.astype(np.int64),
    }
    texts = {
        "ids": [node.node_id for node in rows],
        "texts": [node.text for node in rows],
        "sources": [node.source for node in rows],
    }
    for name, values in texts.items():
        encoded = [value.encode("utf-8") for value in values]
        arrays[name] = np.concatenate([[0], np.cumsum([len(value) for value in encoded])]).astype(np.int64)
        (directory / f"{name}.utf8").write_bytes(b"".join(encoded))
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array, allow_pickle=False)
    (directory / "manifest.json").write_text(json.dumps({**manifest, "edges": len(inside)}, sort_keys=True))
    for path in directory.iterdir():
        sync(path)
    sync(directory)


class Snapshot:
    """One mapped version. Safe for any number of threads: nothing in it changes."""

    def __init__(self, directory: Path) -> None:
        self.manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
        if self.manifest["format"] != FORMAT:
            raise ValueError(f"format {self.manifest['format']}, this version reads {FORMAT}")
        self.version = int(self.manifest["version"])
        # asarray: the same mapped pages without np.memmap's cost on every slice.
        arrays = {name: np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r")) for name in (*_ARRAYS, *_TEXTS)}
        self.graph = Csr(*(arrays[name] for name in Csr._fields))
        self.vectors, self.tokens, self.kind = arrays["vectors"], arrays["tokens"], arrays["kind"]
        self._key, self._key_row = arrays["key"], arrays["key_row"]
        self._shared_keys = bool((self._key[1:] == self._key[:-1]).any())
        self._texts = {name: (arrays[name], _blob(directory / f"{name}.utf8")) for name in _TEXTS}

    def __len__(self) -> int:
        return len(self.tokens)

    def text(self, column: str, rows: npt.NDArray[np.int64]) -> tuple[str, ...]:
        """The strings of ``column`` (``ids``, ``texts`` or ``sources``) in ``rows``."""
        offsets, blob = self._texts[column]
        starts, ends = offsets.take(rows).tolist(), offsets.take(rows + 1).tolist()
        return tuple([str(blob[a:b], "utf-8") for a, b in zip(starts, ends, strict=True)])

    def rows(self, node_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The rows of those ``node_ids`` that the snapshot knows, in their order, repeats dropped."""
        wanted = list(dict.fromkeys(node_ids))
        keys = _keys(wanted)
        at = self._key.searchsorted(keys)
        found: npt.NDArray[np.int64] = self._key_row.take(at[self._key.take(at, mode="clip") == keys])
        if set(self.text("ids", found)) <= set(wanted) and not self._shared_keys:
            return found
        # Two ids share a hash, ours or the snapshot's: compare the ids themselves.
        everything = np.arange(len(self), dtype=np.int64)
        row_of = dict(zip(self.text("ids", everything), everything.tolist(), strict=True))
        return np.array([row_of[node_id] for node_id in wanted if node_id in row_of], np.int64)

    def expand(self, node_ids: Sequence[str], *, hops: int, max_nodes: int, max_edges: int, decay: float) -> Subgraph:
        """The nodes within ``hops`` of ``node_ids`` and the edges among them; ``csr.walk`` tells of the caps."""
        seeds = self.rows(node_ids)
        walked = walk(self.graph, seeds, hops=hops, max_nodes=max_nodes, max_edges=max_edges, decay=decay)
        rows = walked.rows
        return Subgraph(
            node_ids=self.text("ids", rows),
            kinds=tuple(map(KINDS.__getitem__, self.kind.take(rows).tolist())),
            texts=self.text("texts", rows),
            sources=self.text("sources", rows),
            vectors=self.vectors.take(rows, 0),
            tokens=self.tokens.take(rows),
            hop=walked.hop,
            seeds=min(len(seeds), max_nodes),
            edge_from=walked.edge_from,
            edge_to=walked.edge_to,
            edge_relation=walked.edge_relation,
            edge_weight=walked.edge_weight,
            snapshot=self.version,
            truncated=walked.truncated or len(seeds) > max_nodes,
        )


class SnapshotReader:
    """The newest snapshot under ``directory``. Any thread may call it; a look costs one ``stat``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._seen: tuple[int, int] | None = None
        self._current: Snapshot | None = None
        self._lock = threading.Lock()

    def current(self) -> Snapshot | None:
        """The newest version, mapped; ``None`` if there is none that can be read."""
        try:
            stat = os.stat(self.directory / "CURRENT")
        except OSError:
            return None
        seen = (stat.st_ino, stat.st_mtime_ns)
        if seen != self._seen:
            with self._lock:
                if seen != self._seen:
                    self._current, self._seen = self._map(), seen
        return self._current

    def _map(self) -> Snapshot | None:
        # A publisher may remove the version between our look at CURRENT and the mapping: then CURRENT has moved on.
        for _ in range(3):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return Snapshot(self.directory / (self.directory / "CURRENT").read_text())
        return None


def _keys(node_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of every id, the same in every process."""
    hashes = b"".join(hashlib.blake2b(node_id.encode("utf-8"), digest_size=8).digest() for node_id in node_ids)
    return np.frombuffer(hashes, "<u8").astype(np.uint64)


def _blob(path: Path) -> mmap.mmap | bytes:
    """A file's bytes, mapped; an empty file can't be mapped and needs not be."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _version(path: Path) -> int:
    tail = path.name.removeprefix("snapshot-")
    return int(tail) if tail.isdigit() else 0
