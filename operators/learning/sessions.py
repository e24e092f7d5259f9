"""Turns of one session are learned from together, unrolled through time, as they were routed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from operators.learning.turns import Columns
from operators.networks.fastgrnn_torch import FastGRNN


def columns_of(turns: Columns, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each turn stands when sessions are laid side by side: (time, column), int64[n] each.

    Among the first ``new`` turns, those of one session whose numbers follow each other share a column, in order. The
    others, drawn from the buffer one by one, have a column each.
    """
    n = len(turns["id"])
    order = sorted(range(new), key=lambda i: (int(turns["session"][i]), int(turns["turn"][i])))
    times, columns = np.zeros(n, np.int64), np.zeros(n, np.int64)
    column, before = -1, -1
    for i in order:
        follows = before >= 0 and turns["session"][i] == turns["session"][before]
        if follows and turns["turn"][i] == turns["turn"][before] + 1:
            times[i] = times[before] + 1
        else:
            column += 1
        columns[i] = column
        before = i
    columns[new:] = column + 1 + np.arange(n - new)
    return times, columns


def unrolled(net: FastGRNN, x: Tensor, turns: Columns, new: int) -> dict[str, Tensor]:
    """The network's outputs for every turn, [n, ...], in the turns' order. ``x`` float32[n, 128].

    The first turn of a column starts from the state that was logged; later ones from the state the network makes now,
    so gradients flow back through the session (backpropagation through time).
    """
    times, columns = columns_of(turns, new)
    shape = (int(times.max()) + 1, int(columns.max()) + 1)
    inputs = torch.zeros((*shape, x.shape[1]))
    inputs[times, columns] = x
    present = torch.zeros(shape, dtype=torch.bool)
    present[times, columns] = True
    first = np.flatnonzero(times == 0)
    hidden = torch.zeros((shape[1], turns["hidden"].shape[1]))
    hidden[columns[first]] = torch.from_numpy(turns["hidden"][first])
    return {name: out[times, columns] for name, out in net.sequence(inputs, hidden, present).items()}
