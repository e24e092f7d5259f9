"""Five ways to the same GGUF: our service, our engine, and three of others. Each takes a volley of questions at once.

All get the same tokens and say how many they read and wrote; those who run one request at a time take the volley's one
after another, and a later one's first token has waited for the earlier ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx

from operators.engines.ports import Engine
from tests.bench.engine_kit import SYSTEM, Told, greedy, prompt
from tests.service import ROOT, Running, free_port

PEERS = ROOT / "build" / "peers"
READY_S = 60.0
SERVER = """
import runpy, sys
sys.path.append(sys.argv.pop(1))  # last: what the environment has stays in force
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
"""


class Way(Protocol):
    """One way to an answer."""

    async def volley(self, questions: Sequence[str], most: int) -> list[Told]:
        """The answers, all asked for at the same moment, of at most ``most`` tokens."""


class OverHttp:
    """An OpenAI-compatible server, streaming; ``more`` goes into every request."""

    def __init__(self, client: aiohttp.ClientSession, url: str, model: str, *, usage: bool, **more: Any) -> None:
        self._client, self._url, self._model, self._usage = client, f"{url}/v1/chat/completions", model, usage
        self._more = more

    def _body(self, question: str, most: int) -> dict[str, Any]:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        return {"model": self._model, "messages": messages, "max_tokens": most, "temperature": 0.0} | self._more

    async def usage(self, question: str) -> dict[str, int]:
        """What it counts, asked without streaming: some don't say it in a stream."""
        async with self._client.post(self._url, json=self._body(question, 1)) as response:
            said = await response.json()
            assert response.status == 200, said
            return dict(said["usage"])

    async def volley(self, questions: Sequence[str], most: int) -> list[Told]:
        """The answers."""
        began = time.perf_counter()
        return list(await asyncio.gather(*(self._ask(question, most, began) for question in questions)))

    async def _ask(self, question: str, most: int, began: float) -> Told:
        body = self._body(question, most) | {"stream": True}
        body |= {"stream_options": {"include_usage": True}} if self._usage else {}
        first, text, finish, counted, pieces = 0.0, "", "", dict[str, int](), 0
        async with self._client.post(self._url, json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                said = json.loads(line[6:])
                assert "error" not in said, said
                counted = said.get("usage") or counted
                for choice in said["choices"]:
                    finish = choice["finish_reason"] or finish
                    if fresh := choice["delta"].get("content"):
                        first = first or time.perf_counter() - began
                        text += fresh
                        pieces += 1
        assert finish in ("length", "stop"), f"{self._url} ended with {finish!r}"
        # Who doesn't count in a stream sends a piece a token, fewer where a character takes two.
        tokens = counted.get("completion_tokens", most if finish == "length" else pieces)
        return Told(first, time.perf_counter() - began, tokens, text, counted.get("prompt_tokens", 0))


class Port:
    """An engine of ours, in its own process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._asked = 0

    async def volley(self, questions: Sequence[str], most: int) -> list[Told]:
        """The answers, each in a session of its own."""
        began = time.perf_counter()
        return list(await asyncio.gather(*(self._ask(question, most, began) for question in questions)))

    async def _ask(self, question: str, most: int, began: float) -> Told:
        self._asked += 1
        tokens = await asyncio.to_thread(prompt, self.engine, question)
        first, text = 0.0, ""
        async for piece in self.engine.generate(greedy(tokens, most, scope="bench", session=str(self._asked))):
            first = first or (time.perf_counter() - began if piece.text else 0.0)
            text += piece.text
        return Told(first, time.perf_counter() - began, piece.completion_tokens, text, piece.prompt_tokens)


class BareLlamaCpp:
    """llama-cpp-python in this process: one request after another."""

    def __init__(self, path: Path, words: Engine, *, context_tokens: int, threads: int) -> None:
        import llama_cpp

        common: dict[str, Any] = {"n_ctx": context_tokens, "n_threads": threads, "n_threads_batch": threads}
        self._llama = llama_cpp.Llama(str(path), verbose=False, **common)
        self._words = words

    async def volley(self, questions: Sequence[str], most: int) -> list[Told]:
        """The answers."""
        prompts = [prompt(self._words, question) for question in questions]
        return await asyncio.to_thread(self._all, prompts, most)

    def _all(self, prompts: Sequence[Sequence[int]], most: int) -> list[Told]:
        began, told = time.perf_counter(), []
        for tokens in prompts:
            first, count, text = 0.0, 0, b""
            for token in self._llama.generate(list(tokens), temp=0.0):
                first = first or time.perf_counter() - began
                count += 1
                if token != self._llama.token_eos():
                    text += self._llama.detokenize([token])
                if count == most or token == self._llama.token_eos():
                    break
            end = time.perf_counter() - began
            told.append(Told(first, end, count, text.decode("utf-8", "replace"), len(tokens)))
        return told

    def close(self) -> None:
        """Free the model."""
        self._llama.close()


class BareServer:
    """xllamacpp's server in this process, asked from a thread a request."""

    def __init__(self, path: Path, words: Engine, *, parallel: int, context_tokens: int, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel, params.n_ctx = parallel, context_tokens * parallel
        params.n_gpu_layers, params.verbosity = 0, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.port = free_port()
        self._server = xllamacpp.Server(params)
        self._words = words

    async def volley(self, questions: Sequence[str], most: int) -> list[Told]:
        """The answers."""
        prompts = [prompt(self._words, question) for question in questions]
        began = time.perf_counter()
        return list(await asyncio.gather(*(asyncio.to_thread(self._ask, p, most, began) for p in prompts)))

    def _ask(self, tokens: Sequence[int], most: int, began: float) -> Told:
        first, text, last = 0.0, "", dict[str, Any]()

        def on_chunk(chunk: dict[str, Any]) -> bool:
            nonlocal first, text
            last.update(chunk)
            for choice in chunk.get("choices", ()):
                if choice["text"]:
                    first = first or time.perf_counter() - began
                    text += choice["text"]
            return False

        request = {"prompt": list(tokens), "max_tokens": most, "temperature": 0.0, "stream": True}
        self._server.handle_completions(request, on_chunk)
        assert "error" not in last, last
        usage = last["usage"]
        end = time.perf_counter() - began
        return Told(first, end, usage["completion_tokens"], text, usage["prompt_tokens"])

    def close(self) -> None:
        """Free the model."""
        del self._server


@contextlib.contextmanager
def service(root: Path, *, parallel: int, context_tokens: int, threads: int) -> Iterator[Running]:
    """Our service with SmolLM2 alone; nothing judges meanwhile."""
    tier = {"parallel": parallel, "context_tokens": context_tokens, "threads": threads}
    sets = [f"tiers.135M.{name}={value}" for name, value in tier.items()]
    running = Running(root / "service", *sets, "tiers.270M.preload=false", "judge_job.enabled=false")
    running.start()
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def llama_cpp_server(path: Path, *, context_tokens: int, threads: int) -> Iterator[str]:
    """llama-cpp-python's own server, by its URL. A new request must not end the running one, which is its default."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = {"model": path, "port": port, "n_ctx": context_tokens, "n_threads": threads, "n_threads_batch": threads}
    options |= {"interrupt_requests": False, "verbose": False}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(PEERS), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until, ready = time.monotonic() + READY_S, False
        while not ready:
            assert process.poll() is None, "llama_cpp.server ended at once; it needs what `make peers` installs"
            assert time.monotonic() < until, f"llama_cpp.server is not ready after {READY_S} s"
            with contextlib.suppress(httpx.TransportError):
                ready = httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200
        yield url
    finally:
        process.terminate()
        process.wait(10)
