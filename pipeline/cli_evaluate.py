"""``ruvllm evaluate``: measure a part of the system on data of one's own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from conf.load import load
from operators.errors import Reject
from pipeline.options import AsJson, Profile, Sets
from pipeline.run_job import run_job

evaluate_app = typer.Typer(help="Measure a part of the system on your own data.", no_args_is_help=True)


@evaluate_app.command("memory")
def evaluate_memory(
    corpus: Annotated[Path, typer.Option(help='JSON Lines: {"id", "text", "session"?, "order"?, "source"?, "time"?}')],
    queries: Annotated[Path, typer.Option(help='JSON Lines: {"id", "text", "gold": [ids of corpus lines]}')],
    out: Annotated[Path | None, typer.Option(help="write the report there, as JSON")] = None,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """How well the memory finds the lines that answer a query: recall, nDCG and time, by way of searching.

    Works on a temporary memory; yours is not touched, and no service need run.
    """
    from pipeline.evaluate import evaluate_memory as evaluate

    settings = load(profile, overrides=set_ or []).settings
    if out is not None and not out.parent.is_dir():
        raise Reject("evaluate", f"no folder {out.parent} for the report", "make it, or name another --out")
    err = Console(stderr=True)
    with Progress(console=err, disable=as_json or not err.is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=None)
        report = asyncio.run(
            evaluate(corpus, queries, settings, lambda done, total: progress.update(task, completed=done, total=total))
        )
    text = json.dumps(report, ensure_ascii=False, indent=2)
    if out is not None:
        try:
            out.write_text(text + "\n")
        except OSError as error:
            raise Reject("evaluate", f"can't write {out}: {error.strerror}", "name another --out") from error
    print(text if as_json else table(report))


@evaluate_app.command("continual")
def evaluate_continual(
    json_: Annotated[
        str | None, typer.Option("--json", metavar="OUT", help="the report there, too; - prints it")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs of everything, each from another seed")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="a minute's trial that shows it works")] = False,
) -> None:
    """Whether the learner forgets: permuted digits and a made-up stream of turns that changes. Takes half an hour.

    Works on its own data; yours is not touched, and no service need run.
    """
    run_job("evaluate_continual", ["--seeds", str(seeds), *["--quick"] * quick], {"--json": json_})


@evaluate_app.command("judge")
def evaluate_judge(
    facts: Annotated[int, typer.Option(min=8, help="invented facts, a half to fit on, a half to report on")] = 48,
    attacks: Annotated[int, typer.Option(min=1, help="attacks of each class")] = 16,
    json_: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="the report there, too")] = None,
    fit: Annotated[Path | None, typer.Option(help="a correction there, for judge.corrections, if it is better")] = None,
    profile: Profile = None,
    set_: Sets = None,
) -> None:
    """Whether the judge can be trusted: agreement with known truth, biases, answers that rate themselves.

    Takes a quarter of an hour on a free core. Works on made-up facts; no service need run.
    """
    words = ["--facts", str(facts), "--attacks", str(attacks)]
    run_job("evaluate_judge", words, {"--json": json_, "--fit": fit}, profile, set_)


@evaluate_app.command("router")
def evaluate_router(
    outcomes: Annotated[Path, typer.Option(help="Parquet: id, domain, prompt, and TIER_quality and TIER_cost each")],
    test: Annotated[Path | None, typer.Option(help="test on this file instead of a part of --outcomes")] = None,
    train_fraction: Annotated[float, typer.Option(help="share of the prompts to learn from")] = 0.5,
    by_domain: Annotated[bool, typer.Option("--by-domain", help="test on domains not learned from")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="runs of everything, each from another seed")] = 5,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers that share the seeds; 0 does without Ray")] = 0,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="the report there, a plot beside it as .png")
    ] = None,
    profile: Profile = None,
    set_: Sets = None,
) -> None:
    """Whether the router chooses well: it learns from a part of your outcomes, and is tested on the rest.

    Beside simpler ways to choose. Of two tiers, columns weak_correct and strong_correct will do.
    """
    words = ["--outcomes", str(outcomes), *["--by-domain"] * by_domain]
    words += ["--train-fraction", str(train_fraction), "--seeds", str(seeds), "--workers", str(workers)]
    run_job("evaluate_router", words, {"--test": test, "--json": json_}, profile, set_)


@evaluate_app.command("live")
def evaluate_live(
    questions: Annotated[int, typer.Option(min=1, help="questions to learn from")] = 300,
    fresh: Annotated[int | None, typer.Option(min=1, show_default="half as many", help="questions to measure")] = None,
    seed: Annotated[int, typer.Option(help="of the questions")] = 0,
    feedback: Annotated[
        str, typer.Option(help="who says which answers were right: judge, or truth as a user")
    ] = "judge",
    force: Annotated[
        bool, typer.Option("--force", help="measure the newest candidate even if the gate refuses")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="the report there, too")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="an empty folder to keep it all; else it is removed")] = None,
    patience: Annotated[float, typer.Option(help="seconds to wait while nothing happens")] = 300.0,
    profile: Profile = None,
    set_: Sets = None,
) -> None:
    """Whether the service gets better with use: it asks a service of its own, lets it learn, and asks fresh questions.

    Questions with known answers, some from the memory; beside always one tier. Takes some seconds a question.
    """
    words = ["--questions", str(questions), "--seed", str(seed), "--feedback", feedback]
    words += ["--patience", str(patience), *["--force"] * force]
    run_job("evaluate_live", words, {"--fresh": fresh, "--json": json_, "--data-dir": data_dir}, profile, set_)


def table(report: dict[str, Any]) -> str:
    """The report as lines of text; the default line is marked with ``*``."""
    results = {line: row for line, row in report["results"].items() if line != "default"}
    names = list(next(iter(results.values())))
    width = max(map(len, results)) + 2
    rows = [" " * width + "".join(f"{name:>{len(name) + 2}}" for name in names)]
    for line, row in results.items():
        marked = f"{line} *" if line == report["default"] else line
        values = (f"{row[n]:.{0 if n == 'context_tokens' else 2 if n == 'ms_p50' else 3}f}" for n in names)
        cells = (f"{value:>{len(name) + 2}}" for name, value in zip(names, values, strict=True))
        rows.append(f"{marked:<{width}}" + "".join(cells))
    counts = "  ".join(f"{name} {value}" for name, value in report["corpus"].items())
    return "\n".join([*rows, "", f"* what the service does by default   {counts}"])
