"""Phone numbers, by ``phonenumbers`` (the Python port of libphonenumber, with every country's numbering plan).

Its matcher takes any digits that a plan allows, an order number too, and reads slowly. So it sees only stretches with
enough digits, and what it finds needs a sign that it is meant as a phone number. Time is linear, but a text of nothing
but bare numbers with a trunk zero costs 0.3 ms a sign with seven regions: who takes texts from strangers limits them.
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
MARKED = re.compile(r"\+|(?<!\d)00?[1-9]|\(")
"""A plus, an international or trunk zero, or an area code in brackets."""
NORTH_AMERICAN = re.compile(r"(?:1[-.])?[2-9]\d\d([-.])[2-9]\d\d\1\d{4}")
THOUSANDS = re.compile(r"\d{1,3}(?:[ .,]\d{3})+")
DATE = re.compile(r"(?:\d{1,2}([-./])\d{1,2}\1\d{4}|(?:1[89]|20)\d\d([-./])\d{1,2}\2\d{1,2})(?!\d)")


def phones(text: str, regions: Sequence[str]) -> Iterator[Span]:
    """Phone numbers with a country code, and national ones of ``regions`` (ISO 3166, e.g. ``US``)."""
    for stretch in STRETCH.finditer(text):
        if (
            not MARKED.search(stretch[0])
            and not NORTH_AMERICAN.search(stretch[0])
            and not _announced(text, *stretch.span())
        ):
            continue  # most numbers of a text end here, before the slow part
        yield from _within(text, stretch.start(), stretch.end(), regions)


def _within(text: str, start: int, end: int, regions: Sequence[str]) -> Iterator[Span]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    if end < len(text) and text[end].isalnum() and text[end].isascii():
        end = start + len(text[start:end].rstrip("0123456789"))  # the last group belongs to a word
    row = text[start:end]
    spans = {
        (start + match.start, start + match.end)
        for region in regions or (None,)
        for match in PhoneNumberMatcher(row, region, Leniency.VALID, max_tries=len(row))
    }
    taken: list[Span] = []
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if _is_meant(text, *span) and (not taken or span[0] >= taken[-1][1]):
            taken.append(span)
            yield span


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
