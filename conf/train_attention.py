"""The knobs of training the ranking, ``jobs.train_attention``."""

from __future__ import annotations

from pydantic import Field, model_validator

from operators.base import Knobs


class TrainAttention(Knobs):
    """Training of the attention network that may rank in ``attend`` (``python -m jobs.train_attention``)."""

    seed: int = Field(0, ge=0)
    """Seed of the split, of the first weights, of the order of examples and of the bootstrap."""
    layers: int = Field(3, ge=1, le=8)
    """Layers of the network."""
    heads: int = Field(8, ge=1, le=64)
    """Heads of each layer; must divide the length of the vectors."""
    sharpness: float = Field(16.0, gt=0)
    """How strongly the untrained network prefers search's best hit; it starts in search's order."""
    temperature: float = Field(1.0, gt=0)
    """τ of the loss: −log softmax(log p / τ) at the right nodes, p being the mean attention."""
    learning_rate: float = Field(1e-4, gt=0)
    """Adam's step for the matrices. Larger ones fit the kinds of questions in the data at the cost of all others."""
    learning_rate_edges: float = Field(1e-2, gt=0)
    """Adam's step for the few numbers that say what an edge and a distance are worth."""
    batch: int = Field(16, ge=1)
    """Examples a step."""
    epochs: int = Field(40, ge=1)
    """Most passes over the training part."""
    patience: int = Field(6, ge=1)
    """Passes without a better loss on the validation part after which training ends."""
    validation: float = Field(0.2, gt=0, lt=1)
    """Share of the queries that say when to stop."""
    holdout: float = Field(0.3, gt=0, lt=1)
    """Share of the queries that decide whether the network is used; training sees none of them."""
    min_holdout: int = Field(30, ge=10)
    """Fewest queries in the holdout; with fewer, chance would decide."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """How sure the gain on the holdout must be (one-sided, paired bootstrap)."""
    min_verdict: float = Field(0.75, ge=0, le=1)
    """Verdict from which a judged interaction is an example."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> TrainAttention:
        if self.validation + self.holdout >= 1:
            got = f"validation {self.validation} and holdout {self.holdout} leave nothing to learn from"
            raise ValueError(f"{got}; let their sum be below 1")
        return self
