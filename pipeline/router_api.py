"""The administrator's endpoints for the router's checkpoints; ``ruvllm router`` does the same on the directory."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Path
from pydantic import BaseModel, ConfigDict, Field

from pipeline.admin_api import PREFIX
from pipeline.guard import Admin
from pipeline.router_calls import RouterCalls
from pipeline.service import Service

Version = Annotated[str, Path(max_length=100)]
Reason = Annotated[str, Field(max_length=1000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromoteIn(_Body):
    """Which version is to decide. ``force``: although it did not pass the gate; ``reason`` is needed then."""

    version: str = Field(min_length=1, max_length=100)
    force: bool = False
    reason: Reason = ""


class RollbackIn(_Body):
    """Why."""

    reason: Reason = ""


class FreezeIn(_Body):
    """Whether automatic promotion stops (``frozen``), and why."""

    frozen: bool = True
    reason: Reason = ""


def install(app: FastAPI, service: Service) -> None:
    """Add the endpoints to ``app``."""
    calls = RouterCalls(service.settings)

    @app.get(f"{PREFIX}/router", tags=["Admin"])
    async def list_(_: Admin) -> dict[str, Any]:
        """The checkpoints of the router, newest first, and which of them act."""
        return await asyncio.to_thread(calls.list)

    @app.get(f"{PREFIX}/router/{{version}}", tags=["Admin"])
    async def show(version: Version, _: Admin) -> dict[str, Any]:
        """One checkpoint: its manifest, and whether it is whole."""
        return await asyncio.to_thread(calls.show, version)

    @app.get(f"{PREFIX}/router/{{version}}/diff/{{other}}", tags=["Admin"])
    async def diff(version: Version, other: Version, _: Admin) -> dict[str, Any]:
        """How far the weights of the second are from those of the first, and the metrics of both."""
        return await asyncio.to_thread(calls.diff, version, other)

    @app.post(f"{PREFIX}/router/promote", tags=["Admin"])
    async def promote(body: PromoteIn, _: Admin) -> dict[str, Any]:
        """Let a checkpoint decide at once."""
        return await asyncio.to_thread(calls.promote, body.version, body.force, body.reason)

    @app.post(f"{PREFIX}/router/rollback", tags=["Admin"])
    async def rollback(body: RollbackIn, _: Admin) -> dict[str, Any]:
        """One step back: end what is watched or tried, else let what was active before decide again."""
        return await asyncio.to_thread(calls.rollback, body.reason)

    @app.post(f"{PREFIX}/router/freeze", tags=["Admin"])
    async def freeze(body: FreezeIn, _: Admin) -> dict[str, Any]:
        """Stop automatic promotion, or let it go on."""
        return await asyncio.to_thread(calls.freeze, body.frozen, body.reason)
