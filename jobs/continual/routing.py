"""Routing a stream that changes (``continual.stream``), with the production network, buffer, EWC and drift detector.

The learner predicts every tier's quality by the network's tier head, q_k = σ(logit_k), takes the tier with the best
predicted utility (one in ten at random), and learns from the quality of that tier alone: cross entropy. An update is
32 new turns and, with replay, 32 old ones, balanced over domain and tier. EWC consolidates every ``every`` updates and
when drift is detected, with the Fisher information at quality labels drawn from the model, on rows of the buffer, or
without one on the latest turns. LinUCB (Li et al. 2010) with decayed statistics (Russac et al. 2019) is the peer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jobs.continual.stream import DOMAINS, NOISE, Floats, Stream, Vectors, score, utility
from operators.learning.drift import Drift
from operators.learning.ewc import Ewc, diagonal_fisher
from operators.learning.reservoir import Array, Reservoir
from operators.networks.features import TIERS
from operators.records import FEATURES, HIDDEN

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32
EXPLORE = 0.1
SCHEMA = {"id": ("int64", ()), "x": ("float32", (FEATURES,)), "tier": ("int64", ()), "verdict": ("float32", ())}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to learn."""

    replay: int = 0
    """Rows of the replay buffer."""
    strength: float = 0.0
    """λ of EWC."""
    linear: bool = False
    """LinUCB instead of the network."""
    gamma: float = 0.95
    rate: float = 2e-3
    every: int = 0
    """Updates from one consolidation to the next; 0: only when drift is detected."""


WAYS = {
    "fine-tune": Way(),
    "EWC": Way(strength=10.0),
    "replay": Way(replay=100_000),
    "EWC + replay": Way(replay=100_000, strength=0.02),
    "LinUCB with decay": Way(linear=True),
}


class Learner(Protocol):
    """What the stream asks of a learner."""

    def quality(self, x: Vectors, explore: bool) -> Floats:
        """float64[n, 4]: every tier's quality; with ``explore`` as optimistic as the learner is."""

    def learn(self, x: Vectors, tier: Array, verdict: Array, domain: int) -> None:
        """One update: int64[n] the tiers that were chosen, float32[n] what they earned."""


class Network:
    """The production network from its prior, learning in one of the ``ways``."""

    def __init__(self, way: Way, seed: int) -> None:
        import torch

        from operators.networks.fastgrnn_torch import FastGRNN
        from operators.networks.prior import prior

        torch.manual_seed(seed)
        self.way = way
        self.model = FastGRNN(prior())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=way.rate, fused=True)
        self.buffer = Reservoir(SCHEMA, capacity=max(way.replay, 1), seed=seed)
        self.ewc = Ewc(way.strength, way.gamma)
        self.drift = Drift()
        self.random = np.random.default_rng((seed, 5))
        self.updates = 0
        self.drifts: list[int] = []
        self._latest: list[dict[str, Array]] = []

    def quality(self, x: Vectors, explore: bool) -> Floats:
        """See ``Learner``; the network isn't optimistic."""
        import torch

        with torch.no_grad():
            made = torch.sigmoid(self._logits(torch.from_numpy(x)))
        return made.numpy().astype(np.float64)

    def learn(self, x: Vectors, tier: Array, verdict: Array, domain: int) -> None:
        """See ``Learner``."""
        import torch
        from torch.nn import functional

        new: dict[str, Array] = {
            "id": self.updates * BATCH + np.arange(len(x)),
            "x": x,
            "tier": tier,
            "verdict": verdict,
        }
        parts = [new]
        if len(self.buffer):
            parts.append(self.buffer.sample(len(x), self.random))
        rows = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in SCHEMA}
        logits = self._logits(rows["x"]).gather(1, rows["tier"][:, None])[:, 0]
        each = functional.binary_cross_entropy_with_logits(logits, rows["verdict"], reduction="none")
        value = each.mean()
        if self.way.strength:
            value = value + self.ewc.penalty(self.model)
        self.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.updates += 1
        if self.way.replay:
            self.buffer.add_many([f"{domain}/{k}" for k in tier.tolist()], new)
        self._latest = [*self._latest[-31:], new]
        drifted = self.drift.update(float(each[: len(x)].detach().mean()))
        if drifted:
            self.drifts.append(self.updates)
        if self.way.strength and (drifted or (self.way.every and self.updates % self.way.every == 0)):
            self._consolidate()

    def _consolidate(self) -> None:
        import torch

        if self.way.replay:
            x = self.buffer.sample(512, self.random)["x"]
        else:
            x = np.concatenate([rows["x"] for rows in self._latest])
        inputs = torch.from_numpy(x)
        with torch.no_grad():
            labels = torch.bernoulli(torch.sigmoid(self._logits(inputs)))
        self.ewc.consolidate(self.model, diagonal_fisher(self.model, _one_loss, inputs, labels))

    def _logits(self, x: Tensor) -> Tensor:
        made: Tensor = self.model(x, x.new_zeros(len(x), HIDDEN))["tier"]
        return made


