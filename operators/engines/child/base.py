"""A model in a process of its own: what goes wrong inside llama.cpp ends that process, never this one.

The child loads the model, locks itself in and serves until this side closes its socket (``child.worker``). What comes
from it is checked like input from outside: whoever wrote the model file may have taken it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO, Any

from operators.engines.child import frames
from operators.engines.child.frames import Frame, Kind
from operators.engines.child.sandbox import Sandbox
from operators.errors import Retry, RuvError, Stop
from operators.records import decode
from operators.tiers import ModelFile

WORDS_S = 5.0
"""Seconds until a process that doesn't even tokenize is given up; it takes microseconds."""
PASSED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")
PREFIXES = ("LC_", "OMP_", "GGML_", "CUDA_")
"""What an engine gets of our environment."""
_log = logging.getLogger("ruvllm.engine")
END_S = 10.0
"""Seconds a closed engine may take to end by itself."""


class Child:
    """A process that holds one model (``kind``: an engine, or an encoder) and what it is asked by frames.

    Its directory under ``cache_dir``/states is its own and goes with it; only one that ``saves`` states there may write
    once it is loaded. ``options`` are those of the class that the child makes (``make.make_here``).
    """

    noun = "engine"

    def __init__(
        self,
        kind: str,
        model: ModelFile,
        cache_dir: Path,
        *,
        saves: bool = False,
        tokenizer: ModelFile | None = None,
        **options: Any,
    ) -> None:
        self.model = model.id
        self.sandbox: Sandbox | None = None
        """What holds the process in, once it has started."""
        self.pid = 0
        self._described: dict[str, Any] = options | {
            "kind": kind,
            "model": model.model_dump(mode="json"),
            "cache_dir": str(cache_dir),
            "saves": saves,
            "tokenizer": tokenizer.model_dump(mode="json") if tokenizer else None,
        }
        self._all_states = cache_dir / "states"
        self._who = f"{self.noun} {model.id}"
        self._process: subprocess.Popen[bytes] | None = None
        self._last_words: deque[str] = deque(maxlen=8)
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Queue[Frame | RuvError]] = {}
        self._gone: RuvError | None = None
        self._words_lock = threading.Lock()
        self._running = 0

    async def start(self) -> None:
        """Start the process and load the weights in it. Raises ``Stop`` if they are missing, wrong or too big."""
        self._states = await asyncio.to_thread(_own, self._all_states)
        self._described["states"] = str(self._states)
        calls, their_calls = socket.socketpair()
        self._words, their_words = socket.socketpair()
        self._words.settimeout(WORDS_S)
        try:
            with their_calls, their_words:
                process = await asyncio.to_thread(_spawn, their_calls.fileno(), their_words.fileno(), self._states)
        except OSError as error:
            calls.close()
            self._words.close()
            raise Stop(self._who, f"no process: {error}", "free memory, or raise the limit of processes") from error
        self._process, self.pid = process, process.pid
        assert process.stderr is not None  # noqa: S101 - it was asked for
        self._listening = threading.Thread(target=self._listen, args=(process.stderr,), daemon=True)
        self._listening.start()
        reader, self._writer = await asyncio.open_connection(sock=calls)
        hello: asyncio.Queue[Frame | RuvError] = asyncio.Queue()
        self._calls[0] = hello
        self._reading = asyncio.create_task(self._read(reader))
        self._send(Kind.GENERATE, 0, frames.dump(self._described))
        try:
            answer = await hello.get()
            if isinstance(answer, Frame) and answer.kind is Kind.ERROR:
                raise frames.load_error(answer.body)
            if not isinstance(answer, Frame):
                remedy = "check that the file is a model this engine knows and that its context fits into memory"
                raise Stop(f"model {self.model}", f"loading it ended its process: {answer.got}", remedy)
            said = json.loads(answer.body)
            self._loaded_bytes = int(said["bytes"])
            self.sandbox = decode(Sandbox, json.dumps(said["sandbox"]))
            self._loaded(said)
        except BaseException:
            await self._end()
            raise
        self._calls.pop(0)
        if self.sandbox.missing:
            _log.warning("%s is not fully locked in: %s", self._who, "; ".join(self.sandbox.missing))
        for warning in said["warnings"]:
            warnings.warn(str(warning), stacklevel=2)

    def _loaded(self, said: dict[str, Any]) -> None:
        """What the child said of the model it has loaded."""

    def _listen(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                self._last_words.append(line.decode("utf-8", "replace").strip()[:500])

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand every frame to the call it belongs to, until the process is gone."""
        got = ""
        try:
            while (frame := await frames.read(reader)) is not None:
                if frame.call in self._calls:
                    self._calls[frame.call].put_nowait(frame)
        except ValueError as error:
            got = f"it sent {error}"
        assert self._process is not None  # noqa: S101 - start() made it
        if got:
            self._process.kill()
        code = await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(self._listening.join, 1.0)
        how = f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"
        self._leave(Retry(self._who, "; ".join([got or how, *self._last_words]), "try again"))

    def _leave(self, error: RuvError) -> None:
        """Nothing works from here on: tell everybody who waits. The first reason stands."""
        self._gone = self._gone or error
        for waiting in self._calls.values():
            waiting.put_nowait(self._gone)

    def _send(self, kind: Kind, call: int, body: bytes = b"") -> None:
        if not self._writer.is_closing():
            self._writer.write(frames.pack(kind, call, body))

    def _usable(self) -> None:
        if self._gone is not None:
            raise self._gone
        if self._process is None:
            raise Stop(self._who, "no process", "await start() first")

    async def _call(self, kind: Kind, asked: object) -> AsyncGenerator[Frame, None]:
        """The pieces as they come, then the result. Leaving early cancels the call."""
        self._usable()
        call, answers, over = next(self._numbers), asyncio.Queue[Frame | RuvError](), False
        self._calls[call] = answers
        self._running += kind is not Kind.CHECK
        try:
            self._send(kind, call, frames.dump(asked))
            while not over:
                answer = await answers.get()
                over = isinstance(answer, RuvError) or answer.kind is not Kind.PIECE
                if isinstance(answer, RuvError):
                    raise answer
                if answer.kind is Kind.ERROR:
                    raise frames.load_error(answer.body)
                yield answer
        finally:
            self._running -= kind is not Kind.CHECK
            del self._calls[call]
            if not over:
                self._send(Kind.CANCEL, call)

    def _word(self, asked: object) -> Any:
        self._usable()
        with self._words_lock:
            try:
                self._words.sendall(frames.pack(Kind.WORD, 0, frames.dump(asked)))
                answer = frames.read_now(self._words)
            except OSError as error:
                raise Retry(self._who, f"no word of its process: {error}", "try again") from error
        if answer is None:
            raise Retry(self._who, "its process has ended", "try again")
        if answer.kind is Kind.ERROR:
            raise frames.load_error(answer.body)
        return json.loads(answer.body)

    async def _one(self, kind: Kind, asked: object) -> Frame:
        async with contextlib.aclosing(self._call(kind, asked)) as answers:
            return await anext(answers)

    async def check(self) -> None:
        """The process answers, and its engine takes work."""
        await self._one(Kind.CHECK, None)

    def memory_bytes(self) -> int:
        """Resident bytes of the process, where the kernel tells (Linux); else what the engine reckoned."""
        if self._process is None or self._gone is not None:
            return 0
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, ValueError):
            return self._loaded_bytes
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def close(self) -> None:
        """End the streams with ``Retry``, stop what runs and end the process."""
        if self._process is None:
            return
        self._send(Kind.CLOSE, next(self._numbers))
        self._leave(Retry(self._who, "the model is closed", "ask another replica"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), END_S)
        await self._end()

    async def _end(self) -> None:
        assert self._process is not None  # noqa: S101 - only called after it was started
        self._process.kill()
        await self._reading
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._words.close()
        await asyncio.to_thread(shutil.rmtree, self._states, ignore_errors=True)


def _own(parent: Path) -> Path:
    """A new directory of this process. Those of processes that were killed go."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.iterdir():
        pid = left.name.partition("-")[0]
        with contextlib.suppress(PermissionError):
            try:
                os.kill(int(pid), 0)
            except (ProcessLookupError, ValueError):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-"))


def _spawn(calls: int, words: int, states: Path) -> subprocess.Popen[bytes]:
    python = Path(sys.executable)
    own = python.with_name("ruvllm-engine")  # a name that AppArmor may know (docs/sandbox.md)
    command = [str(own if own.exists() else python), "-m", "operators.engines.child.worker", str(calls), str(words)]
    # No secret of ours is in the child's reach.
    passed = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith(PREFIXES)}
    ours = {
        # A Ray worker finds our modules through its sys.path, which no child inherits.
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
        # One thread of numpy's: Landlock wants to come before the second thread, and numpy does nothing here.
        "OPENBLAS_NUM_THREADS": "1",
        "TMPDIR": str(states),
    }
    return subprocess.Popen(  # noqa: S603 - our own module, arguments not from a shell
        command,
        pass_fds=(calls, words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=passed | ours,
    )
