"""A file that is being fetched: ``NAME.part``, held by one process, and in place as ``NAME`` only when it is whole.

Beside it ``NAME.part.json`` says which version of which address the bytes are of. A process that is killed leaves both
to the next one.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from pathlib import Path
from types import TracebackType

from operators.engines.files import checksums
from operators.errors import Retry
from operators.stores import durable


class Partial:
    """``target``'s part, open and locked; a context manager that lets go of it. Everything may raise ``OSError``.

    Raises ``Retry`` if another process is fetching the file.
    """

    def __init__(self, who: str, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._label = target.with_name(f"{target.name}.part.json")
        # Unbuffered: what was written is the kernel's, so a killed process loses none of it. No link is followed.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = io.FileIO(os.open(self.path, flags, 0o644), "r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have put it in place between our opening and our lock.
            if not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                raise FileNotFoundError
        except OSError as e:
            self._file.close()
            if not isinstance(e, BlockingIOError | FileNotFoundError):
                raise
            raise Retry(who, f"another process is fetching {target}", "wait until it is done") from e
        self._file.seek(0, os.SEEK_END)

    @property
    def size(self) -> int:
        """Bytes there are."""
        return os.fstat(self._file.fileno()).st_size

    def version(self, url: str) -> str:
        """Which version of ``url`` the bytes are of, as its server named it; empty if that is not known."""
        try:
            label = json.loads(self._label.read_bytes())
            version = str(label["version"]) if self.size and label["url"] == url else ""
            return version if version.isascii() and version.isprintable() else ""  # as a header can carry it
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def begin(self, url: str = "", version: str = "") -> None:
        """Throw away what there is; what comes now is of that ``version`` of ``url``."""
        # In this order: bytes must never stand under another version's name.
        self._file.seek(0)
        self._file.truncate(0)
        durable.replace(self._label, json.dumps({"url": url, "version": version}).encode())

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def digest(self) -> str:
        """SHA-256 of all that is there, in hex."""
        return checksums.digest(self._file)

    def finish(self) -> None:
        """Put it in place, durably, over what is there."""
        os.fsync(self._file.fileno())
        os.replace(self.path, self.target)
        durable.sync(self.target.parent)
        self._label.unlink(missing_ok=True)

    def drop(self) -> None:
        """Keep nothing."""
        self.path.unlink(missing_ok=True)
        self._label.unlink(missing_ok=True)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self.size:
            self.drop()
        self._file.close()
