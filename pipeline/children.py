"""The jobs beside the service, as child processes: started with it, started again when they end, ended with it.

A child dies with this process even by SIGKILL: it asks the kernel for that.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from conf.schema import Settings

Say = Callable[..., None]
PATIENCE_S = 15.0
"""How long a job may take to finish what it began."""


@contextlib.contextmanager
def jobs(settings: Settings, profile: str | None, overrides: Sequence[str], say: Say) -> Iterator[None]:
    """Run the jobs that the profile wants while the body runs."""
    wanted = {
        "judge": settings.judge_job.enabled,
        "writeback": settings.writeback.enabled,
        "maintain": settings.maintain.enabled,
        "learn": settings.learn.enabled,
        "stream": settings.stream.enabled,
    }
    rest = ["--parent", str(os.getpid())]
    rest += ["--profile", profile] if profile else []
    for override in overrides:
        rest += ["--set", override]
    children = [_Child(name, rest, say) for name, enabled in wanted.items() if enabled]
    try:
        yield
    finally:
        for child in children:
            child.tell()
        for child in children:
            child.end()


class _Child:
    """One job, kept running."""

    def __init__(self, name: str, rest: Sequence[str], say: Say) -> None:
        self._name, self._say = name, say
        self._command = [sys.executable, "-m", f"jobs.{name}", *rest]
        self._ending = threading.Event()
        self._process = self._start()
        say(f"  {name} started (pid {self._process.pid})", **{name: self._process.pid})
        # The kernel ends a child with the thread that started it, so the watcher must live as long as we do.
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command)  # noqa: S603 - our own module, arguments not from a shell

    def _watch(self) -> None:
        pause = 1.0
        while not self._ending.is_set():
            code = self._process.wait()
            if self._ending.wait(pause):
                return
            self._process = self._start()
            pid = self._process.pid
            self._say(f"  {self._name} ended with {code}, started again (pid {pid})", **{self._name: pid})
            pause = min(2 * pause, 60.0)

    def tell(self) -> None:
        """Ask it to end."""
        self._ending.set()
        self._process.terminate()

    def end(self) -> None:
        """Wait for its end, and no longer than ``PATIENCE_S``."""
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._watcher.join(5)
