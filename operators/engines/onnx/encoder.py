"""BERT sentence encoders as ONNX (MiniLM-L6-v2 and its kin) in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from operators.engines.files.models import open_model
from operators.engines.onnx.bert_encoder import BertEncoder
from operators.errors import Stop
from operators.records import F32
from operators.tiers import ModelFile


class OnnxEncoder(BertEncoder):
    """``Encoder``: token vectors from the ONNX file, pooled and L2-normalised here.

    A sentence's vector is the mean of its tokens' (Reimers and Gurevych 2019, arXiv:1908.10084).
    """

    _session: Any = None

    def open(self, model: ModelFile) -> int:
        """Load the network and return the length of its vectors. Raises ``Stop`` if its file is missing or wrong."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            with open_model(model, self.cache_dir) as opened:
                where = str(opened.path)
                session = onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])
                opened.unchanged()
        except Stop:
            raise
        except Exception as e:  # the library raises private classes
            raise Stop(f"encoder {self.model}", str(e), "give a BERT as ONNX, and its tokenizer.json") from e
        self._wants = {field.name for field in session.get_inputs()}
        shape = session.get_outputs()[0].shape
        if not {"input_ids", "attention_mask"} <= self._wants or len(shape) != 3 or not isinstance(shape[2], int):
            got = f"inputs {sorted(self._wants)} and output {shape}"
            raise Stop(
                f"encoder {self.model}", got, "give an ONNX with input_ids, attention_mask → [batch, length, dim]"
            )
        self._session = session
        return shape[2]

    def vectors(self, rows: Sequence[Sequence[int]]) -> F32:
        """L2-normalised float32[n, dim] of token ids, padded to the longest row."""
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self._session.run(None, {name: feed[name] for name in self._wants})[0]
        return pool(hidden, mask, self.pooling)

    def free(self) -> None:
        """Let go of the network."""
        self._session = None


def pool(hidden: F32, mask: np.ndarray[Any, Any], pooling: Literal["mean", "cls"]) -> F32:
    """float32[n, dim], L2-normalised, from ``hidden`` float32[n, length, dim] where ``mask`` int[n, length] is 1."""
    # The mean's divisor falls out in the normalisation.
    vectors = hidden[:, 0] if pooling == "cls" else np.einsum("nld,nl->nd", hidden, mask.astype(np.float32))
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
