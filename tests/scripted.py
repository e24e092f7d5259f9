"""An engine for tests and benchmarks that says what it is told to, at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import numpy as np
import numpy.typing as npt

from operators.engines.ports import Generated, Generation
from operators.errors import Retry, Stop


class Scripted:
    """An engine that says given pieces, one character a token, and fails where it is told to."""

    context_tokens = 400

    def __init__(self, pieces: list[str], fails_at: int | None = None, broken: bool = False) -> None:
        self.model = "scripted"
        self.pieces, self.fails_at, self.broken = pieces, fails_at, broken
        self.requests: list[Generation] = []
        self.closed = self.abandoned = False

    async def start(self) -> None:
        if self.broken:
            raise Stop("model scripted", "checksum differs", "download it again")

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return [ord(char) for char in text]

    def bos(self) -> tuple[int, ...]:
        return ()

    def queue(self) -> int:
        return 3

    async def generate(self, request: Generation) -> AsyncGenerator[Generated, None]:
        self.requests.append(request)
        try:
            for i, piece in enumerate(self.pieces):
                if i == self.fails_at:
                    raise RuntimeError("llama_decode returned -3")
                yield Generated(text=piece)
            counts = {"prompt_tokens": len(request.prompt), "completion_tokens": len(self.pieces)}
            yield Generated(text="", finish_reason="stop", **counts)
        except GeneratorExit:
            self.abandoned = True
            raise

    async def score(self, prompt: Sequence[int], choices: Sequence[str]) -> npt.NDArray[np.float64]:
        """Every choice is as likely as any other."""
        return np.full(len(choices), -np.log(len(choices)))

    async def check(self) -> None:
        if self.closed:
            raise Retry("engine scripted", "the model is closed", "ask another replica")

    def memory_bytes(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True
