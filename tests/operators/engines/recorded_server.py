"""A server that gives vLLM's answers, recorded from 0.32.0; `make test-vllm` compares them with the real server's."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RECORDED = json.loads(Path(__file__).with_name("vllm_recorded.json").read_text())


class Server:
    """A server that gives the recorded answers, or what a test puts into ``answers``, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.hung_up = threading.Event()
        """Set when a client left an answer that ``endless`` writes."""
        self.answers: dict[str, tuple[int, str]] = {
            "/health": (200, ""),
            "/v1/models": (200, json.dumps(RECORDED["models"])),
            "/v1/completions": (200, RECORDED["stream"]),
        }
        self.endless = False
        self.off: float | None = 0.0
        """How far what it reads is from what it wrote, for the look at the start; null gives the recorded scores."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self, None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer.answer(self, json.loads(body) if body else None)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        self.asked.append((handler.path, dict(handler.headers), body))
        if handler.path == "/tokenize":
            status, text = 200, json.dumps(RECORDED["tokenize"]["full" if body["add_special_tokens"] else "bare"])
        elif body and body.get("stream") is False:
            told = {"token_ids": [5, 6, 7], "logprobs": {"token_logprobs": [-1.0] * 3}}
            status, text = 200, json.dumps({"choices": [told]})
        elif self.off is not None and "logprob_token_ids" in (body or {}):
            told = {f"token_id:{token}": self.off - 1.0 for token in body["logprob_token_ids"]}
            status, text = 200, json.dumps({"choices": [{"logprobs": {"top_logprobs": [told]}}]})
        else:
            status, text = self.answers[handler.path]
        raw = text.encode()
        handler.send_response(status)
        handler.send_header("content-length", str(10**9 if self.endless and body else len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)
        if self.endless and body:
            try:
                while True:
                    handler.wfile.write(b": nothing new\n")
                    handler.wfile.flush()
                    threading.Event().wait(0.005)
            except OSError:
                self.hung_up.set()

    def body(self) -> Any:
        """The body of the last request."""
        return self.asked[-1][2]
