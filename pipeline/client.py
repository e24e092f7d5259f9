"""A small client of the service, for the command line. Programs use any OpenAI client instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson

from operators.errors import Reject, Retry, Stop

CONNECT_S = 2.0


class Client:
    """Calls a running service. Errors arrive as ``Reject``, ``Retry`` and ``Stop``; no service at all is ``Stop``."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        # trust_env off: a proxy of the environment has no business between the command line and loopback.
        url = url.rstrip("/").removesuffix("/v1")  # what OpenAI's clients are given works here too
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        self.url = url

    def get(self, path: str) -> Any:
        """The JSON at ``path``."""
        return self._call("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answered to ``body``."""
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise self._away(error) from error
        if path == "/readyz" and response.status_code == 503:
            return response.json()
        _raise(response)
        return response.json()

    def stream(self, body: dict[str, Any], session: str | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed chat completion."""
        headers = {"x-session-id": session} if session else {}
        try:
            with self._http.stream(
                "POST", "/v1/chat/completions", json={**body, "stream": True}, headers=headers
            ) as response:
                if response.status_code != 200:
                    response.read()
                    _raise(response)
                for line in response.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    chunk = orjson.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise Stop("service", chunk["error"]["message"], "see the service's log")
                    yield chunk
        except httpx.TransportError as error:
            raise self._away(error) from error

    def _away(self, error: httpx.TransportError) -> Stop:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Stop(
                self.url,
                "no service listens there",
                "start it with 'ruvllm serve' (it takes a while to listen), or name it with --url",
            )
        if isinstance(error, httpx.UnsupportedProtocol):
            return Stop("--url", f"{self.url!r} is no address", "write it like http://127.0.0.1:8000")
        return Stop(self.url, "the service went away before it had answered", "see where it runs, then ask again")


def _raise(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        detail = response.json()["error"]
        message, param, code = detail["message"], detail.get("param"), detail.get("code")
    except (ValueError, KeyError, TypeError):
        message, param, code = response.text[:200], None, None
    who = f"service ({response.status_code})"
    if response.status_code in (429, 503):
        raise Retry(who, message, "try again", float(response.headers.get("retry-after", "1")), response.status_code)
    # Our service's messages end with the remedy already.
    got, _, remedy = message.rpartition("; ")
    if response.status_code < 500:
        raise Reject(who, got or message, remedy if got else "change the request", response.status_code, param, code)
    raise Stop(who, got or message, remedy if got else "see where the service runs")
