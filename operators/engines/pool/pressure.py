"""How much memory this process may still take: the least of what its cgroups, the machine and its own limit leave.

Of a cgroup's use the inactive part of the page cache counts as free, as it does for Kubernetes: the kernel drops it
before it ends a process. Swap counts for nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from operators.errors import Stop
from operators.records import record

UNLIMITED = 1 << 60
"""A limit of a cgroup from here on is none: version 1 writes about 2⁶³ bytes."""


@record
class Room:
    """``total_bytes`` is the smallest limit, ``free_bytes`` the least that any of them leaves, ``limit`` which one."""

    total_bytes: int
    free_bytes: int
    limit: str


def room(root: Path = Path("/")) -> Room:
    """What is left now; ``root`` is where ``proc`` and ``sys`` are.

    RLIMIT_AS counts the address space of this process alone: an engine in a child has the same limit to itself.
    Raises ``Stop`` where nothing tells.
    """
    found = [*_cgroup2(root), *_cgroup1(root), *_machine(root), *_address_space(root)]
    if not found:
        raise Stop(
            "memory", f"nothing under {root / 'proc'} tells how much there is", "run on Linux, with /proc mounted"
        )
    tightest = min(found, key=lambda one: one.free_bytes)
    return Room(total_bytes=min(one.total_bytes for one in found), free_bytes=tightest.free_bytes, limit=tightest.limit)


def _cgroup2(root: Path) -> Iterator[Room]:
    mount = root / "sys/fs/cgroup"
    if not (mount / "cgroup.controllers").exists():
        return
    for group in _groups(root, mount, controller=""):
        # Above memory.high the kernel slows every process of the group down to a crawl: no place to live either.
        limits = [n for n in (_number(group / "memory.max"), _number(group / "memory.high")) if n is not None]
        yield from _left(group, limits, _number(group / "memory.current"), "inactive_file")


def _cgroup1(root: Path) -> Iterator[Room]:
    for group in _groups(root, root / "sys/fs/cgroup/memory", controller="memory"):
        limit = _number(group / "memory.limit_in_bytes")
        limits = [limit] if limit is not None and limit < UNLIMITED else []
        yield from _left(group, limits, _number(group / "memory.usage_in_bytes"), "total_inactive_file")


def _groups(root: Path, mount: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and those around it; each may have a limit."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        # In a container the path may be the host's, which is not mounted here; its own group is the mount's root.
        group = mount / path.lstrip("/")
        if ".." in group.parts or not group.is_dir():
            group = mount
        yield group
        while group != mount:
            group = group.parent
            yield group


def _left(group: Path, limits: list[int], used: int | None, droppable: str) -> Iterator[Room]:
    if not limits or used is None:
        return
    facts = dict(line.split() for line in _lines(group / "memory.stat"))
    used -= min(used, int(facts.get(droppable, 0)))
    yield Room(total_bytes=min(limits), free_bytes=max(0, min(limits) - used), limit=f"cgroup {group}")


def _machine(root: Path) -> Iterator[Room]:
    facts = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo"))
    if "MemAvailable" in facts:
        total, free = (int(facts[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
        yield Room(total_bytes=total, free_bytes=free, limit="machine")


def _address_space(root: Path) -> Iterator[Room]:
    for line in _lines(root / "proc/self/limits"):
        if line.startswith("Max address space") and (soft := line.split()[3]) != "unlimited":
            used = int(_lines(root / "proc/self/statm")[0].split()[0]) * os.sysconf("SC_PAGE_SIZE")
            yield Room(total_bytes=int(soft), free_bytes=max(0, int(soft) - used), limit="RLIMIT_AS")


def _number(path: Path) -> int | None:
    """The number in a file; none if it isn't there or says ``max``."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0] != "max" else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
