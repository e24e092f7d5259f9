"""Phone numbers, by ``phonenumbers`` (the Python port of libphonenumber, with every country's numbering plan).

Its matcher takes any digits that a plan allows, an order number too, and reads slowly: 30 to 110 µs a try. So it sees
only rows of digits that could be meant as a phone number, and may try only so often in a text (``Tries``). Rows that
could be meant and have no tries left are masked whole: too much is the safe side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from operators.privacy import Span

STRETCH = re.compile(
    r"(?<![0-9+(])(?:(?=[+(])|(?<![A-Za-z_])(?<!\d:)(?<!\d[ ()./-]))[+(]{0,2}\d(?:[ ()./-]{0,3}\d){6,}+"
)
"""A row of seven digits or more with at most three signs between two of them."""
WORD = (
    r"(?:\bt[eé]l(?:\b|[eé]?f)|\bphone|\bfax|\bcell|\bmobil|\bmóvil|\bcelular|\bhandy|\bwhats|\bsms|\bcall|\bdial"
    r"|\bring\b|\breach\b|\bllam|\bappel|\bjoign|\bchiam|\banruf|\brückruf|\bbel(?:len)?\b|\bligue|\bzadzwo"
    r"|\bтел|\bзвон|电话|電話|전화|फ़?ोन|☎|📞)"
)
WORD_BEFORE = re.compile(WORD + r"[^\n]{0,24}\Z", re.I)
WORD_AFTER = re.compile(r"[^\n.,;:!?]{0,16}?" + WORD, re.I)
"""Words and signs that announce a phone number, up to 24 signs before it or 16 after it in the same clause."""
MARKED = re.compile(r"\+|00?[1-9]|\(")
"""A plus, an international or trunk zero, or an area code in brackets."""
NORTH_AMERICAN = re.compile(r"(?:1[-.])?[2-9]\d\d([-.])[2-9]\d\d\1\d{4}")
THOUSANDS = re.compile(r"\d{1,3}(?:[ .,]\d{3})+")
DATE = re.compile(r"(?:\d{1,2}([-./])\d{1,2}\1\d{4}|(?:1[89]|20)\d\d([-./])\d{1,2}\2\d{1,2})(?!\d)")
WHOLE_DATE = re.compile(rf"(?<!\d)(?<!\d[./-])(?:{DATE.pattern})")
OPENED = re.compile(r"[+(](?=(?:[ ()./-]{0,6}\d){7})|[2-9]\d\d([-.])[2-9]\d\d\1\d{4}")
WITH_ZERO = re.compile(r"(?<!\d)(?=(?:\d[ ()./-]{0,3}){7})(00?[1-9]\d*+)(?=[ ()./-]{1,3}(\d++))")
"""A first group with a trunk zero, and the group after it."""
MOST_DIGITS = 17
"""00 and the 15 digits of E.164."""
MOST_TRIES = 1000
SIGNS_A_TRY = 40
HEAVIEST = 9
"""What a try costs at most: one in a long row counts for several."""


class Tries:
    """How often the slow matcher may still try in one text, besides one try for every 40 signs of a piece.

    What a piece costs depends on the piece alone, and the pieces that are left of a masked text were all searched when
    it was masked. So a second masking has tries enough for them, and finds what the first one found in them: nothing.
    """

    def __init__(self) -> None:
        self.left = MOST_TRIES


def phones(text: str, regions: Sequence[str], tries: Tries) -> Iterator[Span]:
    """Phone numbers with a country code, and national ones of ``regions`` (ISO 3166, e.g. ``US``)."""
    own = len(text) // SIGNS_A_TRY
    for stretch in STRETCH.finditer(text):
        start, end = stretch.span()
        if not _may_be_meant(stretch[0]) and not _announced(text, start, end):
            continue  # most numbers of a text end here, before the slow part
        if end < len(text) and text[end].isalnum() and text[end].isascii():
            end = start + len(text[start:end].rstrip("0123456789"))  # the last group belongs to a word
        spans, spent = _matches(text, start, end, regions, own + tries.left)
        tries.left -= max(0, spent - own)
        own = max(0, own - spent)
        if spans is not None:
            yield from _meant(text, spans)
        elif start < end:
            yield start, end


def _matches(text: str, start: int, end: int, regions: Sequence[str], most: int) -> tuple[set[Span] | None, int]:
    """What the plans of ``regions`` allow in the row ``start:end``, and the tries it took; ``None``: ``most`` were
    too few."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    row, spans, spent = text[start:end], set[Span](), 0
    if most < HEAVIEST:
        return None, most
    weight = min(HEAVIEST, 1 + len(row) // 64)  # a try reads as far as a row goes, and less than 512 signs
    for region in regions or (None,):
        given = max(1, (most - spent) // weight)
        matcher = PhoneNumberMatcher(row, region, Leniency.VALID, max_tries=given)
        taken = 0
        for match in matcher:
            spans.add((start + match.start, start + match.end))
            taken += 1
            if taken >= matcher._max_tries:  # which it counts down with every failed try
                break
        spent += weight * max(1, taken + given - matcher._max_tries)
        if spent + HEAVIEST > most:  # the same room for all, so that it doesn't matter which row comes first
            return None, most
        if (start, end) in spans and _is_meant(text, start, end):
            break  # no other region could find more
    return spans, spent


def _meant(text: str, spans: set[Span]) -> Iterator[Span]:
    taken: list[Span] = []
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if _is_meant(text, *span) and (not taken or span[0] >= taken[-1][1]):
            taken.append(span)
            yield span


def _may_be_meant(row: str) -> bool:
    """Whether a number could begin somewhere that ``_is_meant`` lets pass though no word announces it. In dates, times
    and bare numbers none can."""
    row = WHOLE_DATE.sub("x", row)
    return OPENED.search(row) is not None or any(
        len(match[1]) + len(match[2]) <= MOST_DIGITS for match in WITH_ZERO.finditer(row)
    )


def _announced(text: str, start: int, end: int) -> bool:
    return bool(WORD_BEFORE.search(text, max(0, start - 40), start) or WORD_AFTER.match(text, end, end + 32))


def _is_meant(text: str, start: int, end: int) -> bool:
    """Whether digits that a plan allows are also written as a phone number, or announced as one."""
    value = text[start:end]
    if value.startswith("+") or _announced(text, start, end):
        return True
    if THOUSANDS.fullmatch(value) or DATE.match(value):
        return False
    return bool(NORTH_AMERICAN.fullmatch(value) or (MARKED.match(value) and not value.isdigit()))
