"""A gold set for judges: invented facts, questions on them, and answers whose truth is known.

Everything is made by code from a seed and names nobody. A *kind* of thing has two properties; an *item* asks for the
first and gives an answer to it:

    right    the value that stands in the passage
    wrong    a value of the same sort that stands beside it, in a passage on another thing of this kind
    invented a value of the same sort that stands nowhere
    partly   the right value, with the second property told wrongly
    off      what another passage says, off the question

At equal truth the items vary what judges are known to be swayed by (Zheng et al. 2023, arXiv:2306.05685): the
position of the passage that holds the fact, the wording (``author``), and the length. Kinds of even number are to fit
on, odd ones to report on, so nothing that is reported shares a fact, a question or a sentence with what was learned.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

Truth = Literal["right", "wrong", "invented", "partly", "off"]
VALUE: dict[Truth, float] = {"right": 1.0, "wrong": 0.0, "invented": 0.0, "partly": 0.5, "off": 0.0}
"""What a judge should say."""
TRUTHS: tuple[Truth, ...] = ("right", "wrong", "invented", "partly", "off")
AUTHORS = ("plain", "terse", "formal", "chatty")
POSITIONS = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One answer to rate. ``fact`` numbers what it is about, ``position`` the passage that holds it, from 0 on."""

    fact: int
    half: Literal["fit", "report"]
    context: tuple[str, ...]
    query: str
    answer: str
    truth: Truth
    author: str
    position: int
    long: bool
    stated: str
    """The value that the answer gives."""
    right: str
    """The value that would be right."""
    role: str = "main"
    """``main``: every nuisance drawn at random. Else what is varied, all else being equal."""


class Kind(NamedTuple):
    """A sort of thing: its sentences with ``{n}`` its name, ``{a}`` and ``{b}`` its two properties."""

    name: str
    first: str
    second: str
    question: str
    plain: str
    also: str
    values: tuple[str, ...]
    others: tuple[str, ...]


def _years(start: int, step: int) -> tuple[str, ...]:
    return tuple(str(start + step * i) for i in range(9))


def _counts(*numbers: int, of: str) -> tuple[str, ...]:
    return tuple(f"{number} {of}" for number in numbers)


_WHO = ("Edda Morn", "Tilo Brask", "Runa Vell", "Osk Parrin", "Mave Lindt", "Joren Ash", "Hanne Quill", "Pell Darrow")
_WHERE = ("Ruhl", "Tarn Bay", "Ostrel", "Kevik", "Old Sarn", "Moorhaven", "Brindle", "Vask")
_COLOURS = ("red", "green", "blue", "yellow", "grey", "violet", "white", "orange")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_STUFF = ("oak", "copper", "slate", "wool", "glass", "clay", "birch", "iron")
_METRES = _counts(12, 19, 23, 31, 38, 44, 57, 62, of="metres")
_PEOPLE = _counts(40, 55, 70, 85, 120, 160, 210, 350, of="people")
_MINUTES = _counts(15, 20, 25, 35, 45, 50, 65, 80, of="minutes")
_EUROS = _counts(3, 4, 6, 9, 11, 14, 18, 22, of="euros")
KINDS = (
    Kind("{n} mill", "The {n} mill was built in {a}.", "It stands in {b}.", "When was the {n} mill built?",
         "It was built in {a}.", "It stands in {b}.", _years(1702, 13), _WHERE),
    Kind("{n} bridge", "The {n} bridge was designed by {a}.", "It is {b} long.", "Who designed the {n} bridge?",
         "It was designed by {a}.", "It is {b} long.", _WHO, _METRES),
    Kind("{n} ferry", "The {n} ferry takes {a} to cross the sound.", "It carries {b}.",
         "How long does the {n} ferry take?", "It takes {a}.", "It carries {b}.", _MINUTES, _PEOPLE),
    Kind("{n} phone", "The {n} phone has a {a} case.", "It costs {b}.", "What colour is the case of the {n} phone?",
         "The case is {a}.", "The phone costs {b}.", _COLOURS, _counts(90, 120, 150, 180, 240, 310, of="euros")),
    Kind("{n} cheese", "{n} cheese is made in {a}.", "It is sold on {b}.", "Where is {n} cheese made?",
         "It is made in {a}.", "It is sold on {b}.", _WHERE, _DAYS),
    Kind("{n} museum", "The {n} museum is closed on {a}.", "A ticket costs {b}.", "When is the {n} museum closed?",
         "It is closed on {a}.", "A ticket costs {b}.", _DAYS, _EUROS),
    Kind("{n} tower", "The tower of {n} is {a} high.", "It is made of {b}.", "How high is the tower of {n}?",
         "It is {a} high.", "It is made of {b}.", _METRES, _STUFF),
    Kind("{n} choir", "The {n} choir is led by {a}.", "It was founded in {b}.", "Who leads the {n} choir?",
         "It is led by {a}.", "It was founded in {b}.", _WHO, _years(1911, 9)),
    Kind("{n} hall", "The hall in {n} seats {a}.", "Its doors are painted {b}.",
         "How many people does the hall in {n} seat?",
         "It seats {a}.", "Its doors are painted {b}.", _PEOPLE, _COLOURS),
    Kind("{n} boat", "The boat {n} is made of {a}.", "It belongs to {b}.", "What is the boat {n} made of?",
         "It is made of {a}.", "It belongs to {b}.", _STUFF, _WHO),
    Kind("{n} race", "The {n} race was won by {a}.", "It was held in {b}.", "Who won the {n} race?",
         "It was won by {a}.", "It was held in {b}.", _WHO, _WHERE),
    Kind("{n} comet", "The comet {n} was last seen in {a}.", "Its tail looked {b}.",
         "When was the comet {n} last seen?",
         "It was last seen in {a}.", "Its tail looked {b}.", _years(1804, 17), _COLOURS),
    Kind("{n} tea", "A pot of {n} tea costs {a}.", "It is served in {b}.", "What does a pot of {n} tea cost?",
         "It costs {a}.", "It is served in {b}.", _EUROS, _WHERE),
    Kind("{n} flag", "The flag of {n} is {a}.", "It was drawn by {b}.", "What colour is the flag of {n}?",
         "It is {a}.", "It was drawn by {b}.", _COLOURS, _WHO),
    Kind("{n} market", "The market of {n} is held on {a}.", "It has stalls for {b}.", "When is the market of {n} held?",
         "It is held on {a}.", "It has stalls for {b}.", _DAYS, _PEOPLE),
    Kind("{n} festival", "The {n} festival takes place in {a}.", "It lasts for {b}.",
         "Where does the {n} festival take place?", "It takes place in {a}.", "It lasts for {b}.", _WHERE, _MINUTES),
)  # fmt: skip
_ON = ("Bel", "Nor", "Ka", "Lu", "Ost", "Gra", "Vi", "Tam", "Hol", "Se", "Dro", "Ulm")
_OFF = ("vik", "ra", "den", "mo", "sund", "tek", "lin", "bor", "gast", "wen", "ria", "pol")
_SAID: dict[str, Callable[[str, str], str]] = {
    "plain": lambda sentence, value: sentence,
    "terse": lambda sentence, value: value[:1].upper() + value[1:],
    "formal": lambda sentence, value: f"According to the available information, {sentence[:1].lower()}{sentence[1:]}",
    "chatty": lambda sentence, value: f"Oh sure, that is {value}, as far as I can see!",
}
TAILS = (
    "I hope that this is of help to you. If anything else is unclear, simply ask and I will look again.",
    "That is all there is to say on this point. Do let me know should you want a longer explanation of it.",
    "Thank you for the question. Please feel free to come back at any time with whatever else you wonder about.",
    "This is a short reply to a short question. More could be said, and I will gladly do so when you ask for it.",
)
"""Endings that claim nothing."""


