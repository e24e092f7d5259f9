"""A real HTTP server of one file that does what a test tells it: cuts off, changes the file, lies, or holds up."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """How one request is answered; as it stands, rightly."""

    status: int = 0
    """Instead of what is right: nothing but this and the headers."""
    headers: dict[str, str] = field(default_factory=dict)
    """Over those that are right; an empty value leaves a header out."""
    cut: int | None = None
    """Bytes after which the connection ends."""
    hold: threading.Event | None = None
    """With ``cut``: instead of ending, wait for this and go on."""
    more: bytes = b""
    """Sent after the file."""
    if_range: bool = True
    """Whether If-Range is looked at."""


class FileServer(ThreadingHTTPServer):
    """Any path is the file ``data``; ``replies`` are used up first. A context manager that serves meanwhile."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.headers = {"ETag": '"v1"'}
        self.replies: list[Reply] = []
        self.asked: list[Message] = []
        """Headers of the requests."""
        self.sent = 0
        """Bytes of bodies."""
        self.url = f"http://127.0.0.1:{self.server_port}/some/model.gguf"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""

    def __enter__(self) -> FileServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        reply = self.server.replies.pop(0) if self.server.replies else Reply()
        self.server.asked.append(self.headers)
        body, status, headers = self._right(reply)
        headers |= reply.headers
        if reply.status:
            body, status, headers = b"", reply.status, {"Content-Length": "0"} | reply.headers
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        body += reply.more
        self._send(body[: reply.cut])
        if reply.cut is not None and reply.hold is None:
            self.close_connection = True
        elif reply.cut is not None and reply.hold is not None:
            reply.hold.wait(60)
            with contextlib.suppress(OSError):  # who waited is gone
                self._send(body[reply.cut :])

    def _right(self, reply: Reply) -> tuple[bytes, int, dict[str, str]]:
        data, headers = self.server.data, self.server.headers
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        current = not reply.if_range or self.headers.get("if-range") in (None, *headers.values())
        if not asked or not current:
            return data, 200, headers | {"Content-Length": str(len(data))}
        start = int(asked[1])
        if start >= len(data):
            return b"", 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"}
        part = data[start:]
        span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}", "Content-Length": str(len(part))}
        return part, 206, headers | span

    def _send(self, body: bytes) -> None:
        self.wfile.write(body)
        self.wfile.flush()
        self.server.sent += len(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
