"""Every error leaves in OpenAI's shape, and no request body is read beyond its limit."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from operators.errors import Reject, Retry, RuvError
from operators.privacy.logs import masked_traceback
from pipeline.bad_requests import describe
from pipeline.schema import ErrorBody, ErrorDetail

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is not valid; `param` names the field"},
    401: {"model": ErrorBody, "description": "No valid API key"},
    404: {"model": ErrorBody, "description": "No such model"},
    413: {"model": ErrorBody, "description": "The body is larger than this path takes"},
    429: {"model": ErrorBody, "description": "Too many requests at once; see `Retry-After`"},
    500: {"model": ErrorBody, "description": "A fault of the service"},
    503: {"model": ErrorBody, "description": "A part of the service is away; see `Retry-After`"},
}
"""What each endpoint may answer besides 200, for OpenAPI."""

log = logging.getLogger("ruvllm.http")
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
) -> JSONResponse:
    """One error in OpenAI's shape; ``retry_after_s`` also as ``Retry-After`` (seconds) and ``retry-after-ms``."""
    headers: dict[str, str] = {}
    if retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(retry_after_s * 1000))
    return JSONResponse(error_body(status, message, param, code), status, headers)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code)).model_dump()


def from_error(error: RuvError) -> JSONResponse:
    """The answer to one of our own errors."""
    if isinstance(error, Reject):
        return error_response(error.status, str(error), param=error.param, code=error.code)
    if isinstance(error, Retry):
        return error_response(error.status, str(error), retry_after_s=error.retry_after_s)
    return error_response(500, str(error))


def words(error: Exception) -> str:
    """What the caller is told: our own errors speak for themselves, others stay in the log."""
    return str(error) if isinstance(error, RuvError) else "an unforeseen error; the service's log has the details"


def install(app: FastAPI, limits: Mapping[str, tuple[str, int]]) -> None:
    """Give ``app`` the error handlers and the body limits: beginning of a path → knob, bytes; the first that fits."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RuvError)  # noqa: S101 - what the handler is registered for
        return from_error(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
        message, param = describe(error.errors(), get_type_hints(request.scope["endpoint"]).get("body", BaseModel))
        return error_response(400, message, param=param)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - as above
        response = error_response(error.status_code, _astray(request, error))
        response.headers.update(error.headers or {})
        return response

    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        log.error("unforeseen error\n%s", masked_traceback(error))
        return error_response(500, words(error))

    app.add_exception_handler(RuvError, ours)
    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_middleware(BodyLimit, limits=limits)


def _astray(request: Request, error: HTTPException) -> str:
    """The message for a path or a method that there is not; others carry their own."""
    path = request.url.path[:200]
    if error.status_code == 405:
        return f"{path}: it doesn't take {request.method}; use {(error.headers or {}).get('Allow')}"
    if error.status_code != 404:
        return str(error.detail)
    paths = [route.path for route in request.app.routes]
    near = difflib.get_close_matches(path, paths, n=1, cutoff=0.75)
    return f"{path}: no such path; " + (f"did you mean {near[0]}?" if near else "/docs lists them")


class BodyLimit:
    """ASGI middleware that answers 413 as soon as a body is too large, by its header or while it is read."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, tuple[str, int]]) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        knob, most = next(limit for start, limit in self.limits.items() if scope["path"].startswith(start))
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            await error_response(413, _too_large(int(declared), most, knob))(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                # FastAPI hands an HTTPException from here on to its handler and turns any other into a 400.
                raise HTTPException(413, _too_large(seen, most, knob))
            return message

        await self.app(scope, limited, send)


def _too_large(got: int, most: int, knob: str) -> str:
    return f"body: at least {got} bytes; send at most {most} (http.{knob})"
