"""BERT sentence encoders that ``ruvllm export executorch`` has made, in ExecuTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from operators.engines.executorch.files import load
from operators.engines.executorch.runtime import Program
from operators.engines.onnx.bert_encoder import BertEncoder
from operators.errors import Stop
from operators.records import F32
from operators.tiers import ModelFile


class ExecutorchEncoder(BertEncoder):
    """``Encoder``: one text at a time, unpadded, for batches with a mask were no faster on one thread."""

    _program: Program | None = None

    def open(self, model: ModelFile) -> int:
        """Load the program and return the length of its vectors. Raises ``Stop`` if it is missing or does not fit."""
        program, manifest = load(model, "encoder", self.cache_dir, threads=self.threads)
        most, pooling = int(manifest.facts["max_tokens"]), manifest.facts["pooling"]
        if self.max_tokens > most or self.pooling != pooling:
            got = f"a program for {most} tokens and pooling {pooling}, wanted {self.max_tokens} and {self.pooling}"
            raise Stop(f"encoder {self.model}", got, "export it with this profile, or set the profile as it was then")
        self._program = program
        return int(manifest.facts["dim"])

    def vectors(self, rows: Sequence[Sequence[int]]) -> F32:
        """L2-normalised float32[n, dim] of token ids."""
        assert self._program is not None  # noqa: S101 - start() came first
        made = np.concatenate([self._program.forward(np.array([row], np.int64))[0] for row in rows])
        return np.asarray(made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12), np.float32)

    def free(self) -> None:
        """Let go of the program."""
        self._program = None
