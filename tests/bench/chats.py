"""A second family of invented conversations: two friends who chat for months, as people do in a messenger.

Other patterns than ``conversations.py``: long turns that react, tell and ask back; facts told outright, on being
asked, or split over two turns; several topics a session; what the question calls by another name; both friends with
facts of the same kind; the same topic again later without the fact; questions with several evidence turns in several
sessions. Deterministic for a seed. Even and odd seeds share no template of a fact, so weights tuned on the one can be
tried on the other. Nothing here was taken from any real conversation.
"""

from __future__ import annotations

import dataclasses
import random

from tests.bench.chat_texts import AGAIN, ASK, BYE, ECHO, FACTS, FILL, HELLO, LISTS, REACT, Kind
from tests.bench.conversations import Conversations


def _list(text: str) -> list[str]:
    return text.split("|")


NAMES = _list("Nora|Theo|Imani|Luca|Priya|Owen|Yara|Felipe|Hanne|Joel|Suki|Marcus|Leila|Anton|Wren|Diego")
DAY = 86_400.0
BEGIN = 1_672_740_000.0


def make(seed: int, conversations: int = 3, sessions: int = 20) -> Conversations:
    """``conversations`` of ``sessions`` sessions each; four facts a session and a question for each, besides six with
    several evidence turns."""
    made = Conversations([], [])
    for c in range(conversations):
        rng = random.Random(f"chats/{seed}/{c}")
        pair = [NAMES[(6 * seed + 2 * c + i) % len(NAMES)] for i in range(2)]
        facts = [(f, t, who) for f in FACTS[seed % 2 :: 2] for t in _list(f.topics) for who in range(2)]
        listed = [(row, v, who) for row in LISTS[seed % 2 :: 2] for who in range(2) for v in _list(row[2])]
        chat = _Chat(made, rng, pair, f"h{seed}-{c}")
        rng.shuffle(facts)
        rng.shuffle(listed)
        for s in range(sessions):
            begin, end = len(listed) * s // sessions, len(listed) * (s + 1) // sessions
            chat.session(s, facts[4 * s : 4 * s + 4], facts[: 4 * s], listed[begin:end])
        chat.ask()
    return made


@dataclasses.dataclass
class _Chat:
    made: Conversations
    rng: random.Random
    pair: list[str]
    name: str
    lists: dict[tuple[str, int], list[str]] = dataclasses.field(default_factory=dict)
    order: int = 0
    time: float = BEGIN

    def session(
        self,
        number: int,
        facts: list[tuple[Kind, str, int]],
        earlier: list[tuple[Kind, str, int]],
        listed: list[tuple[tuple[str, str, str], str, int]],
    ) -> None:
        """One session: greetings, facts and lists in any order with small talk between, and goodbye."""
        self.session_id, self.order = f"{self.name}-s{number}", 0
        self.time += self.rng.uniform(2, 15) * DAY
        by = self.rng.randrange(2)
        self.say(by, f"{self.pick(HELLO)} {self.pick(ASK)}")
        parts = [*facts, *listed]
        self.rng.shuffle(parts)
        for part in parts:
            for _ in range(self.rng.randint(0, 4)):
                by = 1 - by
                self.say(by, self.chat())
            if earlier and self.rng.random() < 0.4:  # an earlier topic once more, without its fact
                by = 1 - by
                self.say(by, self.about(self.pick(AGAIN), self.rng.choice(earlier)[1].split("/")[0]))
            by = self.tell(part) if isinstance(part[0], Kind) else self.listed(part)  # type: ignore[arg-type]
        self.say(1 - by, self.pick(BYE))

    def tell(self, fact: tuple[Kind, str, int]) -> int:
        """Tell a fact and note its question; returns who spoke last."""
        kind, topic, who = fact
        said, asked = topic.split("/")
        value = self.rng.choice(_list(kind.values))
        words = {"k": said, "v": value, "a": asked, "n": self.pair[who]}
        if self.rng.random() < 0.4:
            self.say(1 - who, self.long(kind.back.format(**words), tail=False))
            gold = [self.say(who, self.long(_upper(kind.later.format(**words))))]
            if self.rng.random() < 0.3:  # told over two turns
                gold.append(self.say(who, self.about("Well, {k}, that is what I mean.", said)))
        else:
            gold = [self.say(who, self.long(_upper(self.pick(_list(kind.told)).format(**words))))]
        if self.rng.random() < 0.7:
            self.say(1 - who, self.long(self.about(self.pick(ECHO), said)))
            who = 1 - who
        question = self.rng.choice(_list(kind.asked)).format(**{**words, "k": asked})
        self.note(question, gold)
        return who

    def listed(self, part: tuple[tuple[str, str, str], str, int]) -> int:
        """Tell one item of a list."""
        (told, question, _), value, who = part
        node = self.say(who, self.long(_upper(self.pick(_list(told)).format(v=value))))
        self.lists.setdefault((question, who), []).append(node)
        return who

    def ask(self) -> None:
        """Note the questions that want all items of a list."""
        for (question, who), gold in self.lists.items():
            self.note(question.format(n=self.pair[who]), gold)

    def note(self, text: str, gold: list[str]) -> None:
        """A question and its evidence."""
        self.made.questions.append({"id": f"{self.name}-q{len(self.made.questions)}", "text": text, "gold": gold})

    def say(self, by: int, text: str) -> str:
        """A turn; returns its id."""
        node, self.order = f"{self.session_id}-t{self.order}", self.order + 1
        text = f"{self.pair[by]}: {text.replace('{o}', self.pair[1 - by])}"
        self.made.turns.append(
            {"id": node, "text": text, "session": self.session_id, "order": self.order - 1, "time": self.time}
        )
        return node

    def long(self, text: str, *, tail: bool = True) -> str:
        """``text`` with a reaction before it and talk after it, as people write."""
        before = f"{self.pick(REACT)} " if self.rng.random() < 0.5 else ""
        between = f" {self.pick(FILL)}" if self.rng.random() < 0.4 else ""
        after = f" {self.pick(ASK)}" if tail and self.rng.random() < 0.4 else ""
        return before + text + between + after

    def chat(self) -> str:
        """Small talk of one to three sentences."""
        parts = [self.pick(REACT), self.pick(FILL), self.pick(ASK)]
        return " ".join(self.rng.sample(parts, self.rng.randint(1, 3)))

    def about(self, text: str, topic: str) -> str:
        """``text`` with the topic in it."""
        return text.format(k=topic, K=_upper(topic))

    def pick(self, some: list[str]) -> str:
        """One of them."""
        return self.rng.choice(some)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
