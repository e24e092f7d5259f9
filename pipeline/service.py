"""One turn from query to answer, wherever the stages run: sessions before, the interaction's event after.

``Backend`` is what a binding has to offer (``Host`` in this process, ``ServeBackend`` on Ray); everything above it is
the same for all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

from conf.schema import Settings
from operators.engines.pool.places import TierStatus
from operators.engines.ports import Encoded
from operators.errors import Reject, Retry, Stop
from operators.generate import GenerateInput
from operators.ingest import Document, Nodes
from operators.records import (
    Answer,
    Context,
    Embedded,
    Feedback,
    Hits,
    Interaction,
    Load,
    Neighbourhood,
    Piece,
    Query,
    Route,
    SessionState,
    TierLoad,
)
from operators.search import SearchInput
from operators.stores.memory import Added
from operators.stores.ports import Node
from pipeline.emit import Emitter
from pipeline.graph import Step, Trail
from pipeline.sessions import Sessions

Action = Literal["status", "load", "unload"]


class Backend(Protocol):
    """Where the stages run."""

    async def start(self) -> None:
        """Load everything; returns when requests can be served."""

    async def prepare(self, records: Sequence[Any]) -> Step:
        """Run every stage of the answer path before ``generate``."""

    def stream(self, item: GenerateInput) -> AsyncGenerator[Piece, None]:
        """Run ``generate``; the last piece has the answer."""

    async def load(self) -> tuple[TierLoad, ...]:
        """Every tier of the profile as it is now, smallest first."""

    async def embed(self, query: Query) -> Embedded:
        """Run ``embed`` alone."""

    async def search(self, item: SearchInput) -> Hits:
        """Run ``search`` alone."""

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of documents."""

    async def nodes(self, tenant: str, documents: Sequence[Document]) -> Nodes:
        """Mask, chunk and embed documents."""

    async def add(self, tenant: str, nodes: Sequence[Node]) -> Added:
        """Write nodes to the memory; durable and findable when it returns."""

    async def manage(self, call: str, *args: Any) -> Any:
        """One of ``management.CALLS``, where the memory's owner is."""

    async def models(self, action: Action = "status", tier: str = "") -> tuple[TierStatus, ...]:
        """Load or unload the model of ``tier``, or do nothing; every tier as it is then, smallest first."""

    async def checks(self) -> dict[str, bool]:
        """Part → does it work now."""

    async def close(self) -> None:
        """End everything that ``start`` began."""


@dataclasses.dataclass(slots=True)
class Turn:
    """One turn under way: the records so far, the seconds of each stage, and the answer when it is there."""

    query: Query
    session: SessionState
    trail: Trail
    timings: dict[str, float]
    answer: Answer | None = None

    @property
    def route(self) -> Route:
        """The decision."""
        return self.trail[Route]  # type: ignore[no-any-return]

    @property
    def neighbourhood(self) -> Neighbourhood:
        """The subgraph that was seen."""
        return self.trail[Neighbourhood]  # type: ignore[no-any-return]

    @property
    def context(self) -> Context:
        """What the engine gets to read."""
        return self.trail[Context]  # type: ignore[no-any-return]

    @property
    def degraded(self) -> tuple[str, ...]:
        """What did not work as it should, from every stage, each named once."""
        parts = (*self.trail.values(), *((self.answer,) if self.answer else ()))
        return tuple(dict.fromkeys(word for part in parts for word in getattr(part, "degraded", ())))


class Service:
    """The answer path as the HTTP door and the command line use it."""

    def __init__(self, settings: Settings, backend: Backend, emitter: Emitter) -> None:
        self.settings = settings
        self.backend = backend
        self.emitter = emitter
        self.sessions = Sessions(settings.sessions.max_sessions, settings.sessions.ttl_s)

    async def prepare(self, query: Query) -> Turn:
        """Everything before generation: also what a dry run of the router shows."""
        if query.sampling.tier is not None:
            self.tier(query.sampling.tier)
        session = self.sessions.get(query.tenant, query.session)
        load = Load(tiers=await self.backend.load(), latency_budget_s=None)
        step = await self.backend.prepare((query, session, load))
        trail = {type(item): item for item in step.written}
        return Turn(query=query, session=session, trail=trail, timings=dict(step.timings))

    async def generate(self, turn: Turn) -> AsyncGenerator[Piece, None]:
        """Stream the answer of a prepared turn; afterwards the session is advanced and the interaction emitted.

        Leaving the iterator early (the client went away) stops the engine; such a turn is no completed interaction.
        """
        began = time.perf_counter()
        pieces = self.backend.stream(GenerateInput(query=turn.query, route=turn.route, context=turn.context))
        async with contextlib.aclosing(pieces) as stream:
            async for piece in stream:
                if piece.answer is not None:
                    turn.answer = piece.answer
                    turn.timings["generate"] = time.perf_counter() - began
                    self._complete(turn, piece.answer)
                yield piece
        if turn.answer is None:
            raise Stop("generate", "the stream ended without an answer", "this is a bug in the engine")

    def _complete(self, turn: Turn, answer: Answer) -> None:
        query, session = turn.query, turn.session
        following = SessionState(
            turn=session.turn + 1,
            hidden=turn.route.hidden,
            last_tier=answer.tier,
            last_interaction=query.interaction_id,
        )
        self.sessions.put(query.tenant, query.session, following)
        self.emitter.emit(
            Interaction(
                event_id=query.interaction_id,  # the same if it is asked again, after a crash
                interaction_id=query.interaction_id,
                tenant=query.tenant,
                session=query.session,
                user=query.user,
                turn=session.turn,
                created_at=time.time(),
                query=query.text,
                answer=answer.text,
                messages=len(query.messages),
                context=tuple(p for p in turn.context.passages if p.node_id in answer.used),
                route=turn.route,
                hidden=session.hidden,
                model=answer.model,
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                timings=turn.timings,
                degraded=turn.degraded,
            )
        )

    def feedback(self, feedback: Feedback) -> None:
        """Hand on what a user says of an answer. Raises ``Retry`` when the event log takes nothing now."""
        if not self.emitter.emit(feedback):
            raise Retry("feedback", "the event log takes nothing now", "send it again later")

    def has_room(self) -> bool:
        """Whether the data directory has the free space that ``maintain.min_free_bytes`` asks for."""
        return shutil.disk_usage(self.settings.data_dir).free >= self.settings.maintain.min_free_bytes

    def tier(self, name: str) -> None:
        """Raise ``Reject`` (404) unless ``name`` is a tier of the profile."""
        known = [tier.name for tier in self.settings.tiers]
        if name not in known:
            raise Reject(
                "model",
                f"no model {name!r}",
                f"use 'auto' or one of: {', '.join(known)}",
                404,
                "model",
                "model_not_found",
            )

    async def search(self, query: Query) -> Hits:
        """Search the tenant's memory without answering."""
        return await self.backend.search(SearchInput(query=query, embedded=await self.backend.embed(query)))

    async def add(self, tenant: str, documents: Sequence[Document]) -> tuple[Nodes, Added]:
        """Write documents to the tenant's memory; durable and findable when it returns."""
        made = await self.backend.nodes(tenant, documents)
        return made, await self.backend.add(tenant, [node for each in made.nodes for node in each])


def new_session() -> str:
    """A name for a session whose caller named none."""
    return uuid.uuid4().hex
