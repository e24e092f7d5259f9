"""The checkpoint registry: versions of learned weights that never change once they are there (design §7).

    <root>/NAME-000001/   the files, manifest.json (size and SHA-256 of each) and STABLE (SHA-256 of the manifest)
    <root>/pins/          names of versions that are never removed

Publishing, one at a time: 1 files and manifest under a temporary name, each fsynced, 2 rename, 3 the marker STABLE. Who
reads looks for the marker only: a crash before 3 leaves nothing that is seen, and the next publisher or ``prune`` takes
it away. What is read is held against its size and SHA-256 first. Nothing here is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from operators.errors import Reject, Stop
from operators.records import SCHEMA_VERSION, decode, encode, record
from operators.stores.durable import door, locked, replace, sync, write
from operators.stores.rollouts import Rollouts

MANIFEST, STABLE, PINS = "manifest.json", "STABLE", "pins"
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REMEDY = "use another version, or restore this one from a backup"


@record
class File:
    """A file of a checkpoint: ``size`` in bytes, ``sha256`` in hex."""

    size: int
    sha256: str


@record
class Manifest:
    """What a checkpoint is. ``parent`` is the checkpoint that training started from; ``window`` maps "TOPIC/PARTITION"
    to the first offset that was learned from and the one after the last; ``created_at`` is Unix seconds."""

    version: str
    parent: str = ""
    created_at: float
    files: dict[str, File]
    metrics: dict[str, Any]
    window: dict[str, tuple[int, int]]
    note: str = ""
    schema_version: int = SCHEMA_VERSION


@record
class Found:
    """The newest checkpoint that is whole, and of every newer one that is not, why not."""

    version: str
    manifest: Manifest
    passed_over: tuple[str, ...] = ()


class Registry:
    """The checkpoints of ``name`` in the directory ``root``; any number of processes may use it at once.

    ``at`` is told each step of publishing that is done; fault tests end the process in it. ``rollouts`` say which of
    the versions act.
    """

    def __init__(
        self,
        root: Path,
        name: str = "router",
        *,
        clock: Callable[[], float] = time.time,
        at: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.root, self.name = root, name
        self.rollouts = Rollouts(root, name, at=at)
        self._clock, self._at = clock, at
        self._version = re.compile(rf"{re.escape(name)}-(\d{{6,9}})")

    def publish(
        self,
        files: Mapping[str, bytes],
        *,
        parent: str = "",
        metrics: Mapping[str, Any] | None = None,
        window: Mapping[str, tuple[int, int]] | None = None,
        note: str = "",
    ) -> str:
        """Keep ``files`` (name → bytes) as the next version, whose name is returned; durable and visible then.

        ``metrics`` are JSON. Raises ``Stop`` if the directory can't be written, ``Reject`` for a bad file name.
        """
        if not files or any(not _FILE.fullmatch(name) or name in (MANIFEST, STABLE) for name in files):
            raise Reject("checkpoints", f"files {sorted(files)}", "give at least one, each with a plain name")
        with locked(self.root):
            self._tidy()
            version = f"{self.name}-{1 + self._newest():06d}"
            temporary = self.root / f".{version}.new"
            temporary.mkdir()
            # 1
            for name, data in files.items():
                write(temporary / name, data)
                self._at(f"wrote {name}")
            manifest = encode(
                Manifest(
                    version=version,
                    parent=parent,
                    created_at=self._clock(),
                    files={name: File(size=len(data), sha256=_sha256(data)) for name, data in files.items()},
                    metrics=dict(metrics or {}),
                    window=dict(window or {}),
                    note=note,
                )
            )
            write(temporary / MANIFEST, manifest)
            sync(temporary)
            self._at("wrote manifest")
            # 2 fails, and replaces nothing, if that name is taken all the same (a file system whose locks do not hold)
            os.rename(temporary, self.root / version)
            sync(self.root)
            self._at("renamed")
            # 3
            replace(self.root / version / STABLE, _sha256(manifest).encode())
            self._at("marked")
            return version

    def numbered(self, name: str) -> bool:
        """Whether ``name`` is one that this registry gives, whether it is there or not."""
        return self._version.fullmatch(name) is not None

    def versions(self) -> list[str]:
        """The versions that have their marker, oldest first. Whether they are whole shows when they are read."""
        return [version for version in self._all() if (self.root / version / STABLE).exists()]

    def manifest(self, version: str) -> Manifest:
        """What ``version`` is. Raises ``Stop`` if it is not there, or its manifest is damaged."""
        self._known(version)
        data = self._bytes(version, MANIFEST)
        if _sha256(data).encode() != self._bytes(version, STABLE):
            raise Stop("checkpoints", f"{version}: its manifest is damaged", _REMEDY)
        try:
            manifest = decode(Manifest, data)
        except ValueError as e:
            raise Stop("checkpoints", f"{version}: its manifest can't be read: {e}", _REMEDY) from e
        if manifest.schema_version != SCHEMA_VERSION or manifest.version != version:
            got = f"{version}: a manifest of {manifest.version}, schema_version {manifest.schema_version}"
            raise Stop("checkpoints", got, f"this release reads schema_version {SCHEMA_VERSION}")
        return manifest

    def read(self, version: str, file: str) -> bytes:
        """The bytes of ``file``, which are those that were published. Raises ``Stop`` if they are not, or not there."""
        expected = self.manifest(version).files.get(file)
        if expected is None:
            raise Stop("checkpoints", f"{version} has no file {file!r}", _REMEDY)
        data = self._bytes(version, file)
        if len(data) != expected.size or _sha256(data) != expected.sha256:
            got = f"{version}: {file} is damaged ({len(data)} bytes of {expected.size}, or another SHA-256)"
            raise Stop("checkpoints", got, _REMEDY)
        return data

    def newest_good(self) -> Found | None:
        """The newest version of which every file is whole; ``None`` if there is none that is seen at all.

        Raises ``Stop`` if there are versions, and none of them is whole.
        """
        passed: list[str] = []
        for version in reversed(self.versions()):
            try:
                manifest = self.manifest(version)
                for file in manifest.files:
                    self.read(version, file)
                return Found(version=version, manifest=manifest, passed_over=tuple(passed))
            except Stop as damaged:
                passed.append(str(damaged))
        if passed:
            raise Stop("checkpoints", "none is whole: " + " / ".join(passed), "restore one from a backup")
        return None

    def pin(self, version: str, *, keep: bool = True) -> None:
        """Never remove ``version``; with ``keep`` false, let go of it again. Raises ``Stop`` if it is not there."""
        self._known(version)
        with locked(self.root):
            (self.root / PINS).mkdir(exist_ok=True)
            if keep:
                (self.root / PINS / version).touch()
            else:
                (self.root / PINS / version).unlink(missing_ok=True)
            sync(self.root / PINS)

    def pinned(self) -> set[str]:
        """The versions that are pinned."""
        with contextlib.suppress(FileNotFoundError):
            return {path.name for path in (self.root / PINS).iterdir()}
        return set()

    def prune(self, keep: int) -> list[str]:
        """Remove all but the newest ``keep`` versions and those in use; returns which went, oldest first.

        In use is what acts, is watched or tried, was active before, is the parent of the active one, or is pinned.
        Raises ``Stop`` if it can't be told which those are.
        """
        with locked(self.root):
            self._tidy()
            used = self._used()
            gone = [version for version in self.versions()[: -max(1, keep)] if version not in used]
            for version in gone:
                (self.root / version / STABLE).unlink()  # first, so that nobody sees a half
                sync(self.root / version)
                shutil.rmtree(self.root / version)
            return gone

    def _used(self) -> set[str]:
        now, used = self.rollouts.current(), self.pinned()
        if now is not None:
            used |= {now.active, *now.before, *filter(None, (now.shadow, now.canary))}
            with contextlib.suppress(Stop):  # the start has no manifest, and what is damaged no parent
                used.add(self.manifest(now.active).parent)
        return used

    def _all(self) -> Iterator[str]:
        with door(self.root):
            names = os.listdir(self.root) if self.root.is_dir() else []
        numbered = [(int(match[1]), name) for name in names if (match := self._version.fullmatch(name))]
        yield from (name for _, name in sorted(numbered))

    def _newest(self) -> int:
        numbers = [int(version.rpartition("-")[2]) for version in self._all()]
        now = self.rollouts.current()
        # A number that once acted is never given again, even if someone removed its directory.
        acted = [] if now is None else [m[1] for v in (now.active, *now.before) if (m := self._version.fullmatch(v))]
        return max([0, *numbers, *map(int, acted)])

    def _tidy(self) -> None:
        """Remove what publishers left that were killed; nobody else publishes now."""
        for path in self.root.glob(f".{self.name}-*.new"):
            shutil.rmtree(path)
        for version in set(self._all()) - set(self.versions()):
            shutil.rmtree(self.root / version)

    def _known(self, version: str) -> None:
        if not self.numbered(version) or not (self.root / version / STABLE).exists():
            there = ", ".join(self.versions()[-5:]) or "none"
            raise Stop("checkpoints", f"there is no {version!r} in {self.root}", f"the newest are: {there}")

    def _bytes(self, version: str, file: str) -> bytes:
        try:
            return (self.root / version / file).read_bytes()
        except OSError as e:
            raise Stop("checkpoints", f"{version}: can't read {file}: {e.strerror}", _REMEDY) from e


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
