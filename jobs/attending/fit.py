"""Training of the attention network: InfoNCE on neighbourhoods, Adam, and a validation part that says when to stop.

    loss = mean over right nodes g of −log(e^{s_g} / (e^{s_g} + Σ_{j wrong} e^{s_j})),  s = log p / τ

p is the attention averaged over layers and heads, τ the temperature: van den Oord et al. 2018, eq. 4, with the rest of
the neighbourhood as negatives. Adam: Kingma and Ba 2015. The network starts in the order of search
(``attention.by_score``) and learns what to correct, so a few hundred examples suffice, and stopping at once is safe.

One thread, one seed: the same examples give the same weights on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from conf.train_attention import TrainAttention
from jobs.attending.examples import Example
from jobs.process import one_thread
from operators.errors import Reject, Stop
from operators.networks import attention
from operators.ranking import edge_features
from operators.records import record

if TYPE_CHECKING:
    from torch import Tensor

    from operators.networks.attention_torch import Attention

ENOUGH = 1e-4
"""A validation loss that is lower by less than this is no better one."""


@record
class Fitted:
    """The weights with the least validation loss, after ``best`` passes (0: the start), and the loss before each."""

    weights: attention.AttentionWeights
    best: int
    validation: tuple[float, ...]
    training: tuple[float, ...]


def can_learn(example: Example) -> bool:
    """Whether a right node is in the neighbourhood, and a wrong one too."""
    right = len(set(example.gold).intersection(example.near.node_ids))
    return 0 < right < len(example.near.node_ids)


def fit(train: Sequence[Example], validation: Sequence[Example], config: TrainAttention) -> Fitted:
    """Learn from ``train`` until ``validation`` gets no better. Raises ``Reject`` if either has nothing to learn."""
    import torch

    from operators.networks.attention_torch import Attention

    train, validation = [e for e in train if can_learn(e)], [e for e in validation if can_learn(e)]
    for name, part in (("training", train), ("validation", validation)):
        if not part:
            got = f"in no query of the {name} part is a right node in the neighbourhood"
            raise Reject("train attention", got, "give more queries, or raise search.k and expand.max_nodes")
    dim = train[0].embedded.vector.shape[0]
    start = attention.by_score(
        dim, heads=config.heads, layers=config.layers, seed=config.seed, sharpness=config.sharpness
    )
    random = np.random.default_rng(config.seed)
    with one_thread():
        network = Attention(start)
        few = [network.relation, network.weight, network.decay]
        many = [p for p in network.parameters() if all(p is not other for other in few)]
        optimizer = torch.optim.Adam(
            [
                {"params": many, "lr": config.learning_rate},
                {"params": few, "lr": config.learning_rate_edges},
            ]
        )
        weights, best, least = start, 0, float("inf")
        validations: list[float] = []
        trainings: list[float] = []
        for epoch in range(config.epochs + 1):
            validations.append(_mean_loss(network, validation, config))
            if not np.isfinite(validations[-1]):
                got = f"a loss of {validations[-1]} after {epoch} passes"
                raise Stop("train attention", got, "lower train_attention.learning_rate")
            if validations[-1] < least - ENOUGH:
                weights, best, least = network.weights(), epoch, validations[-1]
            elif epoch - best >= config.patience:
                break
            if epoch == config.epochs:
                break
            order = random.permutation(len(train))
            sums = 0.0
            for begin in range(0, len(order), config.batch):
                some = [train[i] for i in order[begin : begin + config.batch]]
                value = info_nce(network, some, config.temperature)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                sums += value.item() * len(some)
            trainings.append(sums / len(train))
    return Fitted(weights=weights, best=best, validation=tuple(validations), training=tuple(trainings))


def info_nce(network: Attention, examples: Sequence[Example], temperature: float) -> Tensor:
    """The loss at the top of this file, averaged over ``examples``: a scalar."""
    import torch
    from torch.nn import functional

    *inputs, right = _padded(examples)
    scores = network(*inputs).mean((1, 2)).clamp_min(1e-20).log() / temperature
    wrong = scores.masked_fill(right | ~inputs[-1], -torch.inf).logsumexp(-1, keepdim=True)
    each = functional.softplus(wrong - scores)  # −log of the right one's share of itself and all wrong ones
    return ((each * right).sum(-1) / right.sum(-1)).mean()


def _mean_loss(network: Attention, examples: Sequence[Example], config: TrainAttention) -> float:
    import torch

    total = 0.0
    with torch.no_grad():
        for begin in range(0, len(examples), 64):
            some = examples[begin : begin + 64]
            total += info_nce(network, some, config.temperature).item() * len(some)
    return total / len(examples)


def _padded(examples: Sequence[Example]) -> list[Tensor]:
    """The network's inputs in their order, then bool[b, n]: which nodes are right."""
    import torch

    b, n = len(examples), max(len(example.near.node_ids) for example in examples)
    query = np.stack([example.embedded.vector for example in examples])
    nodes = np.zeros((b, n, query.shape[1]), np.float32)
    relation, hop = np.zeros((b, n), np.int64), np.zeros((b, n), np.int64)
    weight = np.zeros((b, n), np.float32)
    present, right = np.zeros((b, n), np.bool_), np.zeros((b, n), np.bool_)
    for i, example in enumerate(examples):
        near, gold = example.near, set(example.gold)
        size = len(near.node_ids)
        nodes[i, :size] = near.vectors
        relation[i, :size], weight[i, :size] = edge_features(near)
        hop[i, :size] = near.hop
        present[i, :size] = True
        right[i, :size] = [node_id in gold for node_id in near.node_ids]
    return [torch.from_numpy(array) for array in (query, nodes, relation, weight, hop, present, right)]
