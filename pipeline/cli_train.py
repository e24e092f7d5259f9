"""``ruvllm train``: learn from data of one's own. Each command is a job in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import AsJson, Profile, Sets
from pipeline.run_job import run_job

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
    words = ["--out", str(out), *["--events"] * events, *["--json"] * as_json]
    run_job("train_attention", words, {"--corpus": corpus, "--queries": queries}, profile, set_)
