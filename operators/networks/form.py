"""The form of a query: what can be read off a text without understanding it. Raw values, in the order of ``FORM``.

Length, structure and typography say a good deal about which model can answer, and they carry over to subjects that
nobody has asked about before, where neighbours are of no use (DECISIONS.md has the measurements). Word lists are
English; for other languages those features stay 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

READ_CHARACTERS = 4096
"""The form is read from the beginning only, so that a huge paste can't slow the router down."""

_REASONING = re.compile(
    r"\b(?:why|how|explain|compare|contrast|prove|derive|analy[sz]e|evaluate|design|implement|debug|refactor|optimi[sz]e"
    r"|difference|trade-?offs?|step by step|pros and cons|consequences?|reason(?:ing)?)\b",
    re.IGNORECASE,
)
_CREATIVE = re.compile(
    r"\b(?:story|poem|song|imagine|invent|brainstorm|slogans?|fiction|creative|haiku)\b", re.IGNORECASE
)
_LOOKUP = re.compile(r"\s*(?:who|when|where|which|what(?:'s| is| are| was| were))\b", re.IGNORECASE)
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\w{1,2}[.)])[ \t]+(.*)$", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_][\w']*")
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?")
_ALONE = re.compile(r"\b[a-z]\b|[=^√∑∫π≤≥]")
_BLANK = re.compile(r"_{2,}")
_DIGIT = re.compile(r"\d")
_LONG = 8


class Form(NamedTuple):
    """The raw values; the docstrings of their features stand in ``features.TABLE``, under the same names."""

    query_tokens: float
    word_count: float
    word_length: float
    line_count: float
    question_count: float
    list_items: float
    item_length: float
    item_spread: float
    item_digits: float
    stem_characters: float
    stem_question: float
    stem_numbers: float
    code_fence: float
    symbol_share: float
    digit_share: float
    number_count: float
    largest_number: float
    lone_letters: float
    capital_share: float
    capital_words: float
    capital_word_share: float
    foreign_share: float
    quote_marks: float
    comma_count: float
    bracket_count: float
    hyphen_count: float
    blanks: float
    long_words: float
    reasoning_words: float
    lookup_form: float
    creative_words: float
    conversation_characters: float


def of(text: str, tokens: int, conversation_characters: int) -> Form:
    """The form of the query ``text``; ``tokens`` and ``conversation_characters`` are of the whole, not of its start."""
    text = text[:READ_CHARACTERS]
    length = max(len(text), 1)
    count: Callable[[str], int] = text.count
    words = _WORD.findall(text)
    spaced = len(text.split())
    n = max(len(words), 1)
    capitals = [word[0].isupper() for word in words]
    first = _ITEM.search(text)
    items = [len(item) for item in _ITEM.findall(text)] if first else []
    stem = text[: first.start()] if first else text
    numbers = _NUMBER.findall(stem)
    mean = sum(items) / len(items) if items else 0.0
    spread = (sum((size - mean) ** 2 for size in items) / len(items)) ** 0.5 if items else 0.0
    return Form(
        query_tokens=tokens,
        word_count=spaced,
        word_length=(length - sum(map(count, " \n\t"))) / spaced if spaced else 0.0,
        line_count=count("\n"),
        question_count=count("?"),
        list_items=len(items),
        item_length=mean,
        item_spread=spread / (1.0 + mean),
        item_digits=sum(_DIGIT.search(item) is not None for item in _ITEM.findall(text)) / len(items) if items else 0.0,
        stem_characters=len(stem),
        stem_question=float(stem.rstrip().endswith("?")),
        stem_numbers=len(numbers),
        code_fence=float("```" in text),
        symbol_share=sum(map(count, "{}[]<>=;|&\\_^+*/%$")) / length,
        digit_share=sum(map(count, "0123456789")) / length,
        number_count=len(_NUMBER.findall(text)),
        largest_number=max(map(float, numbers), default=0.0),
        lone_letters=len(_ALONE.findall(stem)) / n,
        capital_share=sum(map(str.isupper, text)) / length,
        capital_words=sum(capitals[1:]),
        capital_word_share=sum(capitals) / n,
        foreign_share=0.0 if text.isascii() else sum(not c.isascii() for c in text) / length,
        quote_marks=count('"') + count("'"),
        comma_count=count(","),
        bracket_count=count("("),
        hyphen_count=count("-"),
        blanks=len(_BLANK.findall(text)),
        long_words=sum(len(word) >= _LONG for word in words) / n,
        reasoning_words=len(_REASONING.findall(text)),
        lookup_form=float(_LOOKUP.match(text) is not None),
        creative_words=len(_CREATIVE.findall(text)),
        conversation_characters=conversation_characters,
    )
