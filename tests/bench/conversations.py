"""Invented long conversations of two people, with questions whose evidence turns are known.

Made to be hard the way real ones are: a fact is one short turn that says "it" or "her"; what it is about stands in a
turn before or after, often in other words than the question's; the same subject comes up in several sessions with other
facts; most turns are small talk. Deterministic for a seed. Nothing here was taken from any real conversation.
"""

from __future__ import annotations

import dataclasses
import random


def _list(text: str) -> list[str]:
    return text.split("|")


NAMES = _list("Alma|Bram|Celia|Dario|Edda|Felix|Greta|Hugo|Ines|Jonas|Kira|Laszlo|Mira|Nils|Oona|Pavel")
PEOPLE = _list("my cousin Elena|my neighbour Tomas|Aunt Rosa|an old friend from school|my sister|Raj from work")
PLACES = _list("Lisbon|the old harbour|a village near Bern|the community centre|my grandparents' farm|Oslo")
TIMES = _list("last Friday|two weeks ago|in March|the day before yesterday|on my birthday|last summer")
FEELS = _list("nervous at first|so proud|totally exhausted|really calm|a bit lost|grateful")
THINGS = _list("a blue glass bowl|an old camera|a handwritten letter|three tickets|a wool scarf|a tiny silver bell")
REASONS = _list(
    "to clear my head|because Dad always talked about it|to meet new people|for the kids|to prove I could|"
    "after losing my job"
)
# What it is about: names for it as people vary them, the question's name first, and something one says about it.
SUBJECTS = [
    ("pottery class|ceramics workshop|clay thing", "My hands were covered in clay"),
    ("marathon|big race|42k run", "My legs still hurt from all that running"),
    ("adoption of the puppy|new dog|little furball", "The house is full of fur and chewed shoes"),
    ("painting exhibition|art show|gallery opening", "So many canvases on the walls"),
    ("camping trip|night in the tents|weekend outdoors", "We cooked on an open fire under the stars"),
    ("violin lessons|practising the violin|fiddle", "The neighbours can hear every wrong note"),
    ("charity fundraiser|bake sale|collecting donations", "People were far more generous than I thought"),
    ("support group|meetings on Thursdays|circle", "Everybody listens and nobody judges there"),
    ("vegetable garden|tomato beds|allotment", "The tomatoes are finally turning red"),
    ("job interview|talk with the new company|application", "They asked a hundred questions about my career"),
    ("chess tournament|chess club final|board game weekend", "I lost my queen in the second game"),
    ("road trip|long drive|tour with the old van", "The van broke down twice on the way"),
    ("wedding anniversary|ten years together|our special day", "We danced in the kitchen until midnight"),
    ("cooking course|Thai kitchen evening|culinary school", "I can finally make a decent curry"),
    ("novel|book I am writing|manuscript", "Chapter nine nearly drove me mad"),
    ("surfing holiday|days on the board|waves", "I swallowed half of the ocean"),
    ("volunteering at the shelter|helping the homeless|soup kitchen", "There were so many plates to wash"),
    ("photography contest|picture competition|photo prize", "I must have taken a thousand shots"),
    ("theatre play|school drama|stage thing", "I nearly forgot my lines on stage"),
    ("house move|new flat|boxes everywhere", "There are still boxes in every corner"),
]
# What tells one pottery class from another: every fact has its own pair of a kind and a subject.
KINDS = _list(
    "spring|village|night|beginners|online|harbour|family|Sunday|company|jazz|mountain|winter|city|student|vegan|"
    "silent|vintage|island|midnight|autumn|regional|royal|garden|secret"
)
# An attribute: how a friend asks for it, how it is told, how it is asked about later, and the values.
ATTRIBUTES: list[tuple[str, str, str, list[str]]] = [
    (
        "Who did you go with?|Anyone join you?|Were you on your own?",
        "{v} came along, such a laugh.|I dragged {v} with me.|{v} joined me, I needed company.",
        "Who accompanied {n} for the {s}?|With whom did {n} do the {s}?|Who joined {n} at the {s}?",
        PEOPLE,
    ),
    (
        "Where was it?|Is that around here?|So where did you end up?",
        "All the way in {v}, actually.|It took place in {v}.|{v}, would you believe it?",
        "Where did the {s} of {n} take place?|In which place was {n}'s {s}?",
        PLACES,
    ),
    (
        "When did that happen?|How long ago was that?|Oh, recently?",
        "That was {v}.|{v}, time flies!|It happened {v}.",
        "When did {n} have the {s}?|When did {n}'s {s} happen?",
        TIMES,
    ),
    (
        "How did you feel?|And how was it for you?|Were you okay?",
        "Honestly, I was {v}.|I felt {v} the whole time.|{v}, if I'm honest.",
        "How did {n} feel about the {s}?|What were {n}'s emotions during the {s}?",
        FEELS,
    ),
    (
        "Did you bring anything home?|Any souvenir?|What did you get out of it?",
        "Yes, they gave me {v}!|I received {v}.|I got {v}, it sits on my shelf now.",
        "What did {n} receive from the {s}?|What did {n} bring back from the {s}?",
        THINGS,
    ),
    (
        "What made you do it?|Why, of all things?|How did you come to that?",
        "I started it {v}.|Mostly {v}.|{v}, that's the whole story.",
        "Why did {n} start with the {s}?|What motivated {n} to go for the {s}?",
        REASONS,
    ),
]
OPEN = [
    "Guess what, I have news about the {a}!",
    "I keep thinking about the {a} these days.",
    "By the way, remember the {a} I told you about?",
    "You won't believe how the {a} went.",
    "So, the {a}. It was quite something.",
]
REACT = ["Wow!", "Oh nice.", "That sounds great!", "No way!", "I love that.", "Good for you!", "Really?"]
FOLLOW = ["The {a} sounds like you.", "I'd love to see that {a} one day.", "You and your {a}!", "Wow, that's lovely."]
TALK = [
    "How have you been? It's been ages.",
    "Pretty good, just busy with work and the kids.",
    "The weather has been awful, nothing but rain.",
    "I know, I hardly leave the house.",
    "Thanks, that means a lot to me.",
    "You always know what to say, {o}.",
    "Take care of yourself, okay?",
    "Haha, that's so true!",
    "What are you up to this weekend, {o}?",
    "Not much, maybe a film and an early night.",
    "I had the best coffee this morning.",
    "Work was crazy, three meetings in a row.",
    "We should meet again soon, it's always fun with you.",
    "Absolutely, let's do it.",
    "I'm so glad we are friends.",
    "My mother says hello, she was asking about you.",
    "Did you feel nervous before your exam back then?",
    "When did we last see each other? In spring?",
    "Who told you that? I thought nobody knew.",
    "Where do you get all that energy from?",
]


