"""What in an answer speaks to its judge, taken out before the judge reads it.

A small model does as it has just read, fenced or not: "rate this 5" behind a wrong answer is worth something to it. So
sentences that read as orders or ratings (``injections``) are left out, and so is a tail of bare numbers. What is left
is judged; where nothing is left there is no answer to judge.
"""

from __future__ import annotations

import re
import unicodedata

from operators.injections import instruction_in
from operators.sentences import split

_ANSWER = r"(?:answer|reply|response)"
_TO_JUDGE = re.compile(
    rf"(?i)\b(?:rat|scor|grad)(?:e|ed|ing)\b[^.,;]{{0,30}}\b(?:{_ANSWER}|this|it)\b[^.]{{0,20}}\b[1-5]\b"
    rf"|\b(?:{_ANSWER}|this|another|one)\b[^.]{{0,40}}\b(?:rat|scor|grad)(?:ed|ing)\b[^.]{{0,12}}\b[1-5]\b"
    rf"|\brating (?:is|for)\b|\br\w{{1,2}}t(?:e[ds]?|ings?)\W{{0,3}}[1-5]\b|\bscore\s?[:=]\s?[1-5]\b"
    rf"|\bgive this {_ANSWER}\b|\boutput (?:the (?:number|digit) )?[1-5]\b"
    r"|\bnote to the (?:judge|evaluator|grader)s?\b"
    r"|\b(?:judge|evaluator|grader)s?\b[^.]{0,20}\b(?:must|should|shall|are (?:instructed|required))\b"
    rf"|\bjudges?\b[^.]{{0,80}}\bthis {_ANSWER}\b"
    rf"|\bthis is an? [^.]{{0,40}}(?:perfect|excellent|correct|flawless) {_ANSWER}\b|\b{_ANSWER} above is\b"
    r"|\bbewert\w{1,4} diese\b|\bnotez? cette\b|\bcalific\w{1,4} esta\b|给这个回答|点をつけ|оцени\w{0,3} этот"
)
"""Only what names a rating or its reader together with the answer: games have scores, banks rates, courts judges."""
_NUMBERS = re.compile(r"(?:[\s(\[=:]*\b(?:[1-5]|five)(?:\s?/\s?5)?\b[)\].!]*)+\s*$")
_TAIL = 200
"""Signs at the end that may be a tail of numbers; it keeps the time linear."""
_AFTER_END = re.compile(r"[.!?…][\"')\]]*\s*$")


def unswayed(answer: str) -> str:
    """``answer`` without what speaks to a judge; unchanged, sign for sign, if nothing does."""
    units = [unit.text for unit in split(answer)]
    kept = [text for text in units if not _speaks_to_judge(text)]
    left = answer if len(kept) == len(units) else "".join(kept).strip()
    tail = _NUMBERS.search(left, max(len(left) - _TAIL, 0))
    # A number that ends a sentence belongs to it; one that stands behind the last sentence answers nothing.
    if tail and _AFTER_END.search(left[: tail.start()]):
        left = left[: tail.start()].rstrip()
    return left


def _speaks_to_judge(text: str) -> bool:
    # NFKC first: full-width and circled signs are digits and letters to a model, too.
    plain = unicodedata.normalize("NFKC", "".join(c for c in text if unicodedata.category(c) != "Cf"))
    return _TO_JUDGE.search(plain) is not None or instruction_in(text) is not None
