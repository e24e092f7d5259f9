"""Does the router choose well? ``ruvllm evaluate router`` measures it on outcomes of one's own, beside simpler ways.

    python -m jobs.evaluate_router --outcomes FILE.parquet [--train-fraction 0.5] [--seeds 5] [--json OUT]
                                   [--test FILE2.parquet] [--by-domain] [--workers 0] [--profile NAME]
                                   [--set KEY=VALUE]

1 read      the prompts and how every tier did on them (``routing.outcomes``)
2 embed     every prompt once, and once edited (``routing.edits``), with the profile's embedder (``routing.ours``)
3 split     by prompts, or by domains, from each seed; with --test, FILE2 is what is tested on
4 learn     the router in both settings, and its peers (``routing.contest``, ``routing.peers``)
5 measure   on the rest (``routing.metrics``); means over seeds with their 95 % interval (Student's t)
6 write     OUT, a picture beside it (OUT with .png), and a table

Steps 4 and 5 are done seed by seed, with ``--workers`` by actors of Ray Data; the report is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from conf.load import load
from conf.schema import Settings
from jobs.evaluate_continual import interval
from jobs.process import one_thread
from jobs.ray_workers import Row, Workers
from jobs.routing.contest import Part, Readings, beliefs
from jobs.routing.edits import edit
from jobs.routing.metrics import METRICS, Beliefs, Measured, at_cost, curve, measure
from jobs.routing.outcomes import WHO, Array, Outcomes, Rows, read, split
from jobs.routing.plot import draw
from operators.errors import Reject, RuvError

LEAST_TEST = 20
"""Fewer prompts say nothing."""
NOT_MEASURED = {
    "always-weak, always-strong": "one choice has no curve (apgr, cpt, aiq, accuracy_matched), predicts nothing (ece)",
    "random, length, matrix-factorisation": "what they rank by is no quality (ece)",
    "random, shuffle, always-weak, always-strong, oracle": "no choice comes from the prompt (paraphrase, apgr_edited)",
    "all": "apgr and cpt where the dearest tier is not better than the cheapest in some seed's test part",
}
"""Why a metric has no value."""
GRID = np.linspace(0.0, 1.0, 51)
"""Costs at which the curves are reported."""
Report: TypeAlias = dict[str, Any]


async def evaluate(given: argparse.Namespace, settings: Settings, advance: Callable[[int, int], None]) -> Report:
    """Steps 1 to 5. Raises ``Reject`` for files that can't be used, or too few prompts on a side."""
    outcomes = read(given.outcomes)
    test = None if given.test is None else read(given.test, LEAST_TEST, outcomes)
    tested_on = test or outcomes
    least = settings.replay.fit.batch
    splits = [_split(outcomes, test, given.train_fraction, given.by_domain, seed, least) for seed in range(given.seeds)]
    texts = list(outcomes.prompts) if test is None else [*outcomes.prompts, *test.prompts]
    texts += [edit(tested_on.prompts[i], 0) for i in np.unique(np.concatenate([rows for _, rows in splits]))]
    readings = await Readings.of(texts, settings, advance)
    unseen = np.array([domain not in set(outcomes.domains) for domain in tested_on.domains])
    masks = {"results": np.ones(len(unseen), np.bool_)}
    if test is not None and min(unseen.sum(), (~unseen).sum()) >= LEAST_TEST:
        masks |= {"results_seen": ~unseen, "results_unseen": unseen}
    rows: list[Row] = [{"seed": seed} for seed in range(given.seeds)]
    with Workers(given.workers, settings.ray.object_store_memory_bytes, WHO) as workers:
        done = workers.each(rows, Contest, outcomes, tested_on, readings, splits, masks, settings)
        seeds = [json.loads(row["found"]) for row in sorted(done, key=lambda row: int(row["seed"]))]
    measured: dict[str, list[dict[str, Measured]]] = {key: [one[key] for one in seeds] for key in masks}
    curves: list[dict[str, list[float]]] = [one["curves"] for one in seeds]
    names = list(measured["results"][0])
    return {
        **{key: {name: _over_seeds([one[name] for one in found]) for name in names} for key, found in measured.items()},
        "apgr_ours_minus": _minus(measured["results"]),
        "not_measured": NOT_MEASURED,
        "curves": {
            name: {"cost": GRID.tolist(), "quality": np.mean([one[name] for one in curves], axis=0).tolist()}
            for name in curves[0]
        },
        "data": _about(outcomes, test, splits, given, unseen),
        "settings": {
            "embed": settings.embed.model_dump(mode="json"),
            "fit": settings.replay.fit.model_dump(mode="json"),
        },
    }


