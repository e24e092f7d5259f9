"""A small client of the service, for the command line. Programs use any OpenAI client instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import orjson

from conf.schema import Settings
from operators.errors import Reject, Retry, RuvError, Stop

CONNECT_S = 2.0


class Client:
    """Calls a running service. Errors arrive as ``Reject``, ``Retry`` and ``Stop``; no service at all is ``Stop``."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        headers = {"content-type": "application/json"}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        self.url = url.rstrip("/").removesuffix("/v1")  # what OpenAI's clients are given works here too
        if api_key:
            if not api_key.isascii():
                raise Reject("--api-key", "a key with other characters than ASCII", "copy it again", 401)
            headers["authorization"] = f"Bearer {api_key}"
        try:
            # trust_env off: a proxy of the environment has no business between the command line and loopback.
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise _no_address(self.url) from error

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answered to ``body``."""
        return self.call("POST", path, body)

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> Any:
        """The JSON answered to a request with or without a body."""
        response = self._send(method, path, None if body is None else _encoded(body), params)
        _raise(response)
        try:
            return response.json()
        except ValueError as error:
            raise self._stranger() from error

    def unused(self, question: str, settings: Settings) -> str:
        """What to say when an answer used no passage: how close the memory came, if it can be asked."""
        try:
            # A search by words alone doesn't put the most similar first.
            hits = self.post("/v1/memory/search", {"query": question, "k": 100})["hits"]
        except RuvError:
            hits = []
        if not hits:
            return "nothing used"
        measure = "score" if settings.search.mode == "hybrid" else "similarity"
        best = max(hits, key=lambda hit: float(hit[measure]))
        gate = settings.attend.min_score if measure == "score" else settings.attend.min_similarity
        named = f"best: {best['source'] or best['node_id']}, {measure} {best[measure]:.3f}"
        if best[measure] >= gate:
            return f"nothing used ({named})"
        # The service may have been started with other settings, so it is said whose gate this is.
        return f"nothing was close enough ({named}; attend.min_{measure} of profile {settings.profile}: {gate:.3f})"

    def health(self) -> dict[str, Any]:
        """What ``/readyz`` says, ready or not, with ``up`` and ``url``; if nothing says it, ``error`` instead."""
        try:
            return {"up": True, "url": self.url, **self._health()}
        except RuvError as error:
            return {"up": False, "url": self.url, "error": str(error)}

    def alive(self) -> bool:
        """Whether a service listens there, ready or not."""
        try:
            return "version" in self.call("GET", "/healthz")
        except RuvError:
            return False

    def _health(self) -> dict[str, Any]:
        response = self._send("GET", "/readyz")
        try:
            health = response.json()
        except ValueError:
            health = None
        if isinstance(health, dict) and "checks" in health:
            return health
        _raise(response)
        raise self._stranger()

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed chat completion; the last one has ``usage`` and ``ruvllm``."""
        content = _encoded({**body, "stream": True, "stream_options": {"include_usage": True}})
        chunk: dict[str, Any] = {}
        try:
            with self._http.stream("POST", "/v1/chat/completions", content=content) as response:
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
        if "ruvllm" not in chunk:
            raise self._stranger()

    def _send(
        self, method: str, path: str, content: bytes | None = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            return self._http.request(method, path, content=content, params=params)
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
            return _no_address(self.url)
        return Stop(self.url, "the service went away before it had answered", "see where it runs, then ask again")

    def _stranger(self) -> Stop:
        return Stop(self.url, "what answers there is not RuvLLM", "name the service's address with --url")


def _no_address(url: str) -> Stop:
    return Stop("--url", f"{url!r} is no address", "write it like http://127.0.0.1:8000")


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # not a number, or bytes that are no text
        raise Reject("request", f"can't be sent: {error}", "use finite numbers, and text in UTF-8") from error


def _raise(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        detail = response.json()["error"]
        message, param, code = detail["message"], detail.get("param"), detail.get("code")
    except (ValueError, KeyError, TypeError):
        # Not the service itself: what stands before it, or another program. The words of its page are enough.
        page = " ".join(re.sub(r"<[^>]*>", " ", response.text or response.reason_phrase).split())[:200]
        message, param, code = f"{page}; see that RuvLLM listens at {response.url}", None, None
    who = f"service ({response.status_code})"
    # Our service's messages end with the remedy already.
    got, _, remedy = message.rpartition("; ")
    if response.status_code in (429, 503):
        after_s = float(response.headers.get("retry-after", "1"))
        raise Retry(who, got or message, remedy if got else "try again", after_s, response.status_code)
    if response.status_code < 500:
        raise Reject(who, got or message, remedy if got else "change the request", response.status_code, param, code)
    raise Stop(who, got or message, remedy if got else "see where the service runs")
