"""Binding ``serve``: every chain of the plan is a Ray Serve deployment, the gateway calls them by handle.

    HAProxy → Gateway (limits, session, route, attend) → Embedder (batched)
                                                       → Memory (search and expand in one call; owns the stores)
                                                       → one Generator a tier

Everything that knows Ray is here, in ``raylocal.py`` and in ``ray_errors.py``, where Ray's errors become ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from conf.schema import Settings
from operators.engines.ports import Encoded
from operators.errors import Retry, RuvError, Stop
from operators.generate import GenerateInput
from operators.ingest import Document, Nodes
from operators.records import Embedded, Hits, Neighbourhood, Piece, Query, TierLoad
from operators.search import SearchInput
from operators.stores.memory import Added
from operators.stores.ports import Node
from pipeline.graph import LOCAL_TO_GATEWAY, Plan, Step, Trail, needs, plan
from pipeline.host import Host, open_emitter
from pipeline.ingress import create_app
from pipeline.ray_errors import door, translated
from pipeline.service import Service
from pipeline.verdicts import Verdicts

APP = "ruvllm"
_log = logging.getLogger("ruvllm.serve")
_WITHOUT: dict[str, Any] = {"search": Hits.none("memory"), "expand": Neighbourhood.none("memory")}
POLL_S = 1.0
"""Seconds between two looks at which tiers can serve."""


class StageHost:
    """One deployment: a ``Host`` in a replica of its own."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, names: Sequence[str], settings: Settings, tiers: Sequence[str] | None = None
    ) -> None:
        self._host = Host(names, settings, tiers)
        await self._host.start()

    async def run(self, *records: Any) -> Step:
        """Run the host's chain for one query."""
        return await self._host.prepare(records)

    async def stream(self, item: GenerateInput) -> AsyncGenerator[Piece, None]:
        """Run ``generate``."""
        async with contextlib.aclosing(self._host.stream(item)) as pieces:
            async for piece in pieces:
                yield piece

    async def call(self, method: str, *args: Any) -> Any:
        """Another method of the host: ``embed``, ``search``, ``encode``, ``nodes``, ``add``, ``load``, ``manage``."""
        return await getattr(self._host, method)(*args)

    async def check_health(self) -> None:
        """Asked by Serve every few seconds; three failures and the replica is replaced."""
        await self._host.check()

    async def __del__(self) -> None:
        """Graceful shutdown: Serve awaits this after the last request."""
        await self._host.close()


class Gateway:
    """The ingress deployment: the HTTP app, and the stages that cost less than a hop."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: Settings, handles: Mapping[str, DeploymentHandle]
    ) -> None:
        self._backend = ServeBackend(settings, plan(settings.plan), handles)
        await self._backend.start()
        self._emitter = open_emitter(settings)
        self._service = Service(settings, self._backend, self._emitter)
        verdicts = Verdicts(self._emitter.log, self._service.sessions)
        self._verdicts = asyncio.create_task(verdicts.run(settings.sessions.verdicts_s))

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once ``__init__`` is done."""
        return create_app(self._service)

    async def __del__(self) -> None:
        """Graceful shutdown: Serve awaits this after the last request."""
        self._verdicts.cancel()
        await self._emitter.close(5.0)
        await self._backend.close()


