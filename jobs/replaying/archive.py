"""The archive of a replay: a directory with the events of a window, as they stand in the log, and what was read.

    DIR/manifest.json          what was asked for, the offsets, counts, digest; written before the first part
    DIR/events/TOPIC-PARTITION-OFFSET.parquet    the parts, each there whole or not at all

A part that is there is done, so a job that was killed goes on with those that are missing. When all are there the
manifest says so, with the digest: the SHA-256 over ``TOPIC PARTITION OFFSET SHA-256(value)`` of every event, a line
each, in that order. It depends neither on the size of parts nor on the order in which they were made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.replaying.window import WHO, Ranges, Window, split
from operators.errors import Reject, Stop
from operators.records import SCHEMA_VERSION, decode, encode, record
from operators.stores import durable
from operators.stores.ports import Event

MANIFEST, EVENTS = "manifest.json", "events"


@record
class Read:
    """What a partition held. ``first`` and ``last`` are offsets, −1 if there was nothing. Of ``events``, ``kept`` are
    in the archive; the others are of other tenants, removed from the memory, not readable, or verdicts on
    interactions outside the window."""

    first: int
    last: int
    events: int
    kept: int
    other_tenants: int
    removed: int
    unreadable: int
    outside: int


@record
class Manifest:
    """What an archive is. ``release`` is RuvLLM's, ``features`` the fingerprint of the router's features, ``source``
    where the log is. ``read`` and ``digest`` are empty until ``complete``."""

    release: str
    features: str
    source: str
    asked: Window
    part_events: int
    ranges: Ranges
    complete: bool = False
    read: dict[str, Read] = dataclasses.field(default_factory=dict)
    digest: str = ""
    schema_version: int = SCHEMA_VERSION


class Archive:
    """The archive in the directory ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self) -> Manifest | None:
        """What it is; ``None`` if nothing was begun there. Raises ``Stop`` if that can't be read."""
        try:
            return decode(Manifest, (self.path / MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Stop(WHO, f"{self.path / MANIFEST} can't be read: {error}", "name another directory") from error

    def complete(self) -> Manifest:
        """What it is. Raises ``Reject`` if it is not read to its end."""
        manifest = self.manifest()
        if manifest is None or not manifest.complete:
            raise Reject(WHO, f"{self.path} is no whole archive", "read it first: ruvllm replay read")
        return manifest

    def begin(self, manifest: Manifest) -> None:
        """Make the directory and note what will be read."""
        with durable.door(self.path):
            (self.path / EVENTS).mkdir(parents=True, exist_ok=True, mode=0o700)
            if any((self.path / EVENTS).iterdir()):
                raise Reject(WHO, f"{self.path} has parts, but no {MANIFEST}", "name another directory")
            write_json(self.path / MANIFEST, manifest)

    def parts(self, manifest: Manifest) -> list[tuple[str, int, int]]:
        """``TOPIC/PARTITION``, the first offset and the one after the last of every part, in order."""
        size = manifest.part_events
        return [
            (name, at, min(at + size, after))
            for name, (first, after) in sorted(manifest.ranges.items(), key=lambda item: split(item[0]))
            for at in range(first, after, size)
        ]

    def file(self, name: str, offset: int) -> Path:
        """Where the part of ``TOPIC/PARTITION`` from ``offset`` on is."""
        topic, partition = split(name)
        return self.path / EVENTS / f"{topic}-{partition:04d}-{offset:012d}.parquet"

    def missing(self, manifest: Manifest) -> list[tuple[str, int, int]]:
        """The parts that are not there."""
        return [part for part in self.parts(manifest) if not self.file(part[0], part[1]).exists()]

    def finish(self, manifest: Manifest) -> Manifest:
        """Count what was read, once every part is there, and note it."""
        counts: dict[str, dict[str, int]] = {}
        lines = hashlib.sha256()
        for name, at, _ in self.parts(manifest):
            topic, partition = split(name)
            table = read_table(self.file(name, at))
            told = json.loads(table.schema.metadata[b"read"])
            sums = counts.setdefault(name, dict.fromkeys(told, 0) | {"first": -1, "last": -1, "kept": 0})
            for key, value in told.items():
                if key == "first":
                    sums[key] = value if sums[key] < 0 else sums[key]
                else:
                    sums[key] = max(value, sums[key]) if key == "last" else sums[key] + value
            sums["kept"] += table.num_rows
            for offset, value in zip(table["offset"].to_pylist(), table["value"].to_pylist(), strict=True):
                lines.update(f"{topic} {partition} {offset} {hashlib.sha256(value).hexdigest()}\n".encode())
        read = {name: Read(**sums) for name, sums in counts.items()}
        done = dataclasses.replace(manifest, complete=True, read=read, digest=lines.hexdigest())
        write_json(self.path / MANIFEST, done)
        return done

    def events(self, topic: str) -> Iterator[Event]:
        """The events of ``topic``, by partition and offset."""
        for name, at, _ in self.parts(self.complete()):
            if split(name)[0] == topic:
                yield from rows(read_table(self.file(name, at)))


def rows(table: Any) -> Iterator[Event]:
    """The events in a ``pyarrow.Table`` of a part."""
    for row in table.to_pylist():
        yield Event(**{**row, "headers": json.loads(row["headers"])})


def write_events(path: Path, events: Sequence[Event], told: Mapping[str, int]) -> None:
    """A part with ``events``; ``told``: what is counted of those that are not in it, too."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("topic", pa.string()),
            ("partition", pa.int32()),
            ("offset", pa.int64()),
            ("key", pa.string()),
            ("value", pa.binary()),
            ("headers", pa.string()),
            ("timestamp", pa.float64()),
        ],
        metadata={b"read": json.dumps(told).encode()},
    )
    made = [{**_fields(event), "headers": json.dumps(dict(event.headers), sort_keys=True)} for event in events]
    write_table(path, pa.Table.from_pylist(made, schema=schema))


def _fields(event: Event) -> dict[str, Any]:
    return {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}


def read_table(path: Path) -> Any:
    """The ``pyarrow.Table`` in a Parquet file. Raises ``Stop`` if it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise Stop(WHO, f"{path} can't be read: {error}", "remove it and start again: it is read anew") from error


def write_table(path: Path, table: Any) -> None:
    """A ``pyarrow.Table`` as the Parquet file ``path``, whole or not at all, readable for its owner only."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with durable.door(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            pq.write_table(table, temporary, compression="zstd")
            temporary.chmod(0o600)  # it holds what was asked and answered
            durable.sync(temporary)
            os.replace(temporary, path)
            durable.sync(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def write_json(path: Path, value: object) -> None:
    """``value``, a record or JSON, as the file ``path``, in one step and durable."""
    said = json.loads(encode(value)) if dataclasses.is_dataclass(value) else value
    with durable.door(path):
        durable.replace(path, (json.dumps(said, ensure_ascii=False, indent=2) + "\n").encode())
