"""``ruvllm train``: learn from data of one's own. Each command is a job in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import AsJson, Profile, Sets

train_app = typer.Typer(help="Train a part of the system.", no_args_is_help=True)


@train_app.command("attention")
def train_attention(
    out: Annotated[Path, typer.Option(help="the checkpoint to write, for attend.checkpoint; its report stands beside")],
    corpus: Annotated[Path | None, typer.Option(help="JSON Lines, as for evaluate memory")] = None,
    queries: Annotated[Path | None, typer.Option(help="JSON Lines, as for evaluate memory")] = None,
    events: Annotated[bool, typer.Option(help="learn from the profile's judged interactions instead")] = False,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Train the ranking of passages. It is used only if it beats the untrained one on queries held out."""
    words = [sys.executable, "-m", "jobs.train_attention", "--out", str(out)]
    for name, value in (("--corpus", corpus), ("--queries", queries), ("--profile", profile)):
        words += [name, str(value)] if value is not None else []
    words += [word for item in set_ or [] for word in ("--set", item)]
    words += [*["--events"] * events, *["--json"] * as_json]
    raise typer.Exit(subprocess.run(words, check=False).returncode)  # noqa: S603 - our own module, no shell
