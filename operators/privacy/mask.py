"""``mask``: a text without personal data and credentials, and where they were.

Names of people are not masked: that takes a language model a language (see DECISIONS.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from operators.privacy import Span
from operators.privacy.addresses import emails, ips
from operators.privacy.credentials import credentials, random_runs
from operators.privacy.fold import fold
from operators.privacy.numbers import cards, ibans
from operators.privacy.phones import Tries, phones

Kind = Literal["SECRET", "EMAIL", "IBAN", "CARD", "IP", "PHONE"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PLACEHOLDER = re.compile(rf"\[({'|'.join(KINDS)})(?:_(\d{{1,9}}))?\]")
MOST = 10**8
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN")
"""Countries whose national phone numbers are known without their country code; each costs time per number."""

Detector = Callable[[str], Iterator[Span]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One personal value: its ``kind`` (of ``KINDS``) and its place ``start:end`` in the original text."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """The masked text, and what was found, in order of place, never overlapping."""

    text: str
    found: tuple[Finding, ...]


def mask(text: str, regions: Sequence[str] = REGIONS, kinds: Sequence[str] = KINDS) -> Masked:
    """``text`` with every personal value of ``kinds`` replaced by its kind: ``[EMAIL]``.

    Several different values of a kind are numbered in order, equal ones alike (``[EMAIL_1]``), counting on from
    placeholders that are there already. Masking a masked text changes nothing. Numbers say what is equal within one
    text only: they do not link texts, or the placeholder would become a name for a person.
    """
    folded, places = fold(text)
    found = sorted(_find(folded, [one for one in _detectors(regions) if one[0] in kinds]))
    if not found:
        return Masked(text=text, found=())
    names = _Names(folded)
    for start, end, kind in found:
        names.add(kind, folded[start:end])
    out, at, findings = [], 0, []
    for start, end, kind in found:
        first, last = places[start], places[end - 1] + 1
        out += [text[at:first], names.of(kind, folded[start:end])]
        findings.append(Finding(kind=kind, start=first, end=last))
        at = last
    return Masked(text="".join([*out, text[at:]]), found=tuple(findings))


def _detectors(regions: Sequence[str]) -> list[tuple[str, Detector]]:
    """In order of trust: what an earlier one takes, a later one does not see. For one text: tries are counted."""
    tries = Tries()
    return [
        ("SECRET", credentials),
        ("EMAIL", emails),
        ("IBAN", ibans),
        ("CARD", cards),
        ("IP", ips),
        ("PHONE", lambda text: phones(text, regions, tries)),
        ("SECRET", random_runs),
    ]


def _find(text: str, detectors: list[tuple[str, Detector]]) -> Iterator[tuple[int, int, str]]:
    """Search the pieces between placeholders, then what is left of each piece again, until nothing is found.

    A piece is searched without its neighbours. The pieces left at the end are those between the placeholders of the
    masked text, and nothing is found in them: that is why masking twice is masking once.
    """
    todo = _gaps(0, len(text), [match.span() for match in PLACEHOLDER.finditer(text)])
    while todo:
        start, end = todo.pop()
        cuts: list[Span] = []
        for kind, detector in detectors:
            for a, b in _gaps(start, end, sorted(cuts)):
                for span in _apart(detector(text[a:b])):
                    cuts.append((a + span[0], a + span[1]))
                    yield *cuts[-1], kind
        if cuts:
            todo += _gaps(start, end, sorted(cuts))


def _gaps(start: int, end: int, cuts: list[Span]) -> list[Span]:
    """What ``cuts`` (in order, apart) leave of ``start:end``."""
    edges = [start, *(edge for cut in cuts for edge in cut), end]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _apart(spans: Iterator[Span]) -> list[Span]:
    """The spans in order; of overlapping ones their union."""
    apart: list[Span] = []
    for start, end in sorted(spans):
        if apart and start < apart[-1][1]:
            apart[-1] = apart[-1][0], max(end, apart[-1][1])
        else:
            apart.append((start, end))
    return apart


class _Names:
    """Placeholders: equal values of a kind get equal ones."""

    def __init__(self, text: str) -> None:
        self._before: dict[str, int] = {}
        self._values: dict[str, dict[str, int]] = {}
        for kind, number in PLACEHOLDER.findall(text):
            used = int(number or 1) % MOST  # a made-up number must not push ours out of the pattern
            self._before[kind] = max(used, self._before.get(kind, 0))

    def add(self, kind: str, value: str) -> None:
        values = self._values.setdefault(kind, {})
        values.setdefault(value, len(values) + 1 + self._before.get(kind, 0))

    def of(self, kind: str, value: str) -> str:
        values = self._values[kind]
        alone = len(values) == 1 and kind not in self._before
        return f"[{kind}]" if alone else f"[{kind}_{values[value]}]"
