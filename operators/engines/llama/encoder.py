"""Embedding models as GGUF, in llama.cpp: LFM2.5-Embedding and other encoders that carry their own tokenizer.

This is what ``GgufEncoder`` runs in its child.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from operators.engines.files.models import OpenModel
from operators.engines.llama.llama_cpp import Vocabulary, load
from operators.engines.native import Workers, spare_threads
from operators.engines.ports import Encoded
from operators.errors import Reject


class LlamaEncoder:
    """A GGUF encoder in this process; prefixes are the caller's."""

    def __init__(
        self,
        model: OpenModel,
        *,
        pooling: Literal["mean", "cls"],
        max_tokens: int,
        batch_tokens: int,
        threads: int,
    ) -> None:
        self.model = model.id
        self.max_tokens = max_tokens
        self.dim = 0
        self._file = model
        self._pooling = pooling
        self._batch_tokens = max(max_tokens, batch_tokens)
        self._threads = spare_threads(threads)
        self._workers = Workers(f"encoder {model.id}", 1)
        self._llama: Any = None

    async def start(self) -> None:
        """Load the weights. Raises ``Stop`` if they are wrong."""
        await self._workers.call(self._load)

    def _load(self) -> None:
        size: dict[str, Any] = dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), self._batch_tokens)
        threads: dict[str, Any] = {"n_threads": self._threads, "n_threads_batch": self._threads}
        self._llama = load(self._file, embedding=True, pooling=self._pooling, **size, **threads)
        self._llama.tokenizer_ = _Cut(self._llama.tokenizer_, self.max_tokens)
        self._vocabulary = Vocabulary(self._llama)
        self.dim = int(self._llama.n_embd())

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """float32[n, dim], in the order of ``texts``. ``tokens`` counts no special tokens."""
        whole = self._llama.tokenizer_.whole
        if empty := [text for text in texts if not whole(text.encode("utf-8", "replace"), True)]:
            raise Reject(f"encoder {self.model}", f"no tokens in {empty[0]!r}", "send texts that aren't empty")

        def work() -> Encoded:
            vectors = np.asarray(self._llama.embed(list(texts), normalize=True), np.float32)
            tokens = np.array([self.count(text) for text in texts], np.int32)
            specials = len(whole(b"", True))
            cut = tuple((tokens + specials > self.max_tokens).tolist())
            return Encoded(vectors=vectors, tokens=tokens, truncated=cut)

        return await self._workers.call(work)

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens."""
        return len(self._vocabulary.tokenize(text))

    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        return self._file.bytes

    async def check(self) -> None:
        """Not closed."""
        self._workers.check()

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
