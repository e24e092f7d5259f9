"""The endpoint through which stream mode asks: as a chat request, for the tenant that the request's event names."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine
from typing import Any, Literal, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from operators.records import Query
from operators.stores.tenants import check_tenant
from pipeline import schema as api
from pipeline.admin_api import PREFIX
from pipeline.guard import Admin
from pipeline.memory_schema import Id
from pipeline.responses import collect, completion
from pipeline.service import Service


class AnswerRequest(api.ChatRequest):
    """``POST /v1/admin/answer``: a chat request of ``tenant`` in ``session``. The answer comes whole."""

    model_config = ConfigDict(json_schema_extra={"examples": []})

    stream: Literal[False] = False
    tenant: Id
    session: Id
    interaction_id: Id = Field(description="unique for the request, and the same when it is repeated")


class ToQuery(Protocol):
    """How the ingress makes a query of a chat request."""

    def __call__(self, body: api.ChatRequest, tenant: str, session: str | None, service: Service) -> Query:
        """Raises ``Reject`` for what only the settings can refuse."""


class Admitted(Protocol):
    """How the ingress lets work in: in its turn, and no longer than ``http.request_timeout_s``."""

    async def __call__(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """The result. Raises ``Retry`` when there is no place, or no time left."""


def install(app: FastAPI, service: Service, admitted: Admitted, to_query: ToQuery) -> None:
    """Add the endpoint to ``app``."""

    @app.post(f"{PREFIX}/answer", response_model=api.ChatCompletion, tags=["Admin"])
    async def answer(body: AnswerRequest, _: Admin) -> JSONResponse:
        """Answer a question that came on a topic. It waits in line with the requests of users."""
        query = to_query(body, check_tenant("tenant", body.tenant), body.session, service)
        query = dataclasses.replace(query, interaction_id=body.interaction_id)
        return JSONResponse(await admitted(_answered(service, query)))


async def _answered(service: Service, query: Query) -> dict[str, Any]:
    turn = await service.prepare(query)
    return completion(turn, await collect(service, turn))
