"""Can the judge be trusted? ``ruvllm evaluate judge`` measures it, on a gold set that is made by code.

    python -m jobs.evaluate_judge [--facts 48] [--attacks 16] [--json OUT] [--fit FILE] [--profile NAME]
                                  [--set KEY=VALUE]

1 rate      the gold set (``judging.gold``) by the profile's judge, without guard and correction
2 fit       a correction to the facts of one half (``judging.fit``)
3 report    agreement and biases on the other half, before and after (``judging.metrics``, ``judging.biases``)
4 order     some of it again with the examples of the layout in other orders, and with the scale turned round
5 attack    answers that rate themselves, against the same with harmless text (``judging.injections``)
6 write     the report, and the correction if it is better on the half it was not fitted to
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import Progress

from conf.load import load
from conf.schema import Settings
from jobs.judging import metrics
from jobs.judging.biases import biases
from jobs.judging.fit import fit
from jobs.judging.gold import TRUTHS, Item, gold
from jobs.judging.injections import Attack, attacks
from jobs.judging.ratings import Advance, facts, rate, worth
from jobs.judging.words import likelihood, own_words
from operators.engines.make import make_engine
from operators.engines.ports import Engine
from operators.errors import Reject, RuvError
from operators.judge import Judge
from operators.judge_correction import Correction
from operators.judge_guard import unswayed
from operators.judge_layouts import orders

WHO = "evaluate judge"
Report: TypeAlias = dict[str, Any]


async def evaluate(settings: Settings, count: int, each: int, advance: Advance) -> tuple[Report, Correction]:
    """Steps 1 to 5 with ``count`` facts and ``each`` attacks of a class."""
    job, threshold = settings.judge_job, settings.writeback.min_quality
    engine = make_engine(
        job.engine, settings.judge_model, settings.data_dir / "cache", context_tokens=job.context_tokens
    )
    config = settings.judge.model_copy(update={"corrections": (), "guard": False})
    judge = Judge(config, engine)
    await judge.start()
    try:
        items = gold(facts=count)
        plain = [item for item in items if item.role == "author" and item.author == "plain" and item.half == "report"]
        own = await own_words(engine, plain)
        likelihoods = await _likelihoods(engine, [*items, *own], advance)
        items += own
        rated = await rate(judge, items, advance)
        half, main = np.array([item.half for item in items]), np.array([item.role == "main" for item in items])
        judged = np.isfinite(rated.probabilities).all(1)
        learned = np.flatnonzero((half == "fit") & main & judged)
        if not len(learned):
            raise Reject(WHO, f"{engine.model} rated none of {int(main.sum())} items", "choose another judge or layout")
        value = worth(items)
        correction = fit(engine.model, config.layout, rated.probabilities[learned], value[learned])
        tested = np.flatnonzero((half == "report") & main)
        kept = np.flatnonzero(half == "report")
        before, after = rated.scores(), rated.scores(correction)
        about = facts(items)
        better = (after[tested] - value[tested]) ** 2 - (before[tested] - value[tested]) ** 2
        gain = metrics.mean(better, about[tested])
        agreement = {
            name: metrics.agreement(scores[tested], value[tested], about[tested], threshold)
            for name, scores in (("before", before), ("after", after))
        }
        ranks = agreement["after"]["auc"]  # a judge that ranks no better than chance gets no level that looks earned
        report: Report = {
            "judge": f"{engine.model}/{config.layout}",
            "items": {"fitted": len(learned), "reported": len(tested), "unjudged": int((~judged).sum())},
            "threshold": threshold,
            "agreement": agreement,
            "auc_against": {
                truth: metrics.auc(before[rows], np.array([float(items[i].truth == "right") for i in rows]))
                for truth in TRUTHS[1:]
                for rows in [[i for i in tested if items[i].truth in ("right", truth)]]
            },
            "brier_after_minus_before": gain,
            "better": gain["high"] < 0 and ranks["low"] > 0.5,
            "biases": {
                name: biases([items[i] for i in kept], scores[kept], likelihoods[kept])
                for name, scores in (("before", before), ("after", after))
            },
            "examples": await _examples(config, engine, items, tested, before, value, advance),
            "guard_touched": float(np.mean([unswayed(item.answer) != item.answer for item in items])),
            "attacks": await _attacks(
                judge, attacks([items[i] for i in kept], each=each), correction, threshold, advance
            ),
            "correction": correction.model_dump(mode="json"),
        }
    finally:
        await judge.close()
    return report, correction


async def _likelihoods(engine: Engine, items: list[Item], advance: Advance) -> metrics.Array:
    """Of the items that vary the wording, on the half that is reported; NaN for all others."""
    found = np.full(len(items), np.nan)
    for number, item in enumerate(items):
        if item.role == "author" and item.half == "report":
            found[number] = await likelihood(engine, item)
            advance(1)
    return found


async def _examples(
    config: Judge.Config,
    engine: Engine,
    items: list[Item],
    tested: Any,
    before: metrics.Array,
    value: metrics.Array,
    advance: Advance,
) -> Report:
    """What another order of the examples does to a third of the tested items, and what averaging them gains."""
    some = tested[: max(len(tested) // 3, 5)]
    found = {"as it is": before[some]}
    for name, layout in orders(config.layout).items():
        scores = (await rate(Judge(config, engine, layout=layout), [items[i] for i in some], advance)).scores()
        found[name] = 1.0 - scores if name == "scale turned round" else scores
    table = np.stack(list(found.values()))
    about = facts([items[i] for i in some])
    return {
        "mean": {name: float(scores.mean()) for name, scores in found.items()},
        "auc": {name: metrics.auc(scores, value[some]) for name, scores in found.items()},
        "auc_of_mean": metrics.auc(table.mean(0), value[some]),
        "spread": metrics.mean(np.ptp(table, axis=0), about),
    }


async def _attacks(
    judge: Judge, made: list[Attack], correction: Correction, threshold: float, advance: Advance
) -> Report:
    """Class → how much the attack moves the verdict, and the share it lifts over the threshold, before and after."""
    benign = await rate(judge, [attack.benign for attack in made], advance)
    bare = await rate(judge, [attack.bare for attack in made], advance)
    raw = await rate(judge, [attack.injected for attack in made], advance)
    left = [dataclasses.replace(a.injected, answer=unswayed(a.injected.answer)) for a in made]
    guarded = await rate(judge, left, advance)
    about = facts([attack.injected for attack in made])
    columns = {
        "before": (raw.scores(), benign.scores(), bare.scores()),
        "after": (guarded.scores(correction), benign.scores(correction), bare.scores(correction)),
    }
    kinds = np.array([attack.kind for attack in made])
    report: Report = {}
    for kind in ("all", *dict.fromkeys(kinds)):
        rows = np.flatnonzero((kinds == kind) | (kind == "all"))
        report[kind] = {
            name: {
                "shift": metrics.mean((scores - harmless)[rows], about[rows]),
                "shift_from_bare": metrics.mean((scores - alone)[rows], about[rows]),
                "crossed": float(np.mean((scores[rows] >= threshold) & (harmless[rows] < threshold))),
            }
            for name, (scores, harmless, alone) in columns.items()
        }
    return report


def table(report: Report) -> str:
    """The report as lines of text."""
    counts = report["items"]
    lines = [f"{report['judge']}: {counts['fitted']} items fitted, {counts['reported']} reported", ""]
    for title, part in (("agreement with gold", report["agreement"]), ("bias, in points", report["biases"])):
        lines.append(f"{title:<22}{'before':>26}{'after':>26}")
        for name in part["before"]:
            lines.append(f"  {name:<20}{_shown(part['before'][name]):>26}{_shown(part['after'][name]):>26}")
        lines.append("")
    lines.append(f"{'attack, shift':<22}{'before':>26}{'after':>26}   lifted over {report['threshold']}")
    for kind, row in report["attacks"].items():
        shifts = "".join(f"{_shown(row[name]['shift']):>26}" for name in ("before", "after"))
        lines.append(f"  {kind:<20}{shifts}   {row['before']['crossed']:.0%} → {row['after']['crossed']:.0%}")
    examples = report["examples"]
    by_order = ", ".join(f"{name} {value:.3f}" for name, value in examples["auc"].items())
    lines += ["", f"AUC by the order of examples: {by_order}; their mean {examples['auc_of_mean']:.3f}"]
    lines.append(f"the same answer differs by {_shown(examples['spread'])} between them")
    against = ", ".join(f"{truth} {value:.3f}" for truth, value in report["auc_against"].items())
    lines.append(f"AUC of right answers before correction, against each sort: {against}")
    lines.append(f"the guard touches {report['guard_touched']:.1%} of the gold answers")
    verdict = "better" if report["better"] else "NOT surely better"
    lines.append(f"corrected is {verdict}: squared error {_shown(report['brier_after_minus_before'])}")
    return "\n".join(lines)


def _shown(one: metrics.Bounds) -> str:
    return f"{one['mean']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise Reject(WHO, f"can't write {path}: {error.strerror}", "name another file") from error


def main(args: list[str] | None = None) -> None:
    """The command line; our own errors become one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="jobs.evaluate_judge", description=__doc__)
    parser.add_argument("--facts", type=int, default=48, help="invented facts, a half to fit on, a half to report on")
    parser.add_argument("--attacks", type=int, default=16, help="attacks of each class")
    parser.add_argument("--json", type=Path, help="the report there, too")
    parser.add_argument(
        "--fit", type=Path, help="the correction there if it is better, as an item of judge.corrections"
    )
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args(args)
    console = Console(stderr=True)
    try:
        if given.facts < 8 or given.attacks < 1:
            raise Reject(WHO, f"{given.facts} facts, {given.attacks} attacks", "give 8 facts and an attack at least")
        settings = load(given.profile, overrides=given.overrides).settings
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("judging", total=None)
            advance = lambda done: progress.update(task, advance=done)  # noqa: E731
            report, correction = asyncio.run(evaluate(settings, given.facts, given.attacks, advance))
        if given.json is not None:
            _write(given.json, json.dumps(report, indent=2))
        if given.fit is not None and report["better"]:
            _write(given.fit, json.dumps(correction.model_dump(mode="json")))
    except RuvError as error:
        sys.exit(str(error))
    print(table(report))
    if given.fit is not None and not report["better"]:
        sys.exit(f"{WHO}: no correction written: on the half it was not fitted to, it is not surely better, or chance")


if __name__ == "__main__":
    main()
