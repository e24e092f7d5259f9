"""What a broker under test keeps its files on: the few calls of S3 that it makes, answered from this process' memory.

The broker that we have (see ``broker.py``) forgets all when it ends, or keeps all in S3. With this, a killed broker
finds again what it had acknowledged, as a real one finds its disk.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape


class Disk:
    """Objects by path; ``url`` while it is open. One bucket, no signatures checked."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, str, bytes]] = {}
        """Path → (tag, time of the last change, bytes)."""
        self.lock = threading.Lock()
        self._changes = 0
        self._half = 0
        self.deaths = 0

    def __enter__(self) -> Disk:
        disk = self

        class Handler(_Handler):
            def setup(self) -> None:
                super().setup()
                self.disk, self.deaths = disk, disk.deaths

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def put(self, path: str, body: bytes) -> str:
        """Under the lock. The times differ always: the broker orders by them."""
        self._changes += 1
        changed = datetime.datetime(2026, 1, 1) + datetime.timedelta(milliseconds=self._changes)
        tag = f'"{self._changes}"'
        if path.endswith("/meta.json"):
            self._half += _sequences(body) > _sequences(self.objects[path][2] if path in self.objects else b"{}")
        elif path.endswith(".batch"):
            self._half -= 1
        self.objects[path] = (tag, changed.isoformat(timespec="milliseconds") + "Z", body)
        return tag

    @contextlib.contextmanager
    def between_batches(self, seconds: float = 20.0) -> Iterator[None]:
        """Hold the disk still at a moment when no batch is half written; what is sent now never arrives.

        The broker notes a producer's sequence number first and writes the batch last. Killed in between, it takes the
        producer's next attempt for a repeat and acknowledges what it has not: no disk of Kafka's looks like that, for
        Kafka reads the numbers off the batches.
        """
        deadline = time.monotonic() + seconds
        while True:
            with self.lock:
                if self._half <= 0:
                    yield
                    self.deaths += 1
                    return
            assert time.monotonic() < deadline, "a batch stays half written"
            threading.Event().wait(0.001)


def _sequences(meta: bytes) -> int:
    """All sequence numbers of all producers together."""

    def total(node: Any) -> int:
        return sum(map(total, node.values())) if isinstance(node, dict) else int(node)

    return sum(total(producer["sequences"]) for producer in json.loads(meta).get("producers", {}).values())


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    disk: Disk
    deaths: int

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the broker was killed amid a request
            super().handle()

    def do_PUT(self) -> None:
        path, _ = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.disk.lock:
            if self.deaths != self.disk.deaths:  # whoever sent it has died since
                self.close_connection = True
                return None
            tag = self.disk.objects[path][0] if path in self.disk.objects else None
            if (self.headers["If-None-Match"] and tag) or (self.headers["If-Match"] or tag) != tag:
                return self._answer(412)
            tag = self.disk.put(path, body)
        self._answer(200, ETag=tag)

    def do_GET(self) -> None:
        path, query = self._asked()
        if "list-type" in query:
            return self._answer(200, self._listing(path, query).encode())
        found = self.disk.objects.get(path)
        if found is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if self.headers["If-None-Match"] == found[0]:
            return self._answer(304, ETag=found[0])
        self._answer(200, found[2], ETag=found[0])

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        with self.disk.lock:
            self.disk.objects.pop(self._asked()[0], None)
        self._answer(204)

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qsl(url.query, keep_blank_values=True)
        return urllib.parse.unquote(url.path), dict(query)

    def _listing(self, bucket: str, query: dict[str, str]) -> str:
        root = bucket.rstrip("/") + "/"
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        with self.disk.lock:
            objects = {path[len(root) :]: o for path, o in sorted(self.disk.objects.items()) if path.startswith(root)}
        rows, folders = "", dict[str, None]()
        for key, (tag, changed, body) in objects.items():
            rest = key[len(prefix) :]
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders[prefix + rest.split(delimiter)[0] + delimiter] = None
                continue
            rows += f"<Contents><Key>{escape(key)}</Key><LastModified>{changed}</LastModified>"
            rows += f"<ETag>{escape(tag)}</ETag><Size>{len(body)}</Size></Contents>"
        rows += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders)
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