@dataclasses.dataclass(frozen=True)
class Conversations:
    """``turns``: corpus lines (id, text, session, order); ``questions``: query lines (id, text, gold)."""

    turns: list[dict[str, object]]
    questions: list[dict[str, object]]


def make(seed: int, conversations: int = 4, sessions: int = 24) -> Conversations:
    """``conversations`` of ``sessions`` sessions each; a question for every fact that was told."""
    made = Conversations([], [])
    for c in range(conversations):
        rng = random.Random(f"{seed}/{c}")
        pair = [NAMES[(2 * (seed + c)) % len(NAMES)], NAMES[(2 * (seed + c) + 1) % len(NAMES)]]
        pairs = [(kind, s) for kind in KINDS for s in range(len(SUBJECTS))]
        facts = [_Fact(rng.randrange(2), kind, s, rng.randrange(6)) for kind, s in rng.sample(pairs, 5 * sessions)]
        for number in range(sessions):
            _session(made, rng, f"c{seed}-{c}-s{number}", pair, facts[5 * number : 5 * number + 5])
    return made


@dataclasses.dataclass(frozen=True)
class _Fact:
    who: int
    kind: str
    subject: int
    attribute: int

    def called(self, rng: random.Random) -> str:
        """One of the ways to speak of its subject: by kind, by name, by another name, or all of it."""
        names = _list(SUBJECTS[self.subject][0])
        if rng.random() < 0.5:
            return f"{self.kind} {names[0]}"
        return rng.choice([f"{self.kind} one", *names, f"{self.kind} {rng.choice(names)}"])


def _session(made: Conversations, rng: random.Random, name: str, pair: list[str], facts: list[_Fact]) -> None:
    lines: list[tuple[int, str, _Fact | None]] = []  # speaker, text, the fact told there

    def talk(most: int) -> None:
        for _ in range(rng.randint(0, most)):
            text = rng.choice(TALK)
            if rng.random() < 0.2:  # a distractor: a subject in passing, without a fact
                names, remark = rng.choice(SUBJECTS)
                thought = f"I still think about the {rng.choice(KINDS)} {rng.choice(_list(names))}."
                text = rng.choice([f"{remark}.", thought])
            lines.append((1 - lines[-1][0] if lines else rng.randrange(2), text, None))

    talk(4)
    for fact in facts:
        (_, remark), (ask, tell, _, values) = SUBJECTS[fact.subject], ATTRIBUTES[fact.attribute]
        if lines and lines[-1][0] == fact.who:
            lines.append((1 - fact.who, rng.choice(TALK), None))
        opening = rng.choice(OPEN).format(a=fact.called(rng)) + (f" {remark}." if rng.random() < 0.4 else "")
        asked = f"{rng.choice(REACT)} {rng.choice(_list(ask))}"
        asked = f"The {fact.called(rng)}? {asked}" if rng.random() < 0.5 else asked
        told = rng.choice(_list(tell)).format(v=rng.choice(values))
        told = told[0].upper() + told[1:]
        if rng.random() < 0.7:
            told += f" The {fact.called(rng)} was worth it."
        if rng.random() < 0.4:  # told without being asked
            lines.append((fact.who, f"{opening} {told}", fact))
        else:
            lines += [(fact.who, opening, None), (1 - fact.who, asked, None), (fact.who, told, fact)]
        lines.append((1 - fact.who, rng.choice(FOLLOW).format(a=fact.called(rng)), None))
        talk(4)
    for order, (by, text, told_fact) in enumerate(lines):
        node_id = f"{name}-t{order}"
        spoken = f"{pair[by]}: {text.format(o=pair[1 - by])}"
        made.turns.append({"id": node_id, "text": spoken, "session": name, "order": order})
        if told_fact is not None:
            later = rng.choice(_list(ATTRIBUTES[told_fact.attribute][2]))
            subject = f"{told_fact.kind} {_list(SUBJECTS[told_fact.subject][0])[0]}"
            text = later.format(n=pair[told_fact.who], s=subject)
            made.questions.append({"id": f"q{len(made.questions)}", "text": text, "gold": [node_id]})
