"""vLLM's OpenAI-compatible server as an engine: one that somebody runs, or a child of ours in its own environment."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from operators.engines import text
from operators.engines.hf_tokenizer import HfTokenizer
from operators.engines.ports import Generated, Generation
from operators.engines.vllm import wire as vllm_wire
from operators.engines.vllm.config import VllmConfig
from operators.engines.vllm.launch import Launched, command, directory, environment
from operators.errors import Retry, RuvError, Stop
from operators.records import TokenLogprob
from operators.tiers import ModelFile

PROBE = "One text for 2 tokenizers, the same: été, 東京 🤩\n"
"""Both tokenizers have to read it alike."""
ANSWER_S = 10.0
"""Longest wait in seconds for answers that need no model."""
AGREE_NATS = 0.06
"""Most that two ways to one log-probability may differ on average; in bfloat16 they differ by hundredths."""
CURE = """give --compilation-config={"custom_ops": ["none"]} in vllm.extra_args"""
IDLE_S = 2.0
"""Seconds until a connection that is not used is closed, before the server does that in the middle of a request."""


class VllmServer:
    """``Engine``: vLLM batches the requests of all its clients, and keeps prefixes by scope.

    ``session`` is not used: vLLM finds a conversation's own beginning by what it holds.
    """

    Config = VllmConfig

    def __init__(
        self,
        model: ModelFile,
        config: VllmConfig,
        *,
        cache_dir: Path,
        context_tokens: int = 4096,
        parallel: int = 8,
        threads: int = 0,
    ) -> None:
        self.model = model.id
        self.context_tokens = context_tokens
        self.config = config
        self._who = f"engine {model.id}"
        self._file = model
        self._cache_dir = cache_dir
        self._parallel, self._threads = parallel, threads
        self._served = config.served_name or model.id
        self._secret = config.api_key.get_secret_value()
        self._launched: Launched | None = None
        self._http: httpx.AsyncClient | None = None
        self._running = 0
        self._asleep = self._closed = False

    async def start(self) -> None:
        """Start the server or find it, and see that it serves this model with this tokenizer.

        Raises ``Stop`` if it does not come up in ``start_timeout_s``, with its own reason, or serves something else.
        """
        try:
            words = self.config.tokenizer
            if not self.config.url:
                home = await asyncio.to_thread(directory, self._file, self._cache_dir)
                words = words or str(home / "tokenizer.json")
            self._tokenizer = await asyncio.to_thread(HfTokenizer, Path(words), self._who)
            if not self.config.url:
                call = functools.partial(command, self.config, home, self._served, self.context_tokens, self._parallel)
                self._launched = Launched(self._who, call, environment(self.config, self._threads))
            self._http = self._client()
            await self._up()
            await self._meet()
            await self._agree()
        except BaseException:
            await self.close()
            raise

    def _client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(
            verify=self.config.url.startswith("https:"),  # reading the certificates takes long, and http has none
            uds=str(self._launched.socket) if self._launched else None,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=IDLE_S),
        )
        return httpx.AsyncClient(
            transport=transport,
            base_url=self.config.url or "http://vllm",
            headers={"Authorization": f"Bearer {self._secret}"} if self._secret else {},
            timeout=httpx.Timeout(ANSWER_S, read=self.config.answer_timeout_s),
            trust_env=False,
        )

    async def _up(self) -> None:
        """Wait until it says that it is well."""
        end = time.monotonic() + self.config.start_timeout_s
        while True:
            if why := await self._ended():
                remedy = "mend this; vllm.python must be of an environment that has vLLM for this machine"
                raise Stop(self._who, why, remedy)
            try:
                return await self._health()
            except Retry as e:
                if time.monotonic() > end:
                    got = f"no server within {self.config.start_timeout_s:g} s: {e.got}"
                    raise Stop(self._who, got, "start it, correct vllm.url, or raise vllm.start_timeout_s") from e
            await asyncio.sleep(0.1)

    async def _meet(self) -> None:
        models = {one["id"]: one for one in (await self._ask("GET", "/v1/models"))["data"]}
        if self._served not in models:
            raise Stop(self._who, f"the server has {sorted(models)}, not {self._served!r}", "correct vllm.served_name")
        window = models[self._served].get("max_model_len")
        if window is not None and window < self.context_tokens:
            got = f"the server's window has {window} tokens, the tier's context_tokens is {self.context_tokens}"
            raise Stop(self._who, got, "lower context_tokens, or start the server with a larger --max-model-len")
        bare, full = [
            (await self._ask("POST", "/tokenize", {"model": self._served, "prompt": PROBE, "add_special_tokens": add}))[
                "tokens"
            ]
            for add in (False, True)
        ]
        if bare != self._tokenizer.tokenize(PROBE) or full[len(full) - len(bare) :] != bare:
            got = "the server and tokenizer.json read a text in different ways"
            raise Stop(self._who, got, "give the tokenizer.json of the model that is served in vllm.tokenizer")
        self._bos = tuple(full[: len(full) - len(bare)])

    async def _agree(self) -> None:
        """See that what it reads at once, beside others, it takes for the same as what it wrote token by token, alone.

        For LFM2 on the CPU, vLLM 0.32.0 does not: its kernel for rotary positions misreads the shape of LFM2's heads,
        so tokens get each other's positions, also those of other requests. Nothing fails; the answers are wrong.
        """
        first = self._bos or tuple(self._tokenizer.tokenize(PROBE)[:1])
        written = Generation(prompt=first, max_tokens=16, temperature=0.0, top_p=1.0, logprobs=True)
        body = vllm_wire.completion(written, self._served, self._secret) | {"stream": False, "stream_options": None}
        choice = (await self._ask("POST", "/v1/completions", body))["choices"][0]
        tokens, told = choice["token_ids"], choice["logprobs"]["token_logprobs"]

        async def read(n: int) -> float:
            body = vllm_wire.scoring([*first, *tokens[:n]], tokens[n : n + 1], self._served, self._secret)
            found = vllm_wire.scores(self._who, await self._ask("POST", "/v1/completions", body), tokens[n : n + 1])
            return abs(found[tokens[n]] - float(told[n]))

        apart = sum(await asyncio.gather(*map(read, range(len(tokens))))) / max(1, len(tokens))
        if not apart < AGREE_NATS:
            got = f"reading its own answer, it finds log-probabilities {apart:.2g} from those it wrote it with"
            raise Stop(
                self._who, got, f"this vLLM computes this model wrongly: use another version, or on a CPU {CURE}"
            )

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS; ``special`` reads control tokens."""
        return self._tokenizer.tokenize(text, special=special)

    def bos(self) -> tuple[int, ...]:
        """What the server itself puts before a text."""
        return self._bos

    def generate(self, request: Generation) -> AsyncGenerator[Generated, None]:
        """Stream the answer. Raises ``Reject`` if it can't fit, ``Retry`` if the server is away or asleep."""
        text.check(request, self.model, self.context_tokens)
        return self._generate(request)

    async def _generate(self, request: Generation) -> AsyncGenerator[Generated, None]:
        pieces, reason, usage = text.Pieces(request.stop), "", dict[str, Any]()
        tokens: list[TokenLogprob] = []
        body = vllm_wire.completion(request, self._served, self._secret)
        # Closing this generator closes the connection, and vLLM then gives the request up.
        async with self._call("POST", "/v1/completions", body) as response:
            async for event in vllm_wire.events(self._who, response.aiter_bytes()):
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    fresh = "" if pieces.stopped else pieces.feed(choice["text"].encode())
                    tokens += self._logprobs(choice)
                    reason = choice.get("finish_reason") or reason
                    if fresh:
                        yield Generated(text=fresh, logprobs=tuple(tokens))
                        tokens.clear()
        if reason not in ("stop", "length") or not usage:
            raise Retry(self._who, f"the stream ended with {reason or 'nothing'}", "try again")
        yield Generated(
            text="" if pieces.stopped else pieces.rest(),
            finish_reason="stop" if pieces.stopped or reason == "stop" else "length",
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            logprobs=tuple(tokens),
        )

    def _logprobs(self, choice: vllm_wire.Json) -> list[TokenLogprob]:
        if not choice.get("logprobs"):
            return []
        pairs = zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
        return [TokenLogprob(text=self._tokenizer.piece(token), logprob=value) for token, value in pairs]

    async def score(self, prompt: Sequence[int], choices: Sequence[str]) -> npt.NDArray[np.float64]:
        """log p(first token of choice | prompt): float64[len(choices)], softmax over the whole vocabulary."""
        request = Generation(prompt=tuple(prompt), max_tokens=1, temperature=0.0, top_p=1.0)
        text.check(request, self.model, self.context_tokens)
        first = self._tokenizer.first(choices)
        wanted = list(dict.fromkeys(first))
        body = vllm_wire.scoring(list(prompt), wanted, self._served, self._secret)
        found = vllm_wire.scores(self._who, await self._ask("POST", "/v1/completions", body), wanted)
        return np.array([found[token] for token in first], np.float64)

    def queue(self) -> int:
        """Requests of ours waiting or running now."""
        return self._running

    async def check(self) -> None:
        """The server says that its engine lives; one of ours that has ended is told with its reason."""
        if why := await self._ended():
            raise Retry(self._who, why, "load the model again")
        await self._health()

    async def _ended(self) -> str:
        return await asyncio.to_thread(self._launched.ended) if self._launched else ""

    async def _health(self) -> None:
        async with self._send("GET", "/health", None, ANSWER_S):
            pass

    def memory_bytes(self) -> int:
        """Resident bytes of the server we started, without the GPU's; 0 for one that somebody else runs."""
        return self._launched.child.memory_bytes() if self._launched else 0

    async def sleep(self) -> None:
        """Move the weights out of the GPU's memory and drop its cache; until ``wake``, requests raise ``Retry``."""
        await self._sleepy("/sleep?level=1")
        self._asleep = True

    async def wake(self) -> None:
        """Bring the weights back."""
        await self._sleepy("/wake_up")
        self._asleep = False

    async def _sleepy(self, path: str) -> None:
        if not self.config.sleep:
            raise Stop(self._who, "it can't sleep", "set vllm.sleep; the server needs --enable-sleep-mode and a GPU")
        async with self._send("POST", path, None, self.config.start_timeout_s):
            pass

    async def close(self) -> None:
        """End the streams with ``Retry``, and the server if it is ours; safe to call twice."""
        self._closed = True
        if self._http:
            await self._http.aclose()
        if self._launched:
            await asyncio.to_thread(self._launched.end)
            self._launched = None

    async def _ask(self, method: str, path: str, body: vllm_wire.Json | None = None) -> vllm_wire.Json:
        async with self._call(method, path, body) as response:
            return vllm_wire.parsed(self._who, await response.aread())

    @contextlib.asynccontextmanager
    async def _call(self, method: str, path: str, body: vllm_wire.Json | None) -> AsyncIterator[httpx.Response]:
        """A request that the model works on, or that only a server which is awake answers."""
        if self._asleep:
            raise Retry(self._who, "the model is asleep", "wake it first")
        self._running += 1
        try:
            async with self._send(method, path, body, self.config.answer_timeout_s) as response:
                yield response
        finally:
            self._running -= 1

    @contextlib.asynccontextmanager
    async def _send(
        self, method: str, path: str, body: vllm_wire.Json | None, patience_s: float
    ) -> AsyncIterator[httpx.Response]:
        """The answer to a request, while the body runs. Raises what ``vllm.wire.error`` says, or ``Retry``."""
        if self._closed or self._http is None:
            raise self._gone()
        timeout = httpx.Timeout(ANSWER_S, read=patience_s)
        try:
            async with self._http.stream(method, path, json=body, timeout=timeout) as response:
                if response.status_code != 200:
                    raise vllm_wire.error(self._who, response.status_code, await response.aread())
                yield response
        except httpx.HTTPError as e:
            if self._closed:
                raise self._gone() from e
            raise Retry(self._who, f"no answer from vLLM: {type(e).__name__} {e}".strip(), "try again") from e

    def _gone(self) -> RuvError:
        return Retry(self._who, "the model is closed", "ask another replica")
