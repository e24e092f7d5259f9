"""What every BERT sentence encoder does the same way, whatever runs the network: tokens, cutting, batches, order."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.engines.files.models import resolve
from operators.engines.native import Workers, spare_threads
from operators.engines.ports import Encoded
from operators.errors import Stop
from operators.records import F32
from operators.tiers import ModelFile


class BertEncoder(abc.ABC):
    """``Encoder`` but for the network: a subclass opens it and runs it on token ids."""

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
        self.pooling = pooling
        self.cache_dir = cache_dir
        self.threads = spare_threads(threads)
        self._files = (model, tokenizer)
        self._prefix = {True: query_prefix, False: document_prefix}
        self._limits = (max_batch, batch_tokens)
        self._workers = Workers(f"encoder {model.id}", 1)

    @abc.abstractmethod
    def open(self, model: ModelFile) -> int:
        """Load the network and return the length of its vectors. Raises ``Stop`` if its file is missing or wrong."""

    @abc.abstractmethod
    def vectors(self, rows: Sequence[Sequence[int]]) -> F32:
        """L2-normalised float32[n, dim] of token ids, special tokens included."""

    @abc.abstractmethod
    def free(self) -> None:
        """Let go of the network."""

    async def start(self) -> None:
        """Load the weights and the tokenizer. Raises ``Stop`` if they are missing or wrong."""
        await self._workers.call(self._load)

    def _load(self) -> None:
        import tokenizers

        model, words = self._files
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(resolve(words, self.cache_dir)))
        except Stop:
            raise
        except Exception as e:  # the library raises bare Exception
            raise Stop(f"encoder {self.model}", str(e), "give the model's tokenizer.json") from e
        # tokenizer.json of MiniLM carries truncation and padding to 128 tokens: we count whole texts and pad as needed.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._specials = self._tokenizer.num_special_tokens_to_add(False)
        self.dim = self.open(model)

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
            vectors[group] = self.vectors([rows[i] for i in group])
        return Encoded(vectors=vectors, tokens=tokens, truncated=tuple((tokens > room).tolist()))

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    async def close(self) -> None:
        """Free the model."""
        await self._workers.close()
        self.free()


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
