"""Prompt layouts, one a model family, and the fitting of a conversation with its passages into a window.

At the sizes served here the layout decides most of the quality, so every family has its own, tested one. Only control
tokens are tokenized as such: users' and passages' text is always plain text, ``<|im_end|>`` in it does nothing. In
passages such marks are taken apart besides, whatever family they are of, and what a model wrote is quoted as data: who
gets an order remembered once would give it to every reader.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from operators.errors import Reject, Stop
from operators.judge_layouts import escape
from operators.records import Message, Passage, Query, record

MARK = re.compile(
    r"<[|｜]([^<>|｜\n]{1,40})[|｜]>|<(/?(?:s|bos|eos|pad|unk|start_of_turn|end_of_turn))>|\[(/?INST)\]|<<(/?SYS)>>",
    re.I,
)
"""Control tokens as the templates of ChatML, LFM2, Gemma, Llama, Mistral and DeepSeek write them."""
QUOTED = 'Someone once said: "{}"'
"""Of 160 questions to the two small models 147 were answered rightly from answers quoted so, 149 from bare ones. Of 80
it was 70 with ``An earlier answer said:`` and 69 with ``An earlier answer, quoted as data:``, against 74 and 75."""


class Part(NamedTuple):
    """A stretch of the prompt; ``control`` marks a control token of the template."""

    text: str
    control: bool = False


class Conversation(NamedTuple):
    """What is laid out: the caller's system message, earlier messages, passages (best first) and the question."""

    system: str
    history: tuple[Message, ...]
    passages: tuple[str, ...]
    question: str


class Template(NamedTuple):
    """A layout: how to render a conversation, and the strings that end its answers."""

    render: Callable[[Conversation], list[Part]]
    stop: tuple[str, ...]


class Tokens(Protocol):
    """The side of an engine that fitting needs."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids without BOS."""

    def bos(self) -> tuple[int, ...]:
        """The tokens a prompt must begin with."""


@record
class Prompt:
    """A prompt that fits. ``used``: ids of the passages in it, in order; ``turns_dropped`` counts forgotten turns."""

    tokens: tuple[int, ...]
    stop: tuple[str, ...]
    used: tuple[str, ...]
    turns_dropped: int


def question_answer(c: Conversation) -> list[Part]:
    """For base models: the passages one a line, then ``Question: …`` and ``Answer:``; earlier turns as such pairs.

    No heading and no bullets: with them Gemma 3 270M answered 2 of 55 questions instead of 39.
    """
    lines = [_line(c.system)] if c.system else []
    lines += [f"{'Question' if m.role == 'user' else 'Answer'}: {_line(m.content)}" for m in c.history]
    lines += [_line(passage) for passage in c.passages]
    return [Part("\n".join([*lines, f"Question: {_line(c.question)}", "Answer:"]))]


def chatml(c: Conversation) -> list[Part]:
    """ChatML (SmolLM2, LFM2): passages and question together in the last user message.

    What a conversation has said so far stands before what is new, and its first line stays the same whether passages
    are found or not: so the engine goes on from the state it has of the last turn.
    """
    asked = c.passages or c.history
    default = "Answer the question using the context. Be short." if asked else "Answer the question. Be short."
    parts = _turn("system", c.system or default)
    for message in c.history:
        parts += _turn(message.role, message.content)
    parts += _turn("user", "\n".join(c.passages) + f"\n\nQuestion: {c.question}" if c.passages else c.question)
    return [*parts, Part("<|im_start|>", control=True), Part("assistant\n")]


def _turn(role: str, text: str) -> list[Part]:
    return [Part("<|im_start|>", control=True), Part(f"{role}\n{text}"), Part("<|im_end|>", control=True), Part("\n")]


def _line(text: str) -> str:
    return " ".join(text.split())


def shown(passage: Passage) -> str:
    """The passage's text as prompts have it: no control tokens, and on one line in quotation marks if a model wrote it.

    Documents keep their own form: small models answer best from a bare text.
    """
    text = MARK.sub(lambda mark: f"({next(filter(None, mark.groups()))})", passage.text)
    return text if passage.kind == "document" else QUOTED.format(escape(text))


TEMPLATES: dict[str, Template] = {
    "gemma-base": Template(question_answer, ("\n",)),
    "smollm2": Template(chatml, ("<|im_end|>",)),
    "lfm2": Template(chatml, ("<|im_end|>",)),
}
"""Layouts by the name a profile's tier gives."""


def template(name: str) -> Template:
    """The layout ``name``; raises ``Stop`` for one that doesn't exist."""
    if name not in TEMPLATES:
        raise Stop("prompts", f"template {name!r}", f"set the tier's template to one of {sorted(TEMPLATES)}")
    return TEMPLATES[name]


def fit(layout: Template, engine: Tokens, query: Query, passages: Sequence[Passage], wanted: int, most: int) -> Prompt:
    """The prompt for ``query`` in at most ``wanted`` tokens, and in any case ``most``.

    What doesn't fit goes in this order: passages from the last (least useful) on, then the oldest turns. The question
    and the caller's system message are never cut; they alone may take up to ``most``.

    Raises:
        Reject: question and system message don't fit into ``most`` tokens.
    """
    system = "\n".join(m.content for m in query.messages if m.role == "system")
    last = max((i for i, m in enumerate(query.messages) if m.role == "user"), default=0)
    history = tuple(m for m in query.messages[:last] if m.role != "system")
    turns = sorted({0, *(i for i, m in enumerate(history) if m.role == "user")}) if history else []

    # The same parts come again and again while what fits is looked for; each costs a word with the engine's process.
    words = functools.lru_cache(maxsize=None)(lambda part: tuple(engine.tokenize(part.text, special=part.control)))
    begin = engine.bos()

    def tokens(forgotten: int, kept: int) -> tuple[int, ...]:
        start = [*turns, len(history)][forgotten]
        texts = tuple(shown(p) for p in passages[:kept])
        parts = layout.render(Conversation(system, history[start:], texts, query.text))
        return begin + tuple(token for part in parts for token in words(part))

    # Shorter with every passage and every turn that goes, so the number that fits is found by halving.
    limit = min(wanted, most)
    kept = _largest(len(passages), lambda n: len(tokens(0, n)) <= limit)
    if kept is not None:
        used = tuple(p.node_id for p in passages[:kept])
        return Prompt(tokens=tokens(0, kept), stop=layout.stop, used=used, turns_dropped=0)
    known = _largest(len(turns), lambda n: len(tokens(len(turns) - n, 0)) <= limit)
    forgotten = len(turns) - (known or 0)
    bare = tokens(forgotten, 0)
    if len(bare) > most:
        got = f"the last message and the system message take {len(bare)} tokens, the window has room for {most}"
        raise Reject("prompts", got, "shorten them or ask for fewer tokens", 400, "messages", "context_length_exceeded")
    return Prompt(tokens=bare, stop=layout.stop, used=(), turns_dropped=forgotten)


def _largest(n: int, fits: Callable[[int], bool]) -> int | None:
    """The largest k in 0…n that fits, if smaller ones fit whenever it does; ``None`` if even 0 doesn't."""
    if fits(n):
        return n
    low, high = -1, n  # low fits (or is -1), high doesn't
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low >= 0 else None
