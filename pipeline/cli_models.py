"""``ruvllm models``: the weights of the profile: what is here, fetched, verified and measured. The profile alone says
where a file is: what is typed or requested is only ever compared with its names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape

from conf.load import load
from conf.schema import Settings
from operators.errors import Reject, RuvError, Stop
from operators.records import record
from operators.tiers import ModelFile, Tier
from pipeline.client import Client
from pipeline.options import AsJson, Profile, Sets, Url

models_app = typer.Typer(help="The models of the profile.", no_args_is_help=True)
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="models or tiers of the profile", show_default="all")
]
TierName = Annotated[str, typer.Argument(metavar="TIER", help="a tier of the service")]


@models_app.command("list")
def list_(profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """The models of the profile and whether their weights are here and whole. Exit code 1 if one is not.

    If the service runs, also which of them it has loaded.
    """
    _states(load(profile, overrides=set_ or []).settings, None, as_json, anew=False)


@models_app.command()
def verify(ids: Ids = None, profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """Hash the files anew, whatever is remembered of them. Exit code 1 if one is missing or wrong.

    Of a file that the profile doesn't check, the checksum it has is shown, to be written into the profile.
    """
    _states(load(profile, overrides=set_ or []).settings, ids, as_json, anew=True)


@models_app.command()
def pull(
    ids: Ids = None,
    accept: Annotated[bool, typer.Option("--accept-licence", help="you have read the licences")] = False,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the models that have a url in the profile, and go on where an earlier pull stopped.

    A file is put in place only if its SHA-256 is the one of the profile. Exit code 1 if one could not be fetched.
    """
    from operators.engines.files.fetch import fetch, fetchable
    from operators.engines.files.models import inspect

    settings = load(profile, overrides=set_ or []).settings
    wanted = {use.model.id: use.model for use in _chosen(settings, ids) if ids or use.model.url}
    if not wanted:
        raise Reject("models pull", f"no model of profile {settings.profile} has a url", "set one in the profile")
    rows, missing = [], []
    for model in wanted.values():
        row = inspect(model, settings.data_dir / "cache") | {"fetched": False, "error": ""}
        rows.append(row)
        if row["state"] == "ok":
            continue
        try:
            fetchable(model)
            missing.append((model, row))
        except RuvError as error:
            row["error"] = str(error)
    if missing and not accept:
        said = "; ".join(f"{model.id}: {model.licence or 'no licence named in the profile'}" for model, _ in missing)
        raise Reject("models pull", f"licences to accept: {said}", "read them, then add --accept-licence")
    for model, row in missing:
        try:
            path = fetch(model, _Progress(model), min_free_bytes=settings.maintain.min_free_bytes)
            row |= {"state": "ok", "path": str(path), "bytes": path.stat().st_size, "fetched": True}
        except RuvError as error:
            row["error"] = str(error)
    if as_json:
        _json(rows)
    for row in rows if not as_json else []:
        if row["error"]:
            _out(f"[red]error:[/red] {escape(row['error'])}")
        else:
            _out(escape(f"{row['id']}  {'fetched to' if row['fetched'] else 'already here:'} {row['path']}"))
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


@models_app.command()
def bench(
    tiers: Annotated[list[str] | None, typer.Argument(metavar="TIER", help="tiers", show_default="all")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="rounds; medians are shown")] = 5,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Load and run the tiers in every engine that can, alone, and say how fast this machine is at it."""
    from pipeline.bench_models import bench as measure
    from pipeline.bench_models import machine

    settings = load(profile, overrides=set_ or []).settings
    known = {tier.name: tier for tier in settings.tiers}
    chosen = [known[name] if name in known else _unknown(name, known) for name in tiers or known]
    here = machine()
    say = (lambda what: None) if as_json else (lambda what: print(f"{what} …", file=sys.stderr, flush=True))
    rows = asyncio.run(measure(chosen, settings.data_dir / "cache", rounds, say))
    if as_json:
        return _json({"machine": here, "rounds": rounds, "rows": rows})
    width = max(len(row["tier"]) for row in rows) + 2
    _out(f"{'tier':<{width}}{'engine':<14}{'load':>8}{'first':>10}{'prompt':>10}{'answer':>10}{'memory':>10}")
    for row in rows:
        begin = f"{row['tier']:<{width}}{row['engine']:<14}"
        if row["error"]:
            _out(f"{escape(begin)}[red]{escape(row['error'])}[/red]")
            continue
        speeds = f"{_rate(row['prompt_per_s'])}{_rate(row['generated_per_s'])}{row['memory_bytes'] / 1e6:>7.0f} MB"
        _out(escape(f"{begin}{row['load_s']:>6.2f} s{row['first_token_s'] * 1000:>7.0f} ms{speeds}"))
    busy = "machine busy: the figures are too low" if here["busy"] else "the machine was idle enough"
    _out(f"load {here['load']} on {here['cores']} cores before the start: {busy}. prompt, answer: tokens per second")


@models_app.command("load")
def load_tier(
    tier: TierName, profile: Profile = None, set_: Sets = None, url: Url = None, as_json: AsJson = False
) -> None:
    """Let the running service load a tier's model; others are unloaded if the memory budget asks for it."""
    _told(tier, "load", profile, set_, url, as_json)


@models_app.command()
def unload(
    tier: TierName, profile: Profile = None, set_: Sets = None, url: Url = None, as_json: AsJson = False
) -> None:
    """Let the running service give back a tier's memory, once its answers under way are done."""
    _told(tier, "unload", profile, set_, url, as_json)


@record
class _Use:
    """A model file and what it is for; ``tier`` if it is a tier's."""

    name: str
    engine: str
    model: ModelFile
    tier: Tier | None = None