def gold(seed: int = 0, facts: int = 96) -> list[Item]:
    """The items of ``facts`` facts, those of one fact together, so that a judge reads its context once.

    Each fact gives five items ``main`` with all nuisances drawn, and, for a right and a wrong answer each, rows that
    vary one thing: ``position`` (three), ``length`` (two) and ``author`` (four).
    """
    chance = random.Random(seed)  # noqa: S311 - chance, not secrets
    names = [on + off for on in _ON for off in _OFF]
    chance.shuffle(names)
    items: list[Item] = []
    for number in range(facts):
        kind = KINDS[number % len(KINDS)]
        other = KINDS[(number + 2) % len(KINDS)]  # of the same half
        name, rival, third = (names[(3 * number + i) % len(names)] for i in range(3))
        right, wrong, invented = chance.sample(kind.values, 3)
        told, untold, beside = chance.sample(kind.others, 3)
        there, also_there = chance.choice(other.values), chance.choice(other.others)
        own = _passage(kind, name, right, told)
        rest = [_passage(kind, rival, wrong, beside), _passage(other, third, there, also_there)]
        off = other.plain.format(n=third, a=there)
        made = _Maker(
            number, kind, name, own, rest, {"right": right, "wrong": wrong, "invented": invented}, untold, off
        )
        tail = chance.choice(TAILS)
        for truth in TRUTHS:
            items.append(made(truth, chance.choice(AUTHORS), chance.randrange(POSITIONS), tail * chance.randrange(2)))
        for truth in ("right", "wrong"):
            items += [made(truth, "plain", position, "", role="position") for position in range(POSITIONS)]
            items += [made(truth, "plain", 1, end, role="length") for end in ("", tail)]
            items += [made(truth, author, 1, "", role="author") for author in AUTHORS]
    return sorted(items, key=lambda item: (item.fact, item.position))


class _Maker(NamedTuple):
    """Makes the items of one fact."""

    number: int
    kind: Kind
    name: str
    own: str
    rest: list[str]
    values: dict[str, str]
    untold: str
    off: str

    def __call__(self, truth: Truth, author: str, position: int, tail: str, role: str = "main") -> Item:
        value = self.values.get(truth, self.values["right"])
        answer = self.off if truth == "off" else _SAID[author](self.kind.plain.format(n=self.name, a=value), value)
        if truth == "partly":
            answer = f"{answer} {self.kind.also.format(b=self.untold)}"
        return Item(
            fact=self.number,
            half="report" if self.number % 2 else "fit",
            context=(*self.rest[:position], self.own, *self.rest[position:]),
            query=self.kind.question.format(n=self.name),
            answer=f"{answer} {tail}".strip(),
            truth=truth,
            author="plain" if truth == "off" else author,
            position=position,
            long=bool(tail),
            stated=value,
            right=self.values["right"],
            role=role,
        )


def _passage(kind: Kind, name: str, a: str, b: str) -> str:
    return f"{kind.first.format(n=name, a=a)} {kind.second.format(b=b)}"
