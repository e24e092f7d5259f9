"""A corpus and queries with known answers, checked: what is wrong is refused with file, line and remedy.

``evaluate memory`` measures on these two files, ``jobs.train_attention`` learns from them. Both are JSON Lines in
UTF-8; empty lines are skipped, and keys other than those named here are passed over.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from operators.errors import Reject
from operators.records import F32, record
from operators.stores.ports import Node


@record
class Line:
    """One text to remember. ``order`` is its place in its session, or in its source if it has no session; ``time`` is
    Unix seconds."""

    id: str
    text: str
    session: str
    source: str
    order: int
    time: float | None


@record
class Question:
    """One query, and the ids of all lines that should be found for it."""

    id: str
    text: str
    gold: tuple[str, ...]


def read_corpus(path: Path) -> list[Line]:
    """The corpus: ``{"id", "text", "session"?, "order"?, "source"?, "time"?}`` a line.

    Without ``order`` a line comes after those of its session (or source) that stand before it. Raises ``Reject``.
    """
    seen: dict[str, int] = {}
    next_place: Counter[tuple[str, str]] = Counter()
    lines = []
    for number, row in _rows(path):
        node_id = _word(path, number, row, "id")
        if node_id in seen:
            raise _bad(path, number, f"id {node_id!r} stands on line {seen[node_id]} too", "give every line its own id")
        seen[node_id] = number
        session, source = (_word(path, number, row, key, needed=False) for key in ("session", "source"))
        order, time = row.get("order"), row.get("time")
        if order is not None and not (type(order) is int and 0 <= order < 2**31):
            raise _bad(path, number, f"order is {order!r}", "give a whole number from 0 on, or leave it out")
        if time is not None and not (type(time) in (int, float) and math.isfinite(time)):
            raise _bad(path, number, f"time is {time!r}", "give Unix seconds, or leave it out")
        key = ("session", session) if session else ("source", source)
        order = next_place[key] if order is None else order
        next_place[key] = max(next_place[key], order + 1)
        text = _word(path, number, row, "text")
        lines.append(Line(id=node_id, text=text, session=session, source=source, order=order, time=time))
    return lines


def read_queries(path: Path, corpus: list[Line]) -> list[Question]:
    """The queries: ``{"id", "text", "gold": [ids of corpus lines]}`` a line. Raises ``Reject``."""
    known = {line.id for line in corpus}
    seen: dict[str, int] = {}
    questions = []
    for number, row in _rows(path):
        query_id, text = _word(path, number, row, "id"), _word(path, number, row, "text")
        if query_id in seen:
            raise _bad(
                path, number, f"id {query_id!r} stands on line {seen[query_id]} too", "give every query its own id"
            )
        seen[query_id] = number
        gold = row.get("gold")
        if not isinstance(gold, list) or not gold:
            raise _bad(path, number, f"gold is {_short(gold)}", "give a list of at least one id of the corpus")
        for node_id in gold:
            if not isinstance(node_id, str) or node_id not in known:
                raise _bad(path, number, f"gold id {_short(node_id)} is not in the corpus", "name ids of corpus lines")
        questions.append(Question(id=query_id, text=text, gold=tuple(dict.fromkeys(gold))))
    return questions


def as_node(line: Line, vector: F32, tokens: int, now: float) -> Node:
    """``line`` as the memory keeps it; ``vector`` float32[dim]; ``now`` (Unix seconds) is its time if it has none."""
    return Node(
        node_id=line.id,
        kind="interaction" if line.session else "document",
        text=line.text,
        vector=vector,
        source=line.source,
        session=line.session,
        position=line.order,
        tokens=tokens,
        created_at=now if line.time is None else line.time,
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line that is not empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        got = f"{path}: can't be read: {error.strerror or error}"
        raise Reject("gold files", got, "name a JSON Lines file that can be read") from error
    count = 0
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            raise _bad(path, number, "not UTF-8", "save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise _bad(
                path, number, f"not JSON: {error}", 'write one object a line, e.g. {"id": "1", "text": "…"}'
            ) from error
        if not isinstance(row, dict):
            raise _bad(path, number, f"a {type(row).__name__}, not an object", 'write e.g. {"id": "1", "text": "…"}')
        count += 1
        yield number, row
    if not count:
        raise Reject("gold files", f"{path}: line 1: the file is empty", "write at least one object a line into it")


def _word(path: Path, number: int, row: dict[str, Any], key: str, needed: bool = True) -> str:
    value = row.get(key)
    if value is None and not needed:
        return ""
    if key not in row:
        raise _bad(path, number, f"no key {key!r}, only {', '.join(sorted(row)) or 'none'}", f"add {key!r}")
    if not isinstance(value, str) or (needed and not value.strip()):
        raise _bad(path, number, f"{key} is {_short(value)}", "give text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _bad(path, number, f"{key} has lone surrogates", "write valid Unicode") from None
    return value


def _bad(path: Path, number: int, got: str, remedy: str) -> Reject:
    return Reject("gold files", f"{path}: line {number}: {got}", remedy)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:59] + "…"
