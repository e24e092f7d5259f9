"""The process of one engine: ``python -m operators.engines.worker CALLS WORDS``, two sockets that it inherits.

It loads the model, locks itself in (``sandbox``), and answers ``EngineProcess`` until that closes its end: then it
ends at once, whatever it is doing, so nothing is left behind by a parent that was killed.
"""

from __future__ import annotations

import asyncio
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
from typing import Any

from operators.engines import frames, sandbox
from operators.engines.frames import Frame, Kind
from operators.engines.make import make_here
from operators.engines.models import OpenModel, open_model
from operators.engines.ports import Engine, Generation
from operators.records import encode
from operators.tiers import ModelFile

GROWTH = 512 << 20
"""Bytes of private memory that a loaded engine may take besides."""


def main() -> None:
    """Serve the engine that the first frame describes."""
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
            tokenizer = opened[1] if opened[1:] else None
            engine = make_here(model=opened[0], states=states, tokenizer=tokenizer, **asked)
        except Exception as error:
            calls.sendall(frames.pack(Kind.ERROR, 0, frames.dump_error(error, f"model {files[0].id}")))
        else:
            worker = _Worker(opened, engine, states if saves else None, words)
            worker.warnings = [str(one.message) for one in caught]
            asyncio.run(worker.serve(calls))
            shutil.rmtree(states, ignore_errors=True)  # nobody else will, if the parent was killed
    os._exit(0)  # threads inside llama.cpp must not hold up the end


class _Worker:
    def __init__(self, files: Sequence[OpenModel], engine: Engine, states: Path | None, words: socket) -> None:
        self.warnings: list[str] = []
        self._files, self._engine, self._states = files, engine, states
        self._who = f"engine {engine.model}"
        self._words = words
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self, calls: socket) -> None:
        """Until the other side closes the engine, or is gone."""
        reader, self._writer = await asyncio.open_connection(sock=calls)
        loading = asyncio.create_task(self._load())
        while (frame := await frames.read(reader)) is not None:
            if frame.kind is Kind.CLOSE:
                await loading
                await self._close(frame.call)
                return
            self._take(frame)

    async def _load(self) -> None:
        try:
            await self._engine.start()
            for file in self._files:
                file.unchanged()
                file.close()
            guarded = sandbox.enter(memory_bytes=sandbox.private_bytes() + GROWTH, writable=self._states)
        except Exception as error:
            self._send(Kind.ERROR, 0, frames.dump_error(error, self._who))
            return
        threading.Thread(target=self._tokenize, daemon=True).start()
        said = {
            "bos": self._engine.bos(),
            "bytes": self._engine.memory_bytes(),
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
            result = await self._result(frame)
        except Exception as error:
            self._send(Kind.ERROR, frame.call, frames.dump_error(error, self._who))
        else:
            self._send(Kind.RESULT, frame.call, frames.dump(result))

    async def _result(self, frame: Frame) -> Any:
        asked = json.loads(frame.body)
        if frame.kind is Kind.SCORE:
            return (await self._engine.score(**asked)).tolist()
        if frame.kind is Kind.CHECK:
            return await self._engine.check()
        rest = {"slot": asked.pop("slot")} if "slot" in asked else {}
        request = Generation(**{**asked, "prompt": tuple(asked["prompt"]), "stop": tuple(asked["stop"])})
        async with contextlib.aclosing(self._engine.generate(request, **rest)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                self._send(Kind.PIECE, frame.call, encode(piece))
        return None

    def _tokenize(self) -> None:
        """Answer the second socket, in a thread: the parent waits for these words without an event loop."""
        while (frame := frames.read_now(self._words)) is not None:
            try:
                asked = json.loads(frame.body)
                if "sampled" in asked:
                    body = frames.dump(self._engine.sampled())  # type: ignore[attr-defined]
                else:
                    body = frames.dump(self._engine.tokenize(asked["text"], special=asked["special"]))
                kind = Kind.RESULT
            except Exception as error:
                kind, body = Kind.ERROR, frames.dump_error(error, self._who)
            self._words.sendall(frames.pack(kind, frame.call, body))

    async def _close(self, call: int) -> None:
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._engine.close()
        self._send(Kind.RESULT, call, b"null")
        await self._writer.drain()


if __name__ == "__main__":
    main()
