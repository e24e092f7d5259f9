"""What another tier would have answered: for the learner, while nobody asks.

Nothing is left of it here: no session is advanced, no interaction emitted, nothing remembered, no place taken from a
request. It begins only when the service has been quiet for a while, and ends, with ``Retry``, when a request comes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
from fastapi import FastAPI
from pydantic import Field

from operators.errors import Reject, Retry, Stop
from operators.generate import GenerateInput
from operators.ids import uuid7
from operators.records import FEATURES, HIDDEN, Answer, Context, Message, Passage, Query, Route, Sampling
from operators.stores.tenants import check_tenant
from pipeline import schema as api
from pipeline.admin_api import PREFIX
from pipeline.guard import Admin
from pipeline.memory_schema import Id
from pipeline.service import Service

WHO = "counterfactual"


class CounterfactualRequest(api.In):
    """``POST /v1/admin/counterfactual``: a past question, what was found for it, and how its answer was sampled."""

    tenant: Id
    tier: Annotated[str, Field(min_length=1, max_length=100)]
    query: Annotated[str, Field(min_length=1, max_length=100_000)]
    passages: tuple[Passage, ...] = Field((), max_length=100)
    context_tokens: int = Field(ge=1, le=1_000_000)
    temperature: float = Field(ge=0, le=2)
    top_p: float = Field(gt=0, le=1)
    seed: int = Field(0, ge=0, le=2**31 - 1)


class CounterfactualAnswer(api.Out):
    """The answer, and what it cost."""

    text: str
    tier: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    duration_s: float


def install(app: FastAPI, service: Service, quiet: Callable[[], float]) -> None:
    """Add the endpoint to ``app``. ``quiet``: seconds since a request was at work or waited, 0 while one does."""
    least = service.settings.counterfactual.quiet_s

    @app.post(f"{PREFIX}/counterfactual", tags=["Admin"])
    async def counterfactual(body: CounterfactualRequest, _: Admin) -> CounterfactualAnswer:
        """Answer a past question with the tier that is named, if nobody asks now. 503 says when to come back."""
        service.tier(body.tier)
        check_tenant("tenant", body.tenant)
        since = quiet()
        if since <= 0 or since < least:
            raise Retry(WHO, "requests come first", "ask again when it is quiet", max(least - since, 0.1))
        loads = {load.tier: load for load in await service.backend.load()}
        if body.tier not in loads or not loads[body.tier].available:
            raise Reject(WHO, f"tier {body.tier} is not loaded", "leave it out", 404, "tier", "model_not_found")
        if any(load.queue for load in loads.values()):  # of another gateway's requests
            raise Retry(WHO, "the engines are at work", "ask again when they are not", max(least, 0.1))
        answer = await _answered(service, given(body), lambda: quiet() <= 0)
        if answer.tier != body.tier:
            raise Reject(WHO, f"tier {body.tier} failed", "leave it out", 404, "tier", "model_not_found")
        return CounterfactualAnswer(**{name: getattr(answer, name) for name in CounterfactualAnswer.model_fields})


async def _answered(service: Service, item: GenerateInput, busy: Callable[[], bool]) -> Answer:
    """The answer. Raises ``Retry`` as soon as somebody asks: the engine stops within a few tokens."""
    async with contextlib.aclosing(service.backend.stream(item)) as pieces:
        async for piece in pieces:
            if piece.answer is not None:
                return piece.answer
            if busy():
                raise Retry(WHO, "a request came", "ask again when it is quiet", 1.0)
    raise Stop(WHO, "the stream ended without an answer", "this is a bug in the engine")


def given(body: CounterfactualRequest) -> GenerateInput:
    """What ``generate`` reads; of the route only what it needs."""
    return GenerateInput(
        query=Query(
            interaction_id=str(uuid7()),
            tenant=body.tenant,
            session="",
            text=body.query,
            messages=(Message(role="user", content=body.query),),
            sampling=Sampling(tier=body.tier, seed=body.seed),
            created_at=time.time(),
        ),
        route=Route(
            tier=body.tier,
            context_tokens=body.context_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            confidence=0.0,
            probabilities={},
            propensity=1.0,
            propensities={},
            checkpoint="",
            reason="caller",
            hidden=np.zeros(HIDDEN, np.float32),
            features=np.zeros(FEATURES, np.float32),
        ),
        context=Context(passages=body.passages, tokens=sum(p.tokens for p in body.passages), ranking="none"),
    )
