"""The process of one model: ``python -m operators.engines.child.worker CALLS WORDS``, two sockets that it inherits.

It loads the model, locks itself in (``sandbox``), and answers ``Child`` until that closes its end: then it ends at
once, whatever it is doing, so nothing is left behind by a parent that was killed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, Union

from operators.engines.child import frames, sandbox
from operators.engines.child.frames import Frame, Kind
from operators.engines.files.models import OpenModel, open_model
from operators.engines.make import make_here
from operators.engines.ports import Engine, Generation
from operators.records import encode
from operators.tiers import ModelFile

if TYPE_CHECKING:
    from operators.engines.llama.encoder import LlamaEncoder

Held = Union[Engine, "LlamaEncoder"]
GROWTH = 512 << 20
"""Bytes of private memory that a loaded model may take besides."""


def main() -> None:
    """Serve the model that the first frame describes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us in its own time
    calls, words = (socket(fileno=int(argument)) for argument in sys.argv[1:3])
    described = frames.read_now(calls)
    if described is not None:
        asked = json.loads(described.body)
        cache_dir, states, saves = Path(asked.pop("cache_dir")), Path(asked.pop("states")), asked.pop("saves")
        files = [ModelFile(**file) for file in (asked.pop("model"), asked.pop("tokenizer")) if file]
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                opened = [open_model(file, cache_dir) for file in files]
            # Before the first byte of the model reaches a parser, and while there is only one thread.
            sandbox.enter(readable=[file.path for file in opened], writable=states, listen=True)
            worker = _made(opened, states, **asked)
        except Exception as error:
            calls.sendall(frames.pack(Kind.ERROR, 0, frames.dump_error(error, f"model {files[0].id}")))
        else:
            worker.states = states if saves else None
            worker.warnings = [str(one.message) for one in caught]
            asyncio.run(worker.serve(calls, words))
            shutil.rmtree(states, ignore_errors=True)  # nobody else will, if the parent was killed
    os._exit(0)  # threads inside llama.cpp must not hold up the end


def _made(opened: Sequence[OpenModel], states: Path, *, kind: Any, **options: Any) -> _Worker:
    if kind == "gguf_encoder":
        from operators.engines.llama.encoder import LlamaEncoder

        return _EncoderWorker(opened, LlamaEncoder(opened[0], **options))
    tokenizer = opened[1] if opened[1:] else None
    return _EngineWorker(opened, make_here(kind, opened[0], states, tokenizer=tokenizer, **options))


class _Worker:
    """What a process of an engine and one of an encoder have in common."""

    def __init__(self, files: Sequence[OpenModel], held: Held) -> None:
        self.states: Path | None = None
        """Where it may write once it is loaded."""
        self.warnings: list[str] = []
        self._files, self._held = files, held
        self._who = f"model {files[0].id}"
        self._running: dict[int, asyncio.Task[None]] = {}

    def said(self) -> dict[str, Any]:
        """What the parent should know of the loaded model."""
        raise NotImplementedError

    async def result(self, frame: Frame) -> Any:
        """The answer to a call."""
        raise NotImplementedError

    def word(self, asked: dict[str, Any]) -> Any:
        """The answer to what the parent asks in passing; in a thread of its own."""
        raise NotImplementedError

    async def serve(self, calls: socket, words: socket) -> None:
        """Until the other side closes the engine, or is gone."""
        reader, self._writer = await asyncio.open_connection(sock=calls)
        loading = asyncio.create_task(self._load(words))
        while (frame := await frames.read(reader)) is not None:
            if frame.kind is Kind.CLOSE:
                await loading
                await self._close(frame.call)
                return
            self._take(frame)

    async def _load(self, words: socket) -> None:
        try:
            await self._held.start()
            for file in self._files:
                file.unchanged()
                file.close()
            guarded = sandbox.enter(memory_bytes=sandbox.private_bytes() + GROWTH, writable=self.states)
        except Exception as error:
            self._send(Kind.ERROR, 0, frames.dump_error(error, self._who))
            return
        threading.Thread(target=self._answer_words, args=(words,), daemon=True).start()
        said = self.said() | {
            "bytes": self._held.memory_bytes(),
            "warnings": self.warnings,
            "sandbox": json.loads(encode(guarded)),
        }
        self._send(Kind.HELLO, 0, frames.dump(said))

    def _send(self, kind: Kind, call: int, body: bytes = b"") -> None:
        if not self._writer.is_closing():
            self._writer.write(frames.pack(kind, call, body))

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.CANCEL:
            if frame.call in self._running:
                self._running[frame.call].cancel()
            return
        task = asyncio.create_task(self._answer(frame))
        self._running[frame.call] = task
        task.add_done_callback(lambda _: self._running.pop(frame.call, None))

    async def _answer(self, frame: Frame) -> None:
        try:
            result = await (self._held.check() if frame.kind is Kind.CHECK else self.result(frame))
        except Exception as error:
            self._send(Kind.ERROR, frame.call, frames.dump_error(error, self._who))
        else:
            self._send(Kind.RESULT, frame.call, frames.dump(result))

    def _answer_words(self, words: socket) -> None:
        """Answer the second socket, in a thread: the parent waits for these words without an event loop."""
        while (frame := frames.read_now(words)) is not None:
            try:
                kind, body = Kind.RESULT, frames.dump(self.word(json.loads(frame.body)))
            except Exception as error:
                kind, body = Kind.ERROR, frames.dump_error(error, self._who)
            words.sendall(frames.pack(kind, frame.call, body))

    async def _close(self, call: int) -> None:
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._held.close()
        self._send(Kind.RESULT, call, b"null")
        await self._writer.drain()


class _EngineWorker(_Worker):
    def __init__(self, files: Sequence[OpenModel], engine: Engine) -> None:
        super().__init__(files, engine)
        self._engine = engine

    def said(self) -> dict[str, Any]:
        return {"bos": self._engine.bos()}

    async def result(self, frame: Frame) -> Any:
        asked = json.loads(frame.body)
        if frame.kind is Kind.SCORE:
            return (await self._engine.score(**asked)).tolist()
        rest = {"slot": asked.pop("slot")} if "slot" in asked else {}
        request = Generation(**{**asked, "prompt": tuple(asked["prompt"]), "stop": tuple(asked["stop"])})
        async with contextlib.aclosing(self._engine.generate(request, **rest)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                self._send(Kind.PIECE, frame.call, encode(piece))
        return None

    def word(self, asked: dict[str, Any]) -> Any:
        if "sampled" in asked:
            return self._engine.sampled()  # type: ignore[attr-defined]
        return self._engine.tokenize(asked["text"], special=asked["special"])


class _EncoderWorker(_Worker):
    def __init__(self, files: Sequence[OpenModel], encoder: LlamaEncoder) -> None:
        super().__init__(files, encoder)
        self._encoder = encoder

    def said(self) -> dict[str, Any]:
        return {"dim": self._encoder.dim}

    async def result(self, frame: Frame) -> Any:
        made = await self._encoder.encode(json.loads(frame.body)["texts"])
        vectors = base64.b64encode(made.vectors.astype("<f4").tobytes()).decode()
        return {"vectors": vectors, "tokens": made.tokens.tolist(), "truncated": made.truncated}

    def word(self, asked: dict[str, Any]) -> Any:
        return self._encoder.count(asked["text"])


if __name__ == "__main__":
    main()
