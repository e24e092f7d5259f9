"""Drawing a token from a model's logits, for engines that leave that to us."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def log_probabilities(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """log softmax of ``logits`` [vocabulary]: float64[vocabulary], natural logarithm."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()), np.float64)


def draw(logits: npt.NDArray[Any], temperature: float, top_p: float, random: np.random.Generator) -> int:
    """A token: the most probable one at ``temperature`` 0, else one of softmax(logits / temperature), of which only the
    smallest set of mass ``top_p`` counts (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751)."""
    if temperature <= 0:
        return int(np.argmax(logits))
    p = np.exp(log_probabilities(logits / temperature))
    if top_p >= 1:
        return int(random.choice(len(p), p=p / p.sum()))
    # All tokens below this together have less than 1 − top_p, so none of them is needed, and few are left to sort.
    some = np.flatnonzero(p >= (1 - top_p) / len(p))
    some = some[np.argsort(-p[some], kind="stable")]
    nucleus = some[: int(np.searchsorted(np.cumsum(p[some]), top_p)) + 1]
    return int(random.choice(nucleus, p=p[nucleus] / p[nucleus].sum()))
