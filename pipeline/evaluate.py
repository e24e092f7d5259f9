"""``ruvllm evaluate memory``: how well the memory finds what it should, line by line, on the caller's own data.

The corpus goes through the real encoder into a real memory (vectors, graph, snapshot) in a temporary directory; the
user's own memory is not touched. Every query runs through the real stages:

    bm25, vector, hybrid    the hits of ``search`` in that mode
    …+expansion             the hits a request gets (``search.k``), then what ``expand`` adds to them, by the score that
                            ``attend`` gives to neighbours (``ranking``)
    attended                ``attend``'s order of that neighbourhood, in the profile's mode of search: without its token
                            budget, its limits of relevance and the number of passages; of equal texts only the first
    default                 what a question meets if nobody changes a setting: ``attended``

``ms_p50`` is the median time of a line's stages in milliseconds, the encoder left out; ``context_tokens`` are the
encoder's tokens of the first ten.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conf.schema import Settings
from operators.attend import Attend, AttendInput
from operators.base import Operator
from operators.embed import Embed
from operators.evaluation_files import Line, Question, read_corpus, read_queries
from operators.expand import Expand, ExpandInput
from operators.ids import uuid7
from operators.metrics import all_gold, ndcg, recall
from operators.ranking import similarity_scores
from operators.records import Embedded, Hits, Message, Neighbourhood, Query, Route
from operators.search import Search, SearchInput
from operators.stores.memory import Memory
from operators.stores.ports import Node
from pipeline.host import make_memory

TENANT = "evaluation"
DEPTH = 50
"""How many places of a ranking are looked at."""
SLICE = 256
"""Corpus lines embedded and written at a time."""
MODES = {"bm25": "text", "vector": "vector", "hybrid": "hybrid"}
"""Line → mode of search."""
LINES = (*MODES, *(f"{line}+expansion" for line in MODES), "attended")
DEFAULT = "attended"
Ranking = list[tuple[str, int]]
"""(node id, tokens), best first."""


async def evaluate_memory(
    corpus: Path, queries: Path, settings: Settings, advance: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """The report: results of every line, the name of the default one, counts and settings.

    ``advance`` is told how many lines and queries of how many are done. Raises ``Reject`` for files that can't be used.
    """
    lines = read_corpus(corpus)
    questions = read_queries(queries, lines)
    total = len(lines) + len(questions)
    embed = Embed(settings.embed, settings.data_dir / "cache")
    with tempfile.TemporaryDirectory(prefix="ruvllm-evaluate-") as scratch:
        here = settings.vectors.model_copy(update={"uri": ""})
        memory = make_memory(settings.model_copy(update={"data_dir": Path(scratch), "vectors": here}))
        memory.open()
        try:
            await embed.start()
            filled = await _fill(memory, embed, lines, lambda done: advance(done, total))
            stages = _Stages(settings, memory)
            await stages.start()
            try:
                results = await _run(stages, embed, questions, lambda done: advance(len(lines) + done, total))
            finally:
                await stages.close()
        finally:
            await embed.close()
            memory.close()
    shown = settings.model_dump(mode="json", include={"embed", "search", "expand", "attend", "memory", "vectors"})
    return {
        "results": {**results, "default": results[DEFAULT]},
        "default": DEFAULT,
        "corpus": {"lines": len(lines), "queries": len(questions), **filled},
        "settings": shown,
    }


async def _fill(
    memory: Memory, embed: Embed, lines: Sequence[Line], advance: Callable[[int], None]
) -> dict[str, int | float]:
    """Remember every line; returns counts."""
    now, tokens, cut = time.time(), 0, 0
    for begin in range(0, len(lines), SLICE):
        some = lines[begin : begin + SLICE]
        made = await embed.texts([line.text for line in some], query=False)
        tokens, cut = tokens + int(np.sum(made.tokens)), cut + sum(made.truncated)
        nodes = [
            Node(
                node_id=line.id,
                kind="interaction" if line.session else "document",
                text=line.text,
                vector=made.vectors[i],
                source=line.source,
                session=line.session,
                position=line.order,
                tokens=int(made.tokens[i]),
                created_at=now if line.time is None else line.time,
            )
            for i, line in enumerate(some)
        ]
        memory.add(TENANT, nodes)
        advance(begin + len(some))
    memory.publish(TENANT)
    nodes_, edges = memory.graph.count(TENANT)
    sessions, sources = {line.session for line in lines}, {line.source for line in lines}
    return {
        "sessions": len(sessions - {""}),
        "sources": len(sources - {""}),
        "tokens": tokens,
        "cut_by_the_encoder": cut,
        "nodes": nodes_,
        "edges": edges,
    }


class _Stages:
    """The stages of one evaluation: a search a mode, expand, and attend without its limits."""

    def __init__(self, settings: Settings, memory: Memory) -> None:
        most = {"max_k": max(settings.search.max_k, DEPTH)}
        self.mode = settings.search.mode
        self.hop_decay = settings.attend.hop_decay
        self.search = {
            mode: Search(settings.search.model_copy(update={**most, "mode": mode}), memory) for mode in MODES.values()
        }
        self.expand = Expand(settings.expand, memory)
        self.attend = Attend(settings.attend.unlimited(DEPTH, settings.expand.max_nodes))
        self.all: list[Operator[Any, Any]] = [*self.search.values(), self.expand, self.attend]

    async def start(self) -> None:
        """Start them all."""
        for stage in self.all:
            await stage.start()

    async def close(self) -> None:
        """End them all."""
        for stage in self.all:
            await stage.close()

    async def rank(self, line: str, query: Query, deep: Query, embedded: Embedded) -> Ranking:
        """The ranking of ``line``. ``deep`` is ``query`` with k = DEPTH."""
        base, _, expanded = line.partition("+")
        search = self.search[MODES.get(base, self.mode)]
        if base in MODES and not expanded:
            (found,) = await search([SearchInput(query=deep, embedded=embedded)])
            return [(hit.node_id, hit.tokens) for hit in found.hits]
        (found,) = await search([SearchInput(query=query, embedded=embedded)])
        (near,) = await self.expand([ExpandInput(query=query, embedded=embedded, hits=found)])
        if expanded:
            return _expanded(found, near, self.hop_decay)
        item = AttendInput(query=query, embedded=embedded, neighbourhood=near, route=_ROUTE)
        (context,) = await self.attend([item])
        return [(passage.node_id, passage.tokens) for passage in context.passages]


def _expanded(found: Hits, near: Neighbourhood, hop_decay: float) -> Ranking:
    """The hits in their order, then the other nodes of the neighbourhood, best first."""
    n = len(found.hits)
    if not near.node_ids:
        return []
    scores = similarity_scores(near, hop_decay)
    order = [*range(n), *(n + np.argsort(-scores[n:], kind="stable")).tolist()]
    return [(near.node_ids[i], int(near.tokens[i])) for i in order][:DEPTH]


async def _run(
    stages: _Stages, embed: Embed, questions: Sequence[Question], advance: Callable[[int], None]
) -> dict[str, dict[str, float]]:
    """Line → metric → mean over the queries. The lines take turns, so what the machine does meanwhile hits all."""
    rows: dict[str, list[dict[str, float]]] = {line: [] for line in LINES}
    for done, question in enumerate(questions, start=1):
        query, deep = _query(question, None), _query(question, DEPTH)
        (embedded,) = await embed([query])
        for line in LINES:
            began = time.perf_counter()
            ranking = await stages.rank(line, query, deep, embedded)
            took = time.perf_counter() - began
            rows[line].append(_score(ranking, question.gold) | {"ms_p50": took * 1e3})
        advance(done)
    return {line: _summary(scored) for line, scored in rows.items()}


def _score(ranking: Ranking, gold: Sequence[str]) -> dict[str, float]:
    ids = [node_id for node_id, _ in ranking]
    return {
        **{f"recall@{k}": recall(ids, gold, k) for k in (5, 10, 20, 50)},
        "ndcg@10": ndcg(ids, gold, 10),
        **{f"all_gold@{k}": all_gold(ids, gold, k) for k in (5, 10, 20)},
        "context_tokens": float(sum(tokens for _, tokens in ranking[:10])),
    }


def _summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    return means | {"ms_p50": statistics.median(row["ms_p50"] for row in rows)}


def _query(question: Question, k: int | None) -> Query:
    return Query(
        interaction_id=str(uuid7()),
        tenant=TENANT,
        session=TENANT,
        text=question.text,
        messages=(Message(role="user", content=question.text),),
        created_at=time.time(),
        k=k,
    )


_ROUTE = Route(  # a context without a limit; nothing else of it is read
    tier="",
    context_tokens=10**9,
    temperature=0.0,
    top_p=1.0,
    confidence=1.0,
    probabilities={},
    propensity=1.0,
    propensities={},
    checkpoint="",
    reason="caller",
    hidden=np.zeros(0, np.float32),
    features=np.zeros(0, np.float32),
)
