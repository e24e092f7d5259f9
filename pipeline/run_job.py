"""A command that is a job: it runs in a process of its own, and the command ends as the job does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import typer


def run_job(
    name: str,
    words: Sequence[str],
    options: Mapping[str, object] | None = None,
    profile: str | None = None,
    sets: Sequence[str] | None = None,
) -> NoReturn:
    """Run ``jobs.NAME`` with ``words``, those of ``options`` that are not ``None``, and the settings; then exit."""
    said = [sys.executable, "-m", f"jobs.{name}", *words]
    for option, value in {**(options or {}), "--profile": profile}.items():
        said += [] if value is None else [f"{option}={value}"]
    said += [word for item in sets or [] for word in ("--set", item)]
    raise typer.Exit(subprocess.run(said, check=False).returncode)  # noqa: S603 - our own module, no shell
