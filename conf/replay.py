"""The knobs of replay: reading a window of the log again, to judge, train and estimate anew."""

from __future__ import annotations

from pydantic import Field

from operators.base import Knobs
from operators.learning.config import FitConfig


class Replay(Knobs):
    """The job that reads a window of interactions again (``ruvllm replay``)."""

    workers: int = Field(1, ge=0)
    """Ray workers that read the log; the judge is one more. 0 works in the job's own process, without Ray, which is
    quicker for a few thousand interactions."""
    nice: int = Field(10, ge=0, le=19)
    """How far the job steps back behind requests."""
    part_events: int = Field(4096, ge=1)
    """Events of a partition in one part of the archive: what a worker holds, and what a crash costs."""
    slice_events: int = Field(16, ge=1)
    """Interactions that are judged anew before their verdicts are kept; a crash costs at most so many."""
    seed: int = Field(0, ge=0)
    """Seed of the training, the folds and the bootstrap."""
    fit: FitConfig = FitConfig()
    """How a router is trained from scratch; for ``evaluate router``, too."""
    clip: float = Field(20.0, ge=1)
    """Largest importance weight of a turn in an estimate."""
    folds: int = Field(5, ge=2)
    """Parts of the sessions: what a turn's reward is believed to be is learned from the other parts."""
    rounds: int = Field(2000, ge=100)
    """Draws of the bootstrap over sessions."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """How often an interval should hold the true value (two-sided)."""
