"""Judge an archive's interactions anew, with the judge of the profile, and publish what it said if that is wanted.

    DIR/verdicts-FINGERPRINT/PART-ROW.parquet    one slice of a part; FINGERPRINT names the judge and its knobs
    DIR/verdicts-FINGERPRINT/manifest.json       the judge, counts and digest, once all slices are there

Judging takes seconds an interaction and there is one judge, so slices are small: each is there whole or not at all, and
a job that was killed goes on with the others. A published verdict has an event id that follows from the interaction
and the judge, and names the verdict that it takes the place of; publishing again adds none. A user's verdict stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from conf.schema import Settings
from jobs.consumer import read_record
from jobs.ray_workers import Row, Workers
from jobs.replaying.archive import Archive, read_table, rows, write_json, write_table
from jobs.replaying.removed import Removed
from jobs.replaying.standing import Key, key_of, standing
from jobs.replaying.window import WHO, split
from operators.engines.make import make_engine
from operators.errors import Reject
from operators.judge import Judge
from operators.records import Interaction, Verdict, decode, encode
from operators.stores.make import open_log
from operators.stores.ports import Event, EventLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, event_headers, session_key

SOURCE = "/ruvllm/replay"
SLICE = 256
"""Verdicts that are published in one transaction, and judgements read at a time."""
_IDS = uuid.UUID("0d6f6a0b-6a0c-5a43-8f2e-1c1b3ce0a7d4")


def fingerprint(settings: Settings) -> str:
    """Names the judge: its weights and everything that changes what it says."""
    return hashlib.sha256(json.dumps(_about(settings), sort_keys=True).encode()).hexdigest()[:12]


def _about(settings: Settings) -> dict[str, Any]:
    return {
        "model": settings.judge_model.model_dump(mode="json"),
        "judge": settings.judge.model_dump(mode="json"),
        "context_tokens": settings.judge_job.context_tokens,
    }


def make_judge(settings: Settings) -> Judge:
    """The judge of the profile, not started; on one thread, for sums in another order are other sums."""
    job, cache = settings.judge_job, settings.data_dir / "cache"
    engine = make_engine(job.engine, settings.judge_model, cache, context_tokens=job.context_tokens, threads=1)
    return Judge(settings.judge, engine)


def rejudge(
    archive: Archive,
    settings: Settings,
    workers: Workers,
    *,
    make: Callable[[Settings], Judge] = make_judge,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Judge what was not judged yet; returns the report. ``archive`` is whole.

    Raises ``Stop`` if the judge can't be loaded.
    """
    named = fingerprint(settings)
    folder = archive.path / f"verdicts-{named}"
    todo = [row for row in _slices(archive, settings.replay.slice_events) if not (folder / row["file"]).exists()]
    memory = settings.data_dir / "memory"
    made = workers.each(todo, Rater, archive.path, folder, memory, make, settings, alone=True)
    for done, _ in enumerate(made, start=1):
        progress(done, len(todo))
    said = {"archive": archive.complete().digest, "release": version("ruvllm"), "settings": _about(settings)}
    report = {**said, "fingerprint": named, **_summary(archive, folder)}
    write_json(folder / "manifest.json", report)
    return report


def _slices(archive: Archive, size: int) -> Iterator[Row]:
    for name, at, _ in archive.parts(archive.complete()):
        if split(name)[0] == INTERACTIONS:
            part = archive.file(name, at)
            for first in range(0, read_table(part).num_rows, size):
                yield {"part": part.name, "first": first, "count": size, "file": f"{part.stem}-{first:06d}.parquet"}


class Rater:
    """The worker that judges. ``make`` makes the judge of ``settings``; ``memory``: the directory of the memory."""

    def __init__(
        self, path: Path, folder: Path, memory: Path, make: Callable[[Settings], Judge], settings: Settings
    ) -> None:
        self._archive, self._folder, self._removed = Archive(path), folder, Removed(memory)
        self._named = fingerprint(settings)
        self._judge = make(settings)
        self._loop = asyncio.Runner()
        self._loop.run(self._judge.start())
        self._part: tuple[str, list[Event]] = ("", [])

    def __call__(self, row: Row) -> Row:
        """Judge the rows of ``part`` from ``first`` on, ``count`` at most, and write the verdicts as ``file``."""
        import pyarrow as pa

        if self._part[0] != row["part"]:
            part = self._archive.path / "events" / row["part"]
            self._part = (row["part"], list(rows(read_table(part))))
        made = []
        for event in self._part[1][row["first"] : row["first"] + row["count"]]:
            interaction = read_record(Interaction, event)
            if self._removed.has(interaction.tenant, interaction.interaction_id, event.timestamp):
                continue
            if interaction.score is not None:
                continue  # its user has said what it is worth
            (verdict,) = self._loop.run(self._judge([interaction]))
            said = json.loads(encode(verdict)) | {"event_id": verdict_id(interaction.event_id, self._named)}
            place = {"partition": event.partition, "offset": event.offset}
            made.append({**place, "value": json.dumps(said, ensure_ascii=False).encode()})
        schema = pa.schema([("partition", pa.int32()), ("offset", pa.int64()), ("value", pa.binary())])
        write_table(self._folder / row["file"], pa.Table.from_pylist(made, schema=schema))
        return {"file": row["file"]}

    def close(self) -> None:
        """Free the judge."""
        self._loop.run(self._judge.close())
        self._loop.close()


