"""The cage of an engine's process: from ``enter`` on, a fault in a parser or a kernel of the engine stays inside.

Three things that any user may do to himself, and nobody can undo: a filter of system calls (``child.bpf``), Landlock
for files (``child.landlock``), and resource limits. docs/sandbox.md says what they hold back and what they don't.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from operators.engines.child import bpf as sandbox_bpf
from operators.engines.child import landlock as sandbox_landlock
from operators.errors import Stop
from operators.records import record

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
SET_MODE_FILTER, FILTER_TSYNC = 1, 1
SPARE_FILES = 64
"""Files that may be opened beyond the highest one open now: modules, /proc, a pipe or two."""


@record
class Sandbox:
    """What is in force in every thread of the process; ``missing`` says of the rest why it isn't."""

    seccomp: bool
    landlock: bool
    limits: bool
    missing: tuple[str, ...] = ()


class Kernel:
    """The kernel underneath. A test hands in one that refuses."""

    machine: str = platform.machine() if sys.maxsize > 2**32 else f"32-bit {platform.machine()}"

    def call(self, name: str, *arguments: int | bytes | None) -> int:
        """A system call by its name: what it returned, or minus the number of the error."""
        libc = ctypes.CDLL(None, use_errno=True)
        values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
        if name == "prctl":
            done = int(libc.prctl(*values))
        else:
            libc.syscall.restype = ctypes.c_long
            done = int(libc.syscall(ctypes.c_long(self._number(name)), *values))
        return done if done >= 0 else -ctypes.get_errno()

    def _number(self, name: str) -> int:
        same = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}
        return same.get(name) or sandbox_bpf.numbers(sandbox_bpf.OURS, self.machine)[name]


_all_threads_landlocked = False


def enter(
    *,
    memory_bytes: int = 0,
    readable: Sequence[Path] = (),
    writable: Path | None = None,
    listen: bool = False,
    kernel: Kernel | None = None,
) -> Sandbox:
    """Give up, for good, the network, programs, other processes, and files but for what libc and Python need.

    Before Linux 7.0, Landlock holds only in the thread that calls this and those it starts from then on; the filter
    holds in all. So call it twice: while the process has one thread, with what loading the model needs, and again once
    it is loaded, with nothing. A later call takes more away and gives nothing back.

    Args:
        memory_bytes: limit of all private writable memory of the process together (``VmData`` in /proc/PID/status):
            heap, KV, repacked weights and the threads' stacks, which count whole, also as far as they are untouched.
            Weights that are mapped from their file don't count. 0 sets no limit.
        readable: files and folders that may be read besides.
        writable: folder in which files and Unix sockets may be made, written, read and removed; nowhere if ``None``.
            Then the open files can't grow either: standard error must be a pipe.
        listen: Unix sockets may be made to listen, as llama.cpp's server does when it loads.
        kernel: the kernel to ask, this one if ``None``.

    Raises:
        Stop: a path doesn't exist, or the process takes more memory than it may already. What the kernel refuses is
            never raised but told in ``missing``.
    """
    for path in (*readable, *([] if writable is None else [writable])):
        if not path.exists():
            raise Stop("sandbox", f"no file or folder {path}", "make it before the process enters its sandbox")
    if platform.system() != "Linux":
        return Sandbox(seccomp=False, landlock=False, limits=False, missing=(f"all: {platform.system()}, not Linux",))
    if 0 < memory_bytes < (taken := private_bytes()):
        got = f"{taken} bytes of private memory are taken already, {memory_bytes} allowed"
        raise Stop("sandbox", got, "allow the process more memory, or load a smaller model")
    kernel = kernel or Kernel()
    kernel.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # the two below are refused where this one was
    why = {
        "landlock": _landlock(kernel, readable, writable),
        "limits": _limits(kernel, memory_bytes, writable),
        "seccomp": _seccomp(kernel, writable, listen),
    }
    missing = tuple(f"{part}: {reason}" for part, reason in why.items() if reason)
    return Sandbox(seccomp=not why["seccomp"], landlock=not why["landlock"], limits=not why["limits"], missing=missing)


def private_bytes() -> int:
    """Private writable memory that this process has taken (``VmData``); 0 where nothing tells."""
    try:
        found = re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _landlock(kernel: Kernel, readable: Sequence[Path], writable: Path | None) -> str:
    """Why it isn't in force in all threads, or nothing."""
    global _all_threads_landlocked
    version = sandbox_landlock.abi(kernel.call)
    if version < 1:
        return f"kernel {platform.release()} has none ({os.strerror(-version)})"
    others = _threads() - 1
    done = sandbox_landlock.restrict(kernel.call, version, readable=readable, writable=writable)
    if done < 0:
        return f"refused ({os.strerror(-done)})"
    if others == 0 or sandbox_landlock.reaches_all_threads(version):
        _all_threads_landlocked = True
    if not _all_threads_landlocked:
        return f"older threads without it: {others}; this kernel reaches only new ones"
    return ""


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 2  # without /proc nobody knows: as if there were others


def _limits(kernel: Kernel, memory_bytes: int, writable: Path | None) -> str:
    """Why they aren't in force, or nothing.

    None on processes: threads count among them, for all processes of the user together, and engines start threads.
    """
    try:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        wanted = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: highest + 1 + SPARE_FILES}
        if memory_bytes > 0:
            wanted[resource.RLIMIT_DATA] = memory_bytes
        if writable is None:
            wanted[resource.RLIMIT_FSIZE] = 0
        for limit, value in wanted.items():
            ceiling = resource.getrlimit(limit)[1]
            lower = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
            resource.setrlimit(limit, (lower, lower))
    except (OSError, ValueError) as error:
        return str(error)
    # No core dump holds the prompts, and no other process of this user may trace this one.
    refused = kernel.call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    return f"the process can still be dumped ({os.strerror(-refused)})" if refused < 0 else ""


def _seccomp(kernel: Kernel, writable: Path | None, listen: bool) -> str:
    """Why it isn't in force in all threads, or nothing."""
    if kernel.machine not in sandbox_bpf.MACHINES:
        return f"{kernel.machine} is none of {', '.join(sandbox_bpf.MACHINES)}"
    ops = sandbox_bpf.program(kernel.machine, pid=os.getpid(), write=writable is not None, listen=listen)
    code = ctypes.create_string_buffer(sandbox_bpf.pack(ops))
    filter_ = struct.pack("@HP", len(ops), ctypes.addressof(code))
    done = kernel.call("seccomp", SET_MODE_FILTER, FILTER_TSYNC, filter_)
    if done > 0:
        return f"thread {done} has a filter of its own"
    return f"refused ({os.strerror(-done)})" if done < 0 else ""
