"""The administrator's endpoints for the tiers' models: which are loaded, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import FastAPI, Path

from operators.engines.pool.places import TierStatus
from operators.errors import Reject
from pipeline.admin_api import PREFIX
from pipeline.event_metrics import Row
from pipeline.guard import Admin
from pipeline.service import Action, Service

TierName = Annotated[str, Path(max_length=100, description="A tier of the profile.")]


def install(app: FastAPI, service: Service) -> None:
    """Add the endpoints to ``app``."""

    @app.get(f"{PREFIX}/models", tags=["Admin"])
    async def models(_: Admin) -> list[TierStatus]:
        """The model of every tier, smallest first."""
        return list(await service.backend.models())

    @app.post(f"{PREFIX}/models/{{tier}}/load", tags=["Admin"])
    async def load(tier: TierName, _: Admin) -> list[TierStatus]:
        """Load a tier's model now, also after a failure; returns when it serves."""
        return await _do("load", tier)

    @app.post(f"{PREFIX}/models/{{tier}}/unload", tags=["Admin"])
    async def unload(tier: TierName, _: Admin) -> list[TierStatus]:
        """Free a tier's model once nobody uses it; the next request for it loads it again."""
        return await _do("unload", tier)

    async def _do(action: Action, tier: str) -> list[TierStatus]:
        known = [one.name for one in service.settings.tiers]
        if tier not in known:
            got, remedy = f"no tier {tier!r}", f"use one of: {', '.join(known)}"
            raise Reject("models", got, remedy, 404, "tier", "model_not_found")
        return list(await service.backend.models(action, tier))


def rows(found: Sequence[TierStatus]) -> list[Row]:
    """What ``/metrics`` tells of the models; every series of one name together."""
    told: list[Row] = [
        ("ruvllm_models_loaded", "gauge", "Models that are loaded.", sum(s.state == "ready" for s in found)),
    ]
    series: dict[str, tuple[str, str]] = {
        "bytes": ("ruvllm_model_memory_bytes", "Memory that a tier's model takes, in bytes."),
        "loads": ("ruvllm_model_loads_total", "Times a tier's model was loaded."),
        "evictions": ("ruvllm_model_evictions_total", "Times it had to make room."),
        "deaths": ("ruvllm_model_deaths_total", "Times its engine died."),
    }
    for field, (name, about) in series.items():
        kind = "gauge" if field == "bytes" else "counter"
        told += [(f'{name}{{tier="{status.tier}"}}', kind, about, getattr(status, field)) for status in found]
    return told
