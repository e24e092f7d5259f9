"""A BERT sentence encoder in torch, written for export: what XNNPACK takes, from the weights of its safetensors.

A post-norm BERT (Devlin et al. 2018, arXiv:1810.04805), one text at a time, unpadded. XNNPACK takes only reshapes with
one dimension to infer. Attention is spelt out: torch's own, decomposed for export, guards against rows masked whole,
and with it the encoder took 1.4 times as long at 110 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from operators.errors import Stop

PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "mix": "attention.output.dense",
    "mix_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "down_norm": "output.LayerNorm",
}
"""Our name of a layer's part and BERT's."""
EPSILON = 1e-12


class Bert(nn.Module):
    """From ids int64[1, length], 2 ≤ length ≤ ``max_tokens``, special tokens included, to float32[1, dim].

    ``weights`` are the checkpoint's, by BERT's names; ``heads`` no weight tells. ``pooling``: the mean over the tokens
    (Reimers and Gurevych 2019, arXiv:1908.10084), or the first one's vector; not normalised. ``int8_words`` keeps the
    word vectors in 8 bits, a scale each. Raises ``Stop`` if the weights are no BERT's.
    """

    word: Tensor
    scale: Tensor
    position: Tensor

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        heads: int,
        max_tokens: int,
        pooling: Literal["mean", "cls"] = "mean",
        int8_words: bool = False,
    ) -> None:
        super().__init__()
        remedy = "give the safetensors of a BERT such as MiniLM-L6-v2, and its number of heads"
        try:
            word, types = (weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type"))
            position = weights["embeddings.position_embeddings.weight"]
            self.dim = int(word.shape[1])
            count = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
            if self.dim % heads or max_tokens > len(position):
                got = f"{heads} heads and {max_tokens} tokens for size {self.dim} and {len(position)} positions"
                raise Stop("encoder", got, remedy)
            self.norm = _norm(weights, "embeddings.LayerNorm")
            self.layers = nn.ModuleList(_Layer(weights, f"encoder.layer.{i}", self.dim, heads) for i in range(count))
        except (KeyError, ValueError) as e:
            raise Stop("encoder", f"weights of no BERT: {e}", remedy) from e
        scale = word.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("word", (word / scale).round().to(torch.int8) if int8_words else word)
        self.register_buffer("scale", scale)
        # Token type 0 is added to every position, so it is added once here.
        self.register_buffer("position", position[:max_tokens] + types[0])
        self.int8_words, self.pooling = int8_words, pooling

    def forward(self, ids: Tensor) -> Tensor:
        """The text's vector: float32[1, dim]."""
        row = ids[0]
        x = functional.embedding(row, self.word)
        if self.int8_words:
            x = x.to(torch.float32) * functional.embedding(row, self.scale)
        x = self.norm(x + self.position[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x)
        made: Tensor = x[:1] if self.pooling == "cls" else x.mean(dim=0, keepdim=True)
        return made


class _Layer(nn.Module):
    def __init__(self, weights: Mapping[str, Tensor], at: str, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.part = dim, heads, nn.ModuleDict()
        for ours, theirs in PARTS.items():
            make = _norm if ours.endswith("norm") else _linear
            self.part[ours] = make(weights, f"{at}.{theirs}")

    def _split(self, x: Tensor) -> Tensor:
        return x.view(-1, self.heads, self.dim // self.heads).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        part = self.part
        q, k, v = (self._split(part[name](x)) for name in ("q", "k", "v"))
        seen = torch.softmax(torch.bmm(q * (self.dim // self.heads) ** -0.5, k.transpose(1, 2)), dim=-1)
        x = part["mix_norm"](x + part["mix"](torch.bmm(seen, v).transpose(0, 1).reshape(-1, self.dim)))
        out: Tensor = part["down_norm"](x + part["down"](functional.gelu(part["up"](x))))
        return out


def _linear(weights: Mapping[str, Tensor], name: str) -> nn.Module:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def _norm(weights: Mapping[str, Tensor], name: str) -> nn.Module:
    made = nn.LayerNorm(len(weights[f"{name}.weight"]), EPSILON)
    made.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    return made