def _uses(settings: Settings) -> list[_Use]:
    embed, judge = settings.embed, settings.judge_job
    found = [_Use(name=tier.name, engine=tier.engine, model=tier.model, tier=tier) for tier in settings.tiers]
    found.append(_Use(name="(embed)", engine=embed.backend, model=embed.model))
    if embed.tokenizer:
        found.append(_Use(name="(tokenizer)", engine=embed.backend, model=embed.tokenizer))
    if judge.enabled and judge.model:
        found.append(_Use(name="(judge)", engine=judge.engine, model=judge.model))
    networks = {"(route)": settings.route.pte, "(attend)": settings.attend.pte}
    return found + [_Use(name=name, engine="executorch", model=file) for name, file in networks.items() if file]


def _chosen(settings: Settings, ids: list[str] | None) -> list[_Use]:
    """The uses of the named models or tiers, in the profile's order; all without names."""
    uses = _uses(settings)
    known = {use.model.id for use in uses} | {tier.name for tier in settings.tiers}
    for name in ids or []:
        if name not in known:
            _unknown(name, sorted(known))
    return [use for use in uses if not ids or use.model.id in ids or use.name in ids]


def _unknown(name: str, known: Iterable[str]) -> NoReturn:
    raise Reject("models", f"the profile has no {name[:200]!r}", f"use one of: {', '.join(known)}", 404)


def _states(settings: Settings, ids: list[str] | None, as_json: bool, *, anew: bool) -> None:
    from operators.engines.files.models import inspect
    from operators.engines.pool.sizing import expected

    cache, rows, running = settings.data_dir / "cache", [], {} if anew else _running(settings)
    for use in _chosen(settings, ids):
        row = {"tier": use.name, "engine": use.engine, **inspect(use.model, cache, anew=anew), "memory_bytes": 0}
        row["running"], row["reason"] = running.get(use.name, ("", ""))
        if use.tier and row["path"]:
            with contextlib.suppress(Stop), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the row says what is unchecked
                row["memory_bytes"] = asyncio.run(expected(use.tier, cache))
        rows.append(row)
    if as_json:
        _json(rows)
    for row in rows if not as_json else []:  # no table: it would cut the paths
        size = f"{row['bytes'] / 1e6:.1f} MB  " if row["bytes"] else ""
        memory = f"about {row['memory_bytes'] / 1e6:.0f} MB in memory  " if row["memory_bytes"] else ""
        why = f": {row['reason']}" if row["reason"] and row["path"] else ""  # else the file's line says it
        now = f"  {row['running']} in the service{why}" if row["running"] else ""
        what = escape(f"{row['id']}  {row['engine']}  {size}{memory}{row['licence']}{now}")
        _out(f"[bold]{escape(row['tier'])}[/bold]  {what}")
        seen = f"  SHA-256 {row['sha256']}" if anew and row["path"] else ""
        remedy = f"; {row['remedy']}" if row["remedy"] else ""
        style = "" if row["path"] else "[red]"
        _out(style + escape(f"  {row['state']}{remedy}  {row['path']}{seen}".rstrip()))
    if not all(row["path"] for row in rows):
        raise typer.Exit(1)


def _told(tier: str, what: str, profile: str | None, set_: list[str] | None, url: str | None, as_json: bool) -> None:
    with _service(load(profile, overrides=set_ or []).settings, url) as client:
        rows = client.call("POST", _door(tier, what))
    if as_json:
        return _json(rows)
    (row,) = [row for row in rows if row["tier"] == tier]
    _out(escape(f"{tier}: {row['state']}  {row['bytes'] / 1e6:.0f} MB in memory  {row['reason']}".rstrip()))


def _running(settings: Settings) -> dict[str, tuple[str, str]]:
    """What the service, if one runs, says of each tier: ``ready``, ``absent`` and so on, and what went wrong last."""
    with contextlib.suppress(RuvError), _service(settings, None) as client:
        return {row["tier"]: (row["state"], row["reason"]) for row in client.call("GET", "/v1/admin/models")}
    return {}


@contextlib.contextmanager
def _service(settings: Settings, url: str | None) -> Iterator[Client]:
    from pipeline.administer import admin_key

    address = settings.http.url() if url is None else url
    with contextlib.closing(Client(address, admin_key(settings.data_dir, url))) as client:
        yield client


def _door(tier: str, what: str) -> str:
    """The endpoint for a tier, whose name is one step of the address whatever is in it."""
    if not tier.strip(".") or "/" in tier:  # a step of the address that no tier's name can be
        raise Reject("models", f"no tier is called {tier!r}", "see 'ruvllm models list'")
    return f"/v1/admin/models/{quote(tier, safe='')}/{what}"


class _Progress:
    """What has come, on standard error: in a terminal one line that changes, else one for every tenth of the file."""

    def __init__(self, model: ModelFile) -> None:
        self._name = model.id
        self._began: tuple[float, int] | None = None
        self._next = 0.0

    def __call__(self, have: int, total: int) -> None:
        now = time.monotonic()
        self._began = self._began or (now, have)
        is_terminal = sys.stderr.isatty()
        if have < total and (now if is_terminal else have / max(total, 1)) < self._next:
            return
        self._next = now + 0.2 if is_terminal else (10 * have // max(total, 1) + 1) / 10
        speed = (have - self._began[1]) / max(now - self._began[0], 1e-3) / 1e6
        line = f"{self._name}  {have / 1e6:.1f} of {total / 1e6:.1f} MB  {speed:.1f} MB/s"
        end = "\n" if have == total or not is_terminal else ""
        print(f"\r{line}\x1b[K" if is_terminal else line, end=end, file=sys.stderr, flush=True)


def _rate(tokens: float | None) -> str:
    return f"{'-' if tokens is None else f'{tokens:.1f}':>8}/s"


def _out(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text)


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