def verdict_id(event_id: str, judge: str) -> str:
    """The event id of the verdict of the ``judge`` with that fingerprint: the same however often it is said."""
    return str(uuid.uuid5(_IDS, f"{event_id} {judge}"))


def verdicts(folder: Path) -> Iterator[tuple[int, int, Verdict]]:
    """The verdicts in ``folder`` with the partition and offset of their interaction, in that order.

    Raises ``Reject`` if nothing was judged there.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise Reject(WHO, f"no verdicts in {folder}", "judge first: ruvllm replay rejudge, with the same settings")
    for file in files:
        for row in read_table(file).to_pylist():
            yield row["partition"], row["offset"], decode(Verdict, row["value"])


def _summary(archive: Archive, folder: Path) -> dict[str, Any]:
    """Counts, what changed, and the digest: SHA-256 over interaction, status, score and reason of every verdict."""
    before = standing(archive)
    lines, judges, status = hashlib.sha256(), set(), {"judged": 0, "unjudged": 0}
    pairs: dict[str, list[tuple[float, float]]] = {"model": [], "user": []}
    scores = []
    for partition, offset, verdict in verdicts(folder):
        what = [partition, offset, verdict.interaction_id, verdict.status, verdict.score, verdict.reason]
        lines.update((json.dumps(what) + "\n").encode())
        status[verdict.status] += 1
        judges.add(verdict.judge)
        if verdict.score is not None:
            scores.append(verdict.score)
            old = before.get(key_of(verdict))
            if old is not None and old.score is not None:
                pairs[old.by].append((old.score, verdict.score))
    changes = {by: fmean(abs(a - b) for a, b in some) if some else None for by, some in pairs.items()}
    return {
        "judge": sorted(judges),
        **status,
        "mean": fmean(scores) if scores else None,
        "mean_before": fmean(a for a, _ in pairs["model"]) if pairs["model"] else None,
        "mean_change": changes["model"],
        "mean_distance_to_users": changes["user"],
        "digest": lines.hexdigest(),
    }


# ------------------------------------------------------------------------------------------------------------- publish


def publish(archive: Archive, settings: Settings, clock: Callable[[], float] = time.time) -> int:
    """Write the new verdicts to the topic; returns how many. Left out: those that are there already, those on which a
    user has spoken, and what was removed from the memory meanwhile. Raises ``Retry`` while the log is away."""
    folder = archive.path / f"verdicts-{fingerprint(settings)}"
    removed, times = Removed(settings.data_dir / "memory"), _times(archive)
    with contextlib.closing(open_log(settings.events)) as log:
        there, stand = _said(log)
        items = []
        for partition, offset, verdict in verdicts(folder):
            old = stand.get(key_of(verdict))
            known = verdict.event_id in there or (old is not None and old.by == "user")
            at = times.get((partition, offset))
            if known or at is None or removed.has(verdict.tenant, verdict.interaction_id, at):
                continue
            items.append(_item(verdict, old, partition, offset, clock()))
        for begin in range(0, len(items), SLICE):
            log.append_many(JUDGEMENTS, items[begin : begin + SLICE])
    return len(items)


def _item(
    verdict: Verdict, old: Verdict | None, partition: int, offset: int, now: float
) -> tuple[str, bytes, Mapping[str, str]]:
    said = json.loads(encode(verdict)) | {"replaces": old.event_id if old else ""}
    headers = event_headers(verdict.event_id, JUDGEMENTS, SOURCE, now)
    headers |= {"src.topic": INTERACTIONS, "src.partition": str(partition), "src.offset": str(offset)}
    return session_key(verdict.tenant, verdict.session), json.dumps(said, ensure_ascii=False).encode(), headers


def _times(archive: Archive) -> dict[tuple[int, int], float]:
    return {(event.partition, event.offset): event.timestamp for event in archive.events(INTERACTIONS)}


def _said(log: EventLog) -> tuple[set[str], dict[Key, Verdict]]:
    """Event ids of all verdicts in the log, and which stands for each interaction."""
    there: set[str] = set()

    def events() -> Iterator[Event]:
        for partition in range(log.topics()[JUDGEMENTS]):
            position = 0
            while some := log.read(JUDGEMENTS, partition, position, SLICE):
                there.update(event.headers.get("ce_id", "") for event in some)
                yield from some
                position = some[-1].offset + 1

    return there, standing(events())
