"""Train a router from scratch on many turns at once: what a replay job does, and an evaluation.

The long-lived learner (``learner``) takes the same steps on the same loss, a batch of new turns at a time.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from operators.errors import Stop
from operators.learning.config import FitConfig
from operators.learning.objective import Space, loss, targets, tensors
from operators.learning.turns import Columns, exemplars
from operators.networks.exemplars import AT
from operators.networks.fastgrnn import Snapshot, Vector
from operators.networks.fastgrnn_torch import FastGRNN
from operators.networks.prior import UNITS


def fit(turns: Columns, start: Snapshot, name: str, prices: Vector, config: FitConfig, seed: int = 0) -> Snapshot:
    """A snapshot ``name`` trained on ``turns``; ``prices`` float32[4] is what a slot costs, in logits of the policy.

    Raises ``Stop`` if there are fewer turns than a batch, or training diverged.
    """
    n = len(turns["features"])
    if n < config.batch:
        raise Stop("fit", f"{n} turns", f"give at least {config.batch}, or a smaller fit.batch")
    generator = torch.Generator().manual_seed(seed)
    remembered, own = exemplars(turns, config.most_exemplars)
    x = np.array(turns["features"], np.float32)
    seen = x[:, AT] = remembered.recall_all(x, own)
    target, heard = (torch.from_numpy(a) for a in targets(turns, seen, remembered, config.objective.clip))
    space = Space.of(x)
    net = begin(start, target, heard, generator, space)
    inputs, hidden = torch.from_numpy(space.put(x)), torch.from_numpy(np.array(turns["hidden"], np.float32))
    columns, price = tensors(turns), torch.from_numpy(prices)
    steps = config.epochs * math.ceil(n / config.batch)
    optimizer = torch.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    for epoch in range(config.epochs):
        if config.density < 1 and epoch >= config.epochs // 3:
            thin(net, config.density, epoch < 2 * config.epochs // 3)
        for rows in torch.split(torch.randperm(n, generator=generator), config.batch):
            keep = torch.rand((len(rows), inputs.shape[1]), generator=generator) >= config.dropout
            out = net(inputs[rows] * keep / (1.0 - config.dropout), hidden[rows])
            part = {name: column[rows] for name, column in columns.items()}
            cost = loss(out, target[rows], heard[rows], part, price, config.objective).mean()
            optimizer.zero_grad()
            cost.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if config.density < 1 and epoch >= config.epochs // 3:
                net.project()
    space.leave(net)
    made = net.snapshot(name)
    return Snapshot(made.params, name, remembered, learned=True)


def begin(
    start: Snapshot, target: torch.Tensor, heard: torch.Tensor, generator: torch.Generator, space: Space
) -> FastGRNN:
    """The network that training starts from, in standardised space: ``start`` if it has learned before.

    Of a prior, the units that carry a concept stay, the free ones are drawn anew, and the tier head says every slot's
    mean quality.
    """
    net = FastGRNN(start)
    space.enter(net)
    if start.learned:
        return net
    with torch.no_grad():
        free = net.w[:, len(UNITS) :]
        free.copy_((2.0 * torch.rand(free.shape, generator=generator) - 1.0) / math.sqrt(free.shape[-1]))
        net.b_h.data[len(UNITS) :] = 0.0
        net.b_z.data[len(UNITS) :] = 1.0
        mean = ((target * heard).sum(0) + 1.0) / (heard.sum(0) + 2.0)
        head = net.get_parameter("tier_w")
        head.copy_(0.05 * torch.randn(head.shape, generator=generator))
        net.get_parameter("tier_b").copy_(torch.logit(mean.clamp(0.02, 0.98)))
    return net


def thin(net: FastGRNN, density: float, choose: bool) -> None:
    """Iterative hard thresholding while ``choose``; afterwards the support stays as it is."""
    if choose:
        net.threshold(density)
    else:
        net.fix_support()
