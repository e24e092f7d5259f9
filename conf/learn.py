"""The knobs of the learner's job."""

from __future__ import annotations

from pydantic import Field

from operators.base import Knobs
from operators.learning.config import LearnerConfig
from operators.learning.holdout import HoldoutConfig


class Learn(Knobs):
    """The job that learns the router from judged turns."""

    enabled: bool = True
    """Whether ``ruvllm serve`` starts it."""
    workers: int = Field(0, ge=0)
    """Workers of Ray Train, which share the partitions: 0 learns in the job's own process and starts no Ray. Several
    need ``data_dir`` on storage that all of them see."""
    nice: int = Field(10, ge=0, le=19)
    """How far the job steps back behind requests."""
    poll_s: float = Field(1.0, gt=0)
    """Seconds between two looks for new judgements."""
    batch: int = Field(8, ge=1)
    """Judgements of one partition that a step takes; it waits until so many are there."""
    candidate_turns: int = Field(256, ge=1)
    """Judgements between two candidates."""
    save_turns: int = Field(64, ge=1)
    """Judgements between two saved states; a crash costs at most so many steps, done again."""
    keep_states: int = Field(3, ge=1)
    """Saved states that stay."""
    remembered: int = Field(20_000, ge=1)
    """Event ids of judgements that are remembered, to drop repeats."""
    learner: LearnerConfig = LearnerConfig()
    """How it learns."""
    holdout: HoldoutConfig = HoldoutConfig()
    """Turns that are measured with and never learned from."""
