"""Replay: read a window of interactions again; judge it anew, train a router on it, estimate what one is worth.

    read      the window into the archive DIR; each other step does that first if it is not done
    rejudge   every interaction with the judge of the profile; --publish hands the verdicts to the learner
    retrain   a router from scratch; handed in as a candidate, which the gate lets pass or not
    estimate  what checkpoints would have been worth: IPS, SNIPS and doubly robust, with intervals

What is done stays done: a job that was killed goes on where it was when it is started again, and the same window gives
the same digest and the same results. On a cluster, whose nodes all have the project installed::

    ray job submit --address http://127.0.0.1:8265 -- .venv/bin/python -m jobs.replay rejudge DIR --to 2026-11-20

DIR, and with ``events.kind: sqlite`` the log, must then be on a disk that every node has. Only ``read`` and ``rejudge``
are work for Ray Data; ``retrain`` and ``estimate`` are done in the job's own process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from conf.load import load
from conf.schema import Settings
from jobs.ray_workers import Workers
from jobs.replaying.archive import Archive
from jobs.replaying.read import read
from jobs.replaying.window import WHO, Window
from operators.errors import Reject, Retry, RuvError, Stop
from operators.records import encode
from operators.stores import durable

STEPS = ("read", "rejudge", "retrain", "estimate")


def replay(given: argparse.Namespace, settings: Settings, progress: Any = lambda done, total: None) -> dict[str, Any]:
    """Do the step of the command line; returns its report.

    Raises ``Reject`` for what can't be asked, ``Stop`` if a worker or the judge fails, ``Retry`` if the log is away.
    """
    archive = Archive(given.archive)
    window = Window(begin=given.begin, end=given.end, tenant=given.tenant)
    like = Archive(given.like) if given.like else None
    if like is not None and encode(window) != encode(Window()):
        raise Reject(WHO, "a window beside --like", "give one of them")
    remedy = "mend that and start again: what is done stays done"
    made = Workers(settings.replay.workers, settings.ray.object_store_memory_bytes, WHO, remedy)
    with made as workers, durable.locked(archive.path):
        manifest = read(archive, settings, window, workers, like=like, progress=progress)
        if given.step == "rejudge":
            from jobs.replaying.rejudge import publish, rejudge

            report = rejudge(archive, settings, workers, progress=progress)
            return report | {"published": publish(archive, settings)} if given.publish else report
    if given.step == "retrain":
        from jobs.replaying.retrain import retrain

        return retrain(archive, settings, rejudged=given.rejudged, publish=not given.no_publish)
    if given.step == "estimate":
        from jobs.replaying.estimate import estimate

        return estimate(archive, settings, given.checkpoint, rejudged=given.rejudged)
    found: dict[str, Any] = json.loads(encode(manifest))
    return found


def words(step: str, report: dict[str, Any]) -> str:
    """A report as lines of text."""
    if step == "estimate":
        from jobs.replaying.estimate import table

        return table(report)
    if step == "read":
        lines = [
            f"{name}  offsets {one['first']} to {one['last']}: {one['kept']} of {one['events']} events"
            for name, one in report["read"].items()
        ]
        return "\n".join([*lines, f"digest {report['digest']}"])
    if step == "rejudge":
        return _verdicts(report)
    passed = "passed the gate" if report["gate"]["passed"] else "was refused by the gate"
    reasons = "".join(f"\n  {reason}" for reason in report["gate"]["reasons"])
    name = report["version"] or "not handed in"
    return f"{name}: trained on {report['turns']} turns, measured on {report['held_out']}; it {passed}{reasons}"


def _verdicts(report: dict[str, Any]) -> str:
    def number(name: str) -> str:
        return "none" if report[name] is None else f"{report[name]:.3f}"

    lines = [
        f"{', '.join(report['judge'])}: {report['judged']} judged, {report['unjudged']} not; mean {number('mean')}",
        f"of the same turns a model's mean was {number('mean_before')}, the mean change is {number('mean_change')}; "
        f"mean distance to users' verdicts: {number('mean_distance_to_users')}",
        f"digest {report['digest']}",
    ]
    return "\n".join([*lines, *([f"{report['published']} published"] if "published" in report else [])])


def main(args: Sequence[str] | None = None) -> None:
    """``python -m jobs.replay STEP DIR [--from POINT] [--to POINT] [--tenant T] [--like DIR] …``."""
    parser = argparse.ArgumentParser(prog="jobs.replay")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("archive", type=Path, metavar="DIR")
    parser.add_argument("--from", dest="begin", default="", help="a time in ISO 8601, or PARTITION:OFFSET,…")
    parser.add_argument("--to", dest="end", default="", help="the same; not read itself")
    parser.add_argument("--tenant", default="", help="whose; all tenants' if not given")
    parser.add_argument("--like", type=Path, metavar="DIR", help="the offsets of another archive")
    parser.add_argument("--publish", action="store_true", help="rejudge: write the verdicts to the topic")
    parser.add_argument("--no-publish", action="store_true", help="retrain: keep the weights in DIR only")
    parser.add_argument("--rejudged", action="store_true", help="retrain, estimate: with the new verdicts")
    parser.add_argument("--checkpoint", action="append", default=[], help="estimate: which; as often as needed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args(args)
    given.archive = given.archive.absolute()
    try:
        settings = load(given.profile, overrides=given.overrides).settings
        os.nice(settings.replay.nice)
        report = _run(given, settings)
    except (RuvError, KeyboardInterrupt) as error:
        said = "interrupted; what is done stays done" if isinstance(error, KeyboardInterrupt) else str(error)
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(report, ensure_ascii=False, indent=2) if given.json else words(given.step, report))


def _run(given: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    err = Console(stderr=True)
    try:
        with Progress(console=err, disable=given.json or not err.is_terminal, transient=True) as bar:
            task = bar.add_task(given.step, total=None)
            return replay(given, settings, lambda done, total: bar.update(task, completed=done, total=total))
    except Retry as away:
        raise Stop(away.who, away.got, f"{away.remedy}, then start again: what is done stays done") from away


if __name__ == "__main__":
    main()
