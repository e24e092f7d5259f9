"""Which checkpoints act, and which acted before: one small file, and the log of its changes.

    <root>/rollout-NAME.json     what acts now, replaced atomically; gateways look at it a few times a second
    <root>/rollouts-NAME.jsonl   every change, one a line, only ever appended

A change is made under a lock: 1 replace the file, 2 append the line. After a crash between the two the next change
appends what is missing. Both are sealed with a SHA-256: a file that is damaged is not believed, and the last line that
is whole takes its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from operators.errors import Stop
from operators.records import SCHEMA_VERSION, Rollout, decode, encode
from operators.stores.durable import door, locked, replace, sync
from operators.stores.ports import EventLog
from operators.stores.topics import ROUTER_UPDATES, event_headers

SOURCE = "/ruvllm/checkpoints"
_SLICE = 256
_log = logging.getLogger("ruvllm.checkpoints")


class Rollouts:
    """The rollouts of router ``name`` in the directory of its checkpoints. ``at`` is told each step that is done."""

    def __init__(self, root: Path, name: str = "router", *, at: Callable[[str], None] = lambda step: None) -> None:
        self.name = name
        self._root, self._at = root, at
        self.path, self._log = root / f"rollout-{name}.json", root / f"rollouts-{name}.jsonl"

    def current(self) -> Rollout | None:
        """What acts now; ``None`` if nothing was ever rolled out. Raises ``Stop`` if all of it is damaged."""
        try:
            return _opened(self.path.read_bytes(), self.path)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise Stop("checkpoints", f"can't read {self.path}: {e.strerror}", "mend its directory") from e
        except Stop as damaged:
            if not (lines := self._lines()):
                raise
            _log.error("%s; its log says version %d, which acts now", damaged, lines[-1].version)
        lines = self._lines()
        return lines[-1] if lines else None

    def history(self) -> list[Rollout]:
        """Every change, oldest first. A line that is damaged is left out."""
        lines, now = self._lines(), self.current()
        return [*lines, now] if now is not None and (not lines or lines[-1].version < now.version) else lines

    def change(self, make: Callable[[Rollout | None], Rollout | None]) -> Rollout | None:
        """Put what ``make`` makes of the present rollout in its place, durably, and return it.

        ``None`` changes nothing. Nobody else changes it meanwhile. Raises ``Stop`` if it can't be written, and what
        ``make`` raises.
        """
        with locked(self._root):
            now = self.current()
            new = make(now)
            if new is None:
                return None
            if (expected := (now.version if now else 0) + 1) != new.version or new.router != self.name:
                got = f"rollout {new.version} of {new.router} after {expected - 1} of {self.name}"
                raise Stop("checkpoints", got, "make it from the present one")
            if now is not None:
                self._append_missing(now)
            # 1
            replace(self.path, _sealed(new))
            self._at("rollout")
            # 2
            self._append_missing(new)
            self._at("logged")
            return new

    def _append_missing(self, rollout: Rollout) -> None:
        lines = self._lines()
        if lines and lines[-1].version >= rollout.version:
            return
        with self._log.open("a+b") as file:
            if file.tell() and not _ends_a_line(file.fileno(), file.tell()):
                file.write(b"\n")  # what a crash left half is a line of its own: damaged, and passed over
            file.write(_sealed(rollout))
            file.flush()
            os.fsync(file.fileno())
        sync(self._root)

    def _lines(self) -> list[Rollout]:
        with door(self._log):
            data = self._log.read_bytes() if self._log.exists() else b""
        found = []
        for line in data.splitlines(keepends=True):
            with contextlib.suppress(Stop):
                found.append(_opened(line, self._log))
        return found


def announce(log: EventLog, rollouts: Rollouts) -> int:
    """Tell the topic of router updates every change it has not seen, oldest first; returns how many those were.

    The directory is written first and the topic after it, so a crash or an absent broker in between delays the news and
    loses none. Two that announce at once may tell one change twice, under one event id.
    """
    end, told = log.end(ROUTER_UPDATES, 0), 0
    while end > 0 and not told:
        begin = max(0, end - _SLICE)
        events = [event for event in log.read(ROUTER_UPDATES, 0, begin, end - begin) if event.key == rollouts.name]
        told = max((decode(Rollout, event.value).version for event in events), default=0)
        end = begin
    news = [rollout for rollout in rollouts.history() if rollout.version > told]
    items = [
        (one.router, encode(one), event_headers(one.event_id, ROUTER_UPDATES, SOURCE, one.created_at)) for one in news
    ]
    if items:
        log.append_many(ROUTER_UPDATES, items)
    return len(items)


def _sealed(rollout: Rollout) -> bytes:
    return _seal(encode(rollout))


def _seal(data: bytes) -> bytes:
    """The JSON object ``data`` with the SHA-256 of its bytes as one more field, as a line."""
    return data[:-1] + b',"sha256":"' + hashlib.sha256(data).hexdigest().encode() + b'"}\n'


def _opened(line: bytes, where: Path) -> Rollout:
    data = line.rpartition(b',"sha256":"')[0] + b"}"
    try:
        if _seal(data) != line:
            raise ValueError("its SHA-256 is another")
        rollout = decode(Rollout, data)
        if rollout.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {rollout.schema_version}, this is {SCHEMA_VERSION}")
        return rollout
    except ValueError as e:  # pydantic's is one
        raise Stop("checkpoints", f"{where} is damaged: {e}", "restore it from a backup, or remove it") from e


def _ends_a_line(handle: int, size: int) -> bool:
    return os.pread(handle, 1, size - 1) == b"\n"
