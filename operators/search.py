"""search: find the nodes of the tenant's memory that fit the query, by words and by meaning.

The store's search is a blocking call, so it runs on a few threads of this stage's own. Memory that is away (``Retry``,
``Stop``) costs the answer its context and nothing else: there are no hits, and ``degraded`` says ``memory``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from pydantic import Field

from operators.base import Knobs, Operator
from operators.errors import Retry, Stop
from operators.records import Embedded, Hits, Mode, Query, record
from operators.stores.ports import Prior, SearchRequest


class Searches(Protocol):
    """What this stage needs of the memory; a ``VectorStore`` and ``Memory`` both have it. Any thread may call it."""

    def search(self, request: SearchRequest) -> Hits:
        """Best ``k`` nodes of the request's tenant that pass its filter, best first."""


@record
class SearchInput:
    """What ``search`` reads."""

    query: Query
    embedded: Embedded


class Search(Operator[SearchInput, Hits]):
    """Hits for every query. ``unavailable`` counts the queries that got none because the memory was away."""

    name = "search"

    class Config(Knobs):
        """The knobs of ``search``."""

        k: int = Field(16, ge=1, le=1000)
        """Hits a query gets unless it asks for another number."""
        max_k: int = Field(100, ge=1, le=1000)
        """Most hits a query may ask for; more is cut to this."""
        mode: Mode = "hybrid"
        """How to search where the query does not say: ``hybrid`` fuses words and meaning, neighbours included;
        ``vector`` and ``text`` rank by one of them, for comparison."""
        recency: float = Field(0.0, ge=0, le=1)
        """With ``hybrid``: how much newness counts. At 1 a node's score halves with every ``half_life_s``; at 0 age
        counts nothing."""
        half_life_s: float = Field(2_592_000.0, gt=0)
        """Age in seconds at which newness has halved; 30 days."""
        quality: float = Field(0.0, ge=0, le=1)
        """With ``hybrid``: how much a node's quality counts. At 1 scores are multiplied by it; at 0 it counts
        nothing."""
        min_similarity: float = Field(-1.0, ge=-1.0, le=1.0)
        """Hits below this cosine are dropped unless the text matched too; -1 keeps all."""
        away_after_s: float = Field(2.0, gt=0)
        """Seconds after which a memory in another process counts as away, and the answer goes on without context."""
        threads: int = Field(2, ge=1, le=64)
        """Threads that wait for the store; more run that many searches at a time."""

    def __init__(self, config: Config, memory: Searches) -> None:
        super().__init__()
        self.config = config
        self.memory = memory
        self.unavailable = 0
        self._prior = Prior(recency=config.recency, half_life_s=config.half_life_s, quality=config.quality)
        self._threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Start the threads."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.config.threads, thread_name_prefix=self.name)

    async def run(self, batch: Sequence[SearchInput]) -> list[Hits]:
        """Hits for every query of the batch, the queries side by side on the stage's threads."""
        if self._threads is None:
            raise Stop(self.name, "run before start", "await start() first")
        loop = asyncio.get_running_loop()
        return list(await asyncio.gather(*(loop.run_in_executor(self._threads, self._one, item) for item in batch)))

    async def check(self) -> None:
        """A free thread, within the caller's patience."""
        if self._threads is None:
            raise Stop(self.name, "no threads", "await start() first")
        await asyncio.get_running_loop().run_in_executor(self._threads, lambda: None)

    async def close(self) -> None:
        """End the threads; searches under way finish first."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
            self._threads = None

    def _one(self, item: SearchInput) -> Hits:
        config, query = self.config, item.query
        request = SearchRequest(
            tenant=query.tenant,
            text=query.text,
            vector=item.embedded.vector,
            k=min(query.k or config.k, config.max_k),
            mode=query.mode or config.mode,
            filter=query.filter,
            prior=self._prior,
        )
        try:
            found = self.memory.search(request)
        except (Retry, Stop):
            self.unavailable += 1
            none = np.zeros((0, len(item.embedded.vector)), np.float32)
            return Hits(hits=(), vectors=none, mode=request.mode, degraded=("memory",))
        return self._close_enough(found)

    def _close_enough(self, found: Hits) -> Hits:
        floor = self.config.min_similarity
        keep = [i for i, hit in enumerate(found.hits) if hit.similarity >= floor or hit.text_score > 0]
        if len(keep) == len(found.hits):
            return found
        hits = tuple(found.hits[i] for i in keep)
        return Hits(hits=hits, vectors=found.vectors[keep], mode=found.mode, degraded=found.degraded)
