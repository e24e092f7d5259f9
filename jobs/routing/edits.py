"""Edits of a prompt that keep its meaning: a router that reads meaning should decide as before.

Each prompt gets two or three kinds of edit, drawn by the seed and the prompt itself, so that it is always edited alike.
Code, formulas and lines that hold options stay as they are: there one letter can change what is asked. The wordings are
English; of other texts only the frame and the spacing change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

Edit: TypeAlias = Callable[[str, np.random.Generator], str]

_FRAMES = ("Question: {}", "Q: {}", "Please answer this. {}", "Could you help me with this? {}", "{}\n\nThank you.")
_PHRASES = (
    (r"which of the following", "which one of these"),
    (r"which one of the following", "which of these"),
    (r"what is the", "what would be the"),
    (r"how many", "what number of"),
    (r"is called", "is known as"),
    (r"in order to", "to"),
    (r"due to", "because of"),
    (r"such as", "like"),
    (r"approximately", "about"),
    (r"for example", "for instance"),
    (r"all of the following", "all of these"),
    (r"most likely", "most probably"),
    (r"each of the", "every one of the"),
    (r"must be", "has to be"),
    (r"usually", "as a rule"),
    (r"often", "frequently"),
)
_CONTRACTIONS = (
    *(("do not", "don't"), ("does not", "doesn't"), ("did not", "didn't"), ("is not", "isn't"), ("are not", "aren't")),
    *(("cannot", "can't"), ("will not", "won't"), ("would not", "wouldn't"), ("should not", "shouldn't")),
    *(("has not", "hasn't"), ("have not", "haven't"), ("was not", "wasn't"), ("what is", "what's")),
    *(("it is", "it's"), ("that is", "that's"), ("there is", "there's"), ("i am", "i'm"), ("let us", "let's")),
)
_PHRASE_OF = {re.compile(rf"\b{old}\b", re.IGNORECASE): new for old, new in _PHRASES}
_CONTRACTION_OF = {re.compile(rf"\b{old}\b", re.IGNORECASE): new for old, new in _CONTRACTIONS}
_OPENED_OF = {re.compile(rf"\b{re.escape(new)}\b", re.IGNORECASE): old for old, new in _CONTRACTIONS[:13]}
_LONG_WORD = re.compile(r"(?<![\w`'’\\$-])[a-z]{8,}(?![\w`'’-])")
_UNTOUCHED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|^[ \t]*(?:\w{1,2}[.)]|[-*•])[ \t].*$", re.S | re.M)
"""Code, formulas, and lines that begin as an option does."""


def edit(text: str, seed: int) -> str:
    """``text``, edited; never equal to it."""
    digest = hashlib.blake2b(f"{seed}|{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    random = np.random.default_rng(int.from_bytes(digest, "big"))
    wanted, made, done = int(random.integers(2, 4)), text, 0
    for i in random.permutation(len(EDITS)):
        edited = EDITS[i](made, random)
        done += edited != made
        made = edited
        if done == wanted:
            break
    return made if made != text else _frame(made, random)


def _outside(text: str, change: Callable[[str], str]) -> str:
    """``change`` what is neither code nor an option."""
    parts, at = [], 0
    for kept in _UNTOUCHED.finditer(text):
        parts += [change(text[at : kept.start()]), kept.group()]
        at = kept.end()
    return "".join([*parts, change(text[at:])])


def _first_letter(text: str, random: np.random.Generator) -> str:
    """Great or small; not that of a word that is all capitals, nor of a letter that stands alone."""
    found = re.match(r"\s*([^\W\d_])(?=[a-z])", text)
    return text[: found.start(1)] + found[1].swapcase() + text[found.end(1) :] if found else text


def _spacing(text: str, random: np.random.Generator) -> str:
    """Spaces around the whole, two after a full stop, an empty line before the options."""
    kind = int(random.integers(3))
    if kind == 0:
        return text[1:] if text.startswith(" ") else f" {text}"
    if kind == 1:
        return _outside(text, lambda part: re.sub(r"(?<=[a-z][.?!]) (?=\S)", "  ", part))
    return re.sub(r"\n(?=[ \t]*(?:A|\(A|a)[.)])", "\n\n", text, count=1)


def _contract(text: str, random: np.random.Generator) -> str:
    """Join what can be joined; if nothing can, part what is joined."""
    joined = _outside(text, lambda part: _replace(part, _CONTRACTION_OF))
    return joined if joined != text else _outside(text, lambda part: _replace(part, _OPENED_OF))


def _rephrase(text: str, random: np.random.Generator) -> str:
    return _outside(text, lambda part: _replace(part, _PHRASE_OF))


def _frame(text: str, random: np.random.Generator) -> str:
    """A word before or after the whole."""
    return _FRAMES[int(random.integers(len(_FRAMES)))].replace("{}", text)


def _typo(text: str, random: np.random.Generator) -> str:
    """Two inner letters of one long word change places, or one is left out."""
    kept = [found.span() for found in _UNTOUCHED.finditer(text)]
    words = [w for w in _LONG_WORD.finditer(text) if not any(a <= w.start() < b for a, b in kept)]
    if not words:
        return text
    word = words[int(random.integers(len(words)))]
    at = word.start() + int(random.integers(2, len(word[0]) - 3))
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :] if random.random() < 0.5 else text[:at] + text[at + 1 :]


def _replace(text: str, pairs: dict[re.Pattern[str], str]) -> str:
    """Every pattern's matches by its wording, with a capital where there was one."""
    for old, new in pairs.items():
        capital = new[0].upper() + new[1:]
        found = list(old.finditer(text))
        for match in reversed(found):
            text = text[: match.start()] + (capital if match[0][0].isupper() else new) + text[match.end() :]
    return text


EDITS: Sequence[Edit] = (_first_letter, _spacing, _contract, _rephrase, _frame, _typo)
