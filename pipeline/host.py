"""The stages that live in one process, built from the settings: the composition root of every binding.

A host of the whole answer path is a ``Backend`` all by itself: that is binding ``inproc``. In binding ``serve`` every
deployment has a host of its chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conf.schema import Settings
from operators.attend import Attend
from operators.base import Operator
from operators.embed import Embed
from operators.engines.pool.places import TierStatus
from operators.engines.ports import Encoded
from operators.errors import Retry, RuvError, Stop
from operators.expand import Expand
from operators.generate import Generate, GenerateInput
from operators.ingest import Document, Nodes, document_nodes
from operators.networks.features import projection
from operators.privacy.masker import Masker
from operators.records import Embedded, Hits, Piece, Query, TierLoad
from operators.route import Router
from operators.search import Search, SearchInput
from operators.stores.checkpoints import Registry
from operators.stores.make import memory_in, open_log
from operators.stores.memory import Added, Memory
from operators.stores.ports import Node, SearchRequest
from pipeline.emit import Emitter
from pipeline.graph import Chain, Step, check
from pipeline.management import CALLS
from pipeline.service import Action
from pipeline.updates import Updates

CHECK_S = 2.0
"""Seconds a stage may take to say that it works."""
Progress = Callable[[str], None]
_log = logging.getLogger("ruvllm.host")


class Host:
    """``names``: the stages to run here. ``tiers``: names of the tiers whose engines run here (all, if not given)."""

    def __init__(
        self,
        names: Sequence[str],
        settings: Settings,
        tiers: Sequence[str] | None = None,
        progress: Progress = lambda text: None,
    ) -> None:
        check()
        self.settings = settings
        self._names = tuple(names)
        self._tiers = [tier for tier in settings.tiers if tiers is None or tier.name in tiers]
        self._progress = progress
        self._memory: Memory | None = None
        self._embed: Embed | None = None
        self._generate: Generate | None = None
        self._router: Router | None = None
        self._tending: list[asyncio.Task[None]] = []
        self.failed: Stop | None = None
        self._stages: list[Operator[Any, Any]] = []

    async def start(self) -> None:
        """Open the stores and load the models of these stages.

        Raises ``Stop``; but a ``generate`` that is alone here and has no usable tier is kept and reported through
        ``load``, so that the other tiers' processes can serve.
        """
        cache_dir = self.settings.data_dir / "cache"
        cache_dir.mkdir(parents=True, exist_ok=True)
        for name in self._names:
            self._progress(name)
            stage = await asyncio.to_thread(self._build, name, cache_dir)
            try:
                await stage.start()
            except Stop as error:
                if self._names != ("generate",):
                    raise
                self.failed = error
            self._stages.append(stage)
            if isinstance(stage, Attend) and self._embed is not None:
                stage.fits(self._embed.id)  # else every question that finds something would fail
        self._chain = Chain([stage for stage in self._stages if stage.name != "generate"])
        await self._warm()
        if self._memory is not None:
            self._tending.append(asyncio.create_task(self._tend(self._memory)))
        if self._router is not None:
            updates = Updates(self._router, make_registry(self.settings), self.settings.promotion.poll_s)
            await asyncio.to_thread(updates.look)
            if self._router.program is not None:  # not before: what was promoted acts only now
                self._router.program.tell(self._router.active)
            self._tending.append(asyncio.create_task(updates.run()))

    def _build(self, name: str, cache_dir: Path) -> Operator[Any, Any]:
        settings = self.settings
        if name == "embed":
            self._embed = Embed(settings.embed, cache_dir)
            return self._embed
        if name == "search":
            self._memory = make_memory(settings)
            self._memory.open()
            return Search(settings.search, self._memory)
        if name == "expand":
            # Alone in its process it reads the snapshots that the owner of the memory publishes.
            attention = bool(settings.attend.checkpoint) and settings.attend.ranking != "similarity"
            return Expand(settings.expand, self._memory or make_memory(settings), vectors=attention)
        if name == "route":
            self._router = Router(settings.route, settings.tiers, cache_dir)
            return self._router
        if name == "attend":
            return Attend(settings.attend, cache_dir)
        if name == "generate":
            self._generate = Generate(settings.generate, self._tiers, cache_dir, pool=settings.pool)
            return self._generate
        raise Stop("host", f"no stage {name!r} on the answer path", "name one of operators.FLOW")

    async def _warm(self) -> None:
        """Pay at the start for what the first request would pay: a first forward pass, the router's projection."""
        if self._embed is not None:
            await self._embed.texts(["warm"], query=True)
        if "route" in self._names:
            await asyncio.to_thread(projection, self.settings.embed.output_dim)
        if self._memory is not None:
            vector = np.zeros(self.settings.embed.output_dim, np.float32)
            vector[0] = 1.0
            for tenant in self._memory.vectors.tenants():  # a tenant's first search loads it: seconds for a large one
                request = SearchRequest(tenant=tenant, text="warm", vector=vector, k=1)
                await asyncio.to_thread(self._memory.search, request)

    async def prepare(self, records: Sequence[Any]) -> Step:
        """Run this host's stages, ``generate`` excepted, for one query."""
        return await self._chain.prepare(records)

    async def embed(self, query: Query) -> Embedded:
        """Run ``embed`` alone."""
        return await self._chain.call("embed", query)  # type: ignore[no-any-return]

    async def search(self, item: SearchInput) -> Hits:
        """Run ``search`` alone."""
        return await self._chain.call("search", item)  # type: ignore[no-any-return]

    async def call(self, name: str, item: Any) -> Any:
        """Run any one stage but ``generate`` alone."""
        return await self._chain.call(name, item)

    async def stream(self, item: GenerateInput) -> AsyncGenerator[Piece, None]:
        """Run ``generate``; the last piece has the answer."""
        if self._generate is None or self.failed is not None:
            raise Retry("generate", f"no model here can serve: {self.failed}", "mend the weights and restart")
        async with contextlib.aclosing(self._generate.stream(item)) as pieces:
            async for piece in pieces:
                yield piece

    async def load(self) -> tuple[TierLoad, ...]:
        """The tiers of this host as they are now."""
        if self._generate is None or self.failed is not None:
            return tuple(TierLoad(tier=tier.name, available=False) for tier in self._tiers)
        available, queues = self._generate.available(), self._generate.queues()
        return tuple(
            TierLoad(tier=tier.name, available=available.get(tier.name, False), queue=queues.get(tier.name, 0))
            for tier in self._tiers
        )

    async def models(self, action: Action = "status", tier: str = "") -> tuple[TierStatus, ...]:
        """Load or unload a tier's model, or do nothing; the tiers of this host as they are then."""
        if self._generate is None:
            return ()
        if action == "load":
            await self._generate.pool.load(tier)
        elif action == "unload":
            await self._generate.pool.unload(tier)
        return self._generate.pool.status()

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of documents."""
        assert self._embed is not None  # noqa: S101 - the plan gives this call to the host of embed
        return await self._embed.texts(texts, query=False)

    async def nodes(self, tenant: str, documents: Sequence[Document]) -> Nodes:
        """Mask, chunk and embed documents."""
        embed, config, masker, now = self._embed, self.settings.documents, Masker(self.settings.privacy), time.time()
        assert embed is not None  # noqa: S101 - as above
        nodes = [await document_nodes(tenant, document, embed, config, masker, now) for document in documents]
        return Nodes(nodes=nodes, masked=dict(masker.found))

    async def add(self, tenant: str, nodes: Sequence[Node]) -> Added:
        """Write nodes to the memory; durable and findable when it returns."""
        assert self._memory is not None  # noqa: S101 - the plan gives this call to the host of search
        return await asyncio.to_thread(self._memory.add, tenant, nodes)

    async def manage(self, call: str, *args: Any) -> Any:
        """One of ``management.CALLS``, for the memory that is owned here."""
        assert self._memory is not None  # noqa: S101 - as above
        return await asyncio.to_thread(CALLS[call], self._memory, *args)

    async def check(self) -> None:
        """Raise if a stage that was started can't work any more; a tier that never could is no news."""
        for stage in self._stages:
            if self.failed is None:
                await stage.check()

    async def checks(self) -> dict[str, bool]:
        """Part → does it work now."""
        works = {}
        for stage in self._stages:
            try:
                await asyncio.wait_for(stage.check(), CHECK_S)
                works[stage.name] = True
            except (RuvError, TimeoutError):
                works[stage.name] = False
        if "generate" not in works:
            return works
        engines = works.pop("generate")
        return works | {f"generate:{load.tier}": load.available and engines for load in await self.load()}

    async def _tend(self, memory: Memory) -> None:
        """Publish what came too soon after the last publication."""
        while True:
            await asyncio.sleep(memory.config.publish_every_s or 1.0)
            try:
                await asyncio.to_thread(memory.publish_due)
            except Exception:  # whatever it is, the next round may do better, and requests don't depend on it
                _log.exception("memory: upkeep failed, trying again")

    async def close(self) -> None:
        """End the stages in reverse order, then the stores."""
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)
        try:
            for stage in reversed(self._stages):
                await stage.close()
        finally:
            if self._memory is not None:
                await asyncio.to_thread(self._memory.close)


def make_memory(settings: Settings) -> Memory:
    """The memory of the profile, not yet opened: one process opens it, any may read its snapshots."""
    root, dim = settings.data_dir / "memory", settings.embed.output_dim
    return memory_in(root, dim, settings.memory, settings.vectors, settings.graph)


def make_registry(settings: Settings) -> Registry:
    """The checkpoints of the profile's router, which any process may use."""
    return Registry(settings.data_dir / "checkpoints")


def open_emitter(settings: Settings) -> Emitter:
    """The started emitter of this process over the profile's event log."""
    log = open_log(settings.events, spool=True)
    emitter = Emitter(log, mask=Masker(settings.privacy), capacity=settings.events.queue)
    emitter.start()
    return emitter