class ServeBackend:
    """``Backend`` over deployment handles: ``handles`` maps the first stage of every remote chain to its deployment,
    and ``generate:TIER`` to each tier's."""

    def __init__(self, settings: Settings, chains: Plan, handles: Mapping[str, DeploymentHandle]) -> None:
        self._chains = chains[:-1]
        # Our records are plain data: pickle is enough, and cheaper than Serve's cloudpickle.
        plain = {"request_serialization": "pickle", "response_serialization": "pickle"}
        self._handles = {name: handle.options(**plain) for name, handle in handles.items()}
        self._tiers = [tier.name for tier in settings.tiers]
        self._away_after_s = settings.search.away_after_s
        self._local = Host(LOCAL_TO_GATEWAY, settings) if LOCAL_TO_GATEWAY in chains else None
        self._needs = {chain: needs(chain) for chain in self._chains}
        self._available = dict.fromkeys(self._tiers, False)
        self._running = dict.fromkeys(self._tiers, 0)
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what is local and look at the tiers once."""
        if self._local is not None:
            await self._local.start()
        await self._look()
        self._poller = asyncio.create_task(self._poll())

    async def prepare(self, records: Sequence[Any]) -> Step:
        """Every chain before ``generate``, each sent only the records that it reads."""
        trail: Trail = {type(item): item for item in records}
        written: list[Any] = []
        timings: dict[str, float] = {}
        for chain in self._chains:
            wanted = [trail[part] for part in self._needs[chain]]
            if chain == LOCAL_TO_GATEWAY and self._local is not None:
                step = await self._local.prepare(wanted)
            else:
                step = await self._remote(chain, wanted)
            for item in step.written:
                trail[type(item)] = item
            written += step.written
            timings |= step.timings
        return Step(written=tuple(written), timings=timings)

    async def _remote(self, chain: tuple[str, ...], wanted: Sequence[Any]) -> Step:
        call: Awaitable[Step] = translated(chain[0], self._handles[chain[0]].run.remote(*wanted))
        if not set(chain) <= _WITHOUT.keys():
            return await call
        began = time.perf_counter()
        try:
            return await asyncio.wait_for(call, self._away_after_s)
        except (Retry, Stop, TimeoutError):
            # Memory away costs the answer its context, and nothing else.
            waited = {chain[0]: time.perf_counter() - began}
            return Step(written=tuple(_WITHOUT[stage] for stage in chain), timings=dict.fromkeys(chain, 0.0) | waited)

    async def stream(self, item: GenerateInput) -> AsyncGenerator[Piece, None]:
        """The routed tier, or the next one that answers if it fails before its first piece (degraded, named)."""
        order = self._fallbacks(item.route.tier)
        for i, tier in enumerate(order):
            attempt = dataclasses.replace(item, route=dataclasses.replace(item.route, tier=tier))
            began = False
            try:
                async with contextlib.aclosing(self._stream(tier, attempt)) as pieces:
                    async for piece in pieces:
                        began = True
                        if piece.answer is not None and i:
                            degraded = (*piece.answer.degraded, f"tier:{item.route.tier}→{tier}")
                            answer = dataclasses.replace(piece.answer, degraded=degraded)
                            piece = dataclasses.replace(piece, answer=answer)
                        yield piece
                return
            except (Retry, Stop):
                if began or i == len(order) - 1:
                    raise

    async def _stream(self, tier: str, item: GenerateInput) -> AsyncGenerator[Piece, None]:
        response = self._handles[f"generate:{tier}"].options(stream=True).stream.remote(item)
        self._running[tier] += 1
        try:
            with door(f"generate:{tier}"):
                async for piece in response:
                    yield piece
        finally:
            self._running[tier] -= 1
            response.cancel()

    def _fallbacks(self, tier: str) -> list[str]:
        """The tier, then the smaller ones downwards, then the larger ones upwards; only those that can serve."""
        at = self._tiers.index(tier)
        order = [*self._tiers[at::-1], *self._tiers[at + 1 :]]
        return [name for name in order if self._available[name]] or [tier]

    async def load(self) -> tuple[TierLoad, ...]:
        """From the last look, at most a second ago, and this gateway's own count of running requests."""
        return tuple(
            TierLoad(tier=name, available=self._available[name], queue=self._running[name]) for name in self._tiers
        )

    async def embed(self, query: Query) -> Embedded:
        """Run ``embed`` alone."""
        return await self._call("embed", "embed", query)  # type: ignore[no-any-return]

    async def search(self, item: SearchInput) -> Hits:
        """Run ``search`` alone."""
        return await self._call("search", "search", item)  # type: ignore[no-any-return]

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of documents."""
        return await self._call("embed", "encode", texts)  # type: ignore[no-any-return]

    async def nodes(self, tenant: str, documents: Sequence[Document]) -> Nodes:
        """Mask, chunk and embed documents."""
        return await self._call("embed", "nodes", tenant, documents)  # type: ignore[no-any-return]

    async def add(self, tenant: str, nodes: Sequence[Node]) -> Added:
        """Write nodes to the memory."""
        return await self._call("search", "add", tenant, nodes)  # type: ignore[no-any-return]

    async def manage(self, call: str, *args: Any) -> Any:
        """One of ``management.CALLS``."""
        return await self._call("search", "manage", call, *args)

    async def _call(self, stage: str, method: str, *args: Any) -> Any:
        return await translated(stage, self._handles[stage].call.remote(method, *args))

    async def checks(self) -> dict[str, bool]:
        """Asks every deployment now."""
        names = list(self._handles)
        calls = (asyncio.wait_for(self._call(name, "checks"), 5 * POLL_S) for name in names)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        checks: dict[str, bool] = {}
        for name, answer in zip(names, answers, strict=True):
            checks |= {name: False} if isinstance(answer, BaseException) else answer
        return checks

    async def _look(self) -> None:
        async def one(tier: str) -> None:
            try:
                loads = await asyncio.wait_for(self._call(f"generate:{tier}", "load"), 5 * POLL_S)
                self._available[tier] = any(load.tier == tier and load.available for load in loads)
            except (RuvError, TimeoutError):
                self._available[tier] = False

        await asyncio.gather(*(one(tier) for tier in self._tiers))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._look()
            except Exception:  # a poller that ends would freeze what is known of the tiers
                _log.exception("could not look at the tiers")

    async def close(self) -> None:
        """End the poller and what is local."""
        if self._poller is not None:
            self._poller.cancel()
        if self._local is not None:
            await self._local.close()


def application(settings: Settings) -> serve.Application:
    """The deployments of the profile's plan, bound together."""
    chains = plan(settings.plan)
    small = {"num_cpus": 0.1}
    handles: dict[str, Any] = {}
    for chain in chains[:-1]:
        if chain == LOCAL_TO_GATEWAY:
            continue
        name = "Memory" if chain == ("search", "expand") else chain[0].capitalize()
        stage = serve.deployment(
            StageHost, name=name, num_replicas=1, max_ongoing_requests=64, ray_actor_options=small,
            health_check_period_s=5, graceful_shutdown_timeout_s=10,
        )  # fmt: skip
        handles[chain[0]] = stage.bind(chain, settings)
    for tier in settings.tiers:
        generator = serve.deployment(
            StageHost, name=f"Generator-{tier.name}", num_replicas=1,
            # What waits for the engine waits inside it, where it can be batched; the gateway bounds the total.
            max_ongoing_requests=max(8, settings.http.max_concurrent), ray_actor_options=small,
            health_check_period_s=5, graceful_shutdown_timeout_s=10,
        )  # fmt: skip
        handles[f"generate:{tier.name}"] = generator.bind(("generate",), settings, (tier.name,))
    gateway = serve.deployment(
        serve.ingress()(Gateway), name="Gateway", num_replicas=1,
        max_ongoing_requests=settings.http.max_concurrent + settings.http.max_queued + 32, ray_actor_options=small,
        health_check_period_s=5, graceful_shutdown_timeout_s=10,
    )  # fmt: skip
    return gateway.bind(settings, handles)
