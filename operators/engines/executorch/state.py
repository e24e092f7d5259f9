"""What a language model's program remembers: which tokens it has read, for whom, and how it forgets them.

Keys and values are kept by position: to go back, read on from an earlier one. The short convolutions of LFM2 also keep
their last inputs, whatever the position, so that a new text would be read as if it followed the old one. Where the
export kept the names of those buffers, they are set to zero, or to what they were at the end of the last prompt if a
new one goes on from there; else the program is loaded anew for every text that does not go on where the last one ended.
Which of this a program needs is tried out when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from operators.engines.executorch.runtime import Program
from operators.engines.files.models import OpenModel

Logits = npt.NDArray[np.float32]
BUFFER = "layers.{layer}.conv.conv_state"
"""Name of a short convolution's buffer."""
PROBE = (3, 5, 7)
"""Tokens of the trial."""


class State:
    """The tokens that ``program`` has read and the logits after them. Not for several threads at once.

    ``step``: most tokens it reads in one call. ``layers``: how many may have a buffer.
    """

    def __init__(self, program: Program, model: OpenModel, step: int, layers: int) -> None:
        self._program, self._step = program, step
        self._data, self._scope = b"", ""
        self._tokens: list[int] = []
        self._logits: Logits = np.zeros(0, np.float32)
        self._marked: tuple[int, Logits, list[Logits]] = (0, self._logits, [])
        self._touched = False
        """Whether anything was read that is to be forgotten."""
        found = (program.state(BUFFER.format(layer=layer)) for layer in range(layers))
        self._buffers = [buffer for buffer in found if buffer is not None]
        fresh = self._trial()
        self.recurrent = not np.array_equal(fresh, self._trial())
        """Whether it remembers more than keys and values, so that only what goes on where it is can be reused."""
        if self.recurrent and not self._cleared(fresh):
            # Read now: later, locked in, this process opens no file any more.
            model.file.seek(0)
            self._data, self._buffers = model.file.read(), []
        self._forget()

    @property
    def reloads(self) -> bool:
        """Whether it has to load the program anew for every new text."""
        return bool(self._data)

    @property
    def bytes(self) -> int:
        """Bytes kept to load the program anew."""
        return len(self._data)

    def begin(self, prompt: Sequence[int], scope: str) -> int:
        """Go back to what ``prompt`` begins with, or forget all, and say how many of its tokens are known.

        What another ``scope`` read is never reused.
        """
        same = min(len(prompt), len(self._tokens)) if scope == self._scope else 0
        known = next((i for i in range(same) if prompt[i] != self._tokens[i]), same)
        if known < len(self._tokens):
            if self.recurrent:
                known = self._back_to_mark(known)
            elif known == len(prompt):
                known -= 1  # the logits after it are gone: its last token has to be read again
        if known == 0 and self._touched:
            self._forget()
        del self._tokens[known:]
        self._scope = scope
        return known

    def read(self, prompt: Sequence[int], stopped: Callable[[], bool]) -> Logits | None:
        """The logits float32[vocabulary] after ``prompt``, of which what is known is not read again; ``None`` once
        ``stopped``."""
        while len(self._tokens) < len(prompt):
            if stopped():
                return None
            at = len(self._tokens)
            some = list(prompt[at : at + self._step])
            self._touched = True
            try:
                out = self._program.forward(np.array([some], np.int64), np.array([at], np.int64))[0]
            except BaseException:
                self._forget()  # how far it came, nobody knows
                raise
            self._logits = np.asarray(out.reshape(-1, out.shape[-1])[-1], np.float32)
            self._tokens += some
        return self._logits

    def mark(self) -> None:
        """Remember this place, to come back to it when another prompt goes on from here."""
        if self._buffers:
            self._marked = len(self._tokens), self._logits, [buffer.copy() for buffer in self._buffers]

    def _back_to_mark(self, known: int) -> int:
        """Put the buffers back to the mark if it is within the first ``known`` tokens; where that leads, or 0."""
        at, logits, buffers = self._marked
        if not 0 < at <= known:
            return 0
        for buffer, kept in zip(self._buffers, buffers, strict=True):
            buffer[...] = kept
        self._logits = logits
        return at

    def _trial(self) -> Logits:
        """Logits after one token, as if at the beginning; it has then read others."""
        self._forgotten()
        self.read(PROBE[:1], lambda: False)
        logits = self._logits
        self._tokens.clear()
        self.read(PROBE, lambda: False)
        return logits

    def _cleared(self, fresh: Logits) -> bool:
        """Whether it forgets what it read once its buffers are zero."""
        self._zero()
        return bool(self._buffers) and np.array_equal(fresh, self._trial())

    def _forget(self) -> None:
        if self._data:
            self._program = self._program.anew(self._data)
        self._zero()
        self._forgotten()

    def _zero(self) -> None:
        for buffer in self._buffers:
            buffer[...] = 0

    def _forgotten(self) -> None:
        self._tokens, self._touched = [], False
        self._marked = (0, self._logits, [])
