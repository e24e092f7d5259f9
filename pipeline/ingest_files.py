"""Files on disk → documents of a running service. Parsing happens here, so the service never reads a path."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conf.schema import Settings
from operators.documents import parse
from operators.errors import Reject, Retry
from pipeline.client import Client

SUFFIXES = {".txt", ".md", ".markdown", ".rst", ".pdf"}
"""What a folder is searched for; a file named directly is read whatever its suffix."""
ATTEMPTS = 10


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


def send(client: Client, files: Sequence[Path], settings: Settings, advance: Callable[[], None]) -> dict[str, Any]:
    """Send every file; one that can't be used is reported and the rest go on."""
    report: dict[str, Any] = {"files": len(files), "added": 0, "duplicates": 0, "edges": 0, "refused": []}
    for path in files:
        try:
            text = parse(path.read_bytes(), name=str(path), config=settings.documents)
            for part in _parts(text, settings.http.max_body_bytes // 2):
                answer = _patiently(client, {"documents": [{"text": part, "source": str(path)}]})
                for key in ("added", "duplicates", "edges"):
                    report[key] += answer[key]
        except (Reject, Retry, OSError) as error:
            report["refused"].append({"path": str(path), "error": str(error)})
        advance()
    return report


def _patiently(client: Client, body: dict[str, Any]) -> Any:
    """Post, and again a few times when the service says it is busy."""
    for _ in range(ATTEMPTS - 1):
        try:
            return client.post("/v1/documents", body)
        except Retry as busy:
            time.sleep(busy.retry_after_s)
    return client.post("/v1/documents", body)


def _parts(text: str, max_bytes: int) -> list[str]:
    """``text`` in parts that fit one request, cut at blank lines where there are any."""
    if len(text.encode()) <= max_bytes:
        return [text]
    middle = len(text) // 2
    cut = text.rfind("\n\n", 0, middle)
    cut = cut + 2 if cut > 0 else middle
    return _parts(text[:cut], max_bytes) + _parts(text[cut:], max_bytes)
