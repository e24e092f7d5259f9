"""Fits the correction of a judge's ratings to a gold set: cross-entropy, by Newton's method, weakly held to no change.

Right answers are worth the rating 5, wrong ones 1, partly right ones 3. Length is left out on purpose: fitted to truth,
it learned that partly right answers are long, and turned a bias of −0.10 for long answers into one of +0.11.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from operators.judge_correction import LEAST, Correction, digest

Array = npt.NDArray[np.float64]
PRIOR = 1.0
"""Weight of (θ − θ₀)², where θ₀ changes nothing; in items."""
SMALLEST = 1e-3
"""Least slope of a correction: a judge whose ratings say nothing is flattened and never turned round."""


def fit(model: str, layout: str, probabilities: Array, gold: Array) -> Correction:
    """The correction for ratings float64[n, 5] of answers that are worth float64[n] (0, ½ or 1)."""
    logs = np.log(np.maximum(probabilities, LEAST))
    wanted = np.eye(5)[np.rint(gold * 4).astype(int)]
    ratings = np.broadcast_to(np.eye(5), (len(gold), 5, 5))
    design = np.concatenate([logs[:, :, None], ratings], axis=2)  # float64[n, rating, parameter]: w, the five of b
    start = np.array([1.0, 0, 0, 0, 0, 0])
    theta = start.copy()
    for _ in range(50):
        p = _softmax(design @ theta)
        gradient = np.einsum("nrk,nr->k", design, p - wanted) + PRIOR * (theta - start)
        middle = np.einsum("nrk,nr->nk", design, p)
        curvature = np.einsum("nrk,nrl,nr->kl", design, design, p) - middle.T @ middle + PRIOR * np.eye(len(theta))
        step = np.linalg.solve(curvature, gradient)
        theta -= step * min(1.0, 2.0 / float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    weight, *bias = (round(float(value), 4) for value in theta)
    if weight < SMALLEST:  # what such a judge is worth: how often answers are right
        weight, bias = SMALLEST, [round(float(v), 4) for v in np.log((wanted.sum(0) + PRIOR / 5) / (len(gold) + PRIOR))]
    return Correction(model=model, layout=layout, digest=digest(layout), weight=weight, bias=tuple(bias))


def _softmax(logs: Array) -> Array:
    made = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(made / made.sum(1, keepdims=True), np.float64)
