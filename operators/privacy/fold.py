"""A text as a person reads it: full-width and foreign digits as ASCII ones, invisible signs gone, places kept.

``4１11`` and a number with a zero-width space inside are read by people as the number, so the detectors have to as
well. Every sign becomes one sign or none, which keeps the way back to the original simple and lets a text be folded
piece by piece with the same result.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

FULL_WIDTH = range(0xFF01, 0xFF5F)
"""! to ~ as East Asian keyboards write them, at a fixed distance from ASCII."""
SELECTORS = range(0xFE00, 0xFE10)
"""Variation selectors: they choose the look of the sign before them (``1️⃣``)."""


class _Signs(dict[int, str]):
    """What each code point becomes; fills itself. Only what detectors look for is changed, not all of NFKC."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        kind = unicodedata.category(sign)
        if code in FULL_WIDTH:
            became = chr(code - 0xFEE0)
        elif kind == "Cf" or code in SELECTORS:  # zero-width signs, direction marks, soft hyphens
            became = ""
        elif kind == "Nd":
            became = str(unicodedata.decimal(sign))
        elif kind == "Zs":
            became = " "
        elif kind == "Pd" or sign == "−":
            became = "-"
        else:
            became = sign
        self[code] = became
        return became


_SIGNS = _Signs()


def fold(text: str) -> tuple[str, Sequence[int]]:
    """The folded text, and for each of its signs the place in ``text`` it came from."""
    if text.isascii():
        return text, range(len(text))
    folded = text.translate(_SIGNS)
    if len(folded) == len(text):
        return folded, range(len(text))
    return folded, [place for place, sign in enumerate(text) if _SIGNS[ord(sign)]]
