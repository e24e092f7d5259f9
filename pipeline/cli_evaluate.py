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