class Contest:
    """Steps 4 and 5 for one seed at a time; ``masks`` name the rows of ``tested_on`` that each result is about."""

    def __init__(
        self,
        outcomes: Outcomes,
        tested_on: Outcomes,
        readings: Readings,
        splits: Sequence[tuple[Rows, Rows]],
        masks: Mapping[str, npt.NDArray[np.bool_]],
        settings: Settings,
    ) -> None:
        self._outcomes, self._tested_on, self._readings = outcomes, tested_on, readings
        self._splits, self._masks, self._settings = splits, masks, settings

    def __call__(self, row: Row) -> Row:
        """``found``: result or ``curves`` → router → what was measured, as JSON."""
        seed = int(row["seed"])
        learned_rows, rows = self._splits[seed]
        learned = self._readings.part(self._outcomes, learned_rows, False)
        part = self._readings.part(self._tested_on, rows, True)
        with one_thread():
            said = beliefs(learned, part, self._outcomes.slots, self._settings, seed)
        found: dict[str, Any] = {}
        for key, mask in self._masks.items():
            some = mask[rows]
            quality, cost = part.quality[some], part.cost[some]
            found[key] = {name: measure(belief.of(some), quality, cost) for name, belief in said.items()}
        lines = {name: _along(belief, part) for name, belief in said.items() if belief.always is None}
        found["curves"] = {name: line.tolist() for name, line in lines.items()}
        return {"seed": seed, "found": json.dumps(found)}

    def close(self) -> None:
        """Nothing is open."""


def _split(
    outcomes: Outcomes, test: Outcomes | None, fraction: float, by_domain: bool, seed: int, least: int
) -> tuple[Rows, Rows]:
    """Rows of ``outcomes`` to learn from, at least so many, and rows to test on, of ``test`` if there is one."""
    learned, rest = split(outcomes.domains if by_domain else outcomes.prompts, fraction, seed)
    if test is not None:
        held = set(test.prompts)
        learned = np.array([i for i in learned if outcomes.prompts[i] not in held], np.int64)
        rest = np.arange(len(test.prompts))
    if len(learned) < least or len(rest) < LEAST_TEST:
        got = f"{len(learned)} prompts to learn from and {len(rest)} to test on"
        raise Reject(WHO, got, f"give more, or another --train-fraction: it takes {least} and {LEAST_TEST}")
    return learned, rest


def _along(belief: Beliefs, part: Part) -> Array:
    return at_cost(*curve(belief, part.quality, part.cost), GRID)


def _over_seeds(found: Sequence[Measured]) -> Report:
    """Metric → mean and 95 % interval; None where it does not apply in some seed, low and high None of one seed."""
    return {metric: _bounds([one[metric] for one in found]) for metric in METRICS}


def _bounds(values: Sequence[float | None]) -> dict[str, float | None]:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return {"mean": None, "low": None, "high": None}
    made = interval(numbers)
    mean, half = made["mean"], made["half"]
    return {"mean": mean, "low": None if half is None else mean - half, "high": None if half is None else mean + half}


def _minus(found: Sequence[dict[str, Measured]]) -> Report:
    """Router → APGR of ``ruvllm`` less its own, paired by seed."""
    made: Report = {}
    for name in found[0]:
        pairs = [(one["ruvllm"]["apgr"], one[name]["apgr"]) for one in found]
        made[name] = _bounds([None if a is None or b is None else a - b for a, b in pairs])
    return made


def _about(
    outcomes: Outcomes,
    test: Outcomes | None,
    splits: Sequence[tuple[Rows, Rows]],
    given: argparse.Namespace,
    unseen: npt.NDArray[np.bool_],
) -> Report:
    about: Report = {
        "rows": len(outcomes.ids),
        "domains": len(set(outcomes.domains)),
        "tiers": list(outcomes.tiers),
        "seeds": given.seeds,
        "train_fraction": given.train_fraction,
        "split_by": "domain" if given.by_domain else "prompt",
        "train": [len(learned) for learned, _ in splits],
        "test": [len(rest) for _, rest in splits],
    }
    if test is not None:
        domains, new = set(test.domains), {d for d, u in zip(test.domains, unseen, strict=True) if u}
        about["test_file"] = {
            "rows": len(test.ids),
            "domains": len(domains),
            "unseen_domains": len(new),
            "unseen_rows": int(unseen.sum()),
            "also_in_outcomes": len(set(test.prompts) & set(outcomes.prompts)),
        }
    return about


