"""The HTTP door: OpenAI-compatible endpoints and RuvLLM's own, in front of a ``Service``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from operators.errors import Reject, Retry, RuvError
from operators.ids import uuid7
from operators.ingest import Document, identity
from operators.records import Answer, Filter, Hits, Message, Neighbourhood, Query, Sampling
from pipeline import http_errors
from pipeline import schema as api
from pipeline.guard import Guard
from pipeline.limits import Admission
from pipeline.service import Service, Turn, new_session

T = TypeVar("T")


def _tenant(request: Request, authorization: Annotated[str | None, Header()] = None) -> str:
    guard: Guard = request.app.state.guard
    return guard.tenant(authorization)


Tenant = Annotated[str, Depends(_tenant)]
Session = Annotated[str | None, Header(alias="x-session-id", max_length=200)]


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
    app.state.guard = Guard(http.api_keys)
    http_errors.install(app, http.max_body_bytes)

    @app.post("/v1/chat/completions", response_model=api.ChatCompletion, tags=["OpenAI"])
    async def chat(body: api.ChatRequest, request: Request, who: Tenant, session: Session = None) -> Response:
        """Answer a question; with ``stream`` as server-sent events."""
        query = to_query(body, who, session, service)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(admission.admit())
            deadline = time.monotonic() + http.request_timeout_s
            turn = await _within(deadline, service.prepare(query))
            headers = _headers(turn)
            if not body.stream:
                answer = await _within(deadline, _unless_gone(request, _collect(service, turn)))
                if answer is None:  # the client went away; nobody reads this
                    return Response(status_code=499)
                return JSONResponse(_completion(turn, answer), headers=headers)
            usage = body.stream_options is not None and body.stream_options.include_usage
            return _Held(_events(service, turn, usage, deadline), stack.pop_all(), headers)
        raise AssertionError("unreachable")

    @app.post("/v1/route", tags=["RuvLLM"])
    async def route(body: api.RouteRequest, who: Tenant, session: Session = None) -> api.RouteResponse:
        """Dry run: which route a question would take, why, and what would be read. Nothing is generated."""
        async with admission.admit():
            turn = await service.prepare(to_query(body, who, session, service))
        seen: Neighbourhood = service.neighbourhood(turn)
        return api.RouteResponse(
            route=_route(turn),
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
        async with admission.admit():
            encoded = await service.backend.encode(texts)
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
        incoming = [Document(text=d.text, source=d.source, id=d.id, metadata=d.metadata) for d in body.documents]
        async with admission.admit():
            nodes, added = await service.add(who, incoming)
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
                for document, each in zip(incoming, nodes, strict=True)
            ],
            added=len(added.new),
            duplicates=len(added.duplicate),
            edges=added.edges,
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
        )
        async with admission.admit():
            hits: Hits = await service.search(query)
        fields = api.SearchHit.model_fields
        return api.SearchResponse(
            hits=[api.SearchHit(**{name: getattr(hit, name) for name in fields}) for hit in hits.hits],
            degraded=list(hits.degraded),
        )

    @app.get("/healthz", tags=["Health"])
    async def healthz() -> api.Health:
        """The process lives."""
        return api.Health(status="ok", checks={}, version=version("ruvllm"))

    @app.get("/readyz", tags=["Health"], response_model=api.Health)
    async def readyz() -> Response:
        """Requests can be served: 200, or 503 with what is missing."""
        checks = await service.backend.checks()
        checks["events"] = service.emitter.healthy()
        ok = all(checks.values())
        health = api.Health(status="ok" if ok else "degraded", checks=checks, version=version("ruvllm"))
        return JSONResponse(health.model_dump(), 200 if ok else 503)

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
        sampling=Sampling(
            tier=None if body.model == "auto" else body.model,
            temperature=body.temperature,
            top_p=body.top_p,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            stop=stop,
            seed=body.seed,
        ),
        filter=_filter(body.ruvllm.filter),
        created_at=time.time(),
        k=body.ruvllm.k,
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


# -------------------------------------------------------------------------------------------- records → responses


def _route(turn: Turn) -> api.RouteInfo:
    route = turn.route
    return api.RouteInfo(
        tier=route.tier,
        context_tokens=route.context_tokens,
        temperature=route.temperature,
        top_p=route.top_p,
        confidence=route.confidence,
        probabilities=route.probabilities,
        propensity=route.propensity,
        checkpoint=route.checkpoint,
        reason=route.reason,
        explanation=[{"feature": e.feature, "value": e.value, "effect": e.effect} for e in route.explanation],
    )


def _ruvllm(turn: Turn, answer: Answer) -> dict[str, Any]:
    used = [passage for passage in turn.context.passages if passage.node_id in answer.used]
    return api.Ruvllm(
        interaction_id=turn.query.interaction_id,
        session=turn.query.session,
        route=_route(turn),
        citations=[api.Citation(node_id=p.node_id, source=p.source, score=p.score) for p in used],
        timings={**turn.timings, "first_token": answer.first_token_s},
        degraded=list(turn.degraded),
    ).model_dump()


def _usage(answer: Answer) -> dict[str, Any]:
    return api.Usage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        total_tokens=answer.prompt_tokens + answer.completion_tokens,
        prompt_tokens_details={"cached_tokens": answer.cached_tokens},
    ).model_dump()


def _finish(answer: Answer) -> str:
    return "length" if answer.finish_reason == "length" else "stop"


def _headers(turn: Turn) -> dict[str, str]:
    return {
        "x-ruvllm-interaction-id": turn.query.interaction_id,
        "x-ruvllm-session": turn.query.session.encode("ascii", "backslashreplace").decode(),
        "x-ruvllm-tier": turn.route.tier,
        "x-ruvllm-confidence": f"{turn.route.confidence:.3f}",
        "x-ruvllm-degraded": ",".join(turn.degraded),
    }


def _completion(turn: Turn, answer: Answer) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{turn.query.interaction_id}",
        "object": "chat.completion",
        "created": int(turn.query.created_at),
        "model": answer.tier,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "finish_reason": _finish(answer),
                "logprobs": None,
            }
        ],
        "usage": _usage(answer),
        "ruvllm": _ruvllm(turn, answer),
    }


async def _events(service: Service, turn: Turn, include_usage: bool, deadline: float) -> AsyncIterator[bytes]:
    """The answer as server-sent events; ``ruvllm`` is in the last chunk before ``[DONE]``."""
    head = {
        "id": f"chatcmpl-{turn.query.interaction_id}",
        "object": "chat.completion.chunk",
        "created": int(turn.query.created_at),
        "model": turn.route.tier,
    }

    def event(delta: dict[str, Any], finish: str | None = None, **rest: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return b"data: " + orjson.dumps({**head, "choices": [choice], **rest}) + b"\n\n"

    yield event({"role": "assistant", "content": ""})
    try:
        async with contextlib.aclosing(service.generate(turn)) as pieces:  # type: ignore[type-var]
            while (piece := await _within(deadline, anext(pieces, None))) is not None:
                if piece.text:
                    yield event({"content": piece.text})
                if piece.answer is not None:
                    answer = piece.answer
                    head["model"] = answer.tier
                    facts = {"ruvllm": _ruvllm(turn, answer)}
                    yield event({}, _finish(answer), **({} if include_usage else facts))
                    if include_usage:
                        last = {**head, "choices": [], "usage": _usage(answer), **facts}
                        yield b"data: " + orjson.dumps(last) + b"\n\n"
    except RuvError as error:
        # The headers are gone, so the error can only travel in the stream; OpenAI's clients raise it from there.
        status = getattr(error, "status", 500)
        yield b"data: " + orjson.dumps(http_errors.error_body(status, str(error))) + b"\n\n"
    yield b"data: [DONE]\n\n"


class _Held(StreamingResponse):
    """A stream that holds its place at the gate until it has ended, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], stack: contextlib.AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then give the place back."""
        async with self._stack:
            await super().__call__(scope, receive, send)


async def _within(deadline: float, work: Awaitable[T]) -> T:
    """The result of ``work``, or ``Retry`` once the request has taken ``http.request_timeout_s``."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await work
    except TimeoutError as error:
        raise Retry("http", "request_timeout_s is over", "ask for fewer tokens, or try again later") from error


async def _collect(service: Service, turn: Turn) -> Answer:
    async with contextlib.aclosing(service.generate(turn)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            if piece.answer is not None:
                return piece.answer
    raise AssertionError("Service.generate ends with an answer or raises")


async def _unless_gone(request: Request, work: Any) -> Answer | None:
    """The result of ``work``; ``None``, with the work cancelled, if the client disconnects first."""
    task: asyncio.Task[Answer] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
