"""``Backend`` over deployment handles: which call goes where, and what happens when one does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from conf.schema import Settings
from operators.engines.pool.places import TierStatus
from operators.engines.ports import Encoded
from operators.errors import Retry, Stop
from operators.generate import GenerateInput
from operators.ingest import Document, Nodes
from operators.records import Embedded, Hits, Neighbourhood, Piece, Query, TierLoad
from operators.search import SearchInput
from operators.stores.memory import Added
from operators.stores.ports import Node
from pipeline.graph import LOCAL_TO_GATEWAY, Plan, Step, Trail, needs
from pipeline.host import Host
from pipeline.ray_errors import door, translated
from pipeline.service import Action

_log = logging.getLogger("ruvllm.serve")
_WITHOUT: dict[str, Any] = {"search": Hits.none("memory"), "expand": Neighbourhood.none("memory")}
POLL_S = 1.0
"""Seconds between two looks at which tiers can serve."""


def groups(settings: Settings) -> tuple[tuple[str, ...], ...]:
    """The tiers that share a deployment, and with it one budget of memory."""
    names = tuple(tier.name for tier in settings.tiers)
    return (names,) if settings.generators == "shared" else tuple((name,) for name in names)


class ServeBackend:
    """``Backend`` over deployment handles: ``handles`` maps the first stage of every remote chain to its deployment,
    and ``generate:TIER`` to each tier's."""

    def __init__(self, settings: Settings, chains: Plan, handles: Mapping[str, DeploymentHandle]) -> None:
        self._chains = chains[:-1]
        # Our records are plain data: pickle is enough, and cheaper than Serve's cloudpickle.
        plain = {"request_serialization": "pickle", "response_serialization": "pickle"}
        self._handles = {name: handle.options(**plain) for name, handle in handles.items()}
        self._tiers = [tier.name for tier in settings.tiers]
        self._groups = groups(settings)
        # To ask one that has gone to sleep would wake it.
        asleep = {tier.name for tier in settings.tiers if tier.min_replicas == 0 and settings.generators == "per_tier"}
        self._awake = [tiers for tiers in self._groups if not asleep & set(tiers)]
        self._away_after_s = settings.search.away_after_s
        self._local = Host(LOCAL_TO_GATEWAY, settings) if LOCAL_TO_GATEWAY in chains else None
        self._needs = {chain: needs(chain) for chain in self._chains}
        self._available = {name: name in asleep for name in self._tiers}
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
        # Its session's state is in one replica, and consistent hashing finds that again.
        session = f"{item.query.tenant}|{item.query.session}"
        response = self._handles[f"generate:{tier}"].options(stream=True, session_id=session).stream.remote(item)
        self._running[tier] += 1
        try:
            with door(f"generate:{tier}"):
                async for piece in response:
                    yield piece
        finally:
            self._running[tier] -= 1
            response.cancel()

    def _fallbacks(self, tier: str) -> list[str]:
        """The tier, then the smaller ones downwards, then the larger ones upwards: those that can serve, and only the
        first of a deployment, which tries its others by itself."""
        at = self._tiers.index(tier)
        order = [name for name in (*self._tiers[at::-1], *self._tiers[at + 1 :]) if self._available[name]]
        firsts = {group: next((name for name in order if name in group), None) for group in self._groups}
        return [name for name in order if name in firsts.values()] or [tier]

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

    async def models(self, action: Action = "status", tier: str = "") -> tuple[TierStatus, ...]:
        """Load or unload a tier's model, or do nothing; the tiers of all deployments that answer, as they are then."""
        if action != "status":
            await self._call(f"generate:{tier}", "models", action, tier)
        answers = await self._each([f"generate:{tiers[0]}" for tiers in self._awake], "models")
        return tuple(status for answer in answers if not isinstance(answer, BaseException) for status in answer)

    async def _call(self, stage: str, method: str, *args: Any) -> Any:
        return await translated(stage, self._handles[stage].call.remote(method, *args))

    async def _each(self, names: Sequence[str], method: str) -> list[Any]:
        """What several deployments answer; an exception where one does not, or not in time."""
        calls = (asyncio.wait_for(self._call(name, method), 5 * POLL_S) for name in names)
        return await asyncio.gather(*calls, return_exceptions=True)

    async def checks(self) -> dict[str, bool]:
        """Asks every deployment now."""
        awake = {f"generate:{tiers[0]}" for tiers in self._awake}
        names = [name for name in self._handles if name in awake or not name.startswith("generate:")]
        checks = {name: True for name in self._handles if name not in names}
        for name, answer in zip(names, await self._each(names, "checks"), strict=True):
            checks |= {name: False} if isinstance(answer, BaseException) else answer
        return checks

    async def _look(self) -> None:
        answers = await self._each([f"generate:{tiers[0]}" for tiers in self._awake], "load")
        for tiers, answer in zip(self._awake, answers, strict=True):
            dead = isinstance(answer, BaseException)
            self._available |= dict.fromkeys(tiers, False) if dead else {one.tier: one.available for one in answer}

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