def table(report: Report) -> str:
    """The report as lines of text."""
    data, lines = report["data"], []
    for key in ("results", "results_seen", "results_unseen"):
        if key in report:
            part = {"results": "all test prompts", "results_seen": "seen domains", "results_unseen": "unseen domains"}
            lines += [part[key], *_rows(report[key]), ""]
    compared = {n: c["mean"] for n, c in report["apgr_ours_minus"].items() if n not in ("oracle", "ruvllm")}
    for name, mean in compared.items():
        if mean is not None:
            bounds = report["apgr_ours_minus"][name]
            sure = "" if bounds["low"] is None else f"  [{bounds['low']:+.3f}, {bounds['high']:+.3f}]"
            lines.append(f"APGR, ruvllm less {name:<22}{mean:+.3f}{sure}")
    apgr = {n: row["apgr"]["mean"] for n, row in report["results"].items() if n != "oracle"}
    ranked = sorted((n for n in apgr if apgr[n] is not None), key=lambda n: -apgr[n])
    if ranked:
        lines += ["", f"by APGR: {', '.join(ranked)}"]
    told = f"{data['rows']} prompts of {data['domains']} domains, tiers {', '.join(data['tiers'])}"
    halves = f"{data['train'][0]} to learn from, {data['test'][0]} to test on (seed 0)"
    lines.append(f"{told}; {halves}; split by {data['split_by']}; {data['seeds']} seeds; ± half the 95 % interval")
    return "\n".join(lines)


def _rows(results: Report) -> list[str]:
    short = {"accuracy_matched": "acc@half", "paraphrase_agreement": "agreement", "apgr_edited": "edited"}
    rows = [f"{'':<22}" + "".join(f"{short.get(metric, metric):>12}" for metric in METRICS)]
    for name, row in results.items():
        cells = []
        for metric in METRICS:
            cell = row[metric]
            half = "" if cell["low"] is None else f"±{cell['high'] - cell['mean']:.3f}".replace("±0.", "±.")
            cells.append("–" if cell["mean"] is None else f"{cell['mean']:.3f}{half}")
        rows.append(f"{name:<22}" + "".join(f"{cell:>12}" for cell in cells))
    return rows


def write(report: Report, out: Path) -> None:
    """The report to ``out`` and its picture beside it."""
    lines = dict(report["curves"])
    for name in ("always-weak", "always-strong"):
        row = report["results"][name]
        lines[name] = {"cost": [row["cost"]["mean"]], "quality": [row["accuracy"]["mean"]]}
    data = report["data"]
    title = f"{data['test'][0]} test prompts, learned from {data['train'][0]}; mean of {data['seeds']} seeds"
    try:
        out.write_text(json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
        draw(lines, title, out.with_suffix(".png"))
    except OSError as error:
        raise Reject(WHO, f"can't write {error.filename or out}: {error.strerror}", "name another --json") from error


def check(given: argparse.Namespace) -> None:
    """Raises ``Reject`` for options that don't go together, before minutes of work."""
    for name, least in (("seeds", 1), ("workers", 0)):
        if getattr(given, name) < least:
            raise Reject(WHO, f"{getattr(given, name)} {name}", f"give at least {least}")
    if not 0.0 < given.train_fraction <= 1.0 or (given.train_fraction == 1.0 and given.test is None):
        remedy = "give one above 0 and below 1; 1 needs --test, for nothing is left to test on"
        raise Reject(WHO, f"--train-fraction {given.train_fraction:g}", remedy)
    if given.by_domain and given.test is not None:
        raise Reject(WHO, "--by-domain with --test", "leave one out: the test file is what is tested on")
    if given.json is not None and (not given.json.parent.is_dir() or given.json.suffix == ".png"):
        got = "a .png as report" if given.json.suffix == ".png" else f"no folder {given.json.parent} for the report"
        raise Reject(WHO, got, "name another --json; its picture stands beside it as .png")


def main(args: Sequence[str] | None = None) -> None:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="jobs.evaluate_router", description="Does the router choose well?")
    parser.add_argument("--outcomes", type=Path, required=True, help="Parquet: id, domain, prompt, and how tiers did")
    parser.add_argument("--test", type=Path, help="test on the prompts of this file instead of a part of --outcomes")
    parser.add_argument("--train-fraction", type=float, default=0.5, help="share of the prompts to learn from")
    parser.add_argument("--by-domain", action="store_true", help="test on domains that were not learned from")
    parser.add_argument("--seeds", type=int, default=5, help="runs of everything, each from another seed")
    parser.add_argument("--workers", type=int, default=0, help="Ray workers that share the seeds; 0 does without Ray")
    parser.add_argument("--json", type=Path, metavar="OUT", help="the report there, and its picture beside it")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE, as often as needed")
    given = parser.parse_args(args)
    console = Console(stderr=True)
    try:
        check(given)
        settings = load(given.profile, overrides=given.overrides).settings
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("reading the prompts", total=None)
            report = asyncio.run(
                evaluate(given, settings, lambda done, all_: progress.update(task, completed=done, total=all_))
            )
        if given.json is not None:
            write(report, given.json)
    except RuvError as error:
        sys.exit(str(error))
    print(table(report))


if __name__ == "__main__":
    main()
