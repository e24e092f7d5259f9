"""Binding ``serve``: every chain of the plan is a Ray Serve deployment, the gateway calls them by handle.

    HAProxy → Gateway (limits, session, route, attend) → Embedder (batched)
                                                       → Memory (search and expand in one call; owns the stores)
                                                       → Generator (one for all tiers, or one a tier)

Everything that knows Ray is here, in ``serve_backend.py``, in ``raylocal.py``, and in ``ray_errors.py``, where Ray's
errors become ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from conf.schema import Settings
from operators.generate import GenerateInput
from operators.records import Piece
from operators.tiers import Tier
from pipeline.graph import LOCAL_TO_GATEWAY, Step, plan
from pipeline.host import Host, open_emitter
from pipeline.ingress import create_app
from pipeline.serve_backend import ServeBackend, groups
from pipeline.service import Service
from pipeline.verdicts import Verdicts

APP = "ruvllm"


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
        """Another method of the host: ``embed``, ``search``, ``encode``, ``nodes``, ``add``, ``load``, ``manage``,
        ``models``."""
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
    by_name = {tier.name: tier for tier in settings.tiers}
    for tiers in groups(settings):
        together = len(tiers) == len(settings.tiers)
        one = {"num_replicas": 1, "ray_actor_options": small}
        scale = one if together else replicas(by_name[tiers[0]], small, settings.pool.idle_s)
        generator = serve.deployment(
            StageHost, name="Generator" if together else f"Generator-{tiers[0]}",
            # What waits for the engine waits inside it, where it can be batched; the gateway bounds the total.
            max_ongoing_requests=max(8, settings.http.max_concurrent),
            health_check_period_s=5, graceful_shutdown_timeout_s=10,
            **scale,
        )  # fmt: skip
        bound = generator.bind(("generate",), settings, tiers)
        handles |= {f"generate:{tier}": bound for tier in tiers}
    gateway = serve.deployment(
        serve.ingress()(Gateway), name="Gateway", num_replicas=1,
        max_ongoing_requests=settings.http.max_concurrent + settings.http.max_queued + 32, ray_actor_options=small,
        health_check_period_s=5, graceful_shutdown_timeout_s=10,
    )  # fmt: skip
    return gateway.bind(settings, handles)


def replicas(tier: Tier, actor: dict[str, float], idle_s: float) -> dict[str, Any]:
    """How many engines of a tier there are, what Ray sets aside for each, and which of them a request goes to.

    The last one goes after ``idle_s`` without a request, if none need stay; 0 leaves that to Ray (ten minutes).
    """
    options: dict[str, Any] = {"ray_actor_options": actor | ({"num_gpus": tier.vllm.gpus} if tier.vllm else {})}
    if tier.min_replicas == tier.max_replicas == 1:
        return options | {"num_replicas": 1}
    scaling = {
        "min_replicas": tier.min_replicas,
        "max_replicas": max(tier.min_replicas, tier.max_replicas),
        "target_ongoing_requests": tier.parallel,
        **({"downscale_to_zero_delay_s": idle_s} if idle_s else {}),
    }
    by_session = RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
    )
    return options | {"autoscaling_config": scaling, "request_router_config": by_session}
