"""MiniLM-L6-v2 in ExecuTorch (XNNPACK) in 8 bits, which the product does not export: a peer of the served encoder."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from operators.engines.executorch.runtime import Program, lower
from operators.networks.bert_torch import Bert

HEADS, MAX_TOKENS = 12, 256


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
        self.path.write_bytes(export(weights, int8=int8))
        self.export_s = time.perf_counter() - began
        began = time.perf_counter()
        self._program = Program(self.path, "bench", threads=1)
        self.load_s = time.perf_counter() - began

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32[n, 384], L2-normalised."""
        self.tokenizer.enable_truncation(MAX_TOKENS)
        ids = (np.array([self.tokenizer.encode(text).ids], np.int64) for text in texts)
        means = np.concatenate([self._program.forward(row)[0] for row in ids])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def export(weights: Path, *, int8: bool) -> bytes:
    """The encoder as a program from ids int64[1, 2 to 256] to the mean float32[1, 384]."""
    import torch
    from safetensors.torch import load_file

    module = Bert(load_file(weights), heads=HEADS, max_tokens=MAX_TOKENS, int8_words=int8).eval()
    example = (torch.randint(1000, 2000, (1, 24)),)
    lengths = ({1: torch.export.Dim("length", min=2, max=MAX_TOKENS)},)
    if not int8:
        return lower(module, example, lengths)
    quantizer = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=lengths, strict=True)
        how = quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
        prepared = pt2e.prepare_pt2e(program.module(), quantizer.XNNPACKQuantizer().set_global(how))
        prepared(*example)
        return lower(pt2e.convert_pt2e(prepared), example, lengths)
