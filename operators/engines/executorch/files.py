"""Exported programs on disk: ``NAME.pte`` beside ``NAME.pte.json``, which says what it is and what it was made from.

A program is read only after its SHA-256 was compared with that of the profile and that of its manifest, and only by the
version of ExecuTorch that wrote it: the format makes no promise beyond that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from operators.engines.executorch.runtime import Program, installed
from operators.engines.files.models import OpenModel, open_model
from operators.errors import Stop
from operators.records import decode, encode, record
from operators.stores.durable import replace
from operators.tiers import ModelFile

FORMAT = 1
Kind = Literal["encoder", "router", "attention"]
REMEDY = "export it again: ruvllm export executorch"


@record
class Tensor:
    """An input or output. An axis of ``shape`` is a length or, where it varies, "SHORTEST..LONGEST"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@record
class Manifest:
    """What a program is. ``weights`` is the SHA-256 of what it was made from, ``source`` that one's name; ``versions``
    are those of executorch and torch; ``facts`` belong to the kind; ``difference`` is the largest one found between
    its outputs and torch's."""

    kind: Kind
    bytes: int
    sha256: str
    source: str
    weights: str
    versions: dict[str, str]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    facts: dict[str, Any]
    difference: float
    format: int = FORMAT


def manifest_path(program: Path) -> Path:
    """Where the manifest of ``program`` stands."""
    return program.with_name(program.name + ".json")


def versions() -> dict[str, str]:
    """What exports here. Raises ``Stop`` without ExecuTorch."""
    return {"executorch": installed(), "torch": importlib.metadata.version("torch")}


def fingerprint(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of named arrays: names, dtypes, shapes and values, whatever file or order they came in."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(folder: Path, data: bytes, manifest: Manifest) -> Path:
    """Write program and manifest, each in one step and durable, and return the program's path.

    The name carries the start of the checksum, so an export never changes a file that a service reads. Raises ``Stop``
    if ``folder`` can't be written.
    """
    path = folder / f"{manifest.kind}-{manifest.sha256[:12]}.pte"
    try:
        replace(path, data)
        replace(manifest_path(path), encode(manifest) + b"\n")
    except OSError as e:
        raise Stop("export", f"can't write {path}: {e.strerror}", "free space there, or name another --out") from e
    return path


def load(model: ModelFile, kind: Kind, cache_dir: Path, *, threads: int = 0) -> tuple[Program, Manifest]:
    """The program of ``model``, loaded, and its manifest.

    Raises ``Stop``: ExecuTorch is missing; the program or its manifest is missing, damaged, of another kind, or of
    another version of ExecuTorch.
    """
    here, who = installed(), f"model {model.id}"
    with _open(model, cache_dir) as opened:
        manifest = read_manifest(opened.found, who)
        if manifest.kind != kind:
            raise Stop(who, f"{opened.found} is a program of kind {manifest.kind}", f"give one of kind {kind}")
        # Where the profile says "unchecked", nothing was compared: the manifest's checksum still has to be right.
        found = opened.sha256 or hashlib.file_digest(opened.file, "sha256").hexdigest()
        if found != manifest.sha256:
            raise Stop(who, f"{opened.found} has SHA-256 {found}, its manifest says {manifest.sha256}", REMEDY)
        if manifest.versions.get("executorch") != here:
            made = manifest.versions.get("executorch")
            raise Stop(who, f"{opened.found} was exported by ExecuTorch {made}, here is {here}", REMEDY)
        program = Program(opened.path, who, threads=threads)
        opened.unchanged()
    return program, manifest


def _open(model: ModelFile, cache_dir: Path) -> OpenModel:
    try:
        return open_model(model, cache_dir)
    except Stop as e:  # whoever installs or fetches models has none of these
        raise Stop(e.who, e.got, f"put the right file back, or {REMEDY}") from e


def read_manifest(program: Path, who: str) -> Manifest:
    """The manifest beside ``program``. Raises ``Stop`` if it is missing, damaged or of another format."""
    path = manifest_path(program)
    try:
        manifest = decode(Manifest, path.read_bytes())
    except OSError as e:
        raise Stop(who, f"can't read the manifest {path}: {e.strerror}", REMEDY) from e
    except ValidationError as e:
        raise Stop(who, f"{path} is no manifest: {e.errors()[0]['msg']}", REMEDY) from e
    if manifest.format != FORMAT:
        raise Stop(who, f"{path} has format {manifest.format}, this version reads {FORMAT}", REMEDY)
    return manifest
