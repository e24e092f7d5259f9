"""Embedding models as GGUF, in llama.cpp: LFM2.5-Embedding and other encoders that carry their own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.engines.llama_cpp import Vocabulary, load
from operators.engines.models import open_model
from operators.engines.native import Workers, spare_threads
from operators.engines.ports import Encoded
from operators.errors import Reject
from operators.tiers import ModelFile


class GgufEncoder:
    """``Encoder``: a GGUF embedding model such as LFM2.5-Embedding, with its own tokenizer and prefixes."""

    def __init__(
        self,
        model: ModelFile,
        *,
        cache_dir: Path,
        pooling: Literal["mean", "cls"] = "mean",
        query_prefix: str = "",
        document_prefix: str = "",
        max_tokens: int = 512,
        batch_tokens: int = 2048,
        threads: int = 0,
    ) -> None:
        self.model = model.id
        self.max_tokens = max_tokens
        self.dim = 0
        self._file = model
        self._cache_dir = cache_dir
        self._pooling = pooling
        self._prefix = {True: query_prefix, False: document_prefix}
        self._batch_tokens = max(max_tokens, batch_tokens)
        self._threads = spare_threads(threads)
        self._workers = Workers(f"encoder {model.id}", 1)
        self._llama: Any = None

    async def start(self) -> None:
        """Load the weights. Raises ``Stop`` if they are missing or wrong."""
        await self._workers.call(self._load)

    def _load(self) -> None:
        size: dict[str, Any] = dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), self._batch_tokens)
        threads: dict[str, Any] = {"n_threads": self._threads, "n_threads_batch": self._threads}
        with open_model(self._file, self._cache_dir) as opened:
            self._llama = load(opened, embedding=True, pooling=self._pooling, **size, **threads)
            opened.unchanged()
        self._llama.tokenizer_ = _Cut(self._llama.tokenizer_, self.max_tokens)
        self._vocabulary = Vocabulary(self._llama)
        self.dim = int(self._llama.n_embd())

    async def encode(self, texts: Sequence[str], *, query: bool) -> Encoded:
        """float32[n, dim], in the order of ``texts``. ``tokens`` counts the prefix too, but no special tokens."""
        if not texts:
            return Encoded(vectors=np.zeros((0, self.dim), np.float32), tokens=np.zeros(0, np.int32), truncated=())
        wanted = [self._prefix[query] + t for t in texts]
        if empty := [t for t in wanted if not self._llama.tokenizer_.whole(t.encode("utf-8", "replace"), True)]:
            raise Reject(f"encoder {self.model}", f"no tokens in {empty[0]!r}", "send texts that aren't empty")

        def work() -> Encoded:
            vectors = np.asarray(self._llama.embed(wanted, normalize=True), np.float32)
            tokens = np.array([self.count(t) for t in wanted], np.int32)
            specials = len(self._llama.tokenizer_.whole(b"", True))
            return Encoded(
                vectors=vectors, tokens=tokens, truncated=tuple((tokens + specials > self.max_tokens).tolist())
            )

        return await self._workers.call(work)

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens."""
        return len(self._vocabulary.tokenize(text))

    async def close(self) -> None:
        """Free the model."""
        await self._workers.close()
        if self._llama is not None:
            self._llama.close()
            self._llama = None


class _Cut:
    """A tokenizer for ``Llama.embed`` that cuts long texts but keeps the closing special token (BERT's [SEP])."""

    def __init__(self, inner: Any, most: int) -> None:
        self._inner = inner
        self._most = most

    def whole(self, text: bytes, add_bos: bool) -> list[int]:
        return list(self._inner.tokenize(text, add_bos=add_bos, special=False))

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        tokens = self.whole(text, add_bos)
        if not add_bos or len(tokens) <= self._most:
            return tokens
        closing = self.whole(b"", True)[-1:]
        tail = closing if closing == tokens[-1:] else []
        return tokens[: self._most - len(tail)] + tail
