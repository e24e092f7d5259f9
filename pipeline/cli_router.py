"""``ruvllm router``: the router's checkpoints. The commands work on the data directory; a running service follows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from conf.load import load
from pipeline.options import AsJson, Profile, Sets
from pipeline.router_calls import RouterCalls

router_app = typer.Typer(help="The router's checkpoints: what decides, and what did before.", no_args_is_help=True)
Version = Annotated[str, typer.Argument(metavar="VERSION", help="a checkpoint, e.g. router-000003")]
Reason = Annotated[str, typer.Option(help="why; kept with the change")]


@router_app.command("list")
def list_(profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """The checkpoints, newest first, and which of them act."""
    found = _calls(profile, set_).list()
    if as_json:
        return _json(found)
    for row in found["versions"]:
        made = datetime.fromtimestamp(row["created_at"], UTC).strftime("%Y-%m-%d %H:%M") if row["created_at"] else ""
        gate = {True: "passed the gate", False: "refused by the gate", None: ""}[row["passed"]]
        facts = (row["part"], "pinned" if row["pinned"] else "", made, gate, row["note"])
        _out(f"[bold]{escape(row['version'])}[/bold]  {escape('  '.join(fact for fact in facts if fact))}")
    _rollout(found["rollout"])


@router_app.command()
def show(version: Version, profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """One checkpoint: its files, where it comes from, what the gate said. Exit code 1 if it is damaged."""
    found = _calls(profile, set_).show(version)
    if as_json:
        _json(found)
    elif found["whole"]:
        manifest = found["manifest"]
        for name in ("version", "parent", "created_at", "note"):
            _out(f"[dim]{name:<11}[/dim] {escape(str(manifest[name]))}")
        for name, file in manifest["files"].items():
            _out(f"[dim]file[/dim]        {escape(name)}  {file['size']} bytes  {file['sha256']}")
        for partition, (first, after) in manifest["window"].items():
            _out(f"[dim]learned from[/dim] {escape(partition)}  offsets {first} to {after}")
        _out(escape(json.dumps(manifest["metrics"], indent=2)))
    else:
        _out(f"[red]damaged[/red] {escape(found['damage'])}")
    if not found["whole"]:
        raise typer.Exit(1)


@router_app.command()
def diff(a: Version, b: Version, profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """How far the weights of the second are from those of the first."""
    found = _calls(profile, set_).diff(a, b)
    if as_json:
        return _json(found)
    for name, row in found["parameters"].items():
        relative = "" if row["relative"] is None else f"  ({row['relative']:.2%} of the first)"
        _out(f"{name:<14} {row['change']:.6f}{relative}")


@router_app.command()
def promote(
    version: Version,
    force: Annotated[bool, typer.Option("--force", help="although the gate did not let it pass")] = False,
    reason: Reason = "",
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Let a checkpoint decide at once, without shadow and canary."""
    _done(_calls(profile, set_).promote(version, force, reason), as_json)


@router_app.command()
def rollback(reason: Reason = "", profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """One step back: end what is watched or tried, else let what was active before decide again."""
    _done(_calls(profile, set_).rollback(reason), as_json)


@router_app.command()
def freeze(reason: Reason = "", profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """Promote nothing by itself any more; an alarm still goes back."""
    _done(_calls(profile, set_).freeze(True, reason), as_json)


@router_app.command()
def unfreeze(reason: Reason = "", profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """Let promotion go on by itself."""
    _done(_calls(profile, set_).freeze(False, reason), as_json)


def _calls(profile: str | None, set_: list[str] | None) -> RouterCalls:
    return RouterCalls(load(profile, overrides=set_ or []).settings)


def _done(rollout: Any, as_json: bool) -> None:
    _json(rollout) if as_json else _rollout(rollout)


def _rollout(now: Any) -> None:
    tried = f", {now['canary']} in {now['share']:.0%} of the sessions" if now["canary"] else ""
    watched = f", {now['shadow']} is watched" if now["shadow"] else ""
    frozen = ", promotion is frozen" if now["frozen"] else ""
    _out(escape(f"{now['active']} decides{tried}{watched}{frozen}  ({now['by']}: {now['reason']})"))


def _out(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text)


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
