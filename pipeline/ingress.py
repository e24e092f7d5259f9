"""The HTTP door: OpenAI-compatible endpoints and RuvLLM's own, in front of a ``Service``."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from operators.errors import Reject
from operators.ids import uuid7
from operators.ingest import Document, identity
from operators.records import Filter, Message, Query, Sampling
from pipeline import (
    admin_api,
    counterfactual_api,
    event_metrics,
    http_errors,
    memory_api,
    models_api,
    router_api,
    stream_api,
)
from pipeline import schema as api
from pipeline.guard import Guard, Session, Tenant, admin_key
from pipeline.limits import Admission
from pipeline.responses import HeldStream, collect, completion, events, headers, route_info, unless_gone, within
from pipeline.service import Service, new_session

T = TypeVar("T")


def create_app(service: Service) -> FastAPI:
    """The app in front of ``service``, which must be started already."""
    http = service.settings.http
    admission = Admission(http.max_concurrent, http.max_queued)
    app = FastAPI(
        title="RuvLLM",
        version=version("ruvllm"),
        description="Answers from the smallest local model that will do, grounded in a memory you fill.",
        responses=http_errors.DOCUMENTED,
    )
    app.state.guard = Guard(http.api_keys, admin_key(service.settings.data_dir))
    knobs = {
        admin_api.PREFIX: "max_admin_body_bytes", "/v1/documents": "max_documents_body_bytes", "": "max_body_bytes"
    }  # fmt: skip
    http_errors.install(app, {path: (knob, getattr(http, knob)) for path, knob in knobs.items()})

    async def admitted(work: Coroutine[Any, Any, T], timeout_s: float = http.request_timeout_s) -> T:
        """Wait for a place and do the work, all within ``timeout_s``."""

        async def through() -> T:
            async with admission.admit():
                return await work

        try:
            return await within(time.monotonic() + timeout_s, through())
        finally:
            work.close()  # it never began if there was no place for it

    @app.post("/v1/chat/completions", response_model=api.ChatCompletion, tags=["OpenAI"])
    async def chat(body: api.ChatRequest, request: Request, who: Tenant, session: Session = None) -> Response:
        """Answer a question; with ``stream`` as server-sent events."""
        query = to_query(body, who, session, service)
        deadline = time.monotonic() + http.request_timeout_s
        async with contextlib.AsyncExitStack() as stack:
            await within(deadline, stack.enter_async_context(admission.admit()))
            turn = await within(deadline, service.prepare(query))
            if not body.stream:
                answer = await within(deadline, unless_gone(request, collect(service, turn)))
                if answer is None:  # the client went away; nobody reads this
                    return Response(status_code=499)
                return JSONResponse(completion(turn, answer), headers=headers(turn))
            pieces = await stack.enter_async_context(contextlib.aclosing(service.generate(turn)))
            # What fails before the first piece can still be answered with a status of its own.
            first = await within(deadline, anext(pieces))
            usage = body.stream_options is not None and body.stream_options.include_usage
            stream = events(turn, first, pieces, usage, deadline)
            return HeldStream(stream, stack.pop_all(), headers(turn))
        raise AssertionError("unreachable")

    @app.post("/v1/route", tags=["RuvLLM"])
    async def route(body: api.RouteRequest, who: Tenant, session: Session = None) -> api.RouteResponse:
        """Dry run: which route a question would take, why, and what would be read. Nothing is generated."""
        turn = await admitted(service.prepare(to_query(body, who, session, service)))
        seen = turn.neighbourhood
        return api.RouteResponse(
            route=route_info(turn),
            passages=[
                {"node_id": p.node_id, "source": p.source, "score": p.score, "tokens": p.tokens, "text": p.text}
                for p in turn.context.passages
            ],
            hits=int((seen.hop == 0).sum()),
            nodes=len(seen.node_ids),
            ranking=turn.context.ranking,
            timings=turn.timings,
            degraded=list(turn.degraded),
        )

    @app.post("/v1/embeddings", tags=["OpenAI"])
    async def embeddings(body: api.EmbeddingsRequest, who: Tenant) -> api.EmbeddingsResponse:
        """Vectors of texts, from the encoder that the memory uses."""
        encoder = service.settings.embed.model.id
        if body.model not in ("auto", encoder):
            got, remedy = f"no encoder {body.model!r}", f"use 'auto' or {encoder!r}"
            raise Reject("model", got, remedy, 404, "model", "model_not_found")
        texts = [body.input] if isinstance(body.input, str) else body.input
        encoded = await admitted(service.backend.encode(texts))
        dim = encoded.vectors.shape[1]
        if body.dimensions not in (None, dim):
            raise Reject("embed", f"dimensions {body.dimensions}", f"leave it out or send {dim}", 400, "dimensions")
        tokens = int(encoded.tokens.sum())
        return api.EmbeddingsResponse(
            data=[
                api.Embedding(
                    index=i,
                    embedding=base64.b64encode(row.astype("<f4").tobytes()).decode()
                    if body.encoding_format == "base64"
                    else row.tolist(),
                )
                for i, row in enumerate(encoded.vectors)
            ],
            model=encoder,
            usage={"prompt_tokens": tokens, "total_tokens": tokens},
            truncated=[i for i, cut in enumerate(encoded.truncated) if cut],
        )

    @app.get("/v1/models", tags=["OpenAI"])
    async def models(who: Tenant) -> api.Models:
        """The router (``auto``) and every tier."""
        loads = {load.tier: load for load in await service.backend.load()}
        auto = api.Model(id="auto", owned_by="ruvllm", available=any(load.available for load in loads.values()))
        return api.Models(
            data=[auto]
            + [
                api.Model(
                    id=tier.name,
                    owned_by=tier.model.id,
                    available=tier.name in loads and loads[tier.name].available,
                    licence=tier.model.licence,
                )
                for tier in service.settings.tiers
            ]
        )

    @app.post("/v1/documents", tags=["RuvLLM"])
    async def documents(body: api.DocumentsRequest, who: Tenant) -> api.DocumentsResponse:
        """Add documents to the memory; answers when they are durable and findable."""
        now = time.time()
        incoming = [
            Document(
                text=d.text,
                source=d.source,
                id=d.id,
                domain=d.domain,
                user=d.user,
                expires_at=now + d.ttl_s if d.ttl_s else 0.0,
                metadata=d.metadata,
            )
            for d in body.documents
        ]
        size = sum(len(d.text.encode()) for d in incoming)
        made, added = await admitted(service.add(who, incoming), http.documents_timeout_s(size))
        new = set(added.new)
        return api.DocumentsResponse(
            documents=[
                api.DocumentOut(
                    id=document.id or identity(who, document),
                    source=document.source,
                    nodes=[node.node_id for node in each],
                    added=sum(node.node_id in new for node in each),
                    duplicates=sum(node.node_id not in new for node in each),
                )
                for document, each in zip(incoming, made.nodes, strict=True)
            ],
            added=len(added.new),
            duplicates=len(added.duplicate),
            edges=added.edges,
            masked=made.masked,
        )

    @app.post("/v1/memory/search", tags=["RuvLLM"])
    async def search(body: api.SearchRequestIn, who: Tenant) -> api.SearchResponse:
        """Search the memory."""
        query = Query(
            interaction_id=str(uuid7()),
            tenant=who,
            session="",
            text=body.query,
            messages=(Message(role="user", content=body.query),),
            filter=_filter(body.filter),
            created_at=time.time(),
            k=body.k,
            mode=body.mode,
        )
        hits = await admitted(service.search(query))
        fields = api.SearchHit.model_fields
        return api.SearchResponse(
            hits=[api.SearchHit(**{name: getattr(hit, name) for name in fields}) for hit in hits.hits],
            degraded=list(hits.degraded),
        )

    memory_api.install(app, service, admitted)
    admin_api.install(app, service)
    router_api.install(app, service)
    models_api.install(app, service)
    stream_api.install(app, service, admitted, to_query)
    counterfactual_api.install(app, service, admission.quiet_s)

    async def of_models() -> list[event_metrics.Row]:
        return models_api.rows(await service.backend.models())

    event_metrics.install(app, service.emitter, of_models)

    @app.get("/", tags=["Health"])
    async def root() -> api.Root:
        """What listens here, and where to look next."""
        return api.Root(**api.ROOT)

    @app.get("/healthz", tags=["Health"])
    async def healthz() -> api.Health:
        """The process lives."""
        return api.Health(status="ok", checks={}, version=version("ruvllm"))

    @app.get("/readyz", tags=["Health"], response_model=api.Health)
    async def readyz() -> Response:
        """Whether requests can be served: 200 (``degraded``: something is away, answers still come), or 503."""
        checks = await service.backend.checks()
        tiers = [works for part, works in checks.items() if part.startswith("generate:")]
        serves = any(tiers) and all(works for part, works in checks.items() if not part.startswith("generate:"))
        checks |= {"events": service.emitter.healthy(), "disk": service.has_room()}
        status: Literal["ok", "degraded", "away"] = "away"
        if serves:
            status = "ok" if all(checks.values()) else "degraded"
        models = await service.backend.models() if serves else ()
        notes = [f"engine of tier {one.tier} is not held in by {why}" for one in models for why in one.unguarded]
        health = api.Health(status=status, checks=checks, notes=notes, version=version("ruvllm"))
        return JSONResponse(health.model_dump(), 200 if serves else 503)

    return app


# -------------------------------------------------------------------------------------------- requests → records


def to_query(body: api.ChatRequest, tenant: str, session: str | None, service: Service) -> Query:
    """The record of a chat request. Raises ``Reject`` for what only the settings can refuse."""
    http = service.settings.http
    if len(body.messages) > http.max_messages:
        got = f"{len(body.messages)} messages"
        raise Reject("messages", got, f"send at most {http.max_messages} (http.max_messages)", 400, "messages")
    messages = tuple(
        Message(role="system" if m.role == "developer" else m.role, content=m.text()) for m in body.messages
    )
    chars = sum(len(m.content) for m in messages)
    if chars > http.max_text_chars:
        got = f"{chars} characters"
        raise Reject("messages", got, f"send at most {http.max_text_chars} (http.max_text_chars)", 400, "messages")
    if not messages[-1].content.strip():
        raise Reject("messages", "a blank question", "ask something", 400, "messages")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Query(
        interaction_id=str(uuid7()),
        tenant=tenant,
        session=session or body.user or new_session(),
        text=messages[-1].content,
        messages=messages,
        user=body.user or "",
        sampling=Sampling(
            tier=None if body.model == "auto" else body.model,
            temperature=body.temperature,
            top_p=body.top_p,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            stop=stop,
            seed=body.seed,
            logprobs=bool(body.logprobs),
        ),
        filter=_filter(body.ruvllm.filter),
        created_at=time.time(),
        k=body.ruvllm.k,
        mode=body.ruvllm.mode,
        quality_bias=body.ruvllm.quality_bias,
        explain=body.ruvllm.explain,
    )


def _filter(given: api.FilterIn) -> Filter:
    return Filter(
        kinds=tuple(given.kinds),
        domains=tuple(given.domains),
        sources=tuple(given.sources),
        created_from=given.created_from,
        created_to=given.created_to,
    )
