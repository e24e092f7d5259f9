"""Calls of the memory's endpoints for tests, and nodes as the ingest job sends them."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from conf.load import load
from operators.stores import lance_rows
from operators.stores.ports import Node

NODES = "/v1/memory/nodes"
ENCODER = load("test", env={}).settings.embed.model.id
ADMIN = "/v1/admin/memory"


class Http:
    """Calls that expect a status and give the JSON."""

    def __init__(self, http: httpx.Client, key: str = "") -> None:
        self.http, self.headers = http, {"authorization": f"Bearer {key}"} if key else {}

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200, **rest: Any) -> Any:
        rest |= {} if body is None else {"json": body}
        answer = self.http.request(method, path, headers=self.headers, **rest)
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["error"]


def arrow(*names: str, table: Any = None) -> bytes:
    """Nodes as the ingest job sends them."""
    vectors = np.eye(384, dtype=np.float32)
    made = [
        Node(
            node_id=name,
            kind="document",
            text=f"text of {name}",
            vector=vectors[i],
            source="a.md",
            position=i,
            created_at=1.0,
        )
        for i, name in enumerate(names)
    ]
    sink = io.BytesIO()
    table = lance_rows.table(made, 384) if table is None else table
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def to_nodes(tenant: str) -> str:
    """Where nodes are added."""
    return f"{ADMIN}/nodes?tenant={tenant}&encoder={ENCODER}"


def fill(admin: Http, tenant: str, *names: str) -> None:
    added = admin("POST", to_nodes(tenant), content=arrow(*names))
    assert (added["added"], added["duplicates"]) == (len(names), 0)
