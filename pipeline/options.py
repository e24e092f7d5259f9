"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Profile = Annotated[str | None, typer.Option("--profile", "-p", help="local, edge, server, cluster or test")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="override one setting: --set search.k=3")]
Url = Annotated[str | None, typer.Option(help="the service's address", show_default="http.host and http.port")]
Key = Annotated[str | None, typer.Option(help="API key, if the service asks for one")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
