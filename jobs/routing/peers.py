"""What the router is measured beside: other ways to value the tiers, all of them told every tier's outcome.

logistic              logistic regression on the prompt's vector, one a tier; fractional qualities weigh both classes
knn-40                mean quality of the 40 nearest prompts by cosine
matrix-factorisation  δ(k, q) = w · (v_k ⊙ (W q + b)), v_k of length 1, trained so that σ(δ_i − δ_j) is the chance
                      that tier i beats tier j (RouteLLM: Ong et al. 2024, arXiv:2406.18665). Width, rate, batch and
                      decay are those of its authors' code; a tie counts as half a win each, which on the data at hand
                      did better than leaving ties out, as they do
length                long prompts to the dearest tier
random                any prompts to the dearest tier

The first three predict every tier, and are ranked by the difference like the router itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional

from jobs.routing.outcomes import Array
from operators.records import F32

Model: TypeAlias = Callable[[F32], Array]
"""Vectors float32[n, dim] → values float64[n, tiers]."""
NEIGHBOURS = 40
WIDTH, RATE, PASSES, BATCH, DECAY = 128, 3e-4, 30, 64, 1e-5
"""Of the matrix factorisation. More passes gained nothing on new subjects."""


def logistic(x: F32, quality: Array) -> Model:
    """Learn from vectors float32[n, dim] and ``quality`` float64[n, tiers]."""
    from sklearn.linear_model import LogisticRegression

    n, classes = len(x), np.repeat([1, 0], len(x))
    fitted: list[Any] = []
    for good in quality.T:
        weight = np.concatenate((good, 1.0 - good))
        there = weight > 0.0
        if len(set(classes[there].tolist())) == 1:
            fitted.append(float(good[0]))  # always right, or always wrong: nothing to fit
            continue
        rows = np.flatnonzero(there)
        model = LogisticRegression(max_iter=1000)
        fitted.append(model.fit(x[rows % n], classes[rows], sample_weight=weight[rows]))

    def predict(x: F32) -> Array:
        columns = [np.full(len(x), m) if isinstance(m, float) else m.predict_proba(x)[:, 1] for m in fitted]
        return np.stack(columns, axis=1).astype(np.float64)

    return predict


def nearest(x: F32, quality: Array) -> Model:
    """Learn from vectors float32[n, dim] and ``quality`` float64[n, tiers]."""
    from sklearn.neighbors import KNeighborsRegressor

    model = KNeighborsRegressor(n_neighbors=min(NEIGHBOURS, len(x)), metric="cosine", algorithm="brute")
    model.fit(x, quality)
    return lambda x: np.asarray(model.predict(x), np.float64)


def factorised(x: F32, quality: Array, seed: int) -> Model:
    """Learn from vectors float32[n, dim] and ``quality`` float64[n, tiers]. Its values are no qualities."""
    generator = torch.Generator().manual_seed(seed)
    tiers, dim = quality.shape[1], x.shape[1]
    inputs, good = torch.from_numpy(np.array(x, np.float32)), torch.from_numpy(quality.astype(np.float32))
    one, other = (torch.tensor(side) for side in zip(*_pairs(tiers), strict=True))
    wins = (1.0 + good[:, one] - good[:, other]) / 2.0

    def uniform(*shape: int) -> torch.Tensor:
        return 2.0 * torch.rand(shape, generator=generator) - 1.0

    model = torch.randn((tiers, WIDTH), generator=generator).requires_grad_()
    into = (uniform(WIDTH, dim) / dim**0.5).requires_grad_()
    bias = torch.zeros(WIDTH, requires_grad=True)
    out = (uniform(WIDTH) / WIDTH**0.5).requires_grad_()
    optimizer = torch.optim.Adam((model, into, bias, out), RATE, weight_decay=DECAY)

    def strength(x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = functional.linear(x, into, bias) @ (functional.normalize(model, dim=1) * out).T
        return made

    for _ in range(PASSES):
        for rows in torch.split(torch.randperm(len(inputs), generator=generator), BATCH):
            delta = strength(inputs[rows])
            cost = functional.binary_cross_entropy_with_logits(delta[:, one] - delta[:, other], wins[rows])
            optimizer.zero_grad()
            cost.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def predict(x: F32) -> Array:
        with torch.no_grad():
            return np.asarray(strength(torch.from_numpy(np.array(x, np.float32))).numpy(), np.float64)

    return predict


def lengths(prompts: Sequence[str]) -> Array:
    """Characters of each prompt, float64[n]."""
    return np.array([len(prompt) for prompt in prompts], np.float64)


def by_score(score: Array, prices: Array) -> Array:
    """Values by which prompts of a high ``score`` float64[n] go to the dearest tier first, and none to one between."""
    return score[:, None] * prices[None, :]


def _pairs(tiers: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(tiers) for j in range(i)]
