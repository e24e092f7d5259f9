"""A child process, with all that it starts, which ends with us whatever ends us; what it printed last is kept.

Between us and it stands a guard, this file run as a script, in one process group with the child. It reads a pipe of
which we hold the other end; the kernel closes that when we are gone, also by SIGKILL, and the guard ends the whole
group. vLLM needs it: its engine outlives a killed server. PR_SET_PDEATHSIG would not do: it reaches one process only,
and comes already when the *thread* that forked ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GRACE_S = 5.0
"""Seconds from asking the child to end until its group is killed."""


class Leashed:
    """The running child. Its standard output and error are read into ``lines``; its standard input is empty."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], keep: int = 400) -> None:
        self._lines: deque[str] = deque(maxlen=keep)
        self._process = subprocess.Popen(  # noqa: S603 - a list, no shell; who calls says what is run
            [sys.executable, "-I", "-S", __file__, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="leash", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        for line in self._process.stdout:
            self._lines.append(line.decode("utf-8", "replace").rstrip())

    @property
    def lines(self) -> list[str]:
        """What was printed last, oldest first; the guard's own last line says how the child ended."""
        return list(self._lines)

    @property
    def running(self) -> bool:
        """Whether the child has not ended; once it has, all that it printed is in ``lines``."""
        if not self._over():
            return True
        self._reader.join(0.5)
        return False

    def _over(self) -> bool:
        """Whether the guard has ended. It is left a zombie until ``end``, so that its group's number stays its own."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def pids(self) -> list[int]:
        """The processes of its group that run now, the guard's first; empty where there is no ``/proc``."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self._process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return sorted(found)

    def memory_bytes(self) -> int:
        """Resident bytes of the group, shared pages in equal parts; 0 where there is no ``/proc``."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def end(self) -> None:
        """Ask it to end, kill what is left, wait until all is gone. Blocks up to ``GRACE_S``; safe to call twice."""
        assert self._process.stdin is not None  # noqa: S101 - for mypy
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        self._process.stdin.close()
        if self._process.returncode is None:
            _until(self._over, GRACE_S + 2)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what a guard that somebody killed has left
            _until(lambda: not self.pids(), GRACE_S)
            self._process.wait()
        self._reader.join(GRACE_S)
        if not self._reader.is_alive():
            self._process.stdout.close()


def _until(condition: Callable[[], bool], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def _guard(command: Sequence[str]) -> None:
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - our parent's list
    except OSError as e:
        sys.exit(str(e))

    def wait_for_parent() -> None:
        while os.read(0, 1):
            pass
        child.terminate()
        time.sleep(GRACE_S)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        print("ended with", child.wait(), flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _guard(sys.argv[1:])
