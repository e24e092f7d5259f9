"""Named states of a tenant's memory to come back to: exports that the memory keeps beside itself.

LanceDB's own tags would keep old versions without a copy, but its Python package can't prune a table's files while a
tag keeps an old version, so the files would only ever grow. A copy also survives what harms the store.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from operators.errors import Reject
from operators.records import decode, record
from operators.stores import portable
from operators.stores.portable import Manifest
from operators.stores.tenants import check_tenant

if TYPE_CHECKING:
    from operators.stores.memory import Memory

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


@record
class Backup:
    """A backup that is there."""

    name: str
    manifest: Manifest


def take(memory: Memory, tenant: str, name: str, encoder: str) -> Backup:
    """Keep the present state as ``name``. Raises ``Reject`` if there is one of that name."""
    return Backup(name=name, manifest=portable.export(memory, tenant, _directory(memory, tenant, name), encoder))


def listed(memory: Memory, tenant: str) -> list[Backup]:
    """The tenant's backups, oldest first."""
    folder = memory.directory.parent / "backups" / check_tenant("memory", tenant)
    kept = [
        Backup(name=path.parent.name, manifest=decode(Manifest, path.read_bytes()))
        for path in folder.glob("*/manifest.json")
        if not path.parent.name.startswith(".")
    ]
    return sorted(kept, key=lambda one: (one.manifest.created_at, one.name))


def restore(memory: Memory, tenant: str, name: str, encoder: str) -> Backup:
    """Make the state that ``name`` keeps the present one; what came since is gone."""
    manifest = portable.replace_all(memory, tenant, _directory(memory, tenant, name), encoder)
    return Backup(name=name, manifest=manifest)


def remove(memory: Memory, tenant: str, name: str) -> None:
    """Let go of a backup. Raises ``Reject`` (404) if there is none of that name."""
    directory = _directory(memory, tenant, name)
    if not directory.exists():
        raise Reject("memory", f"no backup {name!r}", "list the backups", 404)
    (directory / "manifest.json").unlink(missing_ok=True)  # first: without it the rest is no backup any more
    shutil.rmtree(directory)


def _directory(memory: Memory, tenant: str, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise Reject("memory", f"backup {name[:100]!r}", "use 1 to 64 letters, digits, '.', '_' or '-', no dot first")
    return memory.directory.parent / "backups" / check_tenant("memory", tenant) / name
