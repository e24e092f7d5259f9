"""llama.cpp's server inside this process, through xllamacpp: many requests at once with continuous batching."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.engines import text
from operators.engines.files.models import OpenModel
from operators.engines.llama import llama_cpp
from operators.engines.native import Workers, cores, spare_threads
from operators.engines.ports import Generated, Generation
from operators.errors import Retry, RuvError, Stop
from operators.records import TokenLogprob

DOOR = "door.sock"
"""The server's socket in the directory of its states."""
BATCH = 256
"""Prompt tokens in one step, and so between two looks at whether the request was cancelled."""


LEAST = -1e4
"""A log-probability that stands for less than a float can say: JSON has no infinity."""


class LlamaServer:
    """``Engine``: ``parallel`` requests share every decoding step; more wait in line.

    The server insists on listening somewhere. It gets a Unix socket in ``states``, a directory that only this user can
    enter: through it the slots' states are saved, as files in there, and read back. While it loads, that is the working
    directory, for a socket's path has at most 107 bytes.
    """

    def __init__(
        self, model: OpenModel, *, states: Path, context_tokens: int = 2048, parallel: int = 2, threads: int = 0
    ) -> None:
        self.model = model.id
        self.context_tokens = context_tokens
        self._file = model
        self._states = states
        self._parallel = parallel
        # Reading a prompt is one long multiplication, which two threads halve when a core is idle and delay by at most
        # a third when none is (measured); a step of writing is too short for that.
        self._threads, self._prompt_threads = spare_threads(threads), threads or cores()
        self._workers = Workers(f"engine {model.id}", parallel)
        self._server: Any = None

    async def start(self) -> None:
        """Load the weights. Raises ``Stop`` if they are missing, wrong or too big."""
        await self._workers.call(self._load)

    def _load(self) -> None:
        import xllamacpp

        # xllamacpp shows no tokenizer; the vocabulary alone costs a few MB, and says what is wrong with a bad file.
        self._vocabulary = llama_cpp.Vocabulary.of(self._file)
        params = xllamacpp.CommonParams()
        params.model.path = str(self._file.path)
        params.n_parallel = self._parallel
        params.n_ctx = self.context_tokens * self._parallel
        params.n_batch = params.n_ubatch = BATCH
        params.n_gpu_layers = 0
        for cpu, count in ((params.cpuparams, self._threads), (params.cpuparams_batch, self._prompt_threads)):
            cpu.n_threads = count
            cpu.poll = 0  # threads that wait sleep instead of spinning
        params.fit_params = False  # never shrink the context silently
        params.cache_ram_mib = 0  # no second copy of old requests' states outside the slots
        params.endpoint_metrics = True
        params.endpoint_slots = params.ui = False
        params.n_threads_http = 1
        params.sse_ping_interval = -1
        params.verbosity = -1
        params.slot_save_path = f"{self._states}/"
        params.hostnames = [DOOR]
        os.chdir(self._states)
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as e:
            remedy = "check that the file is a GGUF this llama.cpp knows and that its context fits into memory"
            raise Stop(f"model {self.model}", f"{self._file.found.name}: {e}", remedy) from e
        self._bytes = self._file.bytes + self._vocabulary.kv_bytes(self.context_tokens * self._parallel)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; ``special`` reads control tokens."""
        return self._vocabulary.tokenize(text, special=special)

    def bos(self) -> tuple[int, ...]:
        """BOS if the model wants one."""
        return self._vocabulary.bos()

    def generate(self, request: Generation, slot: int = -1) -> AsyncGenerator[Generated, None]:
        """Stream the answer, computed in ``slot`` (-1: any). Raises ``Reject`` if it can't fit."""
        text.check(request, self.model, self.context_tokens)
        return self._workers.stream(lambda put, stopped: self._generate(request, slot, put, stopped))

    def _generate(
        self, request: Generation, slot: int, put: Callable[[Generated], None], stopped: Callable[[], bool]
    ) -> None:
        # Stop strings are cut here: the server loses what it held back for one when max_tokens ends the answer.
        pieces, errors, ended = text.Pieces(request.stop), list[Exception](), False
        likely: list[TokenLogprob] = []

        def on_chunk(chunk: dict[str, Any]) -> bool:
            """Called after every step, also while the prompt is read (``return_progress``); True ends the request."""
            nonlocal ended
            try:
                if "error" in chunk:
                    raise self._error(chunk)
                if stopped() or not chunk["choices"]:
                    return stopped()
                choice = chunk["choices"][0]
                fresh = pieces.feed(choice["text"].encode())
                likely.extend(_logprobs(choice))
                reason = "stop" if pieces.stopped else choice["finish_reason"]
                if reason is not None:
                    ended = True
                    fresh += pieces.rest()
                    put(_last(fresh, reason, chunk["timings"], likely))
                elif fresh:
                    put(Generated(text=fresh, logprobs=tuple(likely)))
                    likely.clear()
            except Exception as e:  # an exception must not travel through C++
                errors.append(e)
            return ended or bool(errors)

        self._server.handle_completions(
            {
                "prompt": list(request.prompt),
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": 0,
                "min_p": 0.0,
                "seed": -1 if request.seed is None else request.seed % (2**32 - 1),
                "stream": True,
                "return_progress": True,
                "timings_per_token": True,  # the counts, also when a stop string ends the answer
                "cache_prompt": True,
                "id_slot": slot,
                "n_probs": int(request.logprobs),
            },
            on_chunk,
        )
        if errors:
            raise errors[0]
        if not ended and not stopped():
            raise Retry(f"engine {self.model}", "the stream ended without a finish_reason", "try again")

    async def score(self, prompt: Sequence[int], choices: Sequence[str], slot: int = -1) -> npt.NDArray[np.float64]:
        """log p(first token of choice | prompt): float64[len(choices)], softmax over the whole vocabulary.

        The server reports the probability of the tokens it sampled, before any bias. So every choice is forced by a
        bias and its own probability read; only the first of these requests computes the prompt.
        """
        request = Generation(prompt=tuple(prompt), max_tokens=1, temperature=0.0, top_p=1.0)
        text.check(request, self.model, self.context_tokens)
        first = self._vocabulary.first(choices)

        def work() -> npt.NDArray[np.float64]:
            found = {token: self._forced(list(prompt), token, slot) for token in dict.fromkeys(first)}
            return np.array([found[token] for token in first], np.float64)

        return await self._workers.call(work)

    def _forced(self, prompt: list[int], token: int, slot: int) -> float:
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "n_probs": 1, "cache_prompt": True}
        body["id_slot"] = slot
        answer = self._server.handle_completions(body | {"logit_bias": [[token, 1e4]]})
        if "error" in answer:
            raise self._error(answer)
        sampled = answer["choices"][0]["logprobs"]["content"][0]
        value = float(sampled["logprob"])
        if sampled["id"] != token or not math.isfinite(value):
            got = f"asked for the probability of token {token}, got {value} for token {sampled['id']}"
            raise Stop(
                f"engine {self.model}", got, "this xllamacpp reports probabilities in another way: pin its version"
            )
        return value

    def _error(self, chunk: dict[str, Any]) -> RuvError:
        # Everything a caller could get wrong was refused before, so what is left may pass.
        return Retry(f"engine {self.model}", f"llama.cpp: {chunk['error']}", "try again")

    def counter(self, name: str) -> float:
        """One of the server's own counters, such as ``tokens_predicted_total``."""
        server = self._server
        self._workers.check()  # after the look at the server, which close() drops only once the workers are closed
        lines = server.handle_metrics().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{name} "))

    def sampled(self) -> int:
        """Tokens sampled since the start, as the server counts them."""
        return int(self.counter("tokens_predicted_total"))

    def queue(self) -> int:
        """Requests waiting or running now."""
        return self._workers.running

    async def check(self) -> None:
        """The server's loop answers between two steps; asked from a thread of its own, for the workers may be busy."""
        await asyncio.to_thread(self.counter, "tokens_predicted_total")

    def memory_bytes(self) -> int:
        """Size of the weights and an upper bound of the KV memory of all slots."""
        return self._bytes if self._server is not None else 0

    async def close(self) -> None:
        """Stop what runs and free the model."""
        await self._workers.close()
        if self._server is not None:
            self._server = None  # its destructor ends the server's thread and frees the weights
            self._vocabulary.close()


def _logprobs(choice: dict[str, Any]) -> list[TokenLogprob]:
    found = (choice.get("logprobs") or {}).get("content") or []
    return [TokenLogprob(text=one["token"], logprob=max(float(one["logprob"]), LEAST)) for one in found]


def _last(fresh: str, reason: str, timings: dict[str, Any], likely: Sequence[TokenLogprob]) -> Generated:
    return Generated(
        logprobs=tuple(likely),
        text=fresh,
        finish_reason="length" if reason == "length" else "stop",
        prompt_tokens=timings["cache_n"] + timings["prompt_n"],
        completion_tokens=timings["predicted_n"],
        cached_tokens=timings["cache_n"],
    )
