"""What every engine does the same way: refuse what doesn't fit, and turn bytes of tokens into clean pieces of text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from operators.engines.ports import Generation
from operators.errors import Reject


def check(request: Generation, model: str, context_tokens: int) -> None:
    """Raise ``Reject`` unless prompt and completion fit the window."""
    asked = len(request.prompt) + request.max_tokens
    if asked > context_tokens:
        got = f"{len(request.prompt)} + {request.max_tokens} tokens (prompt, answer), the window has {context_tokens}"
        raise Reject(
            model, got, "shorten the messages or ask for fewer tokens", 400, "messages", "context_length_exceeded"
        )
    if not request.prompt or request.max_tokens < 1:
        got = f"{len(request.prompt)} prompt and {request.max_tokens} completion tokens"
        raise Reject(model, got, "give a prompt and ask for at least one token", 400, "max_tokens")


class Pieces:
    """Bytes in, text out: never half a character, never a stop string or what may still become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Text that is certain now. Once ``stopped``, everything before the stop string has been given out."""
        self._held += self._decoder.decode(data)
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def rest(self) -> str:
        """What was held back, once it is known that nothing follows; an unfinished character is dropped."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
