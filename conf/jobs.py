"""The knobs of the jobs that have no file of their own here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from operators.base import Knobs
from operators.tiers import ModelFile


class JudgeJob(Knobs):
    """The process that rates interactions after the user has the answer. How it rates is ``judge``."""

    enabled: bool = True
    """Whether the job runs; without it nothing is rated, and nothing is learned."""
    model: ModelFile | None = None
    """Weights of the judge; null takes those of the largest tier."""
    engine: Literal["llama_server", "llama_cpp"] = "llama_cpp"
    """Engine of the judge: one interaction at a time needs no batching."""
    context_tokens: int = Field(2048, ge=512)
    """Context window of the judge in tokens."""
    poll_s: float = Field(1.0, gt=0)
    """Seconds between two looks at an empty topic."""
    partitions: tuple[NonNegativeInt, ...] | None = Field(None, min_length=1)
    """Partitions of every topic that this process works on; null takes all. With [0, 2] for the service, a second judge
    is ``python -m jobs.judge --set judge_job.partitions=[1,3]``, here or on a machine that reaches the same log."""
    nice: int = Field(10, ge=0, le=19)
    """How much the job steps back for others that want the processor (Unix niceness)."""


class WritebackJob(Knobs):
    """The process that turns well-judged answers into memory."""

    enabled: bool = True
    """Whether the job runs; without it the memory holds only what is ingested."""
    min_quality: float = Field(0.75, ge=0, le=1)
    """Least verdict of an answer that is remembered. What a verdict is worth depends on the judge."""
    batch: int = Field(64, ge=1, le=256)
    """Most verdicts that are dealt with together."""
    flush_s: float = Field(2.0, gt=0)
    """Seconds between two looks for new verdicts; what came meanwhile is written together."""


class MaintainJob(Knobs):
    """The process that has every tenant's memory maintained in turn, and watches the disk."""

    enabled: bool = True
    """Whether the job runs; without it nothing expired is removed, and the stores' files only grow."""
    every_s: float = Field(600.0, gt=0)
    """Seconds between two rounds over all tenants."""
    min_free_bytes: int = Field(512 * 1024 * 1024, ge=0)
    """With less free space than this in ``data_dir`` the service calls itself degraded, and the job raises an alarm."""
    nice: int = Field(10, ge=0, le=19)
    """How much the job steps back for others that want the processor (Unix niceness)."""
