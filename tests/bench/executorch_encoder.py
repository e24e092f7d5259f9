"""MiniLM-L6-v2 in ExecuTorch (XNNPACK): a peer of the served encoder, exported from the fp32 weights."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LAYERS, HEADS, DIM, MAX_TOKENS = 6, 12, 384, 256
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


class ExecutorchMiniLm:
    """One text at a time, unpadded: batches with a mask were no faster on one thread."""

    def __init__(self, weights: Path, tokenizer: Path, folder: Path, *, int8: bool) -> None:
        """Export into ``folder`` (tens of seconds) and load. ``int8``: the linear layers' weights a channel and their
        inputs as they come (dynamic), and the word vectors a row, in 8 bits; else fp32."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.no_padding()
        self.path = folder / f"minilm-{'int8' if int8 else 'fp32'}.pte"
        began = time.perf_counter()
        export(weights, self.path, int8=int8)
        self.export_s = time.perf_counter() - began
        began = time.perf_counter()
        self._load()
        self.load_s = time.perf_counter() - began

    def _load(self) -> None:
        native = importlib.import_module("executorch.extension.pybindings.portable_lib")
        if native._threadpool_get_thread_count() != 1:
            # The only door to the thread count, and unsafe while a program runs.
            native._unsafe_reset_threadpool(1)
        # A method does not keep its program alive.
        self._program = importlib.import_module("executorch.runtime").Runtime.get().load_program(self.path)
        self._method = self._program.load_method("forward")

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32[n, 384], L2-normalised."""
        import torch

        self.tokenizer.enable_truncation(MAX_TOKENS)
        ids = (torch.tensor([self.tokenizer.encode(text).ids]) for text in texts)
        means = np.concatenate([self._method.execute([row])[0].numpy() for row in ids])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def export(weights: Path, path: Path, *, int8: bool) -> None:
    """Write the encoder to ``path`` as a program from ids int64[1, 2 to 256] to the mean float32[1, 384]."""
    import torch

    partition = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = importlib.import_module("executorch.exir")
    example = (torch.randint(1000, 2000, (1, 24)),)
    lengths = ({1: torch.export.Dim("length", min=2, max=MAX_TOKENS)},)
    with torch.no_grad():
        program = torch.export.export(encoder(weights, int8=int8), example, dynamic_shapes=lengths, strict=True)
        if int8:
            quantizer = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
            pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
            how = quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
            prepared = pt2e.prepare_pt2e(program.module(), quantizer.XNNPACKQuantizer().set_global(how))
            prepared(*example)
            program = torch.export.export(pt2e.convert_pt2e(prepared), example, dynamic_shapes=lengths, strict=True)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[partition.XnnpackPartitioner()])
        with path.open("wb") as file:
            lowered.to_executorch().write_to_file(file)


def encoder(weights: Path, *, int8: bool) -> Any:
    """The model as a torch module from ids int64[1, length] to float32[1, 384], written for XNNPACK.

    XNNPACK takes only reshapes with one dimension to infer. Attention is spelt out: torch's own, decomposed for export,
    guards against rows masked whole, and with it the encoder took 1.4 times as long at 110 tokens.
    """
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    w = load_file(weights)
    word = w["embeddings.word_embeddings.weight"]
    scale = word.abs().amax(dim=1, keepdim=True) / 127 if int8 else torch.ones(1)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, HEADS, DIM // HEADS).transpose(0, 1)

    class Layer(torch.nn.Module):
        def __init__(self, at: str) -> None:
            super().__init__()
            self.part = torch.nn.ModuleDict()
            for ours, theirs in PARTS.items():
                weight, bias = w[f"{at}.{theirs}.weight"], w[f"{at}.{theirs}.bias"]
                norm = ours.endswith("norm")
                part = torch.nn.LayerNorm(DIM, 1e-12) if norm else torch.nn.Linear(*reversed(weight.shape))
                part.load_state_dict({"weight": weight, "bias": bias})
                self.part[ours] = part

        def forward(self, x: torch.Tensor) -> Any:
            part = self.part
            q, k, v = heads(part["q"](x)), heads(part["k"](x)), heads(part["v"](x))
            seen = torch.softmax(torch.bmm(q * (DIM // HEADS) ** -0.5, k.transpose(1, 2)), dim=-1)
            x = part["mix_norm"](x + part["mix"](torch.bmm(seen, v).transpose(0, 1).reshape(-1, DIM)))
            return part["down_norm"](x + part["down"](F.gelu(part["up"](x))))

    class Encoder(torch.nn.Module):
        word: torch.Tensor
        scale: torch.Tensor
        position: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("word", (word / scale).round().to(torch.int8) if int8 else word)
            self.register_buffer("scale", scale)
            # Token type 0 is added to every position, so it is added once here.
            types = w["embeddings.token_type_embeddings.weight"]
            self.register_buffer("position", w["embeddings.position_embeddings.weight"][:MAX_TOKENS] + types[0])
            self.norm = torch.nn.LayerNorm(DIM, 1e-12)
            self.norm.load_state_dict({p: w[f"embeddings.LayerNorm.{p}"] for p in ("weight", "bias")})
            self.layers = torch.nn.ModuleList(Layer(f"encoder.layer.{i}") for i in range(LAYERS))

        def forward(self, ids: torch.Tensor) -> Any:
            row = ids[0]
            x = F.embedding(row, self.word)
            if int8:
                x = x.to(torch.float32) * F.embedding(row, self.scale)
            x = self.norm(x + self.position[: ids.shape[1]])
            for layer in self.layers:
                x = layer(x)
            return x.mean(dim=0, keepdim=True)

    return Encoder().eval()
