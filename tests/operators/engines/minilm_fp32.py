"""MiniLM-L6-v2 in fp32, written out in plain torch: what the served encoder is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

LAYERS, HEADS = 6, 12


class MiniLm:
    """A post-norm BERT (Devlin et al. 2018, arXiv:1810.04805) with mean pooling, one text at a time, unpadded."""

    def __init__(self, weights: Path, tokenizer: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        torch.set_num_threads(1)
        self.weights = load_file(weights)
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.no_padding()

    def encode(self, texts: Sequence[str], max_tokens: int) -> npt.NDArray[np.float32]:
        """float32[n, 384], L2-normalised."""
        import torch

        self.tokenizer.enable_truncation(max_tokens)
        with torch.inference_mode():
            ids = (torch.tensor([self.tokenizer.encode(text).ids]) for text in texts)
            means = [self.forward(row)[0].mean(dim=0) for row in ids]
            return np.stack([(mean / mean.norm()).numpy() for mean in means])

    def forward(self, ids):  # type: ignore[no-untyped-def]
        """Token vectors float32[1, length, 384] of ``ids`` int64[1, length]."""
        import torch.nn.functional as F

        w = self.weights

        def linear(name, x):  # type: ignore[no-untyped-def]
            return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

        def norm(name, x):  # type: ignore[no-untyped-def]
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

        n, length = ids.shape
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:length]
        x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
        for i in range(LAYERS):
            at = f"encoder.layer.{i}"
            q, k, v = (
                linear(f"{at}.attention.self.{part}", x).view(n, length, HEADS, -1).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)
            x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", mixed))
            wide = F.gelu(linear(f"{at}.intermediate.dense", x))
            x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", wide))
        return x
