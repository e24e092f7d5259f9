"""What a judge's ratings are worth, learned from a gold set: the correction of its verdicts.

A model prefers some digits whatever it rates. The correction leaves its probabilities p_r of the ratings r ∈ {1…5} a
distribution,

    p'_r ∝ exp(w · ln p_r + b_r)

so score and uncertainty follow from it as ever. ``w`` and ``b`` are the vector scaling of Guo et al. 2017
(arXiv:1706.04599) with one slope; ``b`` is what contextual calibration (Zhao et al. 2021, arXiv:2102.09690) reads off
an empty answer, here fitted. ``ruvllm evaluate judge --fit FILE`` makes one.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from pydantic import Field

from operators.base import Knobs
from operators.judge_layouts import LAYOUTS

LEAST = 1e-9
"""A probability below this is not told apart from it."""


class Correction(Knobs):
    """A correction, and for which judge. It applies to no other model, nor to the layout once its text has changed."""

    model: str = Field(min_length=1)
    """Name of the judge's model, as the profile has it."""
    layout: str = Field(min_length=1)
    """The judge's layout."""
    digest: str = Field(min_length=8)
    """Which text of the layout: the first digits of its SHA-256."""
    weight: float = Field(gt=0, allow_inf_nan=False)
    """How far the ratings' log-probabilities count, w."""
    bias: tuple[float, float, float, float, float]
    """What is added for the ratings 1 to 5, b."""

    def fits(self, model: str, layout: str) -> bool:
        """Whether it is for this judge."""
        return (self.model, self.layout) == (model, layout) and self.digest == digest(layout)

    def __call__(self, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``probabilities`` float64[5] corrected: float64[5], their sum 1."""
        logs = self.weight * np.log(np.maximum(probabilities, LEAST)) + np.asarray(self.bias)
        made = np.exp(logs - logs.max())
        return np.asarray(made / made.sum(), np.float64)


def digest(layout: str) -> str:
    """Which text ``layout`` has now; two that differ in a sign have other digests."""
    return hashlib.sha256("\0".join(LAYOUTS[layout]).encode()).hexdigest()[:12]