def _one_loss(call: Any, x: Tensor, labels: Tensor) -> Tensor:
    """−log p of one turn's four good-or-bad labels."""
    from torch.nn import functional

    logits = call(x, x.new_zeros(HIDDEN))["tier"]
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


class LinUcb:
    """A ridge regression a tier, its statistics decayed each update, with an upper confidence bound to explore."""

    def __init__(self, decay: float = 0.998, alpha: float = 0.1) -> None:
        self.decay, self.alpha = decay, alpha
        self.a = np.zeros((TIERS, FEATURES + 1, FEATURES + 1))
        self.b = np.zeros((TIERS, FEATURES + 1))
        self._solved()

    def quality(self, x: Vectors, explore: bool) -> Floats:
        """See ``Learner``."""
        wide = _with_one(x)
        made = wide @ self.theta.T
        if explore:
            made += self.alpha * np.sqrt(np.einsum("ni,kij,nj->nk", wide, self.inverse, wide, optimize=True))
        return np.asarray(made)

    def learn(self, x: Vectors, tier: Array, verdict: Array, domain: int) -> None:
        """See ``Learner``; it isn't told the domain."""
        wide = _with_one(x)
        self.a *= self.decay
        self.b *= self.decay
        for k in range(TIERS):
            rows = wide[tier == k]
            self.a[k] += rows.T @ rows
            self.b[k] += rows.T @ verdict[tier == k]
        self._solved()

    def _solved(self) -> None:
        self.inverse = np.linalg.inv(self.a + np.eye(FEATURES + 1))
        self.theta = np.einsum("kij,kj->ki", self.inverse, self.b)


def _with_one(x: Vectors) -> Floats:
    return np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], axis=1)


def run(way: Way, updates: int, seed: int) -> dict[str, float]:
    """One way along one stream.

    ``regret``   utility lost a turn against the best tier, in points of 100, while learning
    ``drop``     utility on the old tasks when they were new, less that at the end, in points
    ``learned``  share of the possible gain over chance when a task was new, in percent, mean of all tasks
    ``kept``     the same at the end, mean of the old tasks
    ``lost``     what the old tasks lost of it
    """
    stream, random = Stream(updates, seed), np.random.default_rng((seed, 6))
    learner: Learner = LinUcb() if way.linear else Network(way, seed)
    regret, new = 0.0, []
    for update in range(updates):
        domain, x = stream.domain(update), stream.turns(update, BATCH)
        quality = stream.quality(update, domain, x)
        tier = utility(learner.quality(x, explore=True)).argmax(1)
        if not way.linear:
            tier = np.where(random.random(BATCH) < EXPLORE, random.integers(TIERS, size=BATCH), tier)
        worth, each = utility(quality), np.arange(BATCH)
        regret += float((worth.max(1) - worth[each, tier]).mean())
        verdict = (quality[each, tier] + NOISE * random.standard_normal(BATCH)).clip(0.0, 1.0).astype(np.float32)
        learner.learn(x, tier, verdict, domain)
        if update + 1 == updates or stream.domain(update + 1) != domain:
            new.append(_score(learner, stream, update, domain))
    first, last = np.array(new), np.array([_score(learner, stream, updates - 1, old) for old in range(DOMAINS - 1)])
    drop, lost = (first[:-1] - last).mean(0)
    return {
        "regret": 100.0 * regret / updates,
        "drop": float(drop),
        "learned": float(first[:, 1].mean()),
        "kept": float(last[:, 1].mean()),
        "lost": float(lost),
    }


def _score(learner: Learner, stream: Stream, update: int, domain: int) -> tuple[float, float]:
    """``score`` on the turns held back, among the tiers that stay as they are."""
    x = stream.held[domain]
    quality = stream.quality(update, domain, x)
    return score(learner.quality(x, explore=False), quality, stream.tiers_unchanged(domain))
