"""An engine in a process of its own (``child.base``)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from operators.engines import text
from operators.engines.child.base import Child
from operators.engines.child.frames import Kind
from operators.engines.ports import Generated, Generation
from operators.records import decode
from operators.tiers import ModelFile


class EngineProcess(Child):
    """``Engine`` ``kind`` in a child process. One that ``saves`` may write its states' files."""

    def __init__(
        self,
        kind: Literal["llama_server", "llama_cpp", "executorch"],
        model: ModelFile,
        cache_dir: Path,
        *,
        context_tokens: int,
        parallel: int = 1,
        threads: int = 0,
        saves: bool = False,
        tokenizer: ModelFile | None = None,
    ) -> None:
        sizes = {"context_tokens": context_tokens, "parallel": parallel, "threads": threads}
        super().__init__(kind, model, cache_dir, saves=saves, tokenizer=tokenizer, **sizes)
        self.context_tokens = context_tokens

    def _loaded(self, said: dict[str, Any]) -> None:
        self._bos = tuple(int(token) for token in said["bos"])

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; ``special`` reads control tokens. Blocks for some 0.1 ms: the vocabulary is there."""
        return [int(token) for token in self._word({"text": text, "special": special})]

    def sampled(self) -> int:
        """Tokens sampled since the start; the process counts them."""
        return int(self._word({"sampled": True}))

    def bos(self) -> tuple[int, ...]:
        """BOS if the model wants one."""
        return self._bos

    def generate(self, request: Generation) -> AsyncGenerator[Generated, None]:
        """Stream the answer. Raises ``Reject`` if it can't fit."""
        text.check(request, self.model, self.context_tokens)
        return self._generate(request)

    async def _generate(self, request: Generation, **rest: int) -> AsyncGenerator[Generated, None]:
        asked = {name: getattr(request, name) for name in Generation.__dataclass_fields__} | rest
        async with contextlib.aclosing(self._call(Kind.GENERATE, asked)) as answers:
            async for answer in answers:
                if answer.kind is Kind.PIECE:
                    yield decode(Generated, answer.body)

    async def score(self, prompt: Sequence[int], choices: Sequence[str]) -> npt.NDArray[np.float64]:
        """log p(first token of choice | prompt): float64[len(choices)], softmax over the whole vocabulary."""
        return await self._score(prompt, choices)

    async def _score(self, prompt: Sequence[int], choices: Sequence[str], **rest: int) -> npt.NDArray[np.float64]:
        answer = await self._one(Kind.SCORE, {"prompt": list(prompt), "choices": list(choices), **rest})
        return np.array(json.loads(answer.body), np.float64)

    def queue(self) -> int:
        """Requests waiting or running now."""
        return self._running
