"""embed: the query as a vector; the same object embeds documents, so that both live in one space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from operators.base import Knobs, Operator
from operators.engines.ports import Encoded, Encoder
from operators.errors import Stop
from operators.records import F32, Embedded, Query
from operators.tiers import ModelFile


class Embed(Operator[Query, Embedded]):
    """Turns queries, and documents, into vectors of one space."""

    name = "embed"

    class Config(Knobs):
        """Which encoder, and how texts are put through it."""

        model: ModelFile
        """The encoder's weights."""
        tokenizer: ModelFile | None = None
        """``tokenizer.json`` of the encoder; a GGUF carries its own."""
        backend: Literal["onnx", "gguf", "executorch"] = "onnx"
        """What runs the encoder: ``onnx`` (a BERT such as MiniLM), ``gguf`` (llama.cpp, e.g. LFM2.5-Embedding) or
        ``executorch`` (a program that ``ruvllm export executorch`` made)."""
        pooling: Literal["mean", "cls"] = "mean"
        """How token vectors become one: the mean over the text's tokens, or the first token's vector."""
        query_prefix: str = ""
        """Put before every query, for encoders that tell queries from documents."""
        document_prefix: str = ""
        """Put before every document."""
        max_tokens: int = Field(256, ge=8, le=8192)
        """Longest text in tokens, special tokens and prefix included; more is cut and reported."""
        output_dim: int = Field(0, ge=0, le=4096)
        """Length of the vectors handed on; 0 takes the encoder's own."""
        projection_seed: int = 0
        """Seed of the projection that is used when ``output_dim`` is not the encoder's."""
        max_batch: int = Field(32, ge=1, le=1024)
        """Most queries in one call, and most texts in one forward pass of the ``onnx`` backend."""
        batch_tokens: int = Field(256, ge=64)
        """Most tokens in one forward pass, with padding (a longer text runs alone); small is faster on few cores."""
        threads: int = Field(0, ge=0)
        """Threads of the encoder; 0 takes what the machine can spare (cores − 1, at least 1)."""

    def __init__(self, config: Config, cache_dir: Path) -> None:
        super().__init__()
        self.config = config
        self.max_batch = config.max_batch
        self.cache_dir = cache_dir
        self._projection: F32 | None = None
        self._encoder: Encoder | None = None

    async def start(self) -> None:
        """Load the encoder. Raises ``Stop`` if its files are missing or wrong."""
        encoder = self._make()
        await encoder.start()
        if self.config.output_dim not in (0, encoder.dim):
            self._projection = projection(encoder.dim, self.config.output_dim, self.config.projection_seed)
        self._encoder = encoder

    def _make(self) -> Encoder:
        c = self.config
        common: dict[str, Any] = {
            "cache_dir": self.cache_dir,
            "pooling": c.pooling,
            "query_prefix": c.query_prefix,
            "document_prefix": c.document_prefix,
            "max_tokens": c.max_tokens,
            "batch_tokens": c.batch_tokens,
            "threads": c.threads,
        }
        if c.backend == "gguf":
            from operators.engines.child.gguf_encoder import GgufEncoder

            return GgufEncoder(c.model, **common)
        if c.tokenizer is None:
            raise Stop(
                "embed", f"backend {c.backend} with no tokenizer", "set embed.tokenizer to the model's tokenizer.json"
            )
        if c.backend == "executorch":
            from operators.engines.executorch.encoder import ExecutorchEncoder

            return ExecutorchEncoder(c.model, c.tokenizer, max_batch=c.max_batch, **common)
        from operators.engines.onnx.encoder import OnnxEncoder

        return OnnxEncoder(c.model, c.tokenizer, max_batch=c.max_batch, **common)

    @property
    def encoder(self) -> Encoder:
        """The loaded encoder; raises ``Stop`` before ``start``."""
        if self._encoder is None:
            raise Stop("embed", "used before start() or after close()", "await start() first")
        return self._encoder

    @property
    def dim(self) -> int:
        """Length of the vectors handed on."""
        return self.config.output_dim or self.encoder.dim

    @property
    def id(self) -> str:
        """What makes vectors comparable: the model, and the projection if there is one."""
        adapter = "" if self._projection is None else f"@{self.dim}/{self.config.projection_seed}"
        return self.encoder.model + adapter

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` as the encoder counts them, without special tokens."""
        return self.encoder.count(text)

    async def texts(self, texts: Sequence[str], *, query: bool) -> Encoded:
        """Vectors float32[n, dim] of any texts, through the same adapter as queries; ``query`` picks the prefix."""
        # JSON may carry lone surrogates, which no tokenizer takes.
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        made = await self.encoder.encode(clean, query=query)
        if self._projection is None:
            return made
        return Encoded(vectors=adapt(made.vectors, self._projection), tokens=made.tokens, truncated=made.truncated)

    async def run(self, batch: Sequence[Query]) -> list[Embedded]:
        """One vector a query, from its last user message."""
        made = await self.texts([query.text for query in batch], query=True)
        return [
            Embedded(vector=vector, tokens=int(tokens), truncated=truncated, encoder=self.id)
            for vector, tokens, truncated in zip(made.vectors, made.tokens, made.truncated, strict=True)
        ]

    async def check(self) -> None:
        """Encode one word."""
        await self.texts(["check"], query=True)

    async def close(self) -> None:
        """Free the encoder."""
        if self._encoder is not None:
            await self._encoder.close()
            self._encoder = None


def projection(rows: int, columns: int, seed: int) -> F32:
    """A fixed random matrix float32[rows, columns], orthonormal along its shorter side, the same for the same seed.

    Distances survive it up to a small error (Johnson and Lindenstrauss 1984); widening keeps them exactly.
    """
    square = np.random.default_rng(seed).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(square)
    q = q * np.sign(np.diag(r))  # QR is unique only up to signs, and libraries differ in them
    return np.asarray(q if rows >= columns else q.T, np.float32)


def adapt(vectors: F32, matrix: F32) -> F32:
    """``vectors`` float32[n, a] through ``matrix`` float32[a, b], then LayerNorm and L2: float32[n, b].

    LayerNorm without learned scale and shift: Ba et al. 2016, arXiv:1607.06450.
    """
    y = vectors @ matrix
    y = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 1e-12)
    return np.asarray(y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12), np.float32)
