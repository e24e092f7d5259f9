"""The command line: ``ruvllm COMMAND``. Every command takes ``--json`` for machine-readable output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from conf.load import Loaded, load
from conf.schema import Settings
from operators.errors import Reject, RuvError
from pipeline.client import Client

app = typer.Typer(help="RuvLLM: answers from the smallest local model that will do.", no_args_is_help=True)
models_app = typer.Typer(help="The models of the profile.", no_args_is_help=True)
config_app = typer.Typer(help="The settings of the profile.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Profile = Annotated[str | None, typer.Option("--profile", "-p", help="local, edge, server, cluster or test")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="override one setting: --set search.k=3")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Url = Annotated[str | None, typer.Option(help="the service's address [default: the profile's http.host and http.port]")]
Key = Annotated[str | None, typer.Option(help="API key, if the service asks for one")]


def main() -> None:
    """Run the command line; our own errors become one line on stderr and exit code 1."""
    try:
        app()
    except RuvError as error:
        err.print(f"[red]error:[/red] {_plain(str(error))}")
        sys.exit(1)


@app.command()
def serve(profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """Start the service and stay until Ctrl-C. Another port: --set http.port=9000."""
    from pipeline.launch import launch

    launch(_load(profile, set_).settings, profile=profile, overrides=set_ or [], say=_say(as_json))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="what to ask; - reads it from standard input")],
    model: Annotated[str, typer.Option(help="a tier, or auto: the router decides")] = "auto",
    session: Annotated[
        str | None, typer.Option(help="the session it belongs to, for routing; earlier turns are not sent along")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="completion tokens at most")] = None,
    temperature: Annotated[float | None, typer.Option(help="overrides the route")] = None,
    explain: Annotated[bool, typer.Option(help="name the features that moved the decision")] = False,
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running service; the answer streams, then route, memory and timings are shown."""
    if question == "-":
        question = sys.stdin.read()
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream_options": {"include_usage": True},
        "ruvllm": {"explain": explain},
    }
    body |= {} if max_tokens is None else {"max_tokens": max_tokens}
    body |= {} if temperature is None else {"temperature": temperature}
    if not question.strip():
        raise Reject("ask", "an empty question", "ask something")
    text, last = "", {}
    try:
        for chunk in _client(profile, set_, url, api_key).stream(body, session):
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            text += piece
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
            last = chunk
    except RuvError:
        if text and not as_json:
            print()  # the error begins on a line of its own
        raise
    facts = last["ruvllm"]
    if as_json:
        _json({"answer": text, "model": last["model"], "usage": last["usage"], **facts})
        return
    route = facts["route"]
    out.print(
        f"\n\n[dim]route[/dim]   {route['tier']} ({route['reason']}), context {route['context_tokens']} tokens, "
        f"temperature {route['temperature']:.2f}, confidence {route['confidence']:.2f}"
    )
    for effect in route["explanation"]:
        out.print(f"        {effect['effect']:+.3f}  {effect['feature']} = {effect['value']:.3f}")
    for citation in facts["citations"]:
        out.print(f"[dim]memory[/dim]  {_plain(citation['source'])}  {citation['score']:.3f}  {citation['node_id']}")
    if not facts["citations"]:
        out.print("[dim]memory[/dim]  nothing used")
    shown = "  ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in facts["timings"].items())
    out.print(f"[dim]ms[/dim]      {shown}")
    if facts["degraded"]:
        out.print(f"[yellow]degraded[/yellow] {', '.join(facts['degraded'])}")


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="files or folders: text, Markdown, PDF")],
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Add documents to the memory of a running service. The same file twice adds nothing."""
    from pipeline.ingest_files import find, send

    settings = _load(profile, set_).settings
    client = _client(profile, set_, url, api_key)
    files = find(paths)
    with Progress(console=err, disable=as_json or not err.is_terminal, transient=True) as progress:
        task = progress.add_task("ingesting", total=len(files))
        report = send(client, files, settings, lambda: progress.advance(task))
    if as_json:
        _json(report)
    else:
        for bad in report["refused"]:
            err.print(f"[yellow]refused[/yellow] {_plain(bad['error'])}")
        out.print(
            f"{report['files']} file{'s' * (report['files'] != 1)}: {report['added']} nodes added, "
            f"{report['duplicates']} already there, {report['edges']} edges"
        )
    if report["refused"]:
        raise typer.Exit(1)


@app.command()
def search(
    query: str,
    k: Annotated[int, typer.Option(help="hits")] = 5,
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Search the memory of a running service."""
    found = _client(profile, set_, url, api_key).post("/v1/memory/search", {"query": query, "k": k})
    if as_json:
        _json(found)
        return
    for hit in found["hits"]:
        out.print(f"[bold]{hit['score']:.4f}[/bold]  cos {hit['similarity']:.2f}  {_plain(hit['source'])}")
        out.print("  " + _plain(" ".join(hit["text"].split())[:200]))
    if not found["hits"]:
        out.print("nothing found")


