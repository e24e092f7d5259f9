"""What the router remembers beside its weights: turns whose verdict is known, and how well each slot did on them.

For a new turn, a slot's quality on similar turns is estimated by kernel regression (Nadaraya 1964, Watson 1964) at
three bandwidths, shrunk towards the mean quality of the slot. With w_i = exp((cos_i − max cos) / t) over the turns i on
which slot k is known to have had quality q_ik, and the slot's mean m_k::

    excess_k(t) = Σ w_i (q_ik − m_k) / (Σ w_i + 5)

Those twelve numbers are features like any other: the network learns how far to trust them. Turns are compared by the
projection of the query that is the beginning of the features, so an exemplar holds no text.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from operators.errors import Stop
from operators.networks.features import NEARNESS, PROJECTED, SLOT, TIERS, Vector

BANDWIDTHS = (0.1, 0.05, 0.02)
"""The t of ``NEARNESS``. The second and third are powers of the first's weights: one exponential serves all."""
SHRINKAGE = 5.0
"""Turns' worth of belief that a slot does as well as on the mean turn."""
GAIN = 3.0
"""An excess of a third fills the feature's range."""
AT = slice(SLOT["exemplar_near_tier0"], SLOT["exemplar_near_tier0"] + len(NEARNESS) * TIERS)
"""Where the twelve features stand."""
_POWERS = tuple(round(BANDWIDTHS[0] / t) for t in BANDWIDTHS)
_CHUNK = 256


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Exemplars:
    """Learned turns, immutable. ``keys`` float32[n, 32], L2-normalised; ``quality`` float32[n, 4] in [0, 1], NaN where
    nobody knows how the slot would have done.

    Raises ``Stop`` for other shapes or dtypes, infinite values, or keys that are no unit vectors.
    """

    keys: Vector
    quality: Vector
    _sums: Vector = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.keys)
        if self.keys.shape != (n, PROJECTED) or self.quality.shape != (n, TIERS) or n < 1:
            got = f"exemplars of shapes {self.keys.shape} and {self.quality.shape}"
            raise Stop("route", got, f"give float32[n, {PROJECTED}] and float32[n, {TIERS}], n at least 1")
        known = ~np.isnan(self.quality)
        lengths = np.linalg.norm(self.keys, axis=1)
        sound = np.where(known, (self.quality >= 0.0) & (self.quality <= 1.0), True).all()
        if not (sound and np.allclose(lengths, 1.0, atol=1e-3)):
            raise Stop("route", "exemplars with keys that are not of length 1, or qualities outside [0, 1]", "refit it")
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, self.quality, 0.0).sum(axis=0) / count
        excess = np.where(known, self.quality - mean, 0.0)
        object.__setattr__(self, "_sums", np.ascontiguousarray(np.concatenate((excess, known), axis=1), np.float32))
        for array in (self.keys, self.quality):
            array.setflags(write=False)

    @classmethod
    def of(cls, features: Vector, quality: Vector) -> Exemplars:
        """From the features float32[n, 128] of turns and what is known of them."""
        return cls(keys(features), np.array(quality, np.float32))

    def recall(self, x: Vector) -> Vector:
        """The twelve features of one turn: ``x`` float32[128] → float32[12]."""
        found: Vector = self._features(self.keys @ keys(x)[:, None])[0]
        return found

    def recall_all(self, x: Vector, own: npt.NDArray[np.int64] | None = None) -> Vector:
        """The same of many: ``x`` float32[n, 128] → float32[n, 12]. ``own`` int64[n] is the row of each turn itself,
        which is left out as if it had not been seen; −1 where it is not among the exemplars."""
        made = []
        for at in range(0, len(x), _CHUNK):
            cosines = self.keys @ keys(x[at : at + _CHUNK]).T
            if own is not None:
                mine = own[at : at + _CHUNK]
                present = np.flatnonzero(mine >= 0)
                cosines[mine[present], present] = -np.inf
            made.append(self._features(cosines))
        return np.concatenate(made)

    def _features(self, cosines: Vector) -> Vector:
        """``cosines`` float32[n exemplars, m] → float32[m, 12]."""
        widest = np.exp((cosines - cosines.max(axis=0)) / np.float32(BANDWIDTHS[0])).T
        made = []
        for power in _POWERS:
            sums = widest**power @ self._sums
            made.append(sums[:, :TIERS] / (sums[:, TIERS:] + np.float32(SHRINKAGE)))
        made_all: Vector = np.clip(GAIN * np.concatenate(made, axis=1), -1.0, 1.0)
        return made_all


def keys(features: Vector) -> Vector:
    """The part of ``features`` float32[..., 128] that turns are compared by, L2-normalised: float32[..., 32].

    A turn without a direction (a vector of zeros) is compared as if it pointed the first axis' way.
    """
    part = np.asarray(features[..., :PROJECTED], np.float32)
    length = np.sqrt((part * part).sum(axis=-1, keepdims=True))
    axis = np.zeros(PROJECTED, np.float32)
    axis[0] = 1.0
    made: Vector = np.where(length > 1e-6, part / np.maximum(length, 1e-6), axis)
    return made
