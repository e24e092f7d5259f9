"""A process that does what an attacker would, before and after it enters its sandbox, and says what came of it.

``python sandbox_acts.py FOLDER PORT [writable]``; the last line it prints is JSON. Then it waits for the end of its
input, so that it can be looked at from outside, and aborts like a failed assertion of C does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import importlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from operators.engines.child import bpf as sandbox_bpf
from operators.engines.child import sandbox

LIBC = ctypes.CDLL(None, use_errno=True)
ALL = " ".join(value for name, value in vars(sandbox_bpf).items() if name.isupper() and isinstance(value, str))
NUMBERS = sandbox_bpf.numbers(ALL, sandbox.Kernel.machine)


def call(name: str, *arguments: int | bytes | None) -> None:
    """A system call with what it is too wrong for to do anything, but for the filter."""
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if LIBC.syscall(ctypes.c_long(NUMBERS[name]), *values) < 0:
        raise OSError(ctypes.get_errno(), name)


def outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def fork() -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def in_new_thread(act: Callable[[], object]) -> None:
    errors: list[OSError] = []

    def run() -> None:
        try:
            act()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


class OldThread:
    """A thread that runs before the process enters; it does what it is handed."""

    def __init__(self) -> None:
        self._ask, self._answer = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self._ask.acquire():
            self._result = outcome(self._act)
            self._answer.release()

    def __call__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._ask.release()
        self._answer.acquire()
        if self._result != "ok":
            raise OSError(getattr(errno, self._result), "in the old thread")


def acts(stage: str, outside: Path, inside: Path, old: OldThread, sockets: dict[str, socket.socket]):
    """What is tried, by name. ``stage`` keeps the two rounds' files apart."""
    unix, port = str(outside / "listening"), int(sys.argv[2])
    pair = [socket.AF_UNIX, socket.SOCK_DGRAM]

    def write(folder: Path) -> None:
        (folder / f"{stage}-made").write_text("made")

    def remove(folder: Path) -> None:
        (folder / f"{stage}-made").unlink()

    return {
        "socket": lambda: socket.socket().close(),
        "socket in an old thread": lambda: old(lambda: socket.socket().close()),
        "socket in a new thread": lambda: in_new_thread(lambda: socket.socket().close()),
        "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "connect, unix": lambda: sockets["unix"].connect(unix),
        "connect, tcp": lambda: sockets["tcp"].connect(("127.0.0.1", port)),
        "bind": lambda: sockets["bind"].bind(("127.0.0.1", 0)),
        "listen": lambda: sockets["bind"].listen(),
        "datagram pair": lambda: [end.close() for end in socket.socketpair(*pair)],
        "stream pair": lambda: [end.close() for end in socket.socketpair()],
        "run": lambda: subprocess.run(["/bin/true"], check=True),
        "exec": lambda: os.execv("/nowhere", ["nowhere"]),
        "execveat": lambda: call("execveat", -1, b"/nowhere", None, None, 0),
        "fork": fork,
        "fork in an old thread": lambda: old(fork),
        "thread": lambda: in_new_thread(lambda: None),
        "write outside": lambda: write(outside),
        "write outside in an old thread": lambda: old(lambda: (outside / f"{stage}-old").write_text("made")),
        "append outside": lambda: (outside / "notes").open("a").close(),
        "truncate outside": lambda: os.truncate(outside / "notes", 3),
        "make a folder outside": lambda: (outside / f"{stage}-folder").mkdir(),
        "rename outside": lambda: (outside / f"{stage}-rename").rename(outside / f"{stage}-renamed"),
        "remove outside": lambda: (outside / f"{stage}-remove").unlink(),
        "chmod outside": lambda: (outside / "notes").chmod(0o600),
        "write through /proc": lambda: Path(f"/proc/self/root{outside}/{stage}-proc").write_text("made"),
        "write inside": lambda: write(inside),
        "read inside": lambda: (inside / "given").read_text(),
        "remove inside": lambda: remove(inside),
        "chmod inside": lambda: (inside / "given").chmod(0o600),
        "read outside": lambda: (outside / "notes").read_text(),
        "read in an old thread": lambda: old(lambda: (outside / "notes").read_text()),
        "read in a new thread": lambda: in_new_thread(lambda: (outside / "notes").read_text()),
        "read through /proc": lambda: Path(f"/proc/self/root{outside}/notes").read_text(),
        "list outside": lambda: os.listdir(outside),
        "read /etc/passwd": lambda: Path("/etc/passwd").read_text(),
        "read the parent's variables": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "read /proc/meminfo": lambda: Path("/proc/meminfo").read_text(),
        "read /proc/self/status": lambda: Path("/proc/self/status").read_text(),
        "import": lambda: importlib.import_module({"before": "colorsys", "after": "wave"}[stage]),
        "signal another process": lambda: os.kill(os.getppid(), 0),
        "signal itself": lambda: os.kill(os.getpid(), 0),
        "limit another process": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE),
        "own limits": lambda: resource.getrlimit(resource.RLIMIT_CORE),
        "memfd": lambda: os.close(os.memfd_create("memory")),
        "ptrace": lambda: call("ptrace", -1, 0),
        "type into the terminal": lambda: call("ioctl", -1, sandbox_bpf.TIOCSTI, None),
    }


def sockets() -> dict[str, socket.socket]:
    return {"unix": socket.socket(socket.AF_UNIX), "tcp": socket.socket(), "bind": socket.socket()}


def main() -> None:
    folder, writable = Path(sys.argv[1]), "writable" in sys.argv
    outside, inside, old = folder / "outside", folder / "inside", OldThread()
    made = {"before": sockets(), "after": sockets()}

    def outcomes(stage: str) -> dict[str, str]:
        return {name: outcome(act) for name, act in acts(stage, outside, inside, old, made[stage]).items()}

    before = outcomes("before")
    entered = sandbox.enter(writable=inside if writable else None)
    print(
        json.dumps({"before": before, "after": outcomes("after"), "sandbox": dataclasses.asdict(entered)}), flush=True
    )
    sys.stdin.read()
    os.abort()


if __name__ == "__main__":
    main()
