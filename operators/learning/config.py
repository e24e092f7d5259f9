"""The knobs of learning the router."""

from __future__ import annotations

from pydantic import Field

from operators.base import Knobs


class ObjectiveConfig(Knobs):
    """How the parts of the loss weigh."""

    clip: float = 20.0
    """Largest importance weight of a turn."""
    good: float = 0.75
    """Verdict from which a turn is good; what the confidence predicts."""
    confidence_weight: float = 0.2
    """Weight of the confidence head's loss."""
    context_weight: float = 0.1
    """Weight of the context head's loss."""
    sampling_weight: float = 0.05
    """Weight of the loss of temperature and top-p."""


class FitConfig(Knobs):
    """How a router is trained from scratch."""

    epochs: int = Field(14, ge=1)
    """Times every turn is seen; more overfits a few thousand turns."""
    batch: int = Field(64, ge=1)
    """Turns a step."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of the one-cycle schedule (Smith & Topin 2017, arXiv:1708.07120)."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the features hidden at random in training."""
    most_exemplars: int = Field(4096, ge=1)
    """Turns that the router may compare a new one with; each costs 144 bytes and some 15 ns a decision."""
    density: float = Field(0.25, gt=0, le=1)
    """Share of W that is not zero in the end; 1 keeps all."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss."""


class LearnerConfig(Knobs):
    """How the long-lived learner works."""

    capacity: int = Field(100_000, ge=1)
    """Turns in the replay buffer; some 900 bytes each."""
    gather: int = Field(64, ge=8)
    """Turns before anything is learned."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW."""
    rounds: int = Field(4, ge=1)
    """Steps that are taken on each batch of new turns, every one with other turns from the buffer."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the features hidden at random in training."""
    ewc: float = Field(0.02, ge=0)
    """λ of the penalty for leaving what was learned. Beside a large buffer more cost learning (DECISIONS.md)."""
    ewc_gamma: float = Field(0.95, ge=0, le=1)
    """What is left of the old Fisher information at each consolidation."""
    consolidate_steps: int = Field(500, ge=1)
    """Steps between two consolidations, if no drift comes first."""
    fisher_turns: int = Field(512, ge=1)
    """Turns that the Fisher information is estimated from."""
    most_exemplars: int = Field(2048, ge=1)
    """Turns that the router may compare a new one with."""
    density: float = Field(0.25, gt=0, le=1)
    """Share of W that is not zero, once the support is chosen."""
    dense_steps: int = Field(200, ge=0)
    """Steps with a dense W; so many more choose the support, after which it stays."""
    clip_gradient: float = Field(1.0, gt=0)
    """Largest norm of a gradient."""
    seed: int = 0
    """Seed of every draw."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss."""
