"""What the router is trained for (design §9), and the space it is trained in.

**Tier head.** The logit of the quality of *every* slot; the policy ranks by quality minus cost. A logged turn tells of
one slot only, and which one was no accident, so the targets are doubly robust (Dudík et al. 2011, arXiv:1103.4601):
with b_k what the other exemplars say and y the verdict of slot a, drawn with propensity p::

    target_k = b_k + 1{k = a} · min(1 / p, clip) · (y − b_a)

Right on average if either b or p is. Where every slot's quality is known the target is that. The loss is the cross
entropy of the logit with the target, whose gradient σ(l) − target is right for targets outside [0, 1] too.

**Confidence.** That the turn of one's own policy will be good: cross entropy, each known slot weighted by the policy.

**Context size.** Advantage times −log of its chance, importance-weighted. **Temperature, top-p.** Regression on what
was used where it did better than expected (Peng et al. 2019, arXiv:1910.00177).

**Standardised space.** Features differ in spread by a factor of ten, and one learning rate does not fit all. So the
network is trained on (x − μ) / 2σ, and what that means for W and the biases is folded in when a snapshot is made.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from operators.learning.config import ObjectiveConfig
from operators.learning.turns import Columns
from operators.networks.exemplars import GAIN, Exemplars
from operators.networks.fastgrnn import SHARPNESS, Vector
from operators.networks.fastgrnn_torch import FastGRNN
from operators.networks.features import PROJECTED, TIERS

FLOOR = 0.05
"""A feature that hardly varied is not blown up beyond this standard deviation."""


class Space:
    """Standardised features. ``mean``, ``scale`` float32[128]: z = (x − mean) / scale."""

    def __init__(self, mean: Vector, scale: Vector) -> None:
        self.mean, self.scale = mean, scale

    @classmethod
    def of(cls, x: Vector) -> Space:
        """From features float32[n, 128]. The query's projection is made a tenth as wide as the others: as wide as they
        it is 32 ways to learn single turns by heart, which costs most on subjects that are new."""
        mean, scale = x.mean(axis=0), 2.0 * np.maximum(x.std(axis=0), np.float32(FLOOR))
        mean[:PROJECTED], scale[:PROJECTED] = 0.0, 3.0
        return cls(mean, scale)

    def put(self, x: Vector) -> Vector:
        """``x`` float32[..., 128], standardised."""
        return np.asarray((x - self.mean) / self.scale, np.float32)

    def enter(self, net: FastGRNN) -> None:
        """Rewrite a network that reads raw features into one that reads standardised ones and says the same."""
        self._shift(net, 1.0)
        net.w.data.mul_(torch.from_numpy(self.scale))

    def leave(self, net: FastGRNN) -> None:
        """The way back."""
        net.w.data.div_(torch.from_numpy(self.scale))
        self._shift(net, -1.0)

    def _shift(self, net: FastGRNN, sign: float) -> None:
        """Move what the raw features' mean adds between W x and the biases of gate (first W) and candidate (last)."""
        shift = sign * (net.w.data @ torch.from_numpy(self.mean))
        net.b_z.data.add_(shift[0])
        net.b_h.data.add_(shift[-1])


def targets(turns: Columns, seen: Vector, exemplars: Exemplars, clip: float) -> tuple[Vector, Vector]:
    """Target and weight of every slot's quality, float32[n, 4] each. ``seen`` float32[n, 12]: what the exemplars said.

    A slot of which no exemplar knows anything has weight 0 unless this turn knows it.
    """
    known, quality = turns["known"], turns["quality"]
    there = ~np.isnan(exemplars.quality)
    counts = there.sum(axis=0)
    means = np.where(there, exemplars.quality, 0.0).sum(axis=0) / np.maximum(counts, 1)
    believed = np.clip(means + seen[:, TIERS : 2 * TIERS] / GAIN, 0.0, 1.0)
    drawn = known.sum(axis=1) == 1
    weight = np.where(drawn, np.minimum(1.0 / np.maximum(turns["propensity"], 1e-6), clip), 1.0)[:, None]
    robust = believed + known * weight * (quality - believed)
    target = np.where(drawn[:, None], robust, quality)
    heard = np.where(drawn[:, None], counts > 0, known)
    return np.asarray(target, np.float32), np.asarray(heard, np.float32)


def loss(
    out: dict[str, Tensor],
    target: Tensor,
    heard: Tensor,
    turns: dict[str, Tensor],
    prices: Tensor,
    config: ObjectiveConfig,
) -> Tensor:
    """The loss of every turn, float32[...], axes as ``out``'s. ``prices`` float32[4]: a slot's cost in logits."""
    tier = out["tier"]
    quality = (functional.softplus(tier) - target * tier) * heard
    made = quality.sum(-1) / heard.sum(-1).clamp(min=1.0)

    belief = torch.sigmoid(tier).detach()
    known = turns["known"]
    policy = torch.softmax(SHARPNESS * belief - prices, -1)
    good = (turns["quality"] >= config.good).float()
    alone = known.sum(-1) == 1
    weight = torch.where(alone, (1.0 / turns["propensity"].clamp(min=1e-6)).clamp(max=config.clip), 1.0)
    share = policy * known * weight[..., None]
    sure = out["confidence"].clamp(1e-6, 1.0 - 1e-6)[..., None]
    made = made - config.confidence_weight * (share * (good * sure.log() + (1.0 - good) * (1.0 - sure).log())).sum(-1)

    taken = (turns["slot"].clamp(min=0).long())[..., None]
    advantage = torch.where(
        alone, (turns["quality"].gather(-1, taken) - belief.gather(-1, taken))[..., 0], torch.zeros_like(weight)
    )
    drawn = (turns["context"] >= 0) & alone
    chance = torch.log_softmax(out["context"], -1).gather(-1, turns["context"].clamp(min=0).long()[..., None])[..., 0]
    context_weight = (1.0 / turns["context_propensity"].clamp(min=1e-6)).clamp(max=config.clip)
    made = made - config.context_weight * drawn * context_weight * advantage * chance

    better = advantage.clamp(min=0.0) * drawn
    away = (out["temperature"] - turns["temperature"]).square() + (out["top_p"] - turns["top_p"]).square()
    return made + config.sampling_weight * better * away


def tensors(turns: Columns, rows: npt.NDArray[np.int64] | slice = slice(None)) -> dict[str, Tensor]:
    """The columns that the loss reads, as tensors."""
    names = ("quality", "known", "slot", "propensity", "context", "context_propensity", "temperature", "top_p")
    return {name: torch.from_numpy(np.ascontiguousarray(turns[name][rows])) for name in names}
