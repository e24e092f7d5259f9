"""The router's step and the attention network in torch, written for export: what XNNPACK takes, weights folded in.

The same functions as ``fastgrnn_torch.FastGRNN`` and ``attention_torch.Attention``, which are for training; exported
programs are held against those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from operators.networks.attention import LOOSE, AttentionWeights
from operators.networks.fastgrnn import CONTEXT_TOKENS, HEADS, Snapshot
from operators.networks.features import TIERS

EDGE = LOOSE + 1 + 2
"""Numbers that describe a node's edge: one for each relation, one of them 1; its weight; the node's hops."""


class RouterStep(nn.Module):
    """One step: x float32[1, 128], h float32[1, 64] → float32[1, 12 + 64], the heads as ``HEADS`` orders them, as
    ``Snapshot.forward`` gives them, then the new state."""

    top: Tensor
    slope: Tensor
    stretch: Tensor

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        p = {name: np.asarray(value, np.float64) for name, value in snapshot.params.items()}
        rows = np.concatenate((p["w"], p["u1"] @ p["u2"].swapaxes(1, 2)), axis=2)
        self.gate, self.candidate = _linear(rows[0], p["b_z"]), _linear(rows[-1], p["b_h"])
        self.heads = _linear(
            np.concatenate([p[f"{head}_w"] for head in HEADS]), np.concatenate([p[f"{head}_b"] for head in HEADS])
        )
        zeta, nu = (1 / (1 + np.exp(-p[name])) for name in ("zeta", "nu"))
        # ζ(1 − z) + ν = (ζ + ν) − ζz
        self.register_buffer("top", _tensor([[zeta + nu]]))
        self.register_buffer("slope", _tensor([[zeta]]))
        self.register_buffer("stretch", _tensor([[2.0, 1.0, 1.0]]))
        self.plain = TIERS + len(CONTEXT_TOKENS)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The step."""
        both = torch.cat((x, h), dim=1)
        z, c = torch.sigmoid(self.gate(both)), torch.tanh(self.candidate(both))
        hidden = (self.top - self.slope * z) * c + z * h
        out = self.heads(hidden)
        squashed = torch.sigmoid(out[:, self.plain :]) * self.stretch
        return torch.cat((out[:, : self.plain], squashed, hidden), dim=1)


class AttentionStep(nn.Module):
    """All attention weights: query float32[1, d], nodes float32[n, d], edges float32[n, EDGE] → L times float32[H, n].

    The absorbed form of ``attention.attend``; the bias of an edge is one linear layer of what describes it.
    """

    def __init__(self, weights: AttentionWeights) -> None:
        super().__init__()
        w = {name: np.asarray(array, np.float64) for name, array in weights.arrays().items()}
        self.count, self.dim, self.size = weights.heads, weights.dim, weights.dim // weights.heads
        edges = np.concatenate((w["relation"], w["weight"][..., None], -np.logaddexp(w["decay"], 0)[..., None]), axis=2)
        split = (-1, self.count, self.size, self.dim)
        self.edges = nn.ModuleList(_linear(table) for table in edges)
        self.query = nn.ModuleList(_linear(one * self.size**-0.5) for one in w["query"])
        self.key = nn.ParameterList(_tensor(one) for one in w["key"].reshape(split))
        self.value = nn.ParameterList(_tensor(one) for one in w["value"].reshape(split))
        self.output = nn.ModuleList(_linear(one) for one in w["output"])
        self.norm = nn.ModuleList(nn.LayerNorm(self.dim, 1e-6) for _ in w["gain"])
        for norm, gain, shift in zip(self.norm, w["gain"], w["shift"], strict=True):
            norm.load_state_dict({"weight": _tensor(gain), "bias": _tensor(shift)})

    def forward(self, query: Tensor, nodes: Tensor, edges: Tensor) -> list[Tensor]:
        """α of each layer."""
        around = nodes.unsqueeze(0)
        across = around.transpose(1, 2)
        state, alphas = query, []
        for layer, (ask, key, edge) in enumerate(zip(self.query, self.key, self.edges, strict=True)):
            absorbed = torch.bmm(ask(state).view(self.count, 1, self.size), key).view(1, self.count, self.dim)
            scores = torch.bmm(absorbed, across) + edge(edges).transpose(0, 1).unsqueeze(0)
            alpha = torch.softmax(scores, dim=-1)
            alphas.append(alpha.squeeze(0))
            if layer < len(self.output):
                pooled = torch.bmm(alpha, around).view(self.count, self.dim, 1)
                read = torch.bmm(self.value[layer], pooled).view(1, self.dim)
                state = self.norm[layer](state + self.output[layer](read))
        return alphas


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))


def _linear(weight: Any, bias: Any = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.load_state_dict({"weight": _tensor(weight)} | ({} if bias is None else {"bias": _tensor(bias)}))
    return made
