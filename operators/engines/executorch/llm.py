"""Language models as ExecuTorch programs (``.pte``), such as those that ``executorch.extension.llm.export`` makes.

What a program has: ``forward(tokens int64[1, n], input_pos int64[1])`` → logits float32[1, vocabulary] of the last
token (or of all), which keeps keys and values by position, and methods that say how it was exported
(``get_max_context_len``, ``get_max_seq_len``, ``get_bos_id``, ``get_eos_ids``, ``enable_dynamic_shape``).

We run ``forward`` ourselves and not ExecuTorch's ``TextLLMRunner``, which runs the same: the runner takes the prompt as
text, so that users could write control tokens, prints answers to standard output, draws with a seed of its own and a
fixed top-p, and lets no state be cleared (DECISIONS.md).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.engines import text
from operators.engines.executorch.runtime import Program
from operators.engines.executorch.state import State
from operators.engines.files.models import OpenModel
from operators.engines.hf_tokenizer import HfTokenizer
from operators.engines.native import Workers, spare_threads
from operators.engines.ports import Generated, Generation
from operators.engines.sampling import draw, log_probabilities
from operators.errors import Stop
from operators.records import TokenLogprob

STEP = 128
"""Most prompt tokens between two looks at whether the request was cancelled."""


class ExecuTorchLLM:
    """``Engine``: one program, one thread; a request waits in line and reuses the prefix it shares with the last."""

    def __init__(self, model: OpenModel, tokenizer: OpenModel, *, context_tokens: int = 2048, threads: int = 0) -> None:
        self.model = model.id
        self.context_tokens = context_tokens
        self._files = (model, tokenizer)
        self._threads = spare_threads(threads)
        self._workers = Workers(f"engine {model.id}", 1)
        self._who = f"model {model.id}"
        self._sampled = 0
        self._bytes = 0
        self._state: State | None = None

    async def start(self) -> None:
        """Load the program. Raises ``Stop`` if it is missing, no language model, or has another window."""
        await self._workers.call(self._load)

    def _load(self) -> None:
        model, words = self._files
        self._words = HfTokenizer(words.path, self._who)
        program = Program(model.path, self._who, threads=self._threads, language=True)
        window, most = program.constant("get_max_context_len"), program.constant("get_max_seq_len")
        ends, cached = program.constant("get_eos_ids"), program.constant("use_kv_cache")
        if window is None or most is None or ends is None or not cached:
            got = f"window {window}, most tokens at once {most}, ends {ends}, cache of keys and values {cached}"
            remedy = "export it with a KV cache, and get_bos_id and get_eos_ids as metadata"
            raise Stop(self._who, f"no program of a language model, or one that doesn't say enough: {got}", remedy)
        if self.context_tokens > window:
            got = f"a context window of {self.context_tokens} tokens, the program was exported with {window}"
            raise Stop(self._who, got, f"set the tier's context_tokens to {window}, or export it with more")
        bos = program.constant("get_bos_id")
        self._bos = () if bos is None else (int(bos),)
        self._ends = frozenset(map(int, ends if isinstance(ends, list) else [ends]))
        # The export leaves room for one token less than it says.
        step = min(STEP, int(most) - 1) if program.constant("enable_dynamic_shape") else 1
        self._state = State(program, model, step, int(program.constant("get_n_layers") or 0))
        self._bytes = model.bytes + self._state.bytes

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; ``special`` reads control tokens."""
        return self._words.tokenize(text, special=special)

    def bos(self) -> tuple[int, ...]:
        """BOS if the program names one."""
        return self._bos

    def generate(self, request: Generation) -> AsyncGenerator[Generated, None]:
        """Stream the answer. Raises ``Reject`` if it can't fit."""
        text.check(request, self.model, self.context_tokens)
        return self._workers.stream(lambda put, stopped: self._generate(request, put, stopped))

    def _generate(self, request: Generation, put: Callable[[Generated], None], stopped: Callable[[], bool]) -> None:
        state, prompt = self._loaded(), list(request.prompt)
        cached = state.begin(prompt, request.scope)
        logits = state.read(prompt, stopped)
        state.mark()
        random, reader = np.random.default_rng(request.seed), self._words.reader(prompt)
        pieces = text.Pieces(request.stop)
        count, finish, likely = 0, "length", list[TokenLogprob]()
        while logits is not None:
            token = draw(logits, request.temperature, request.top_p, random)
            self._sampled += 1
            count += 1
            if request.logprobs:
                logprob = float(log_probabilities(logits)[token])
                likely.append(TokenLogprob(text=self._words.piece(token), logprob=logprob))
            if token in self._ends:
                finish = "stop"
                break
            if piece := pieces.feed(reader(token).encode()):
                put(Generated(text=piece, logprobs=tuple(likely)))
                likely.clear()
            if pieces.stopped:
                finish = "stop"
                break
            if count == request.max_tokens:
                break
            prompt.append(token)
            logits = state.read(prompt, stopped)
        else:
            return  # stopped
        counts = {"prompt_tokens": len(request.prompt), "completion_tokens": count, "cached_tokens": cached}
        rest = pieces.rest()
        put(Generated(text=rest, finish_reason=finish, logprobs=tuple(likely), **counts))  # type: ignore[arg-type]

    async def score(self, prompt: Sequence[int], choices: Sequence[str]) -> npt.NDArray[np.float64]:
        """log p(first token of choice | prompt): float64[len(choices)], softmax over the whole vocabulary."""
        request = Generation(prompt=tuple(prompt), max_tokens=1, temperature=0.0, top_p=1.0)
        text.check(request, self.model, self.context_tokens)
        first = self._words.first(choices)

        def work() -> npt.NDArray[np.float64]:
            state = self._loaded()
            state.begin(list(prompt), "")
            logits: Any = state.read(list(prompt), lambda: False)
            return log_probabilities(logits)[first]

        return await self._workers.call(work)

    def _loaded(self) -> State:
        if self._state is None:
            raise Stop(self._who, "no program", "await start() first")
        return self._state

    def sampled(self) -> int:
        """Tokens sampled since the start; work that was cancelled adds none."""
        return self._sampled

    def queue(self) -> int:
        """Requests waiting or running now."""
        return self._workers.running

    async def check(self) -> None:
        """Not closed. The one worker may be busy with a long answer, so it is not asked."""
        self._workers.check()

    def memory_bytes(self) -> int:
        """Size of the program, and what loading it added to the process's memory if that was more."""
        return self._bytes if self._state is not None else 0

    async def close(self) -> None:
        """Stop what runs and free the model."""
        await self._workers.close()
        self._state = None
