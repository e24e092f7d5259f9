"""``ruvllm export``: what other runtimes read. Each command is a job in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import AsJson, Profile, Sets
from pipeline.run_job import run_job

export_app = typer.Typer(help="Export the profile's networks for another runtime.", no_args_is_help=True)


@export_app.callback()
def _() -> None:
    """A group, though it has only one command yet."""


@export_app.command("executorch")
def executorch(
    out: Annotated[
        Path | None,
        typer.Option(help="folder for the programs and settings.yaml", show_default="executorch in data_dir"),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="encoder, router or attention; all, if not given")] = None,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Export the encoder, the router and the attention network to ExecuTorch, and the settings that serve them.

    Each is held against torch before it is written. Takes a minute or two.
    """
    words = [word for part in only or [] for word in ("--only", part)] + ["--json"] * as_json
    run_job("export_executorch", words, {"--out": out}, profile, set_)
