"""llama.cpp's server in a process of its own, with the sessions' states under our control (``slots``)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from operators.engines import text
from operators.engines.child.engine import EngineProcess
from operators.engines.llama.llama_server import DOOR
from operators.engines.llama.slots import Slots
from operators.engines.ports import Generated, Generation
from operators.errors import Retry
from operators.tiers import ModelFile

ACT_S = 10.0
"""Seconds a state may take to be saved or read back."""


class SlottedProcess(EngineProcess):
    """``Engine`` with ``parallel`` slots. Up to ``states_bytes`` of the states of sessions that lost their slot are
    kept in files."""

    def __init__(
        self,
        model: ModelFile,
        cache_dir: Path,
        *,
        context_tokens: int,
        parallel: int = 1,
        threads: int = 0,
        states_bytes: int = 0,
    ) -> None:
        common: dict[str, Any] = {"context_tokens": context_tokens, "parallel": parallel, "threads": threads}
        super().__init__("llama_server", model, cache_dir, **common, saves=states_bytes > 0)
        self._parallel, self._states_bytes = parallel, states_bytes
        self._opened = contextlib.AsyncExitStack()
        self._asked = 0

    async def start(self) -> None:
        """Start the process and load the weights in it. Raises ``Stop`` if they are missing, wrong or too big."""
        await super().start()
        directory = os.open(self._states, os.O_RDONLY | os.O_DIRECTORY)
        self._opened.callback(os.close, directory)
        # A socket's path has at most 107 bytes, and a data directory may lie deep.
        linked = f"/proc/self/fd/{directory}"
        door = Path(linked if sys.platform == "linux" else self._states) / DOOR
        # Each act has a connection of its own: the server closes one that was idle for 5 s, even while we write to it.
        transport = httpx.AsyncHTTPTransport(uds=str(door), limits=httpx.Limits(max_keepalive_connections=0))
        client = httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=ACT_S)
        self._door = await self._opened.enter_async_context(client)
        self.slots = Slots(self._parallel, self._act, directory=self._states, max_bytes=self._states_bytes)

    async def _act(self, slot: int, action: str, file: str) -> int:
        try:
            answer = await self._door.post(f"/slots/{slot}?action={action}", json={"filename": file} if file else {})
            said = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Retry(self._who, f"{action} of slot {slot}: {error!r}", "try again") from error
        if answer.status_code != 200 or not isinstance(said, dict):
            raise Retry(self._who, f"{action} of slot {slot}: {answer.status_code} {said}", "try again")
        written = said.get("n_written", 0)
        return written if isinstance(written, int) else 0

    def generate(self, request: Generation) -> AsyncGenerator[Generated, None]:
        """Stream the answer, from the session's own state. Raises ``Reject`` if it can't fit."""
        text.check(request, self.model, self.context_tokens)
        return self._in_slot(request)

    async def _in_slot(self, request: Generation) -> AsyncGenerator[Generated, None]:
        self._usable()
        self._asked += 1
        try:
            async with (
                self.slots.take(request.scope, request.session, request.prompt) as slot,
                contextlib.aclosing(self._generate(request, slot=slot)) as pieces,
            ):
                async for piece in pieces:
                    yield piece
        finally:
            self._asked -= 1

    async def score(self, prompt: Sequence[int], choices: Sequence[str]) -> npt.NDArray[np.float64]:
        """log p(first token of choice | prompt): float64[len(choices)], softmax over the whole vocabulary."""
        self._usable()
        self._asked += 1
        try:
            async with self.slots.take("", "", prompt) as slot:
                return await self._score(prompt, choices, slot=slot)
        finally:
            self._asked -= 1

    def queue(self) -> int:
        """Requests waiting or running now."""
        return self._asked

    async def close(self) -> None:
        """End the streams with ``Retry``, stop what runs, end the process and remove the states."""
        await super().close()
        await self._opened.aclose()
