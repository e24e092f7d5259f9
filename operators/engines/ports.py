"""The two ports of the model layer. An implementation is complete when it passes ``tests/operators/engines/kit.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from operators.records import F32, I32, FinishReason, TokenLogprob, record


@record
class Generation:
    """One request to an engine. ``prompt`` is token ids, so that the caller knows exactly what fits.

    The caller guarantees ``len(prompt) + max_tokens <= engine.context_tokens``; an engine refuses more with ``Reject``.
    ``temperature`` 0 is greedy and deterministic. ``stop`` strings end the answer and are not part of it.

    Only requests of one ``scope`` (a tenant, or a part of the service that asks for itself) ever reuse each other's
    state; ``session`` says which of them belong together, so that a conversation finds its own state again.
    ``logprobs`` asks for the log-probability of every token of the answer.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()
    seed: int | None = None
    scope: str = ""
    session: str = ""
    logprobs: bool = False


@record
class Generated:
    """A piece of text as it appears; on the last one ``finish_reason`` is set and the counts are final.

    ``cached_tokens`` of ``prompt_tokens`` came from an earlier request's state. ``logprobs`` has the tokens sampled
    since the last piece, if they were asked for; ``unsupported`` names sampling options this engine did not follow.
    """

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    unsupported: tuple[str, ...] = ()


class Engine(Protocol):
    """A loaded language model. Safe to call from many tasks at once: it queues or batches by itself.

    Abandoning the iterator of ``generate`` (``aclose``, cancellation) stops the work within a few tokens.
    """

    @property
    def model(self) -> str:
        """The model's id in the profile."""

    @property
    def context_tokens(self) -> int:
        """Size of the context window of one request, prompt and completion together."""

    async def start(self) -> None:
        """Load the weights. Raises ``Stop`` if they are missing or not what the manifest says."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; ``special`` reads control tokens such as ``<|im_end|>`` (never for users' text)."""

    def generate(self, request: Generation) -> AsyncIterator[Generated]:
        """Stream the answer; the last element has ``finish_reason``."""

    async def score(self, prompt: Sequence[int], choices: Sequence[str]) -> npt.NDArray[np.float64]:
        """log p(first token of choice | prompt) for each choice: float64[len(choices)], natural logarithm."""

    def bos(self) -> tuple[int, ...]:
        """The tokens a prompt must begin with: the model's BOS if it wants one, else nothing."""

    def queue(self) -> int:
        """Requests waiting or running now."""

    async def check(self) -> None:
        """Raise ``Retry`` if the engine takes no work any more; no request and no cached prompt is disturbed."""

    def memory_bytes(self) -> int:
        """Bytes the loaded model takes: weights, KV and buffers, measured where that is possible; 0 when not loaded."""

    async def close(self) -> None:
        """Free the model; safe to call twice."""


@record
class Encoded:
    """Vectors of a batch of n texts: ``vectors`` float32[n, dim] (mean- or CLS-pooled, L2-normalised), ``tokens``
    int32[n] counted before truncation, ``truncated`` says which texts were cut at ``Encoder.max_tokens``."""

    vectors: F32
    tokens: I32
    truncated: tuple[bool, ...]


class Encoder(Protocol):
    """A loaded text encoder."""

    @property
    def model(self) -> str:
        """The model's id, part of what makes vectors comparable."""

    @property
    def dim(self) -> int:
        """Length of the vectors it makes."""

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, special tokens included; more is truncated and reported."""

    async def start(self) -> None:
        """Load the weights. Raises ``Stop`` if they are missing or not what the manifest says."""

    async def encode(self, texts: Sequence[str], *, query: bool) -> Encoded:
        """Vectors for ``texts`` in their order; ``query`` picks the prefix, for models that have two."""

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens; never truncates."""

    async def close(self) -> None:
        """Free the model; safe to call twice."""
