"""``ruvllm ingest``: documents into the memory of a running service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from conf.load import load
from operators.errors import Reject
from operators.files import SUFFIXES, find
from pipeline.client import Client
from pipeline.ingest_files import JOB_FROM, job_tenant, run_job, send
from pipeline.options import AsJson, Key, Profile, Sets, Url


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="files or folders: text, Markdown, PDF")],
    job: Annotated[
        bool | None,
        typer.Option(
            help="take the ingest job (Ray Data, all cores, goes on where it was stopped), or send file by file",
            show_default=f"the job from {JOB_FROM} files on, where the service's administrator's key can be read",
        ),
    ] = None,
    again: Annotated[bool, typer.Option(help="also files that the job has brought in before")] = False,
    profile: Profile = None,
    set_: Sets = None,
    url: Url = None,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Add documents to the memory of a running service. The same file twice adds nothing."""
    settings = load(profile, overrides=set_ or []).settings
    out, err = (Console(stderr=stderr, highlight=False, soft_wrap=True) for stderr in (False, True))
    http = settings.http
    patience = http.documents_timeout_s(http.max_documents_body_bytes)
    client = Client(http.url() if url is None else url, api_key, timeout_s=patience)
    files = find(paths)
    tenant = job_tenant(settings, url, api_key)
    if job and tenant is None:
        got = f"no administrator's key in {settings.data_dir}, or none for a service elsewhere, or an unknown API key"
        raise Reject("--job", got, "run it where the service runs, set RUVLLM_ADMIN_KEY, or leave --job out")
    if tenant is not None and (job or (job is None and len(files) >= JOB_FROM)):
        options = [word for item in set_ or [] for word in ("--set", item)]
        options += [*(["--profile", profile] if profile else []), *["--again"] * again, *["--json"] * as_json]
        report = run_job(paths, client.url, tenant, options)
    else:
        with Progress(console=err, disable=as_json or not err.is_terminal, transient=True) as progress:
            task = progress.add_task("ingesting", total=len(files))
            say = (lambda text: None) if as_json else lambda text: progress.console.print(escape(text))
            report = send(client, files, settings, lambda: progress.advance(task), say)
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    elif not files:
        out.print(f"nothing to ingest there: no {', '.join(sorted(SUFFIXES))} files")
    else:
        for bad in report["refused"]:
            err.print(f"[yellow]refused[/yellow] {escape(bad['error'])}")
        unchanged = (
            f"; {report['unchanged']} unchanged since the last time (--again sends them too)"
            if report["unchanged"]
            else ""
        )
        out.print(
            f"{report['files']} file{'s' * (report['files'] != 1)}: {report['added']} nodes added, "
            f"{report['duplicates']} already there, {report['edges']} edges{unchanged}"
        )
        if masked := report.get("masked"):
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(masked.items()))
            some = sum(masked.values())
            out.print(f"{some} personal value{'s' * (some != 1)} masked: {kinds}")
    if report["refused"]:
        raise typer.Exit(1)
