"""The maintenance job: now and then every tenant's memory in turn, and an eye on the free disk space.

The memory's owner, the running service, does the work: removes what has expired, tidies the stores' files. Tenants come
one after the other, and a lock file sees to it that one job works on a data directory. The file also says when the last
round ended, so that a service that is often started anew is maintained none the less.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from conf.jobs import MaintainJob
from conf.schema import Settings
from jobs.door import ServiceDoor
from jobs.process import main
from operators.errors import Reject, Retry, RuvError, Stop

LOCK_FILE = "maintain.lock"
LOOK_S = 5.0
"""Seconds between two looks at the clock and the disk."""
TENANTS, MAINTAIN = "/v1/admin/memory/tenants", "/v1/admin/memory/maintain"
Say = Callable[[str], None]


class Calls(Protocol):
    """What is needed of the way to the memory's owner. Blocking calls; raise ``Retry``, ``Reject`` or ``Stop``."""

    def get_json(self, path: str) -> Any:
        """The JSON at ``path``."""

    def post_json(self, path: str, body: Any) -> Any:
        """The JSON answered to ``body``."""


def say(text: str) -> None:
    """One line on stderr, where the service's own words go."""
    print(f"maintain: {text}", file=sys.stderr, flush=True)


class Lock:
    """The lock file of a data directory, held by one job at a time; it keeps the time of the last round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it; the kernel lets go of it however the process ends. Raises ``Stop`` if another job has it."""
        with self.path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Stop("maintain", f"another job holds {self.path}", "one is enough: end one of them") from error
            yield

    def last(self) -> float | None:
        """When the last round ended, in Unix seconds."""
        try:
            return float(self.path.read_text())
        except (OSError, ValueError):
            return None

    def done(self, at: float) -> None:
        """A round has ended."""
        self.path.write_text(repr(at))  # in place: the lock is on this very file


class Maintainer:
    """Rounds over all tenants. ``clock`` gives Unix seconds, ``free`` the bytes that are free in a directory."""

    def __init__(
        self,
        door: Calls,
        config: MaintainJob,
        data_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        say: Say = say,
    ) -> None:
        self.lock = Lock(data_dir / LOCK_FILE)
        self.stopping = threading.Event()
        self._door, self._config, self._data_dir = door, config, data_dir
        self._clock, self._free, self._say = clock, free, say
        self._low = self._away = False

    def look(self) -> bool:
        """What there is to do now: tell of the disk, and do a round if one is due. Returns whether it did one."""
        self.watch_disk()
        now, last = self._clock(), self.lock.last()
        if last is None or last > now:  # the first time, or a clock that was set back
            self.lock.done(now)
            return False
        if now - last < self._config.every_s:
            return False
        try:
            self.round()
        except Retry as error:  # while the service is away there is nothing to do, and no news after the first time
            if not self._away:
                self._say(str(error))
            self._away = True
            return False
        self._away = False
        self.lock.done(self._clock())
        return True

    def round(self) -> dict[str, dict[str, int]]:
        """Maintain every tenant, one after the other; returns what each answered. One that fails holds up no other.

        Raises ``Retry`` when the service is away.
        """
        done: dict[str, dict[str, int]] = {}
        for tenant in self._door.get_json(TENANTS):
            if self.stopping.is_set():
                break
            try:
                done[tenant] = self._door.post_json(MAINTAIN, {"tenant": tenant})
            except (Reject, Stop) as error:
                self._say(f"tenant {tenant}: {error}")
        return done

    def watch_disk(self) -> bool:
        """Whether enough is free; the begin and the end of a shortage are said once each."""
        free, least = self._free(self._data_dir), self._config.min_free_bytes
        low = free < least
        if low != self._low:
            had = f"{free / 2**20:.0f} MiB are free in {self._data_dir}"
            least_said = f"{least / 2**20:.0f} MiB (maintain.min_free_bytes)"
            self._say(f"ALARM: only {had}, less than {least_said}; free some space" if low else f"{had} again")
        self._low = low
        return not low


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """The job of a profile, until ``stop``."""
    os.nice(settings.maintain.nice)
    with contextlib.closing(ServiceDoor(settings)) as door:
        maintainer = Maintainer(door, settings.maintain, settings.data_dir)
        told = asyncio.create_task(_told(stop, maintainer))
        with maintainer.lock.held():
            while not stop.is_set():
                await asyncio.to_thread(_look, maintainer)
                await asyncio.wait([told], timeout=LOOK_S)


async def _told(stop: asyncio.Event, maintainer: Maintainer) -> None:
    await stop.wait()
    maintainer.stopping.set()  # after the tenant that is under way


def _look(maintainer: Maintainer) -> None:
    try:
        maintainer.look()
    except (OSError, RuvError) as error:  # whatever it is, the next look may do better
        say(str(error))


if __name__ == "__main__":
    main("maintain", serve)
