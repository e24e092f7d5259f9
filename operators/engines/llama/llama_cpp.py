"""llama.cpp through llama-cpp-python: an engine for one request at a time, and the vocabulary of a GGUF.

The only file that imports ``llama_cpp``.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.engines import text
from operators.engines.files.models import OpenModel
from operators.engines.native import Workers, spare_threads
from operators.engines.ports import Generated, Generation
from operators.errors import Reject, Stop
from operators.records import TokenLogprob

STEP = 128
"""Prompt tokens between two looks at whether the request was cancelled."""


_lock = threading.Lock()
_log: dict[str, Any] = {"lines": deque(maxlen=3)}


def load(model: OpenModel, *, pooling: str = "unspecified", **options: Any) -> Any:
    """A quiet ``llama_cpp.Llama``; ``pooling`` (mean, cls) is for encoders.

    Raises ``Stop`` when llama.cpp refuses the file or the memory isn't there.

    One load at a time: while it loads, llama-cpp-python swaps the process's stdout, and two at once lose it.
    """
    import llama_cpp

    with _lock:
        if "callback" not in _log:
            # llama.cpp's log goes here instead of stderr; the last lines explain a failed load. Level 3 is ERROR.
            @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
            def log(level: int, line: bytes, _: object) -> None:
                if level == 3:
                    _log["lines"].append(line.decode("utf-8", "replace").strip())

            _log["callback"] = log  # C keeps only a pointer to it
        llama_cpp.llama_log_set(_log["callback"], None)
        _log["lines"].clear()
        try:
            pooling_type = getattr(llama_cpp, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
            return llama_cpp.Llama(str(model.path), verbose=False, pooling_type=pooling_type, **options)
        except (ValueError, RuntimeError, OSError, AssertionError, MemoryError) as e:
            remedy = "check that the file is a GGUF this llama.cpp knows and that its context fits into memory"
            raise Stop(f"model {model.id}", f"{model.found.name}: {'; '.join([str(e), *_log['lines']])}", remedy) from e


class Vocabulary:
    """Tokens of a loaded GGUF. Read-only, so any thread may use it while another one generates."""

    def __init__(self, llama: Any) -> None:
        import llama_cpp

        self._cpp = llama_cpp
        self._llama = llama
        self._vocab = llama_cpp.llama_model_get_vocab(llama.model)
        self._pieces: dict[int, bytes] = {}

    @classmethod
    def of(cls, model: OpenModel) -> Vocabulary:
        """Only the vocabulary of a file, without its weights."""
        return cls(load(model, vocab_only=True, n_ctx=8, n_batch=8))

    def tokenize(self, string: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; lone surrogates, which UTF-8 can't carry, become U+FFFD."""
        return list(self._llama.tokenize(string.encode("utf-8", "replace"), add_bos=False, special=special))

    def first(self, choices: Sequence[str]) -> list[int]:
        """First token of each choice; an empty choice has none and raises ``Reject``."""
        tokens = [self.tokenize(choice) for choice in choices]
        if not all(tokens):
            raise Reject("score", f"an empty choice in {list(choices)!r}", "give choices of at least one token")
        return [ids[0] for ids in tokens]

    def bos(self) -> tuple[int, ...]:
        """BOS if the model wants one."""
        return (int(self._llama.token_bos()),) if self._cpp.llama_vocab_get_add_bos(self._vocab) else ()

    def piece(self, token: int) -> bytes:
        """Bytes of a token as they appear in the text; control tokens are empty."""
        if token not in self._pieces:
            self._pieces[token] = self._llama.detokenize([token], special=False)
        return self._pieces[token]

    def ends(self, token: int) -> bool:
        """Whether ``token`` ends the generation (EOS, end of turn)."""
        return bool(self._cpp.llama_vocab_is_eog(self._vocab, token))

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of fp16 keys and values for ``tokens``, as if every layer attended to all of them (an upper bound)."""
        # From the metadata: asked for heads, a model loaded without weights aborts the process.
        arch = self._llama.metadata.get("general.architecture", "")

        def fact(name: str, default: int = 0) -> int:
            value = self._llama.metadata.get(f"{arch}.{name}", "")
            return int(value) if value.isdigit() else default

        heads = fact("attention.head_count", 1)
        of_head = fact("attention.key_length", fact("embedding_length") // heads)
        return 2 * 2 * tokens * fact("block_count") * fact("attention.head_count_kv", heads) * of_head

    def close(self) -> None:
        """Free the vocabulary with its model."""
        self._llama.close()


class LlamaCpp:
    """``Engine``: one context, one thread; a request waits in line and reuses the prefix it shares with the last."""

    def __init__(self, model: OpenModel, *, context_tokens: int = 2048, threads: int = 0) -> None:
        self.model = model.id
        self.context_tokens = context_tokens
        self._sampled = 0
        self._scope = ""
        self._file = model
        self._threads = spare_threads(threads)
        self._workers = Workers(f"engine {model.id}", 1)
        self._llama: Any = None

    async def start(self) -> None:
        """Load the weights. Raises ``Stop`` if they are missing, wrong or too big."""
        await self._workers.call(self._load)

    def _load(self) -> None:
        import llama_cpp

        self._cpp = llama_cpp
        threads: dict[str, Any] = {"n_threads": self._threads, "n_threads_batch": self._threads}
        self._llama = load(self._file, n_ctx=self.context_tokens, n_batch=STEP, n_ubatch=STEP, **threads)
        self._vocabulary = Vocabulary(self._llama)
        self._bytes = self._file.bytes + self._vocabulary.kv_bytes(self.context_tokens)
        # Recurrent state can't be cut back to an earlier token: only what goes on where the last one ended is reused.
        is_recurrent, is_hybrid = llama_cpp.llama_model_is_recurrent, llama_cpp.llama_model_is_hybrid
        self._append_only = is_recurrent(self._llama.model) or is_hybrid(self._llama.model)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; ``special`` reads control tokens."""
        return self._vocabulary.tokenize(text, special=special)

    def bos(self) -> tuple[int, ...]:
        """BOS if the model wants one."""
        return self._vocabulary.bos()

    def generate(self, request: Generation) -> AsyncGenerator[Generated, None]:
        """Stream the answer. Raises ``Reject`` if it can't fit."""
        text.check(request, self.model, self.context_tokens)
        return self._workers.stream(lambda put, stopped: self._generate(request, put, stopped))

    def _generate(self, request: Generation, put: Callable[[Generated], None], stopped: Callable[[], bool]) -> None:
        prompt = list(request.prompt)
        if request.scope != self._scope:
            self._llama.reset()  # what another scope computed is not even measurable by this one
            self._scope = request.scope
        cached = self._prefill(prompt, stopped)
        # 2³² − 1 means "random" to llama.cpp, so a caller's seed never becomes it.
        self._llama.set_seed(secrets.randbits(31) if request.seed is None else request.seed % (2**32 - 1))
        pieces = text.Pieces(request.stop)
        count, finish, likely = 0, "length", list[TokenLogprob]()
        sampling = {"temp": request.temperature, "top_p": request.top_p, "top_k": 0, "min_p": 0.0}
        for token in self._llama.generate(prompt, **sampling):
            if stopped():
                return
            self._sampled += 1
            count += 1
            if request.logprobs:
                data = self._vocabulary.piece(token).decode("utf-8", "replace")
                likely.append(TokenLogprob(text=data, logprob=float(self._log_probabilities()[token])))
            if self._vocabulary.ends(token):
                finish = "stop"
                break
            if piece := pieces.feed(self._vocabulary.piece(token)):
                put(Generated(text=piece, logprobs=tuple(likely)))
                likely.clear()
            if pieces.stopped:
                finish = "stop"
                break
            if count == request.max_tokens:
                break
        counts = {"prompt_tokens": len(prompt), "completion_tokens": count, "cached_tokens": cached}
        rest = pieces.rest()
        put(Generated(text=rest, finish_reason=finish, logprobs=tuple(likely), **counts))  # type: ignore[arg-type]

    def _log_probabilities(self) -> npt.NDArray[np.float64]:
        """Of the next token, float64[vocabulary]; while one is yielded, those it was drawn from."""
        pointer = self._cpp.llama_get_logits_ith(self._llama.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, (self._llama.n_vocab(),)).astype(np.float64)
        logits -= logits.max()
        return np.asarray(logits - np.log(np.exp(logits).sum()), np.float64)

    def _prefill(self, prompt: list[int], stopped: Callable[[], bool] = lambda: False) -> int:
        """Evaluate the prompt but for its last ``STEP`` tokens, step by step, and say how many tokens were known."""
        llama = self._llama
        known = llama.input_ids[: min(llama.n_tokens, len(prompt))]
        differs = np.flatnonzero(known != np.asarray(prompt[: len(known)]))
        cached = int(differs[0]) if len(differs) else len(known)
        if self._append_only and cached < llama.n_tokens:
            cached = 0
        for end in range(cached + STEP, len(prompt), STEP):
            if stopped():
                break
            # generate() evaluates what it doesn't know of the prompt, then yields a token that is thrown away.
            next(llama.generate(prompt[:end], temp=0.0))
        return min(cached, len(prompt) - 1)

    async def score(self, prompt: Sequence[int], choices: Sequence[str]) -> npt.NDArray[np.float64]:
        """log p(first token of choice | prompt): float64[len(choices)], softmax over the whole vocabulary."""
        request = Generation(prompt=tuple(prompt), max_tokens=1, temperature=0.0, top_p=1.0)
        text.check(request, self.model, self.context_tokens)
        first = self._vocabulary.first(choices)

        def work() -> npt.NDArray[np.float64]:
            if self._scope:
                self._llama.reset()
                self._scope = ""
            self._prefill(list(prompt))
            next(self._llama.generate(list(prompt), temp=0.0))
            return np.asarray(self._log_probabilities()[first], np.float64)

        return await self._workers.call(work)

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
        """Size of the weights and an upper bound of the KV memory."""
        return self._bytes if self._llama is not None else 0

    async def close(self) -> None:
        """Stop what runs and free the model."""
        await self._workers.close()
        if self._llama is not None:
            self._llama.close()
            self._llama = None
