"""Questions with answers that are known for certain, of kinds that are differently hard, and the facts some rest on.

All of it is generated from a seed: the same seed, the same questions. Two phases of one seed share no question: numbers
and names are drawn anew, and lists of common knowledge are shared out between them. What is said in ``Made.facts``
is invented, so a right answer comes from the memory. How answers are checked stands in ``live.answers``.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from jobs.live.words import CAPITALS, COLOURS, DAYS, FAMILY, FIRST, PLACE, START, SYMBOLS, WORDS
from operators.records import record

PHASES = 2
MOST = 2000
"""Questions of both phases together."""


@record
class Question:
    """``check`` says how ``live.answers.right`` finds ``truth`` in an answer; ``options``: what else might be named;
    ``about``: an answer that has this word is read from there on."""

    kind: str
    text: str
    truth: str
    check: str
    options: tuple[str, ...] = ()
    about: str = ""


@record
class Made:
    """The questions of a phase in the order they are asked, and the facts that the memory must hold for them."""

    questions: tuple[Question, ...]
    facts: tuple[str, ...]


class Names:
    """Invented names, none twice."""

    def __init__(self, seed: int) -> None:
        random_ = _random("names", seed)
        short = [a + b for a in START for b in PLACE]
        long = [a + b.lower() + c for a in START for b in START if a != b for c in PLACE]
        self._places = iter(_mixed(random_, short) + _mixed(random_, long))
        self._people = iter(_mixed(random_, [f"{a} {b}{c}" for a in FIRST for b in START for c in FAMILY]))

    def place(self) -> str:
        """A town, such as ``Velford``."""
        return next(self._places)

    def person(self) -> str:
        """Someone, such as ``Tove Marlund``."""
        return next(self._people)


class Maker:
    """Makes the questions of one phase, 0 or 1. Phases of one seed share ``names``, so that no name comes twice."""

    def __init__(self, seed: int, phase: int, names: Names) -> None:
        self.facts: list[str] = []
        self._names, self._random = names, _random("questions", seed, phase)
        common = _random("common", seed)
        self._pools = {}
        for name, pool in (("words", WORDS), ("symbols", list(SYMBOLS)), ("capitals", list(CAPITALS))):
            self._pools[name] = _mixed(common, pool)[phase::PHASES]
        self._drawn: Counter[str] = Counter()

    def _common(self, kind: str, pool: str) -> str:
        """The next of this phase's share. Raises ``IndexError`` when ``kind`` has asked of all."""
        self._drawn[kind] += 1
        return self._pools[pool][self._drawn[kind] - 1]

    def sum(self) -> Question:
        """The addition table, written as a task."""
        a, b = self._random.randint(1, 20), self._random.randint(2, 12)
        return self._number("sum", f"{a} + {b} =", a + b)

    def long_sum(self) -> Question:
        """Four-digit numbers."""
        a, b = self._random.randint(1000, 9999), self._random.randint(1000, 9999)
        return self._number("long_sum", f"What is {a} + {b}?", a + b)

    def larger(self) -> Question:
        """Which of two numbers is larger."""
        a, b = self._random.sample(range(10, 1000), 2)
        return self._one_of("larger", f"Which number is larger, {a} or {b}?", str(max(a, b)), (str(a), str(b)))

    def order(self) -> Question:
        """Three numbers to be sorted."""
        three = self._random.sample(range(1, 100), 3)
        said = ", ".join(map(str, three))
        truth = " ".join(map(str, sorted(three)))
        return Question(kind="order", text=f"Put in order, smallest first: {said}.", truth=truth, check="order")

    def first_letter(self) -> Question:
        """How a word begins."""
        word = self._common("first_letter", "words")
        text = f"What is the first letter of the word {word}?"
        return Question(kind="first_letter", text=text, truth=word[0], check="letter")

    def plural(self) -> Question:
        """The plural of a word."""
        word = self._common("plural", "words")
        return self._one_of("plural", f"What is the plural of {word}?", f"{word}s", ())

    def symbol(self) -> Question:
        """A chemical symbol."""
        name = self._common("symbol", "symbols")
        rest = tuple(sorted({*SYMBOLS.values()} - {SYMBOLS[name]}))
        text = f"What is the chemical symbol for {name}?"
        return Question(kind="symbol", text=text, truth=SYMBOLS[name], check="symbol", options=rest)

    def capital(self) -> Question:
        """A country's capital."""
        name = self._common("capital", "capitals")
        rest = tuple(capital for capital in CAPITALS.values())
        return self._one_of("capital", f"What is the capital of {name}?", CAPITALS[name], rest)

    def fact(self) -> Question:
        """A fact of the memory, a number."""
        place, metres = self._names.place(), self._random.randint(12, 98)
        self.facts.append(f"The lighthouse of {place} is {metres} metres tall.")
        return self._number("fact", f"How tall is the lighthouse of {place}?", metres)

    def founder(self) -> Question:
        """A fact of the memory, a name; the passage names a second person."""
        place, who, other = self._names.place(), self._names.person(), self._names.person()
        self.facts.append(f"{who} founded the town of {place}. {other} built the town hall of {place}.")
        return self._one_of("founder", f"Who founded the town of {place}?", who.split()[1], (other.split()[1],))

    def tower(self) -> Question:
        """A fact of the memory, the second of two years in one passage."""
        place, year = self._names.place(), self._random.randint(1500, 1900)
        later = year + self._random.randint(5, 90)
        self.facts.append(f"The bridge of {place} was built in {year}. The tower of {place} was built in {later}.")
        return self._number("tower", f"In which year was the tower of {place} built?", later)

    def colour(self) -> Question:
        """A fact of the memory, the second of two colours in one sentence."""
        place, (flag, gate) = self._names.place(), self._random.sample(COLOURS, 2)
        self.facts.append(f"The flag of {place} is {flag}, its gate is {gate}.")
        asked = self._one_of("colour", f"What colour is the gate of {place}?", gate, tuple(COLOURS))
        return dataclasses.replace(asked, about="gate")

    def two_hops(self) -> Question:
        """Two facts of the memory, the one leads to the other."""
        place, who, day = self._names.place(), self._names.person(), self._random.choice(DAYS)
        self.facts += [f"{who} lives in {place}.", f"The market of {place} is held on {day}s."]
        text = f"On which day is the market held in the town where {who} lives?"
        return self._one_of("two_hops", text, day, tuple(DAYS))

    def _number(self, kind: str, text: str, truth: int) -> Question:
        return Question(kind=kind, text=text, truth=str(truth), check="number")

    def _one_of(self, kind: str, text: str, truth: str, options: tuple[str, ...]) -> Question:
        rest = tuple(sorted({option for option in options if option != truth}))
        return Question(kind=kind, text=text, truth=truth, check="first", options=rest)