@app.command()
def status(profile: Profile = None, set_: Sets = None, url: Url = None, as_json: AsJson = False) -> None:
    """Whether the service is up, and every part of it. Exit code 1 if not ready."""
    health = _client(profile, set_, url, None).get("/readyz")
    if as_json:
        _json(health)
    else:
        out.print(f"{health['status']}  (version {health['version']})")
        for part, works in health["checks"].items():
            out.print(f"  {'[green]ok[/green]  ' if works else '[red]away[/red]'} {part}")
    if health["status"] != "ok":
        raise typer.Exit(1)


@models_app.command("list")
def models_list(profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """The tiers of the profile and whether their weights are here and whole."""
    from operators.engines.models import inspect

    settings = _load(profile, set_).settings
    cache = settings.data_dir / "cache"
    rows = [{"tier": tier.name, "engine": tier.engine, **inspect(tier.model, cache)} for tier in settings.tiers]
    rows.append({"tier": "(embed)", "engine": settings.embed.backend, **inspect(settings.embed.model, cache)})
    if as_json:
        _json(rows)
        return
    table = Table("tier", "model", "engine", "MB", "weights", "licence")
    for row in rows:
        size = f"{row['bytes'] / 1e6:.0f}" if row["bytes"] else "-"
        table.add_row(row["tier"], row["id"], row["engine"], size, row["state"], row["licence"])
    out.print(table)


@config_app.command("show")
def config_show(profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """Every setting and where its value came from."""
    from conf.docs import show, show_json

    loaded = _load(profile, set_)
    if as_json:
        print(show_json(loaded))
        return
    rows = show(loaded)
    width = max(len(key) for key, _, _ in rows)
    for key, value, origin in rows:
        out.print(f"{key:<{width}}  {_plain(str(value))}  [dim]{_plain(origin)}[/dim]")


@app.command("run-stage")
def run_stage(
    stage: Annotated[str, typer.Argument(help="embed, search, expand, route, attend, generate or judge")],
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = True,
) -> None:
    """Run one stage alone: JSON on standard input, its record on standard output; not beside a service on that data.

    The input names records, e.g. {"query": {"text": "…"}, "hits": {…}}; what the stage reads and the input lacks is
    made by running the stages before it.
    """
    import asyncio

    from pipeline.run_stage import run

    print(asyncio.run(run(stage, sys.stdin.buffer.read(), _load(profile, set_).settings)).decode())


def _load(profile: str | None, overrides: list[str] | None) -> Loaded[Settings]:
    return load(profile, overrides=overrides or [])


def _client(profile: str | None, overrides: list[str] | None, url: str | None, api_key: str | None) -> Client:
    if url is None:
        http = _load(profile, overrides).settings.http
        url = f"http://{http.host}:{http.port}"
    return Client(url, api_key)


def _say(as_json: bool) -> Callable[..., None]:
    """How ``serve`` reports: a line of text, or one JSON object a line."""

    def say(text: str, **facts: Any) -> None:
        if as_json:
            print(json.dumps({"message": text, **facts}), flush=True)
        else:
            out.print(_plain(text))

    return say


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _plain(text: str) -> str:
    """Keep what users wrote from being read as markup."""
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
