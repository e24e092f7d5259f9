"""Permuted digits: ten tasks in turn on one small network, and how much of the first is left after the last.

The data are scikit-learn's 1,797 digits of 8×8 pixels, 1,297 to learn from and 500 to test. A task is all of them with
the pixels in an order of its own (Kirkpatrick et al. 2017, §2.2). The network is not told which task it sees. The seed
draws the split, the orders, the first weights and the order of examples, which every line sees alike.

"EWC" adds up the Fisher information of all tasks and holds the weights where they were last, "online EWC" lets F fade.
A penalty for each task around its own weights, as first published, is measured with the peer's; it counts what early
tasks hold many times over (Huszár 2018, arXiv:1712.03847), and got less here.

With A[i, j] the accuracy on task j after learning task i (Lopez-Paz and Ranzato 2017, Chaudhry et al. 2018):

    accuracy       mean of A[T, j]                      learning    mean of A[j, j]: what it can learn at all
    backward       mean of A[T, j] − A[j, j], j < T     forgetting  mean of max over i < T of A[i, j] − A[T, j], j < T
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from operators.learning.ewc import Ewc, diagonal_fisher
from operators.learning.reservoir import Reservoir

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats: TypeAlias = npt.NDArray[np.float64]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

PIXELS, CLASSES = 64, 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How long and on what; the same for every line and for the peer."""

    tasks: int = 10
    passes: int = 10
    """Times that each task's examples are seen."""
    batch: int = 32
    """New examples a step; with replay as many old ones come to them."""
    hidden: int = 256
    rate: float = 1e-3
    """Adam's step."""
    train: int = 1297
    test: int = 500


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way to learn."""

    replay: int = 0
    """Rows of the replay buffer."""
    strength: float = 0.0
    """λ of EWC."""
    gamma: float = 1.0
    """γ of online EWC; 1 adds up F over all tasks."""
    separate: bool = False
    """For the peer alone: a penalty for each task, at its own weights."""
    joint: bool = False
    """All tasks at once: what could be reached if nothing were in turn."""


LINES = {
    "fine-tune": Line(),
    "EWC": Line(strength=70.0),
    "online EWC": Line(strength=70.0, gamma=0.95),
    "replay 200": Line(replay=200),
    "online EWC + replay 200": Line(replay=200, strength=10.0, gamma=0.95),
    "replay 1000": Line(replay=1000),
    "joint": Line(joint=True),
}

PEER_LINES = {
    "fine-tune": Line(),
    "EWC, a penalty a task": Line(strength=1000.0, separate=True),
    "EWC": Line(strength=1000.0),
    "online EWC": Line(strength=1000.0, gamma=0.95),
    "replay 200": Line(replay=200),
    "online EWC + replay 200": Line(replay=200, strength=300.0, gamma=0.95),
    "replay 1000": Line(replay=1000),
}
"""The same for Avalanche, whose λ is on another scale: no ½, and F from the mean gradient of a batch."""


def data(protocol: Protocol, seed: int) -> Arrays:
    """``x_train`` float32[tasks, n, 64] in the order of presentation, ``y_train`` int64[tasks, n], test alike, weights.

    The weights are PyTorch's own initialisation: ``w1`` [hidden, 64], ``b1``, ``w2`` [10, hidden], ``b2``.
    """
    from sklearn.datasets import load_digits

    random = np.random.default_rng(seed)
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    rows = random.permutation(len(labels))
    train, test = rows[: protocol.train], rows[protocol.train : protocol.train + protocol.test]
    seen = digits.data[train]
    images = ((digits.data - seen.mean()) / seen.std()).astype(np.float32)
    made: Arrays = {"y_test": np.stack([labels[test]] * protocol.tasks)}
    pixels = [random.permutation(PIXELS) for _ in range(protocol.tasks)]
    orders = [random.permutation(train) for _ in range(protocol.tasks)]
    made["x_train"] = np.stack([images[order][:, p] for order, p in zip(orders, pixels, strict=True)])
    made["y_train"] = np.stack([labels[order] for order in orders])
    made["x_test"] = np.stack([images[test][:, p] for p in pixels])
    for i, (inputs, outputs) in enumerate(((PIXELS, protocol.hidden), (protocol.hidden, CLASSES)), start=1):
        bound = inputs**-0.5
        made[f"w{i}"] = random.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
        made[f"b{i}"] = random.uniform(-bound, bound, outputs).astype(np.float32)
    return made


def run(line: Line, given: Arrays, protocol: Protocol, seed: int) -> Floats:
    """Learn task after task; returns A float64[tasks, tasks] (one row only for a joint line)."""
    import torch
    from torch.nn import functional

    model = _network(given)
    optimizer = torch.optim.Adam(model.parameters(), lr=protocol.rate)
    buffer = Reservoir(
        {"id": ("int64", ()), "x": ("float32", (PIXELS,)), "y": ("int64", ())}, capacity=max(line.replay, 1), seed=seed
    )
    ewc = Ewc(line.strength, line.gamma)
    random = np.random.default_rng((seed, 1))
    rows = []
    for task, (x, y) in enumerate(_tasks(line, given, random)):
        for _ in range(protocol.passes):
            for start in range(0, len(x), protocol.batch):
                some_x, some_y = x[start : start + protocol.batch], y[start : start + protocol.batch]
                if len(buffer):
                    old = buffer.sample(protocol.batch, random)
                    some_x = torch.cat((some_x, torch.from_numpy(old["x"])))
                    some_y = torch.cat((some_y, torch.from_numpy(old["y"])))
                value = functional.cross_entropy(model(some_x), some_y)
                if line.strength:
                    value = value + ewc.penalty(model)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        if line.replay:
            ids = np.arange(len(x)) + task * len(x)
            strata = [f"task {task}/digit {digit}" for digit in y.tolist()]
            buffer.add_many(strata, {"id": ids, "x": x.numpy(), "y": y.numpy()})
        if line.strength:
            ewc.consolidate(model, diagonal_fisher(model, one_loss, x, y))
        rows.append(_accuracies(model, given))
    return np.stack(rows)


def one_loss(call: Any, x: Tensor, y: Tensor) -> Tensor:
    """−log p(y | x) of one sample, as ``diagonal_fisher`` wants it."""
    from torch.nn import functional

    return functional.cross_entropy(call(x), y)


def metrics(accuracies: Floats) -> dict[str, float]:
    """The four numbers at the top of this file; a joint line has the first only."""
    made = {"accuracy": float(accuracies[-1].mean())}
    if len(accuracies) > 1:
        learned, last = np.diag(accuracies), accuracies[-1]
        made["learning"] = float(learned.mean())
        made["backward"] = float((last - learned)[:-1].mean())
        made["forgetting"] = float((accuracies[:-1].max(0) - last)[:-1].mean())
    return made


def _network(given: Arrays) -> nn.Sequential:
    import torch
    from torch import nn

    hidden = len(given["b1"])
    model = nn.Sequential(nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))
    with torch.no_grad():
        for p, name in zip(model.parameters(), ("w1", "b1", "w2", "b2"), strict=True):
            p.copy_(torch.from_numpy(given[name]))
    return model


def _tasks(line: Line, given: Arrays, random: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    import torch

    x, y = torch.from_numpy(given["x_train"]), torch.from_numpy(given["y_train"])
    if line.joint:
        order = torch.from_numpy(random.permutation(y.numel()))
        yield x.flatten(0, 1)[order], y.flatten()[order]
    else:
        yield from zip(x, y, strict=True)


def _accuracies(model: nn.Sequential, given: Arrays) -> Floats:
    import torch

    with torch.no_grad():
        found = model(torch.from_numpy(given["x_test"])).argmax(-1).numpy()
    return np.asarray((found == given["y_test"]).mean(1))
