"""SHA-256 of open files, remembered between starts: a gigabyte takes seconds to hash, its ``fstat`` microseconds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

MOST = 100
"""Files remembered; the one remembered longest goes first."""
SETTLED_NS = 100_000_000
"""Age from which a file's times can be trusted: a change within the same tick of the kernel's clock (up to 10 ms) as
the one before leaves them as they are."""


def state(file: io.FileIO) -> list[int]:
    """What changes when the open ``file`` does: device, inode, size, mtime and ctime (ns).

    ctime because mtime can be set back by whoever may write the file; ctime can't. It also changes when the file only
    gets another name.
    """
    found = os.fstat(file.fileno())
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def settled(state: list[int]) -> bool:
    """Whether a change from now on would change ``state``, which was taken just now."""
    return time.time_ns() - state[4] > SETTLED_NS


def digest(file: io.FileIO) -> str:
    """SHA-256 of all of the open ``file``, in hex; never of what a buffer holds of it. Raises ``OSError``."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


class Checksums:
    """What is kept in the JSON file ``path``: checksums by file state, and the paths that package functions returned.

    Everything in it can be found out again: a damaged file, or one that can't be written, only costs time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = _load(path)
        self._inodes: dict[str, Any] = kept["inodes"]
        self.calls: dict[str, Any] = kept["calls"]
        self._before = json.dumps(kept)

    def of(self, file: io.FileIO, *, anew: bool = False) -> str:
        """SHA-256 of the open ``file`` in hex; ``anew`` reads it although its state is known. Raises ``OSError``."""
        now = state(file)
        lasts = settled(now)
        inode = f"{now[0]}:{now[1]}"
        known = self._inodes.get(inode)
        if not anew and isinstance(known, dict) and known.get("state") == now and len(str(known.get("sha256"))) == 64:
            found = str(known["sha256"])
        else:
            found = digest(file)
        if lasts and state(file) == now:
            self._inodes[inode] = {"state": now, "sha256": found}
        return found

    def save(self) -> None:
        """Write what is new, whole or not at all."""
        kept = {"inodes": dict(list(self._inodes.items())[-MOST:]), "calls": self.calls}
        if json.dumps(kept) == self._before:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(handle, "w") as file:
                json.dump(kept, file, indent=1)
            Path(name).replace(self._path)
        except OSError as e:
            warnings.warn(f"can't write {self._path}: {e}; every start will hash the model files again", stacklevel=4)


def _load(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        kept = None
    parts = kept if isinstance(kept, dict) else {}
    return {name: part if isinstance(part := parts.get(name), dict) else {} for name in ("inodes", "calls")}
