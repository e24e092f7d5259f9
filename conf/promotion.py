"""The knobs of promotion: how new weights of the router come to decide, and how they go again."""

from __future__ import annotations

from pydantic import Field, model_validator

from operators.base import Knobs
from operators.learning.gate import GateConfig


class Promotion(Knobs):
    """From a trained candidate to the active weights: gate → shadow → share of the sessions → active; and back."""

    poll_s: float = Field(0.25, gt=0, le=0.5)
    """Seconds between two looks of a gateway at which weights act."""
    automatic: bool = True
    """Whether a candidate that passes the gate goes on by itself; otherwise it waits for ``ruvllm router promote``."""
    gate: GateConfig = GateConfig()
    """The gate."""
    shadow_events: int = Field(100, ge=0)
    """Judged turns a candidate is watched for before it decides anything; 0 leaves that out."""
    canary_share: float = Field(0.1, gt=0, le=1)
    """Share of the sessions in which it then decides."""
    canary_events: int = Field(100, ge=0)
    """Judged turns it must have decided there before it becomes active; 0 leaves that out."""
    alarm_events: int = Field(200, ge=2)
    """Last judged turns of each version that the alarm compares."""
    alarm_min: int = Field(30, ge=2)
    """Fewest judged turns of both versions for an alarm."""
    alarm_drop: float = Field(0.05, ge=0)
    """How far the mean verdict must have fallen for an alarm."""
    alarm_sigmas: float = Field(3.0, gt=0)
    """How many standard errors that must be; it is looked at again and again, so few would alarm for nothing."""
    keep: int = Field(20, ge=1)
    """Newest checkpoints that stay; what is in use or pinned stays anyway."""

    @model_validator(mode="after")
    def _remembered(self) -> Promotion:
        if self.alarm_events < max(self.shadow_events, self.canary_events, self.alarm_min):
            got = f"alarm_events {self.alarm_events} is less than shadow_events, canary_events or alarm_min"
            raise ValueError(f"{got}; no more turns than those are remembered, so raise it")
        return self
