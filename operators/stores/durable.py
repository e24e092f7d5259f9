"""Files that are there whole or not at all, and one writer at a time: what the checkpoint registry stands on."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from operators.errors import Stop


def sync(path: Path) -> None:
    """What was written to a file, or which names a directory has, is durable when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, data: bytes) -> None:
    """``data`` in the new file ``path``, durable; the file's name is durable only with ``sync`` of its directory."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """``data`` as the file ``path``, in one step and durable: temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # of a process that was killed: only one writes here at a time
    write(temporary, data)
    os.replace(temporary, path)
    sync(path.parent)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the only one, thread or process, that changes ``directory`` (made if need be); waits until that is so.

    The kernel lets go of the lock however the process ends. Raises ``Stop`` when the directory can't be written.
    """
    with door(directory):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (directory / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def door(path: Path) -> Iterator[None]:
    """Errors of the file system under ``path`` become ``Stop``."""
    try:
        yield
    except OSError as e:
        raise Stop("checkpoints", f"{path} can't be used: {e.strerror or e}", "free some space, or mend it") from e
