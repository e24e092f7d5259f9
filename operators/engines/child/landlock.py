"""Landlock: which files an engine's process may still open, and no TCP, and no signals to others where kernels can.

The kernel's own description is Documentation/userspace-api/landlock.rst. Rules stack: a process can only lose rights.
Landlock says nothing about ``stat`` and ``readlink``, about files that are open already, and about ``chmod`` and such.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Call = Callable[..., int]
"""A system call by name: what it returned, or minus the error's number."""

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG, MAKE_SOCK, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (7, 8, 9, 13, 14, 15))
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What can be allowed on a file; the others are for folders."""
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | REFER | TRUNCATE
VERSION, RULE_PATH_BENEATH, TSYNC = 1, 1, 1 << 3

SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),  # libraries, locales
    *("/usr/share/zoneinfo", "/etc/localtime"),
    *("/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/sys/vm/overcommit_memory"),
    *("/sys/devices/system", "/sys/fs/cgroup"),  # processors, and how much of the machine is ours
    *("/dev/urandom", "/dev/random", "/dev/zero"),
)
"""What libc, Python and the engines read of the system: nothing that tells of users or other processes."""


def abi(call: Call) -> int:
    """Version of the kernel's Landlock: 1 (Linux 5.13) and up; below 1 there is none, and it is minus the error."""
    return call("landlock_create_ruleset", None, 0, VERSION)


def reaches_all_threads(version: int) -> bool:
    """Whether rules can be laid on threads that run already (Linux 7.0)."""
    return version >= 8


def restrict(call: Call, version: int, *, readable: Sequence[Path], writable: Path | None) -> int:
    """Lay the rules on the calling thread, and on all where the kernel can. 0, or minus the error."""
    handled = (1 << _rights(version)) - 1
    network = 0b11 if version >= 4 else 0  # bind and connect, TCP
    scoped = 0b11 if version >= 6 else 0  # abstract Unix sockets and signals end at this process
    attributes = struct.pack("=QQQ", handled, network, scoped)
    rules = call("landlock_create_ruleset", attributes, len(attributes), 0)
    if rules < 0:
        return rules
    try:
        for path in (*map(Path, SYSTEM), *_python(), *readable):
            _allow(call, rules, path, READ & handled)
        _allow(call, rules, Path("/dev/null"), (READ | WRITE_FILE | TRUNCATE) & handled)
        if writable is not None:
            _allow(call, rules, writable, WRITE & handled)
        return call("landlock_restrict_self", rules, TSYNC if reaches_all_threads(version) else 0)
    finally:
        os.close(rules)


def _rights(version: int) -> int:
    """How many rights on files this version knows."""
    return {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)


def _allow(call: Call, rules: int, path: Path, rights: int) -> None:
    """Allow ``rights`` on ``path`` and what is below it. A path that isn't there needs no rule."""
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not path.is_dir():
        rights &= FILE_RIGHTS
    call("landlock_add_rule", rules, RULE_PATH_BENEATH, struct.pack("=Qi", rights, at), 0)
    # A rule belongs to an inode, and procfs makes a new one once nobody holds the old: so these stay open.
    if not path.is_relative_to("/proc"):
        os.close(at)


def _python() -> Iterator[Path]:
    """Where this Python's modules are: its own folders, and the packages that were loaded from elsewhere.

    Not all of ``sys.path``: it may hold the folder in which the service was started, with everything below it.
    """
    roots = [Path(prefix, lib) for prefix in (sys.prefix, sys.base_prefix) for lib in ("lib", "lib64")]
    yield from roots
    for name, module in list(sys.modules.items()):
        if "." not in name:
            for place in (*getattr(module, "__path__", ()), getattr(module, "__file__", None)):
                if isinstance(place, str) and not any(Path(place).is_relative_to(root) for root in roots):
                    yield Path(place)
