"""Words a query shares with a text: cheap evidence for the hot path, without an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from operators.sentences import WORD, split

_STOP_WORDS = """
a about after all also am an and any are as at be been before but by can could did do does for from get give had has
have he her him his how i if in into is it its just know may me might more most my no not of on one or our out please
say she should so some tell than that the their them then there these they this to up us was we were what when where
which who whom whose why will with would you your der die das ein eine und ist wie was wer wo wann ich
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Words that every text has, so sharing them says nothing."""


class Words:
    """The telling words of a query: no stop words, small letters, each once, in order."""

    def __init__(self, query: str) -> None:
        found = dict.fromkeys(word for word in WORD.findall(query.lower()) if word not in STOP_WORDS)
        self._words = tuple(found)

    @property
    def telling(self) -> bool:
        """Are they enough to find a text by: two at least, or one that is no plain word (``E4711``, ``top_p``)?"""
        return len(self._words) > 1 or not all(word.isalpha() for word in self._words)

    def shared(self, text: str) -> int:
        """How many of the words ``text`` has."""
        small = text.lower()
        return sum(_has(small, word) for word in self._words)

    def share(self, text: str) -> float:
        """Share of the words that ``text`` has, 0…1; 0 without words."""
        return self.shared(text) / len(self._words) if self._words else 0.0

    def cut(self, text: str, tokens: int, budget: int) -> tuple[str, int]:
        """The run of whole sentences of ``text`` that fits ``budget`` and shares most words; the earliest of equals.

        ``tokens`` belong to all of ``text``; a part's are estimated by its length and rounded up, because no tokenizer
        is at hand here. Gives ("", 0) if no sentence fits.
        """
        units = [unit.text for unit in split(text)]
        sizes = [-(-len(unit) * tokens // max(1, len(text))) for unit in units]
        shared = [self.shared(unit) for unit in units]
        best, best_run, begin, used = -1, (0, 0), 0, 0
        for end, size in enumerate(sizes):
            used += size
            while used > budget:
                used -= sizes[begin]
                begin += 1
            if begin <= end and sum(shared[begin : end + 1]) > best:
                best, best_run = sum(shared[begin : end + 1]), (begin, end + 1)
        run = slice(*best_run)
        return "".join(units[run]).strip(), sum(sizes[run])


def _has(text: str, word: str) -> bool:
    """Is ``word`` in ``text`` with no letter or digit beside it? A CJK character needs no such gap."""
    if len(word) == 1 and not word.isascii():
        return word in text
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not (at and text[at - 1].isalnum()) and not text[end : end + 1].isalnum():
            return True
        at = text.find(word, at + 1)
    return False


def best_sentences(texts: Sequence[str], words: Words, max_chars: int) -> str:
    """An extractive summary: the sentences of ``texts`` that share most words with the query, in their order.

    Sentences of equal merit come in order of the texts, so with no shared word it is the beginning of the first text.
    Sentences that share nothing are not added to ones that do. At most ``max_chars`` characters; only if not even the
    best sentence fits, its beginning.
    """
    sentences = [" ".join(unit.text.split()) for text in texts for unit in split(text) if not unit.level]
    if not sentences or not max_chars:
        return ""
    merits = [words.shared(sentence) for sentence in sentences]
    order = sorted(range(len(sentences)), key=lambda i: -merits[i])
    least = min(1, merits[order[0]])
    taken: list[int] = []
    room = max_chars
    for i in order:
        if merits[i] < least or (taken and not least):
            break
        if len(sentences[i]) <= room:
            taken.append(i)
            room -= len(sentences[i]) + 1
    if not taken:
        return sentences[order[0]][:max_chars].rsplit(" ", 1)[0]
    return " ".join(sentences[i] for i in sorted(taken))
