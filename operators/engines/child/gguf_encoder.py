"""Embedding models as GGUF, in llama.cpp in a process of its own: LFM2.5-Embedding and others with their own tokenizer.

What goes wrong inside llama.cpp ends the child (``child.base``); the next text starts another.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.engines.child.base import Child
from operators.engines.child.frames import Kind
from operators.engines.ports import Encoded
from operators.errors import Retry, Stop
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
        self._who = f"encoder {model.id}"
        self._prefix = {True: query_prefix, False: document_prefix}
        sizes = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "threads": threads}
        self._options: dict[str, Any] = {"pooling": pooling} | sizes
        self._file, self._cache_dir = model, cache_dir
        self._child: _Encoding | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Load the weights. Raises ``Stop`` if they are missing or wrong."""
        self._child = _Encoding("gguf_encoder", self._file, self._cache_dir, **self._options)
        await self._child.start()
        self.dim = self._child.dim

    async def encode(self, texts: Sequence[str], *, query: bool) -> Encoded:
        """float32[n, dim], in the order of ``texts``. ``tokens`` counts the prefix too, but no special tokens.

        Raises ``Retry`` if the child ended meanwhile.
        """
        if not texts:
            return Encoded(vectors=np.zeros((0, self.dim), np.float32), tokens=np.zeros(0, np.int32), truncated=())
        async with self._starting:
            if self._started().gone:
                await self._started().close()
                await self.start()
        return await self._started().encode([self._prefix[query] + text for text in texts])

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens. Blocks for some 0.1 ms."""
        return self._started().count(text)

    def _started(self) -> _Encoding:
        if self._child is None:
            raise Stop(self._who, "no process", "await start() first")
        return self._child

    @property
    def pid(self) -> int:
        """The child's."""
        return self._started().pid

    async def close(self) -> None:
        """End the child."""
        if self._child is not None:
            await self._child.close()
            self._child = None


class _Encoding(Child):
    noun = "encoder"
    dim = 0

    @property
    def gone(self) -> bool:
        return self._gone is not None

    def _loaded(self, said: dict[str, Any]) -> None:
        self.dim = int(said["dim"])

    async def encode(self, texts: Sequence[str]) -> Encoded:
        said = json.loads((await self._one(Kind.ENCODE, {"texts": list(texts)})).body)
        vectors = np.frombuffer(base64.b64decode(said["vectors"]), "<f4").astype(np.float32)
        tokens = np.array(said["tokens"], np.int32)
        if vectors.size != len(texts) * self.dim or tokens.shape != (len(texts),) or not np.isfinite(vectors).all():
            got = f"{vectors.size} numbers and {tokens.size} counts for {len(texts)} texts of {self.dim} dimensions"
            raise Retry(self._who, f"its process sent {got}, or no numbers", "check the model's file")
        cut = tuple(bool(one) for one in said["truncated"])
        return Encoded(vectors=vectors.reshape(len(texts), self.dim), tokens=tokens, truncated=cut)

    def count(self, text: str) -> int:
        return int(self._word({"text": text}))
