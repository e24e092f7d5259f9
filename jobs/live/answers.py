"""Is an answer right? Decided by rules alone; no model is asked.

    number   the first number that the question did not name itself, compared as a number: ``5 + 7 = 12.`` is 12
    first    the first of truth and options that is named as a whole word, after what only repeats the choice
    symbol   the same, where a capital letter is another one
    letter   the first letter that stands alone, or in tags or quotation marks; not the words ``a`` and ``I``
    order    all numbers of the truth in its order, before any other

Right is what a reader would take for the answer; an answer that names the truth later, after something wrong, is wrong.
"""

from __future__ import annotations

import re

from jobs.live.questions import Question

_NUMBER = re.compile(r"(?<![\w.,])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|(?<![\d.,])-?\d+(?:\.\d+)?(?!\d)")
_CHOICE = re.compile(r"\b(?:both|either|between|of|whether)?\s*(\S+?)\s*,?\s+(?:or|and)\s+(\w+)", re.IGNORECASE)
_TAG = re.compile(r"</?\w+>")
_ALONE = re.compile(r"(?<!\w)(?<!\w['’])[A-Za-z](?![\w'’]\w|\w)")
_WORDS = {"a", "A", "I"}


def right(question: Question, answer: str) -> bool:
    """Whether ``answer`` answers ``question``. Raises ``KeyError`` for a check that there is not."""
    text = _TAG.sub(" ", answer)
    if question.about and (at := text.casefold().find(question.about)) >= 0:
        text = text[at:]  # "its flag is red, its gate is blue" says of the gate what it is
    return _CHECKS[question.check](question, text)


def numbers(text: str) -> list[float]:
    """The numbers in ``text``, in their order."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def _number(question: Question, text: str) -> bool:
    truth, named = float(question.truth), numbers(question.text)
    said = [value for value in numbers(text) if value == truth or value not in named]
    return bool(said) and said[0] == truth


def _first(question: Question, text: str) -> bool:
    return _named_first(question, text, re.IGNORECASE)


def _symbol(question: Question, text: str) -> bool:
    return _named_first(question, text, re.NOFLAG)


def _named_first(question: Question, text: str, flags: re.RegexFlag) -> bool:
    names = (question.truth, *question.options)
    if len(question.options) == 1:  # "246 or 703" and "246 and 703" only say what there was to choose from
        text = _CHOICE.sub(lambda found: "" if {*found.groups()} == {*names} else found.group(), text)
    longest = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    found = re.search(rf"(?<!\w)(?:{longest})(?=s?(?!\w))", text, flags)
    return found is not None and found.group().casefold() == question.truth.casefold()


def _letter(question: Question, text: str) -> bool:
    quoted = re.search(r"[\"'“‘*`]([A-Za-z])[\"'”’*`]", text)
    if quoted:
        return quoted.group(1).lower() == question.truth
    said = [letter for letter in _ALONE.findall(text) if letter not in _WORDS or letter.lower() == question.truth]
    return bool(said) and said[0].lower() == question.truth


def _order(question: Question, text: str) -> bool:
    truth = [float(part) for part in question.truth.split()]
    return numbers(text)[: len(truth)] == truth


_CHECKS = {"number": _number, "first": _first, "symbol": _symbol, "letter": _letter, "order": _order}
