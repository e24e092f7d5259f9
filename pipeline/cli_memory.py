"""``ruvllm memory``: look after a memory. A user's commands ask a running service; the administrator's work without."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from conf.load import load
from operators.errors import Reject
from pipeline.client import Client
from pipeline.options import AsJson, Key, Profile, Sets, Url

memory_app = typer.Typer(help="Look after the memory.", no_args_is_help=True)
Tenant = Annotated[str, typer.Option(help="whose memory")]
Some = list[str] | None
NODES = "/v1/memory/nodes"


@memory_app.command("list")
def list_nodes(
    kind: Annotated[
        Some, typer.Option(help="document, interaction or summary; may be repeated, as the next ones")
    ] = None,
    domain: Annotated[Some, typer.Option(help="only nodes of this domain")] = None,
    source: Annotated[Some, typer.Option(help="only what came from this file or address")] = None,
    session: Annotated[Some, typer.Option(help="only turns of this session")] = None,
    user: Annotated[Some, typer.Option(help="only what this user asked or added")] = None,
    limit: Annotated[int, typer.Option(help="nodes at most")] = 20,
    after: Annotated[str, typer.Option(help="where the page before ended")] = "",
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Your nodes, newest first."""
    asked = {"kind": kind, "domain": domain, "source": source, "session": session, "user": user}
    params = {name: values for name, values in asked.items() if values} | {"limit": limit, "after": after}
    page = _user(profile, set_, url, api_key, "GET", NODES, params=params)
    if as_json:
        return _json(page)
    for node in page["nodes"]:
        where = node["source"] or (f"session {node['session']}" if node["session"] else "")
        _out(f"[bold]{escape(node['node_id'])}[/bold]  {node['kind']}  {escape(where)}")
        _out("  " + escape(" ".join(node["text"].split())[:200]))
    _out(f"{len(page['nodes'])} of {page['total']}")
    if page["after"]:
        _out(f"more: --after {escape(json.dumps(page['after']))}")


