"""A made-up stream of routed turns that changes under the learner. Its truth is known, so regret can be exact.

Four domains come in turn, a quarter of the stream each. A turn has 128 features: 64 like a query's embedding, around
the domain's own centre, and 64 like the other statistics, alike in all domains. Tier k answers a turn x of domain d
with quality σ(a_dk + w_dk·x); a_dk and the sixteen numbers in w_dk that are not zero, half of them among the embedding,
are drawn for each d and k. Utility is quality less the tier's cost. The learner is told the quality of the tier it
chose only, with noise of 0.1.

- At half, **tier 2's model is swapped**: its a and w are drawn anew for every domain.
- At seven eighths, **the last domain's labels flip**: quality q becomes 1 − q there, for every tier.

Old tasks are the domains before the last, each by what was true when it was learned and still is: for the domains
before the swap, the choice is among the tiers that were not swapped.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from operators.networks.features import PROJECTED, TIERS
from operators.records import FEATURES

Floats: TypeAlias = npt.NDArray[np.float64]
Vectors: TypeAlias = npt.NDArray[np.float32]

DOMAINS = 4
COSTS = np.array([0.0, 0.04, 0.08, 0.12])
"""float64[4]: what each tier costs, in quality."""
SWAPPED = 2
NOISE = 0.1


class Stream:
    """The stream of one ``seed``, ``length`` updates long."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        random = np.random.default_rng((seed, 2))
        self._centres = random.choice([-1.0, 1.0], (DOMAINS, PROJECTED)) / 3.0
        self._a, self._w = self._tiers(random)
        self._new_a, self._new_w = self._tiers(random)
        self._turns = np.random.default_rng((seed, 3))
        held = np.random.default_rng((seed, 4))
        self.held = [self._features(domain, 1000, held) for domain in range(DOMAINS)]
        """For each domain float32[1000, 128], never learned from."""

    def domain(self, update: int) -> int:
        """The domain that comes at ``update``."""
        return update * DOMAINS // self.length

    def turns(self, update: int, n: int) -> Vectors:
        """float32[n, 128], the turns at ``update``; call it once for each update, in order."""
        return self._features(self.domain(update), n, self._turns)

    def quality(self, update: int, domain: int, x: Vectors) -> Floats:
        """float64[n, 4]: the true quality of every tier at ``update``."""
        a, w = self._a[domain].copy(), self._w[domain].copy()
        if 2 * update >= self.length:
            a[SWAPPED], w[SWAPPED] = self._new_a[domain, SWAPPED], self._new_w[domain, SWAPPED]
        made = 1.0 / (1.0 + np.exp(-(a + x @ w.T)))
        return 1.0 - made if domain == DOMAINS - 1 and 8 * update >= 7 * self.length else np.asarray(made)

    def tiers_unchanged(self, domain: int) -> list[int]:
        """The tiers whose quality on ``domain`` is at the end what it was at the end of its quarter."""
        before_swap = (domain + 1) * 2 <= DOMAINS
        return [tier for tier in range(TIERS) if not (before_swap and tier == SWAPPED)]

    def _features(self, domain: int, n: int, random: np.random.Generator) -> Vectors:
        made = random.uniform(-1.0, 1.0, (n, FEATURES))
        made[:, :PROJECTED] = self._centres[domain] + 0.25 * random.standard_normal((n, PROJECTED))
        return made.clip(-1.0, 1.0).astype(np.float32)

    @staticmethod
    def _tiers(random: np.random.Generator) -> tuple[Floats, Floats]:
        a = random.uniform(-1.0, 1.0, (DOMAINS, TIERS))
        w: Any = np.zeros((DOMAINS, TIERS, FEATURES))
        for domain in range(DOMAINS):
            for tier in range(TIERS):
                for start in (0, PROJECTED):
                    at = start + random.permutation(PROJECTED)[:8]
                    w[domain, tier, at] = random.standard_normal(8)
        return a, w


def utility(quality: Floats) -> Floats:
    """Quality [..., 4] less what the tiers cost."""
    return np.asarray(quality - COSTS)


def score(predicted: Floats, quality: Floats, tiers: list[int]) -> tuple[float, float]:
    """Mean utility of choosing among ``tiers`` by ``predicted``, in points of 100; and its gain over chance.

    The gain is in percent of what could be gained.
    """
    worth = utility(quality)[:, tiers]
    chosen = utility(predicted)[:, tiers].argmax(1)
    mean = worth[np.arange(len(worth)), chosen].mean()
    gain = (mean - worth.mean()) / (worth.max(1).mean() - worth.mean())
    return float(100.0 * mean), float(100.0 * gain)
