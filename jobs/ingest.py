"""The ingest job: a folder of documents into the memory of the running service, by Ray Data.

    find → (read, parse) → (mask, chunk, embed) → write → note

Reading and parsing are Ray tasks, chunking and embedding actors with one encoder thread each. The memory has one owner,
the service, so writing is one place too: this process takes the blocks as they are finished and posts their nodes. What
it has not taken yet makes Ray Data hold its workers back, so the memory in use does not grow with the folder.

A file is noted once the service has acknowledged all of its nodes, and the next run leaves it alone while its size, its
time and the settings are the same. Node ids follow from the text, so what a crash makes us send twice is there once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conf.load import load
from conf.schema import Settings
from jobs.door import Door, admin_key
from jobs.ingesting.steps import Nodes, Row, read
from jobs.ingesting.write import Report, Writer
from jobs.journal import Journal, Taken
from jobs.local_ray import local_ray
from jobs.ray_workers import quiet, results
from operators.engines.files.models import resolve
from operators.engines.native import cores
from operators.errors import Retry, RuvError, Stop
from operators.files import find
from operators.stores.memory import INGESTED

FILES_A_BLOCK = 16
"""Files that go through the workers together; as many wait unwritten in each when the job is killed."""
BLOCK_BYTES = 8 * 2**20
"""Size in bytes at which Ray Data ends a block of results early."""
NICE = 5
"""Unix niceness of the job: answers come before it."""
_SPEED_ONLY = {"threads", "max_batch", "batch_tokens"}
"""Settings of ``embed`` that no vector depends on."""


def ingest(
    paths: Sequence[Path],
    settings: Settings,
    door: Door,
    *,
    tenant: str = "default",
    again: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Bring the files of ``paths`` into ``tenant``'s memory.

    Args:
        again: also files that the journal says are there, e.g. after they were deleted from the memory.
        workers: encoders; 0 takes one a core.
        progress: called with (files dealt with, files).

    Raises:
        Reject: a path is not there, or the key is not the service's.
        Retry: the service is away, or stayed busy for longer than the job's patience.
        Stop: the encoder's weights are missing, or a worker failed.
    """
    files = find(paths)
    report = Report(files=len(files))
    journal = Journal(
        settings.data_dir / "memory" / INGESTED, memory=f"{door.url} {tenant}", settings=fingerprint(settings)
    )
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, len(files))

    encoder, max_bytes = settings.embed.model.id, settings.http.max_admin_body_bytes // 8
    writer = Writer(door, tenant, journal, report, advance, encoder=encoder, max_bytes=max_bytes)
    try:
        rows = plan(files, {} if again else journal.known(), report)
        advance(len(files) - len(rows))
        if rows:
            writer.knock(settings.embed.output_dim)
            # Closed here, whatever happens: Ray ends before we go on.
            with contextlib.closing(embedded(rows, settings, tenant, workers or cores())) as made:
                for row in made:
                    writer.take(row)
            writer.flush()
    finally:
        journal.close()
    return report


def plan(files: Sequence[Path], known: Mapping[tuple[str, str], Taken], report: Report) -> list[Row]:
    """The rows to work on; the other files are counted in ``report``."""
    rows: list[Row] = []
    for file in files:
        source, path = str(file), os.path.abspath(file)
        try:
            path.encode()
        except UnicodeEncodeError:
            report.refuse(repr(source), f"ingest: {source!r} is no text in UTF-8; rename the file")
            continue
        taken = known.get((source, path))
        try:
            stat = os.stat(path)
            unchanged = taken is not None and (taken.size, taken.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        except OSError:  # reading it will say why
            unchanged = False
        if unchanged:
            report.unchanged += 1
        else:
            rows.append({"path": path, "source": source, "known": taken.sha256 if taken else ""})
    return rows


def embedded(rows: Sequence[Row], settings: Settings, tenant: str, workers: int) -> Generator[Row, None, None]:
    """``rows`` with their nodes, as they are finished, in no particular order. Raises ``Stop`` if a worker fails."""
    cache = settings.data_dir / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for file in (settings.embed.model, settings.embed.tokenizer):
        if file is not None:
            resolve(file, cache)  # here it says plainly what is missing
    blocks = -(-len(rows) // FILES_A_BLOCK)
    workers, readers = min(workers, blocks), max(1, workers // 4)
    with local_ray(workers + readers, settings.ray.object_store_memory_bytes):
        import ray.data

        quiet().target_max_block_size = BLOCK_BYTES
        actor = (tenant, settings.embed, settings.documents, settings.privacy, cache, time.time())
        dataset = (
            ray.data.from_items(list(rows), override_num_blocks=blocks)
            .map(read, fn_args=(settings.documents,), num_cpus=1, compute=ray.data.TaskPoolStrategy(size=readers))
            .map(
                Nodes,
                fn_constructor_args=actor,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                # By default a worker that dies is started again, for ever: a file that kills it would never end.
                max_restarts=0,
                max_task_retries=0,
            )
        )
        remedy = "mend that, or leave out the file that ends it, and start again: what is done stays done"
        yield from results(dataset, "ingest", remedy)


def fingerprint(settings: Settings) -> str:
    """Names what decides on a file's nodes, so that other settings make every file a new one."""
    said = settings.model_dump(mode="json", include={"embed", "documents", "privacy"})
    said["embed"] = {name: value for name, value in said["embed"].items() if name not in _SPEED_ONLY}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def main() -> None:
    """``python -m jobs.ingest PATH… [--url URL] [--tenant T] [--again] [--json] [--profile NAME] [--set KEY=VALUE]…``.

    Prints the report as JSON; without ``--json`` it also draws a progress bar if stderr is a terminal. Exit code 1 if
    files were refused, 2 if the job could not go on.
    """
    parser = argparse.ArgumentParser(prog="jobs.ingest")
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--url", help="the service's address; http.host and http.port if not given")
    parser.add_argument("--tenant", default="default", help="whose memory")
    parser.add_argument("--again", action="store_true", help="also files that were brought in before")
    parser.add_argument("--json", action="store_true", help="no progress bar")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    try:
        report = _run(given)
    except (RuvError, KeyboardInterrupt) as error:
        words = "interrupted; what is done stays done" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"error: {words}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(dataclasses.asdict(report), ensure_ascii=False))
    sys.exit(1 if report.refused else 0)


def _run(given: argparse.Namespace) -> Report:
    settings = load(given.profile, overrides=given.overrides).settings
    door = Door(given.url or settings.http.url(), admin_key(settings.data_dir))
    os.nice(NICE)
    err = Console(stderr=True)
    columns = (TextColumn("ingesting"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    try:
        with Progress(*columns, console=err, disable=given.json or not err.is_terminal, transient=True) as bar:
            task = bar.add_task("ingesting", total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return ingest(given.paths, settings, door, tenant=given.tenant, again=given.again, progress=show)
    except Retry as busy:
        raise Stop(busy.who, busy.got, f"{busy.remedy}, then ingest again: what is done stays done") from busy
    finally:
        door.close()


if __name__ == "__main__":
    main()
