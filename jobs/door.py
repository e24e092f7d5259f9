"""The way from a job into the running service: a few calls over HTTP with the administrator's key."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from conf.schema import Settings
from operators.errors import Reject, Retry, Stop

CONNECT_S = 2.0
ARROW = "application/vnd.apache.arrow.stream"
KEY_VARIABLE, KEY_FILE, URL_FILE = "RUVLLM_ADMIN_KEY", "admin-key", "url"


def admin_key(data_dir: Path, env: Mapping[str, str] = os.environ) -> str:
    """The administrator's key: that of the environment, else the one that the service keeps in its data directory.

    Raises ``Stop`` if there is neither.
    """
    if key := env.get(KEY_VARIABLE, "").strip():
        return key
    path = data_dir / KEY_FILE
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no ASCII text"
        remedy = f"start the service once on this data_dir, as the same user, or set {KEY_VARIABLE}"
        raise Stop("admin key", f"{path} can't be read: {why}", remedy) from error


def service_url(settings: Settings) -> str:
    """Where the service of these settings listens. With ``http.port`` 0 it says so itself once it does.

    Raises ``Retry`` until then.
    """
    if settings.http.port:
        return settings.http.url()
    path = settings.data_dir / URL_FILE
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise Retry("service", f"{path} is not there yet", "wait until it listens") from error


class ServiceDoor:
    """The door of the service that these settings describe, found when it is first used. Any thread may call it.

    ``timeout_s``: longest wait for an answer.
    """

    def __init__(self, settings: Settings, timeout_s: float = 300.0) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._door: Door | None = None

    def _open(self) -> Door:
        with self._lock:
            if self._door is None:
                url, key = service_url(self._settings), admin_key(self._settings.data_dir)
                self._door = Door(url, key, self._timeout_s)
            return self._door

    def get_json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """``Door.get_json``."""
        return self._open().get_json(path, params)

    def post_json(self, path: str, body: Any) -> Any:
        """``Door.post_json``."""
        return self._open().post_json(path, body)

    def close(self) -> None:
        """Give the connections back."""
        if self._door is not None:
            self._door.close()


class Door:
    """Calls of the service at ``url``. Any thread may call it: ``httpx.Client`` shares its connections among them.

    ``Retry``: it is busy, a part of it is away, or it can't be reached (429, 503, no connection).
    ``Reject``: it refuses what was sent (other 4xx), in its own words. ``Stop``: anything else, such as a 500.

    Args:
        timeout_s: longest wait for an answer.
        transport: stands in for the network, in tests.
    """

    def __init__(
        self, url: str, admin_key: str, timeout_s: float = 300.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        if not admin_key.isascii() or not admin_key.isprintable():
            raise Reject("admin key", "a key with other characters than printable ASCII", "copy it again", 401)
        headers = {"authorization": f"Bearer {admin_key}"}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        try:
            # trust_env off: a proxy of the environment has no business between a job and loopback.
            self._http = httpx.Client(
                base_url=self.url, headers=headers, timeout=timeout, trust_env=False, transport=transport
            )
        except httpx.InvalidURL as error:
            raise self._no_address() from error

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get_json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """The JSON at ``path``."""
        return self._call("GET", path, params=params)

    def post_json(self, path: str, body: Any) -> Any:
        """The JSON answered to ``body``. Raises ``Reject`` if that is nothing JSON can say."""
        try:
            content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # not a number, or characters that are none
            raise Reject("request", f"can't be sent: {error}", "use finite numbers, and text in UTF-8") from error
        return self._call("POST", path, content=content, headers={"content-type": "application/json"})

    def post_arrow(self, path: str, table: Any, params: Mapping[str, str] | None = None) -> Any:
        """The JSON answered to ``table``, a ``pyarrow.Table`` sent as an IPC stream."""
        return self._call("POST", path, params=params, content=to_ipc(table), headers={"content-type": ARROW})

    def _call(self, method: str, path: str, **rest: Any) -> Any:
        try:
            response = self._http.request(method, path, **rest)
        except httpx.UnsupportedProtocol as error:
            raise self._no_address() from error
        except httpx.TransportError as error:
            what = "no service listens there"
            if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                what = f"it went away before it had answered ({type(error).__name__})"
            raise Retry(self.url, what, "start it with 'ruvllm serve', or name another address") from error
        if response.status_code >= 400:
            raise _translated(response)
        try:
            return response.json()
        except ValueError as error:
            got = f"what answers there is not RuvLLM ({response.status_code}, no JSON)"
            raise Stop(self.url, got, "name the service's address") from error

    def _no_address(self) -> Stop:
        return Stop("url", f"{self.url!r} is no address", "write it like http://127.0.0.1:8000")


def to_ipc(table: Any) -> bytes:
    """``table``, a ``pyarrow.Table``, as an Arrow IPC stream."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def from_ipc(data: bytes) -> Any:
    """The ``pyarrow.Table`` in an Arrow IPC stream."""
    import pyarrow as pa

    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()


def _translated(response: httpx.Response) -> Retry | Reject | Stop:
    status = response.status_code
    try:
        detail = response.json()["error"]
        message, param, code = str(detail["message"]), detail.get("param"), detail.get("code")
    except (ValueError, KeyError, TypeError):
        # Not the service itself: what stands before it, or another program. The words of its page are enough.
        words = " ".join(re.sub(r"<[^>]*>", " ", response.text or response.reason_phrase).split())[:200]
        message, param, code = f"{words or 'no words'}; see that RuvLLM listens at {response.url}", None, None
    who = f"service ({status})"
    if status in (429, 503):
        return Retry(who, message, "try again", _retry_after_s(response), status)
    # Our service's messages end with the remedy already.
    got, _, remedy = message.rpartition("; ")
    if status < 500:
        return Reject(who, got or message, remedy if got else "change the request", status, param, code)
    return Stop(who, got or message, remedy if got else "see the service's log")


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that the answer asks for, to the millisecond where it says so; 1 if it names none."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(response.headers[name]) * unit)
        except (KeyError, ValueError):  # a date, which our service never sends, is none
            continue
    return 1.0
