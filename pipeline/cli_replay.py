"""``ruvllm replay``: read a window of interactions again, and judge, train or estimate on it. A job of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import AsJson, Profile, Sets
from pipeline.run_job import run_job

replay_app = typer.Typer(
    help="Read a window of the log again: judge it anew, train a router on it, estimate what one is worth.",
    no_args_is_help=True,
)
Archive = Annotated[Path, typer.Argument(metavar="DIR", help="the archive; it is read first, if it is not there yet")]
From = Annotated[str, typer.Option("--from", help="a time (ISO 8601, UTC), or PARTITION:OFFSET,…; empty: the oldest")]
To = Annotated[str, typer.Option("--to", help="the same; not read itself; empty: the newest")]
Tenant = Annotated[str, typer.Option(help="whose interactions; empty: all tenants'")]
Like = Annotated[Path | None, typer.Option(metavar="DIR", help="the offsets of another archive instead")]
Rejudged = Annotated[bool, typer.Option("--rejudged", help="with the verdicts of replay rejudge in place of the log's")]


@replay_app.command()
def read(
    archive: Archive,
    from_: From = "",
    to: To = "",
    tenant: Tenant = "",
    like: Like = None,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Copy a window of interactions and their verdicts into an archive: Parquet, and a manifest of what was read."""
    _run("read", archive, from_, to, tenant, like, profile, set_, as_json)


@replay_app.command()
def rejudge(
    archive: Archive,
    from_: From = "",
    to: To = "",
    tenant: Tenant = "",
    like: Like = None,
    publish: Annotated[bool, typer.Option("--publish", help="hand the verdicts to the learner")] = False,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Judge every interaction with the judge of the profile. The verdicts are kept beside the archive."""
    _run("rejudge", archive, from_, to, tenant, like, profile, set_, as_json, *["--publish"] * publish)


@replay_app.command()
def retrain(
    archive: Archive,
    from_: From = "",
    to: To = "",
    tenant: Tenant = "",
    like: Like = None,
    rejudged: Rejudged = False,
    publish: Annotated[bool, typer.Option(help="hand the router in as a candidate; the gate decides")] = True,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Train a router from scratch, and hand it in as a candidate. The same archive gives the same weights."""
    rest = [*["--rejudged"] * rejudged, *["--no-publish"] * (not publish)]
    _run("retrain", archive, from_, to, tenant, like, profile, set_, as_json, *rest)


@replay_app.command()
def estimate(
    archive: Archive,
    from_: From = "",
    to: To = "",
    tenant: Tenant = "",
    like: Like = None,
    rejudged: Rejudged = False,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="which, as often as needed", show_default="the start and those that act")
    ] = None,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """What routers would have been worth on these turns: IPS, SNIPS and doubly robust, with intervals."""
    rest = [*["--rejudged"] * rejudged, *(word for one in checkpoint or [] for word in ("--checkpoint", one))]
    _run("estimate", archive, from_, to, tenant, like, profile, set_, as_json, *rest)


def _run(
    step: str,
    archive: Path,
    begin: str,
    end: str,
    tenant: str,
    like: Path | None,
    profile: str | None,
    sets: list[str] | None,
    as_json: bool,
    *rest: str,
) -> None:
    words = [step, str(archive), *["--json"] * as_json, *rest]
    window = {"--from": begin or None, "--to": end or None, "--tenant": tenant or None, "--like": like}
    run_job("replay", words, window, profile, sets)