KINDS: dict[str, Callable[[Maker], Question]] = {
    name: getattr(Maker, name)
    for name in (
        *("sum", "long_sum", "larger", "order", "first_letter", "plural", "symbol", "capital"),
        *("fact", "founder", "tower", "colour", "two_hops"),
    )
}


def make(seed: int, counts: tuple[int, int]) -> tuple[Made, Made]:
    """The questions of both phases, so many each; up to ``MOST`` together there are names enough.

    The kinds take turns, in an order that is drawn anew each round; one that has asked all it can drops out.
    """
    names, asked = Names(seed), set[str]()
    made = []
    for phase, count in enumerate(counts):
        maker = Maker(seed, phase, names)
        turns = _turns(maker, _random("turns", seed, phase), asked)
        questions = tuple(itertools.islice(turns, count))
        made.append(Made(questions=questions, facts=tuple(maker.facts)))
    return made[0], made[1]


def _turns(maker: Maker, random_: random.Random, asked: set[str]) -> Iterator[Question]:
    kinds = list(KINDS)
    while True:
        for kind in _mixed(random_, kinds):
            try:
                question = KINDS[kind](maker)
                while question.text in asked:
                    question = KINDS[kind](maker)
            except IndexError:
                kinds.remove(kind)
                continue
            asked.add(question.text)
            yield question


def _mixed(random_: random.Random, items: Sequence[str]) -> list[str]:
    return random_.sample(items, len(items))


def _random(*of: object) -> random.Random:
    return random.Random(repr(of))  # noqa: S311 - the same questions from the same seed, nothing secret
