"""BERT sentence encoders as ONNX (MiniLM-L6-v2 and its kin) in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.engines.models import resolve
from operators.engines.native import Workers, spare_threads
from operators.engines.ports import Encoded
from operators.errors import Stop
from operators.records import F32
from operators.tiers import ModelFile


class OnnxEncoder:
    """``Encoder``: token vectors from the ONNX file, pooled and L2-normalised here.

    A sentence's vector is the mean of its tokens' (Reimers and Gurevych 2019, arXiv:1908.10084).
    """

    def __init__(
        self,
        model: ModelFile,
        tokenizer: ModelFile,
        *,
        cache_dir: Path,
        pooling: Literal["mean", "cls"] = "mean",
        query_prefix: str = "",
        document_prefix: str = "",
        max_tokens: int = 256,
        max_batch: int = 32,
        batch_tokens: int = 256,
        threads: int = 0,
    ) -> None:
        self.model = model.id
        self.max_tokens = max_tokens
        self.dim = 0
        self._files = (model, tokenizer)
        self._cache_dir = cache_dir
        self._pooling = pooling
        self._prefix = {True: query_prefix, False: document_prefix}
        self._limits = (max_batch, batch_tokens)
        self._threads = spare_threads(threads)
        self._workers = Workers(f"encoder {model.id}", 1)
        self._session: Any = None

    async def start(self) -> None:
        """Load the weights and the tokenizer. Raises ``Stop`` if they are missing or wrong."""
        await self._workers.call(self._load)

    def _load(self) -> None:
        import onnxruntime
        import tokenizers

        model, words = (resolve(file, self._cache_dir) for file in self._files)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            self._tokenizer = tokenizers.Tokenizer.from_file(str(words))
        except Exception as e:  # both libraries raise bare or private classes
            raise Stop(f"encoder {self.model}", str(e), "give a BERT as ONNX, and its tokenizer.json") from e
        # tokenizer.json of MiniLM carries truncation and padding to 128 tokens: we count whole texts and pad as needed.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._specials = self._tokenizer.num_special_tokens_to_add(False)
        self._wants = {field.name for field in session.get_inputs()}
        shape = session.get_outputs()[0].shape
        if not {"input_ids", "attention_mask"} <= self._wants or len(shape) != 3 or not isinstance(shape[2], int):
            got = f"inputs {sorted(self._wants)} and output {shape}"
            raise Stop(
                f"encoder {self.model}", got, "give an ONNX with input_ids, attention_mask → [batch, length, dim]"
            )
        self.dim = shape[2]
        self._session = session

    async def encode(self, texts: Sequence[str], *, query: bool) -> Encoded:
        """float32[n, dim], in the order of ``texts``. ``tokens`` counts the prefix too, but no special tokens."""
        wanted = [self._prefix[query] + text for text in texts]
        return await self._workers.call(lambda: self._encode(wanted))

    def _encode(self, texts: list[str]) -> Encoded:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        tokens = np.array([len(e.ids) for e in encodings], np.int32)
        room = self.max_tokens - self._specials
        for encoding in encodings:
            encoding.truncate(room)
        rows = [self._tokenizer.post_process(encoding).ids for encoding in encodings]
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for group in batches([len(row) for row in rows], *self._limits):
            vectors[group] = self._forward([rows[i] for i in group])
        return Encoded(vectors=vectors, tokens=tokens, truncated=tuple((tokens > room).tolist()))

    def _forward(self, rows: list[list[int]]) -> F32:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self._session.run(None, {name: feed[name] for name in self._wants})[0]
        return pool(hidden, mask, self._pooling)

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    async def close(self) -> None:
        """Free the model."""
        await self._workers.close()
        self._session = None


def batches(lengths: Sequence[int], most: int, tokens: int) -> list[list[int]]:
    """Groups of indices of about equal length, so that little is padding: at most ``most`` texts and, unless a single
    text is longer, ``tokens`` tokens with the padding."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Longest first: the first of a group says how wide it is.
        if groups and len(groups[-1]) < most and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def pool(hidden: F32, mask: np.ndarray[Any, Any], pooling: Literal["mean", "cls"]) -> F32:
    """float32[n, dim], L2-normalised, from ``hidden`` float32[n, length, dim] where ``mask`` int[n, length] is 1."""
    # The mean's divisor falls out in the normalisation.
    vectors = hidden[:, 0] if pooling == "cls" else np.einsum("nld,nl->nd", hidden, mask.astype(np.float32))
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
