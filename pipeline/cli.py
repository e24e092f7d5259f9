"""The command line: ``ruvllm COMMAND``. Every command takes ``--json`` for machine-readable output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console

from conf.load import Loaded, load
from conf.schema import Settings
from operators.errors import Reject, RuvError
from operators.records import Mode
from pipeline.cli_evaluate import evaluate_app
from pipeline.cli_export import export_app
from pipeline.cli_ingest import ingest
from pipeline.cli_memory import memory_app
from pipeline.cli_models import models_app
from pipeline.cli_replay import replay_app
from pipeline.cli_router import router_app
from pipeline.cli_topics import topics_app
from pipeline.cli_train import train_app
from pipeline.client import Client
from pipeline.options import AsJson, Key, Profile, Sets, Url

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["--help", "-h"]})
config_app = typer.Typer(help="The settings of the profile.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(memory_app, name="memory")
app.add_typer(topics_app, name="topics")
app.add_typer(router_app, name="router")
app.add_typer(replay_app, name="replay")
app.add_typer(train_app, name="train")
app.add_typer(export_app, name="export")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; our own errors become one line on stderr and exit code 1."""
    try:
        app()
    except RuvError as error:
        err.print(f"[red]error:[/red] {_plain(str(error))}")
        sys.exit(1)


@app.callback(invoke_without_command=True)
def options(show: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """RuvLLM: answers from the smallest local model that will do."""
    if show:
        print(f"ruvllm {version('ruvllm')}")
        raise typer.Exit


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
        question = _stdin().decode(errors="surrogateescape")
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "ruvllm": {"explain": explain},
    }
    # The session not as a header: that carries ASCII only.
    given = {"max_tokens": max_tokens, "temperature": temperature, "user": session}
    body |= {name: value for name, value in given.items() if value is not None}
    if not question.strip():
        raise Reject("ask", "an empty question", "ask something")
    client = _client(profile, set_, url, api_key)
    text, last = "", {}
    try:
        for chunk in client.stream(body):
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
        out.print(f"[dim]memory[/dim]  {_plain(client.unused(question, _load(profile, set_).settings))}")
    shown = "  ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in facts["timings"].items())
    out.print(f"[dim]ms[/dim]      {shown}")
    if facts["degraded"]:
        out.print(f"[yellow]degraded[/yellow] {', '.join(facts['degraded'])}")


app.command()(ingest)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="what to look for")],
    k: Annotated[int, typer.Option("--k", "-k", help="hits at most")] = 5,
    mode: Annotated[Mode | None, typer.Option(help="how to search", show_default="search.mode of the service")] = None,
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Search the memory of a running service."""
    client = _client(profile, set_, url, api_key)
    found = client.post("/v1/memory/search", {"query": query, "k": k, "mode": mode})
    if as_json:
        _json(found)
        return
    for hit in found["hits"]:
        scores = f"score {hit['score']:.4f}  similarity {hit['similarity']:.3f}"
        out.print(f"[bold]{_plain(hit['source'] or hit['node_id'])}[/bold]  {scores}")
        out.print("  " + _plain(" ".join(hit["text"].split())[:200]))
    if not found["hits"]:
        out.print("nothing found")


@app.command()
def status(profile: Profile = None, set_: Sets = None, url: Url = None, as_json: AsJson = False) -> None:
    """Whether the service is up, and every part of it. Exit code 0 if all of it works, else 1."""
    health = _client(profile, set_, url, None).health()
    if as_json:
        _json(health)
    elif not health["up"]:
        err.print(f"[red]error:[/red] {_plain(health['error'])}")
    else:
        out.print(f"{health['status']}  (version {health['version']})")
        for part, works in health["checks"].items():
            out.print(f"  {'[green]ok[/green]  ' if works else '[red]away[/red]'} {part}")
    if health.get("status") != "ok":
        raise typer.Exit(1)


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

    print(asyncio.run(run(stage, _stdin(), _load(profile, set_).settings)).decode())


def _load(profile: str | None, overrides: list[str] | None) -> Loaded[Settings]:
    return load(profile, overrides=overrides or [])


def _client(profile: str | None, overrides: list[str] | None, url: str | None, api_key: str | None) -> Client:
    if url is None:
        url = _load(profile, overrides).settings.http.url()
    return Client(url, api_key)


def _stdin() -> bytes:
    if sys.stdin.isatty():
        err.print("reading standard input; Ctrl-D ends it")
    return sys.stdin.buffer.read()


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