@memory_app.command()
def show(
    node_id: Annotated[str, typer.Argument(metavar="ID", help="the node")],
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """One node: its text, where it comes from, its edges, its changes."""
    _show(_user(profile, set_, url, api_key, "GET", f"{NODES}/{_quoted(node_id)}"), as_json)


@memory_app.command()
def update(
    node_id: Annotated[str, typer.Argument(metavar="ID", help="the node")],
    text: Annotated[str | None, typer.Option(help="its new text; embedded anew")] = None,
    domain: Annotated[str | None, typer.Option(help="its domain")] = None,
    source: Annotated[str | None, typer.Option(help="where it comes from")] = None,
    quality: Annotated[float | None, typer.Option(help="0 to 1")] = None,
    expires_at: Annotated[float | None, typer.Option(help="Unix seconds; 0: never")] = None,
    metadata: Annotated[str | None, typer.Option(help='all its metadata, as JSON: {"by": "me"}')] = None,
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Change a node: what is given takes the place of what is there."""
    given = {"text": text, "domain": domain, "source": source, "quality": quality, "expires_at": expires_at}
    change: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if metadata is not None:
        try:
            change["metadata"] = json.loads(metadata)
        except ValueError as error:
            raise Reject("--metadata", f"no JSON: {error}", 'write it like {"by": "me"}') from error
    if not change:
        raise Reject("update", "nothing to change", "give --text, --domain or another field")
    _show(_user(profile, set_, url, api_key, "PATCH", f"{NODES}/{_quoted(node_id)}", change), as_json)


@memory_app.command()
def delete(
    node: Annotated[Some, typer.Option(help="a node's id; may be repeated")] = None,
    source: Annotated[str | None, typer.Option(help="all that came from this file or address")] = None,
    session: Annotated[str | None, typer.Option(help="all turns of this session")] = None,
    user: Annotated[str | None, typer.Option(help="all that this user asked or added")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="all of the tenant")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="out of the store's files at once; slower")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="don't ask")] = False,
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove nodes for good, and say what is left where."""
    ways = {"node_ids": node, "source": source, "session": session, "user": user, "everything": everything or None}
    given = {name: value for name, value in ways.items() if value is not None}
    if len(given) != 1:
        got = "nothing named" if not given else " and ".join(given)
        raise Reject("delete", got, "give exactly one of --node, --source, --session, --user, --everything")
    ((name, value),) = given.items()
    what = {"node_ids": f"{len(node or [])} nodes", "everything": "the whole memory"}.get(name, f"{name} {value}")
    if not yes:
        typer.confirm(f"Remove {what} for good?", abort=True, err=True)
    body = given | ({} if everything else {"purge": purge})
    receipt = _user(profile, set_, url, api_key, "POST", "/v1/memory/delete", body)
    if as_json:
        return _json(receipt)
    _out(f"removed {receipt['vectors']} nodes and {receipt['graph_edges']} edges  (receipt {receipt['receipt_id']})")
    for place in receipt["remains"]:
        _out(f"[yellow]left in[/yellow] {escape(place)}")


@memory_app.command()
def check(
    repair: Annotated[bool, typer.Option("--repair", help="mend what differs")] = False,
    tenant: Tenant = "default",
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Whether vectors, graph and snapshot agree. Exit code 1 if they don't and nothing was mended."""
    found = _admin(profile, set_, url, "check", tenant, repair=repair)
    if as_json:
        _json(found)
    else:
        _out(f"{found['nodes']} nodes, {found['edges']} edges: {'sound' if found['sound'] else 'not sound'}")
        faults = ("only_vectors", "only_graph", "repeated", "returned")
        for name in (name for name in faults if found[name]):
            _out(f"  {name} {found[name]}  e.g. {escape(', '.join(found['examples'][name][:3]))}")
        if repair and not found["sound"]:
            _out("mended")
    if not found["sound"] and not repair:
        raise typer.Exit(1)


@memory_app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a new directory, on the service's machine")],
    tenant: Tenant = "default",
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write a tenant's memory as Parquet files."""
    made = _admin(profile, set_, url, "export", tenant, directory=str(directory.absolute()))
    _held(made, f"exported to {directory}", as_json)


@memory_app.command("import")
def import_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="what an export made, on the service's machine")],
    replace: Annotated[bool, typer.Option("--replace", help="in place of what is there, not beside it")] = False,
    tenant: Tenant = "default",
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Read an export into a tenant's memory."""
    done = _admin(profile, set_, url, "import", tenant, directory=str(directory.absolute()), replace=replace)
    _json(done) if as_json else _out(f"{done['added']} nodes added, {done['duplicates']} already there")


@memory_app.command()
def backup(
    name: Annotated[str, typer.Argument(help="what to call it")],
    remove: Annotated[bool, typer.Option("--remove", help="let go of that backup instead")] = False,
    tenant: Tenant = "default",
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Keep the present state of a tenant's memory under a name."""
    if remove:
        done = _admin(profile, set_, url, "remove_backup", tenant, name=name)
        _json(done) if as_json else _out(f"removed {escape(name)}")
    else:
        _held(_admin(profile, set_, url, "back_up", tenant, name=name), f"kept as {name}", as_json)


@memory_app.command()
def backups(
    tenant: Tenant = "default", profile: Profile = None, set_: Sets = None, url: Url = None, as_json: AsJson = False
) -> None:
    """The backups of a tenant's memory, oldest first."""
    kept = _admin(profile, set_, url, "backups", tenant)
    if as_json:
        return _json(kept)
    for one in kept:
        _held(one, one["name"], False)
    if not kept:
        _out("no backups")


@memory_app.command()
def restore(
    name: Annotated[str, typer.Argument(help="the backup")],
    tenant: Tenant = "default",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="don't ask")] = False,
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Go back to a backup; what came since is gone."""
    if not yes:
        typer.confirm(f"Put backup {name} in place of tenant {tenant}'s memory?", abort=True, err=True)
    _held(_admin(profile, set_, url, "restore_backup", tenant, name=name), f"back to {name}", as_json)


@memory_app.command()
def maintain(
    tenant: Tenant = "default", profile: Profile = None, set_: Sets = None, url: Url = None, as_json: AsJson = False
) -> None:
    """Remove what has expired and tidy the stores, as the service does now and then."""
    done = _admin(profile, set_, url, "maintain", tenant)
    _json(done) if as_json else _out(f"{done['nodes']} nodes; {done['expired']} had expired and are removed")


def _user(profile: str | None, set_: Some, url: str | None, api_key: str | None, *call: Any, **rest: Any) -> Any:
    address = load(profile, overrides=set_ or []).settings.http.url() if url is None else url
    with contextlib.closing(Client(address, api_key)) as client:
        return client.call(*call, **rest)


def _admin(profile: str | None, set_: Some, url: str | None, call: str, tenant: str, **fields: Any) -> Any:
    from pipeline.administer import administer

    return administer(load(profile, overrides=set_ or []).settings, url, call, tenant, fields)


def _quoted(node_id: str) -> str:
    from urllib.parse import quote

    return quote(node_id, safe="")


def _show(node: Any, as_json: bool) -> None:
    if as_json:
        return _json(node)
    _out(escape(node["text"]))
    shown = ("node_id", "kind", "domain", "source", "session", "user", "quality", "model", "created_at", "expires_at")
    for name in (name for name in shown if node[name] not in ("", 0.0)):
        _out(f"[dim]{name:<10}[/dim] {escape(str(node[name]))}")
    for name, value in node["metadata"].items():
        _out(f"[dim]metadata[/dim]   {escape(name)} = {escape(value)}")
    for edge in node["edges"]:
        away = edge["source_id"] == node["node_id"]
        other = edge["target_id"] if away else edge["source_id"]
        _out(f"[dim]edge[/dim]       {'→' if away else '←'} {edge['relation']} {edge['weight']:.2f}  {escape(other)}")
    for past in node["history"]:
        _out(f"[dim]changed[/dim]    {past['at']:.0f}  {escape(', '.join(past['changed']))}")


def _held(manifest: Any, text: str, as_json: bool) -> None:
    if as_json:
        return _json(manifest)
    _out(f"{escape(text)}: {manifest['nodes']} nodes, {manifest['edges']} edges  (encoder {manifest['encoder']})")


def _out(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text)


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
