"""Which files a folder of documents holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from operators.errors import Reject

SUFFIXES = {".txt", ".md", ".markdown", ".rst", ".pdf"}
"""What a folder is searched for; a file named directly is read whatever its suffix."""


def find(paths: Sequence[Path]) -> list[Path]:
    """The files that ``paths`` name, folders searched. Raises ``Reject`` for a path that is not there."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())
            files += [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        elif path.exists():
            files.append(path)
        else:
            raise Reject("ingest", f"no file or folder {path}", "check the path")
    return list(dict.fromkeys(files))
