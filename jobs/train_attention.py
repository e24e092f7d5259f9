"""Train the ranking of ``attend``, and let it rank only if it is better than what needs no training.

    python -m jobs.train_attention --corpus corpus.jsonl --queries queries.jsonl --out ranking.safetensors
    python -m jobs.train_attention --events --out ranking.safetensors

The first form learns from the files that ``ruvllm evaluate memory`` reads, in a memory of its own; the second from the
judged interactions of the profile's event log and its memory, which no service may have open meanwhile.

1 examples  queries with their neighbourhoods
2 split     by groups into training, validation and holdout
3 fit       InfoNCE, stopped by the validation part (``attending.fit``)
4 compare   on the holdout with the untrained rankings (``attending.gate``)
5 write     a JSON report beside the checkpoint, then the checkpoint; it says ``trained`` only if it won

``attend`` ranks with a checkpoint only if it is ``trained``, else by similarity; ``Context.ranking`` says which it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from conf.load import load
from conf.schema import Settings
from conf.train_attention import TrainAttention
from jobs.attending.examples import Example, Surroundings, from_events, from_files
from jobs.attending.fit import can_learn, fit
from jobs.attending.gate import METRICS, UNTRAINED, check_size, compare
from operators.errors import Reject, RuvError
from operators.networks import attention
from operators.records import record
from operators.stores.make import memory_in, open_log

WHO = "train attention"


@record
class Parts:
    """The examples by what they are for."""

    training: list[Example]
    validation: list[Example]
    holdout: list[Example]


def split(examples: Sequence[Example], config: TrainAttention) -> Parts:
    """Whole groups, drawn by the seed: first the holdout, then the validation part, the rest is to learn from."""
    groups = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    names = sorted(groups)
    parts: tuple[list[Example], ...] = ([], [], [])
    sizes = (config.holdout * len(examples), config.validation * len(examples), float("inf"))
    at = 0
    for i in np.random.default_rng(config.seed).permutation(len(names)):
        at += len(parts[at]) >= sizes[at]
        parts[at].extend(groups[names[i]])
    return Parts(training=parts[2], validation=parts[1], holdout=parts[0])


async def train(examples: Sequence[Example], settings: Settings, out: Path) -> dict[str, Any]:
    """Steps 2 to 5; returns the report. Raises ``Reject`` if the examples are too few, or hang together."""
    _check_out(out)
    config = settings.train_attention
    encoder = examples[0].embedded.encoder
    parts = split(examples, config)
    if not parts.training or not parts.validation:
        groups = len({example.group for example in examples})
        got = f"{len(examples)} queries in {groups} groups (what shares a session is one group), nothing to learn"
        raise Reject(WHO, got, "give more queries, of more sessions")
    check_size(parts.holdout, config)
    fitted = fit(parts.training, parts.validation, config)
    judged = await compare(fitted.weights, parts.holdout, settings)
    report = {
        "trained": judged["won"],
        "encoder": encoder,
        "seed": config.seed,
        "queries": {name: len(getattr(parts, name)) for name in ("training", "validation", "holdout")},
        "queries_to_learn_from": {
            name: sum(map(can_learn, getattr(parts, name))) for name in ("training", "validation", "holdout")
        },
        **judged,
        "fit": {"best": fitted.best, "validation": fitted.validation, "training": fitted.training},
        "settings": settings.model_dump(
            mode="json", include={"train_attention", "embed", "search", "expand", "attend"}
        ),
    }
    write(dataclasses.replace(fitted.weights, trained=judged["won"], encoder=encoder), report, out)
    return report


def write(weights: attention.AttentionWeights, report: dict[str, Any], out: Path) -> None:
    """The report beside ``out``, then the checkpoint, each durably: temporary file, fsync, rename."""
    about = {name: json.dumps(report[name]) for name in ("lines", "trained_minus", "queries", "seed")}
    try:
        with _durable(report_path(out)) as path:
            path.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
        with _durable(out) as path:
            attention.save(weights, path, about)
    except OSError as error:
        raise Reject(WHO, f"can't write {out}: {error.strerror}", "name another --out") from error


def report_path(out: Path) -> Path:
    """Where the report of the checkpoint ``out`` stands."""
    return out.with_name(out.name + ".json")


@contextlib.contextmanager
def _durable(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place once it is written and on the disk."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _check_out(out: Path) -> None:
    """Before minutes of work. A checkpoint is never written over: a service may rank with it."""
    if not out.parent.is_dir():
        raise Reject(WHO, f"no folder {out.parent} for the checkpoint", "make it, or name another --out")
    for path in (out, report_path(out)):
        if path.exists():
            raise Reject(WHO, f"{path} is there already", "name another --out; a checkpoint is never written over")


def table(report: dict[str, Any]) -> str:
    """The comparison as lines of text, and what follows from it."""
    rows = [f"{'holdout':<26}" + "".join(f"{metric:>12}" for metric in METRICS)]
    for line, row in report["lines"].items():
        rows.append(f"{line:<26}" + "".join(f"{row[metric]:>12.3f}" for metric in METRICS))
    for line in UNTRAINED:
        cells = (report["trained_minus"][line][metric] for metric in METRICS)
        rows.append(f"{f'trained − {line}':<26}" + "".join(f"{cell['mean']:>+12.3f}" for cell in cells))
        cells = (report["trained_minus"][line][metric] for metric in METRICS)
        sure = f"  at least ({report['confidence']:.0%} sure)"
        rows.append(f"{sure:<26}" + "".join(f"{cell['low']:>+12.3f}" for cell in cells))
    counts = ", ".join(f"{count} {name}" for name, count in report["queries"].items())
    verdict = (
        "The trained ranking is better: it will be used."
        if report["trained"]
        else "The trained ranking is not surely better: attend goes on ranking without it."
    )
    return "\n".join([*rows, "", f"queries: {counts}; best after {report['fit']['best']} passes", verdict])


async def run(given: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """All five steps for the command line's arguments."""
    _check_out(given.out)
    if not given.events:
        with _progress() as progress:
            task = progress.add_task("looking up the queries", total=None)
            examples = await from_files(
                given.corpus,
                given.queries,
                settings,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        return await train(examples, settings, given.out)
    root, dim = settings.data_dir / "memory", settings.embed.output_dim
    memory = memory_in(root, dim, settings.memory, settings.vectors, settings.graph)
    memory.open()
    try:
        with contextlib.closing(open_log(settings.events)) as log:
            async with Surroundings(settings, memory) as around:
                examples = await from_events(log, around, settings.train_attention.min_verdict)
        if not examples:
            least = settings.train_attention.min_verdict
            got = f"no interaction with passages and a verdict of at least {least} in the event log"
            raise Reject(WHO, got, "let the judge rate more of them, or lower train_attention.min_verdict")
        return await train(examples, settings, given.out)
    finally:
        memory.close()


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal, transient=True)


def main(args: Sequence[str] | None = None) -> None:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="jobs.train_attention", description="Train the ranking of attend.")
    parser.add_argument("--corpus", type=Path, help='JSON Lines: {"id", "text", "session"?, "order"?, "source"?}')
    parser.add_argument("--queries", type=Path, help='JSON Lines: {"id", "text", "gold": [ids of corpus lines]}')
    parser.add_argument("--events", action="store_true", help="learn from the profile's judged interactions instead")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write, e.g. ranking.safetensors")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE, as often as needed")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(args)
    files = (given.corpus is not None, given.queries is not None)
    if files != (not given.events, not given.events):
        parser.error("give --corpus and --queries, or --events alone")
    try:
        report = asyncio.run(run(given, load(given.profile, overrides=given.overrides).settings))
    except RuvError as error:
        sys.exit(str(error))
    print(json.dumps(report, ensure_ascii=False, indent=2) if given.json else table(report))


if __name__ == "__main__":
    main()
