"""The write-back job over real stores and a real log, in one process, without models: for its tests and its kills.

``python -m tests.writeback_rig DIR [STEP]`` writes back what is in the log of DIR; with STEP it kills itself there.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jobs.writeback import REMEMBER, WITHDRAW, Writer, writeback_consumer
from operators.documents import node_id
from operators.engines.ports import Encoded
from operators.privacy.masker import Masker
from operators.records import Interaction, Passage, Verdict, encode
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.lance import LanceStore
from operators.stores.memory import Memory
from operators.stores.ports import Node
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, create_topics, session_key
from pipeline import memory_schema as api
from pipeline.admin_api import memos, remembered
from pipeline.management import CALLS

DIM = 64
NOW = 1_000.0
STEPS = (
    "strengthened",
    "vectors",
    "graph",
    "intent",
    "removed vectors",
    "removed from graph",
    "removed from snapshot",
    "answered",
    "appended",
)
"""Every numbered step of writing back, in the memory's owner and in the job."""


def vectors(texts: list[str]) -> Encoded:
    """Words counted into 64 places: equal texts are equal, texts with equal words near."""
    made = np.zeros((len(texts), DIM), np.float32)
    for row, text in zip(made, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            row[zlib.crc32(word.encode()) % DIM] += 1
    made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1)
    return Encoded(vectors=made, tokens=np.full(len(texts), 9, np.int32), truncated=(False,) * len(texts))


class Owner:
    """The service's side of the door, without HTTP: the same requests, the same calls."""

    def __init__(self, memory: Memory, answered: Callable[[], None] = lambda: None) -> None:
        self.memory, self.answered = memory, answered
        self.failures: list[Exception] = []
        self.posts: list[tuple[str, int]] = []

    def post_json(self, path: str, body: dict) -> dict:
        if self.failures:
            raise self.failures.pop(0)
        if path == REMEMBER:
            wanted = api.RememberRequest(**body)
            encoded = vectors([item.text for item in wanted.items])
            results = CALLS["remember"](self.memory, wanted.tenant, memos(wanted, encoded))
            answer = remembered(wanted, results).model_dump()
        else:
            assert path == WITHDRAW
            ids = [node_id(body["tenant"], one, "interaction") for one in body["interaction_ids"]]
            answer = {"removed": CALLS["remove"](self.memory, body["tenant"], ids, "withdrawn", False).vectors}
        self.posts.append((path, len(body.get("items", body.get("interaction_ids", [])))))
        self.answered()
        return answer


class Unsuspicious:
    """A quarantine that finds what is told to be found."""

    def __init__(self, word: str = "") -> None:
        self.word = word

    def check(self, tenant: str, principal: str, question: str, answer: str, now: float) -> str | None:
        return f"says {self.word}" if self.word and self.word in answer else None


def memory_at(root: Path, at: Callable[[str], None] = lambda step: None) -> Memory:
    made = Memory(
        Memory.Config(publish_every_s=0),
        LanceStore(root / "memory" / "vectors", DIM, clock=lambda: NOW),
        KuzuGraph(root / "memory" / "graph", KuzuGraph.Config(buffer_pool_bytes=64 << 20, max_bytes=1 << 30)),
        root / "memory" / "snapshots",
        clock=lambda: NOW,
        monotonic=lambda: NOW,  # publishing takes no time, so the next one is due at once
        at=at,
    )
    made.open()
    return made


def log_at(root: Path) -> SqliteLog:
    log = SqliteLog(root / "events.sqlite")
    log.open()
    create_topics(log)
    return log


def say(log: SqliteLog, question: str, answer: str, score: float | None = 0.9, **fields) -> Verdict:
    """Append an interaction and a verdict on it; returns the verdict."""
    tenant, session = fields.get("tenant", "acme"), fields.get("session", "s")
    turn, by = fields.get("turn", 0), fields.get("by", "model")
    name = fields.get("name", f"{tenant}-{session}-{turn}")
    cites = [Passage(node_id=one, source="", text="", tokens=1, score=1.0) for one in fields.get("cites", ())]
    interaction = Interaction(
        event_id=f"event {name}",
        interaction_id=name,
        tenant=tenant,
        session=session,
        user=fields.get("user", ""),
        turn=turn,
        created_at=NOW + turn,
        query=question,
        answer=answer,
        context=tuple(cites),
        model="135M",
    )
    key = session_key(tenant, session)
    partition, offset = log.append(INTERACTIONS, key, encode(interaction))
    verdict = Verdict(
        event_id=f"verdict {name} {by} {turn} {fields.get('at', '')}",
        interaction_id=name,
        tenant=tenant,
        session=session,
        created_at=fields.get("at", NOW),
        correction=fields.get("correction", ""),
        status="unjudged" if score is None else "judged",
        score=score,
        uncertainty=0.1,
        judge="tester",
        by=by,
    )
    headers = {"src.topic": INTERACTIONS, "src.partition": str(partition), "src.offset": str(offset)}
    log.append(JUDGEMENTS, key, encode(verdict), headers)
    return verdict


def lag(log: SqliteLog) -> int:
    partitions = range(log.topics()[JUDGEMENTS])
    return sum(log.end(JUDGEMENTS, p) - log.committed("writeback", JUDGEMENTS, p) for p in partitions)


async def write_back(log: SqliteLog, owner: Owner, suspects=None, batch: int = 4, before_commit=lambda: None) -> Writer:
    """Write back all that the log holds."""
    writer = Writer(log, owner, Masker(Masker.Config()), suspects or Unsuspicious(), 0.75, lambda: NOW)
    stop = asyncio.Event()
    consumer = writeback_consumer(log, writer, batch=batch, idle_s=0.01, before_commit=before_commit)
    running = asyncio.create_task(consumer.run(stop))
    try:
        async with asyncio.timeout(60):
            while lag(log) and not running.done():
                await asyncio.sleep(0.01)
    finally:
        stop.set()
        await running
    return writer


def document(name: str, text: str) -> Node:
    vector = vectors([text]).vectors[0]
    return Node(node_id=name, kind="document", text=text, vector=vector, source=f"{name}.md", created_at=NOW)


def state(memory: Memory, tenant: str = "acme") -> dict:
    """All that a memory holds of a tenant, as plain values."""
    rows = sorted((n for batch in memory.vectors.scan(tenant) for n in batch), key=lambda n: n.node_id)
    shown = memory.expand(tenant, [n.node_id for n in rows], hops=0, max_nodes=999, max_edges=999, decay=1.0)
    return {
        "nodes": [
            (n.node_id, n.kind, n.text, n.session, n.position, round(n.quality, 9), n.metadata, n.vector.tolist())
            for n in rows
        ],
        "graph": sorted(memory.graph.node_ids(tenant)),
        "edges": sorted(memory.graph.edges(tenant)),
        "gone": memory.graph.all_gone(tenant),
        "shown": sorted(shown.node_ids),
    }


def main(root: Path, step: str | None) -> None:
    def at(name: str) -> None:
        if name == step:
            print(name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    memory, log = memory_at(root, at), log_at(root)
    owner = Owner(memory, lambda: at("answered"))
    asyncio.run(write_back(log, owner, before_commit=lambda: at("appended")))
    memory.close()
    log.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
