"""Sentences of a text, without losing a character: joined, the units of ``split(text)`` are ``text`` again.

The unit is what a reader would not want cut: a sentence of prose, a list item, a heading, a line of code or of a table.
Rules instead of a model, because this also runs on the hot path (attend's summary). The prose rule is the usual one
(end mark, closing quotes, space, then no small letter) with the abbreviation list of Kiss and Strunk's "Punkt" task
(Unsupervised Multilingual Sentence Boundary Detection, 2006) cut down to what English and German use most.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BEFORE_WORDS = "mr mrs ms dr prof st gen col lt sgt capt rev hon vs cf ca e.g i.e z.b d.h vgl bzw evtl ggf"
BEFORE_WORDS = frozenset(_BEFORE_WORDS.split())
"""Words (small letters, last dot left out) after which a full stop ends no sentence."""
_BEFORE_NUMBERS = (
    "no nos nr fig figs eq eqs vol p pp ch sec art abs abb tab bd jan feb mar apr jun jul aug sep oct nov dec"
)
BEFORE_NUMBERS = frozenset(_BEFORE_NUMBERS.split())
"""Words after which a full stop ends no sentence if a number follows."""

HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*)")
"""A heading line, as in Markdown: its marks and its words."""
FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
"""The line that opens or closes a block of code."""

_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S")
_ROW = re.compile(r"[ \t]*\|")
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+\s++|[。！？｡]+[」』）”’]*\s*")
_LAST_WORD = re.compile(r"[^\s\"'“‘«(\[]+$")
WORD = re.compile(r"[⺀-鿿぀-ヿ가-힣]|[^\W_]+(?:[-'’._][^\W_]+)*")
"""A word for matching: letters and digits with inner ``-'._``; each CJK character is a word of its own."""


class Unit(NamedTuple):
    """One unit with the white space behind it. ``level`` is 1…6 for a heading line, else 0."""

    text: str
    level: int = 0

    @property
    def title(self) -> str:
        """The words of a heading."""
        return self.text.strip().lstrip("#").strip()


def split(text: str) -> list[Unit]:
    """The units of ``text`` in order."""
    units: list[Unit] = []
    for block, prose, level in _blocks(text):
        units.extend([Unit(sentence) for sentence in _prose(block)] if prose else [Unit(block, level)])
    return units


def _blocks(text: str) -> list[tuple[str, bool, int]]:
    """Lines that belong together: (text, do prose rules apply, heading level). Code and table rows go line by line."""
    blocks: list[tuple[str, bool, int]] = []
    pending: list[str] = []
    fence = ""

    def flush() -> None:
        if pending:
            blocks.append(("".join(pending), True, 0))
            pending.clear()

    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if fence or mark:
            flush()
            blocks.append((line, False, 0))
            if mark and not fence:
                fence = mark[1]
            elif mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif not line.strip():
            _attach(blocks, pending, line)
            flush()
        elif (marks := HEADING.match(line)) or _ROW.match(line):
            flush()
            blocks.append((line, False, len(marks[1]) if marks else 0))
        else:
            if _ITEM.match(line):
                flush()
            pending.append(line)
    flush()
    return blocks


def _attach(blocks: list[tuple[str, bool, int]], pending: list[str], blank: str) -> None:
    """A blank line belongs to what stands before it."""
    if pending or not blocks:
        pending.append(blank)
    else:
        text, prose, level = blocks[-1]
        blocks[-1] = (text + blank, prose, level)


def _prose(block: str) -> list[str]:
    sentences: list[str] = []
    begin = 0
    for mark in _END.finditer(block):
        end = mark.end()
        if end < len(block) and _ends(block, begin, mark):
            sentences.append(block[begin:end])
            begin = end
    sentences.append(block[begin:])
    return sentences


def _ends(block: str, begin: int, mark: re.Match[str]) -> bool:
    """Does the punctuation at ``mark`` end a sentence?"""
    if mark[0][0] in "。！？｡":
        return True
    if block[mark.end()].islower():
        return False
    if mark[0].rstrip() != ".":
        return True
    word = _LAST_WORD.search(block, max(begin, mark.start() - 40), mark.start())
    if word is None:
        return True
    bare = word[0].lower()
    initial = len(bare) == 1 and bare.isalpha()
    numbered = bare.isdigit() and not block[begin : mark.start()].strip(" \t0123456789")
    before_number = bare in BEFORE_NUMBERS and block[mark.end()].isdigit()
    return not (initial or numbered or before_number or bare in BEFORE_WORDS)
