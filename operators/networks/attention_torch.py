"""The attention network for training: the same parameters as ``attention.AttentionWeights`` in a torch module.

The only file of this network that imports torch; serving never imports it. It takes batches of neighbourhoods, padded
to the largest, and takes part in autograd; for one neighbourhood it equals ``attention.attend`` within 1e-5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from operators.networks.attention import AttentionWeights


class Attention(nn.Module):
    """Trainable network, sized as the ``weights`` it starts from; ``state_dict`` has the checkpoint's names."""

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    output: nn.Parameter
    relation: nn.Parameter
    weight: nn.Parameter
    decay: nn.Parameter
    gain: nn.Parameter
    shift: nn.Parameter

    def __init__(self, weights: AttentionWeights) -> None:
        super().__init__()
        self.layers, self.heads, self.dim = weights.layers, weights.heads, weights.dim
        for name, array in weights.arrays().items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(array.copy())))

    def forward(
        self, query: Tensor, nodes: Tensor, relation: Tensor, weight: Tensor, hop: Tensor, present: Tensor
    ) -> Tensor:
        """All attention weights α: float[b, L, H, n]; each row sums to 1, and is 0 where no node is.

        ``query`` float[b, d]; ``nodes`` float[b, n, d]; ``relation`` int64[b, n]; ``weight`` float[b, n]; ``hop``
        int64[b, n]; ``present`` bool[b, n], false where a row is only padding; every neighbourhood has a node.
        """
        b, size = query.shape[0], self.dim // self.heads
        absent = ~present[:, None]
        slope = functional.softplus(self.decay)
        state, alphas = query, []
        for layer in range(self.layers):
            asked = (state @ self.query[layer].T).view(b, self.heads, size) * size**-0.5
            absorbed = torch.einsum("bhe,hed->bhd", asked, self.key[layer].view(self.heads, size, self.dim))
            bias = self.relation[layer][:, relation].transpose(0, 1)  # [b, H, n]
            bias = bias + self.weight[layer][:, None] * weight[:, None] - slope[layer][:, None] * hop[:, None]
            scores = absorbed @ nodes.transpose(1, 2) + bias
            alpha = scores.masked_fill(absent, -torch.inf).softmax(-1)
            alphas.append(alpha)
            if layer + 1 < self.layers:
                value = self.value[layer].view(self.heads, size, self.dim)
                read = torch.einsum("bhd,hed->bhe", alpha @ nodes, value).reshape(b, self.dim)
                state = state + read @ self.output[layer].T
                state = functional.layer_norm(state, (self.dim,), self.gain[layer], self.shift[layer], 1e-6)
        return torch.stack(alphas, 1)

    def weights(self) -> AttentionWeights:
        """The parameters now, as immutable arrays for serving, not yet called trained."""
        arrays: dict[str, Any] = {name: value.detach().numpy().copy() for name, value in self.named_parameters()}
        return AttentionWeights(**arrays)
