"""A walk through the bytes of a GGUF header that nobody vouches for: bounded reads and steps, one kind of error."""

from __future__ import annotations

import struct
from typing import BinaryIO, NoReturn

from operators.errors import Stop

WINDOW = 1 << 16
"""Bytes in memory at a time."""
MAX_HEADER = 1 << 26
"""Bytes before the weights. The 262 144 tokens of Gemma, with scores and merges, take under 16 MB."""
MAX_STRING = 1 << 24
"""Bytes of a string that is stepped over, such as a chat template."""

_LENGTH = struct.Struct("<Q")


class Reader:
    """Where we are in ``file`` (``at``, bytes from its beginning), and the window read last.

    Every method raises ``Stop`` instead of going past the end of the file or ``MAX_HEADER``.
    """

    def __init__(self, file: BinaryIO, who: str, name: str) -> None:
        self.at = 0
        self.size = file.seek(0, 2)
        self._file = file
        self._who = who
        self._name = name
        self._from = 0
        self._window = b""

    def refuse(self, why: str) -> NoReturn:
        """Raise the error; ``why`` goes on from the file's name."""
        remedy = "the file is damaged or of a kind llama.cpp can't load: convert or download it again"
        raise Stop(self._who, f"{self._name} {why}", remedy)

    def take(self, n: int) -> bytes:
        """The next ``n`` bytes, at most ``WINDOW``."""
        self._fits(n)
        start = self.at - self._from
        if start + n > len(self._window):
            self._slide()
            start = 0
            if n > len(self._window):
                self.refuse(f"became shorter while it was read, at byte {self.at}")
        self.at += n
        return self._window[start : start + n]

    def skip(self, n: int) -> None:
        """Step over ``n`` bytes without reading them."""
        self._fits(n)
        self.at += n

    def number(self, code: str) -> int:
        """One whole number of ``struct`` code ``code``, little-endian."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def count(self, what: str, most: int, *, least: int) -> int:
        """A count of things of at least ``least`` bytes each: at most ``most``, and they must fit into the file."""
        n = self.number("Q")
        if n > most:
            self.refuse(f"claims {n} {what}; {most} is the most that is read")
        self._fits(n * least)
        return n

    def text(self, what: str, most: int) -> bytes:
        """A string of at most ``most`` bytes."""
        n = self.number("Q")
        if n > most:
            self.refuse(f"has a {what} of {n} bytes; {most} is the most that is read")
        return self.take(n)

    def skip_strings(self, count: int) -> None:
        """Step over ``count`` strings: one unpack each, so that 262 144 take tens of ms."""
        unpack, window, offset = _LENGTH.unpack_from, self._window, self.at - self._from
        for _ in range(count):
            if not 0 <= offset <= len(window) - 8:
                self.at = self._from + offset
                self._fits(8)
                self._slide()
                window, offset = self._window, 0
                if len(window) < 8:
                    self.refuse(f"became shorter while it was read, at byte {self.at}")
            (n,) = unpack(window, offset)
            if n > MAX_STRING:
                self.refuse(f"has a string of {n} bytes at byte {self._from + offset}; {MAX_STRING} is the most")
            offset += 8 + n
        self.at = self._from + offset
        self._fits(0)

    def _fits(self, n: int) -> None:
        if self.at + n > self.size:
            self.refuse(f"ends at byte {self.size}, where byte {self.at + n} of its header should be: it is cut off")
        if self.at + n > MAX_HEADER:
            self.refuse(f"has a header of more than {MAX_HEADER} bytes")

    def _slide(self) -> None:
        self._file.seek(self.at)
        self._from, self._window = self.at, self._file.read(WINDOW)
