"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Profile = Annotated[str | None, typer.Option("--profile", "-p", help="local, edge, server, cluster or test")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="override one setting: --set search.k=3")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
