"""What leaves through the HTTP door: a turn and its answer as one JSON object, or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import orjson
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from operators.errors import Retry, RuvError
from operators.privacy.logs import masked_traceback
from operators.records import Answer, Piece, TokenLogprob
from pipeline import http_errors
from pipeline import schema as api
from pipeline.service import Service, Turn

T = TypeVar("T")


def route_info(turn: Turn) -> api.RouteInfo:
    """The decision as the API shows it."""
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
        route=route_info(turn),
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


def headers(turn: Turn) -> dict[str, str]:
    """The short facts, as far as they are known when the headers go out."""
    return {
        "x-ruvllm-interaction-id": turn.query.interaction_id,
        "x-ruvllm-session": quote(turn.query.session, safe=" !#$&'()*+,/:;=?@[]"),
        "x-ruvllm-tier": turn.answer.tier if turn.answer else turn.route.tier,
        "x-ruvllm-confidence": f"{turn.route.confidence:.3f}",
        "x-ruvllm-degraded": ",".join(turn.degraded).replace("→", ">"),
    }


def _logprobs(turn: Turn, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """As ``schema.Logprobs``; ``None`` if nobody asked."""
    if not turn.query.sampling.logprobs:
        return None
    content = [
        {
            "token": one.text,
            "logprob": one.logprob,
            "bytes": None if "\ufffd" in one.text else list(one.text.encode("utf-8", "replace")),
            "top_logprobs": [],
        }
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion(turn: Turn, answer: Answer) -> dict[str, Any]:
    """A whole answer; the keys are those of ``schema.ChatCompletion``."""
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
                "logprobs": _logprobs(turn, answer.logprobs),
            }
        ],
        "usage": _usage(answer),
        "ruvllm": _ruvllm(turn, answer),
    }


async def events(
    turn: Turn, first: Piece, pieces: AsyncGenerator[Piece, None], include_usage: bool, deadline: float
) -> AsyncGenerator[bytes, None]:
    """The answer, ``first`` and then the other ``pieces``, as server-sent events; the caller closes ``pieces``.

    ``ruvllm`` is in the last chunk before ``[DONE]``.
    """
    head = {
        "id": f"chatcmpl-{turn.query.interaction_id}",
        "object": "chat.completion.chunk",
        "created": int(turn.query.created_at),
        "model": turn.route.tier,
    }

    def event(
        delta: dict[str, Any], finish: str | None = None, tokens: Sequence[TokenLogprob] = (), **rest: Any
    ) -> bytes:
        likely = _logprobs(turn, tokens) if tokens else None
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": likely}
        return b"data: " + orjson.dumps({**head, "choices": [choice], **rest}) + b"\n\n"

    yield event({"role": "assistant", "content": ""})
    piece: Piece | None = first
    try:
        while piece is not None:
            if piece.text:
                yield event({"content": piece.text}, tokens=piece.logprobs)
            if piece.answer is not None:
                answer = piece.answer
                head["model"] = answer.tier
                facts = {"ruvllm": _ruvllm(turn, answer)}
                yield event({}, _finish(answer), piece.logprobs, **({} if include_usage else facts))
                if include_usage:
                    last = {**head, "choices": [], "usage": _usage(answer), **facts}
                    yield b"data: " + orjson.dumps(last) + b"\n\n"
            piece = await within(deadline, anext(pieces, None))
    except Exception as error:
        # The headers are gone, so the error can only travel in the stream; OpenAI's clients raise it from there.
        status = getattr(error, "status", 500)
        if not isinstance(error, RuvError):
            http_errors.log.error("chat: the stream failed\n%s", masked_traceback(error))
        yield b"data: " + orjson.dumps(http_errors.error_body(status, http_errors.words(error))) + b"\n\n"
    yield b"data: [DONE]\n\n"


class HeldStream(StreamingResponse):
    """A stream that holds its place at the gate until it has ended, however it ends."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], stack: contextlib.AsyncExitStack, headers: dict[str, str]
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"})
        self._stack = stack
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then give the place back."""
        # Starlette leaves the iterator to the garbage collector; the place goes back only once the engine has stopped.
        async with self._stack, contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send)


async def within(deadline: float, work: Awaitable[T]) -> T:
    """The result of ``work``, or ``Retry`` once the request has taken ``http.request_timeout_s``."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await work
    except TimeoutError as error:
        raise Retry("http", "request_timeout_s is over", "ask for fewer tokens, or try again later") from error


async def collect(service: Service, turn: Turn) -> Answer:
    """Generate to the end."""
    async with contextlib.aclosing(service.generate(turn)) as pieces:
        async for piece in pieces:
            if piece.answer is not None:
                return piece.answer
    raise AssertionError("Service.generate ends with an answer or raises")


async def unless_gone(request: Request, work: Any) -> Answer | None:
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
