"""The first step of a replay: the events of a window into an archive, part by part, in Ray's workers.

    1 plan   the window becomes ranges of offsets, noted in the manifest before anything is read
    2 read   every part: decoded, sifted, written as one file
    3 count  what was read, and its digest, into the manifest

What was removed from the memory is left out, and so is what can't be read: it is another job's dead letter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from conf.schema import Settings
from jobs.consumer import read_record
from jobs.ray_workers import Row, Workers
from jobs.replaying.archive import Archive, Manifest, write_events
from jobs.replaying.removed import Removed
from jobs.replaying.window import WHO, Ranges, Window, ranges, split
from operators.errors import Reject, Skip
from operators.networks.features import LAYOUT
from operators.records import Interaction, Verdict, encode
from operators.stores.events import Events
from operators.stores.make import open_log
from operators.stores.ports import Event
from operators.stores.topics import INTERACTIONS

SLICE = 256
"""Events that are fetched from the log at a time."""


def read(
    archive: Archive,
    settings: Settings,
    window: Window,
    workers: Workers,
    *,
    like: Archive | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Fill ``archive`` with ``window``, or go on with it; returns what it holds then.

    Args:
        like: another archive, whose offsets are read again.
        progress: called with (parts done, parts).

    Raises:
        Reject: the archive holds another window, or one of another release's features or log.
        Retry: the log is away.
    """
    manifest = archive.manifest()
    if manifest is None:
        manifest = plan(settings, window, like)
        archive.begin(manifest)
    else:
        check(archive, manifest, settings, window, like)
    if manifest.complete:
        return manifest
    total, missing = len(archive.parts(manifest)), archive.missing(manifest)
    done = total - len(missing)
    progress(done, total)
    todo = [{"name": name, "first": first, "after": after} for name, first, after in missing]
    for _ in workers.each(todo, Reader, archive.path, settings.events, settings.data_dir / "memory"):
        done += 1
        progress(done, total)
    return archive.finish(manifest)


def plan(settings: Settings, window: Window, like: Archive | None) -> Manifest:
    """What is to be read."""
    if like is None:
        with contextlib.closing(open_log(settings.events)) as log:
            found: Ranges = ranges(log, window)
    else:
        other = like.complete()
        window, found = other.asked, other.ranges
    return Manifest(
        release=version("ruvllm"),
        features=LAYOUT,
        source=source(settings.events),
        asked=window,
        part_events=settings.replay.part_events,
        ranges=found,
    )


def check(archive: Archive, manifest: Manifest, settings: Settings, window: Window, like: Archive | None) -> None:
    """Raises ``Reject`` if ``manifest`` is not of what is asked for now; nothing asked for is what it is of."""
    name = "name another directory, or leave the window out"
    if encode(window) not in (encode(Window()), encode(manifest.asked)):
        raise Reject(WHO, f"{archive.path} holds another window: {encode(manifest.asked).decode()}", name)
    if like is not None and like.complete().ranges != manifest.ranges:
        raise Reject(WHO, f"{archive.path} holds other offsets than {like.path}", name)
    if manifest.features != LAYOUT:
        got = f"{archive.path} was read for other features of the router (RuvLLM {manifest.release})"
        raise Reject(WHO, got, "read the window again, into another directory")
    if not manifest.complete and manifest.source != source(settings.events):
        raise Reject(WHO, f"{archive.path} was begun from {manifest.source}", "go on with that log, or begin anew")


def source(events: Events) -> str:
    """Which log it is, in words."""
    return f"sqlite:{events.path}" if events.kind == "sqlite" else "kafka:" + ",".join(events.kafka.bootstrap_servers)


class Reader:
    """A worker that reads parts. ``events``: the log; ``memory``: the directory of the memory."""

    def __init__(self, path: Path, events: Events, memory: Path) -> None:
        self._archive, self._removed = Archive(path), Removed(memory)
        manifest = self._archive.manifest()
        if manifest is None:
            raise Reject(WHO, f"no manifest in {path}", "the archive must be on a disk that every worker has")
        self._tenant, self._ranges = manifest.asked.tenant, manifest.ranges
        self._log = open_log(events)

    def __call__(self, row: Row) -> Row:
        """Write the part ``name`` from ``first`` to before ``after``."""
        name, position, after = row["name"], row["first"], row["after"]
        topic, partition = split(name)
        told = {"first": -1, "last": -1, "events": 0}
        told |= dict.fromkeys(("other_tenants", "removed", "unreadable", "outside"), 0)
        kept: list[Event] = []
        while position < after and (found := self._log.read(topic, partition, position, min(SLICE, after - position))):
            for event in (one for one in found if one.offset < after):
                told["first"] = event.offset if told["first"] < 0 else told["first"]
                told["last"], told["events"] = event.offset, told["events"] + 1
                why = self._unwanted(event)
                if why:
                    told[why] += 1
                else:
                    kept.append(event)
            position = found[-1].offset + 1
        write_events(self._archive.file(name, row["first"]), kept, told)
        return {"name": name, "kept": len(kept)}

    def _unwanted(self, event: Event) -> str:
        """Why ``event`` is left out; empty if it is not."""
        said: Interaction | Verdict
        try:
            said = read_record(Interaction, event) if event.topic == INTERACTIONS else read_record(Verdict, event)
        except Skip:
            return "unreadable"
        if self._tenant and said.tenant != self._tenant:
            return "other_tenants"
        if self._removed.has(said.tenant, said.interaction_id, event.timestamp):
            return "removed"
        return "outside" if event.topic != INTERACTIONS and not self._inside(event) else ""

    def _inside(self, event: Event) -> bool:
        """Whether the verdict in ``event`` is on an interaction of the window."""
        headers = event.headers
        try:
            first, after = self._ranges[f"{headers.get('src.topic', INTERACTIONS)}/{int(headers['src.partition'])}"]
            return first <= int(headers["src.offset"]) < after
        except (KeyError, ValueError):
            return False

    def close(self) -> None:
        """Close the log."""
        self._log.close()
