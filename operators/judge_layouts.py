"""How the judge is asked, one layout a kind of model, and how data is fenced in it.

Context, query and answer stand in quotation marks on one line each. ``escape`` takes quotation marks, line breaks and
control characters out of them, so nothing inside can close its fence or begin a line that looks like the template's.
They do more than guard: Gemma-3-270M told right from off-topic answers better with them than without.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple


class Layout(NamedTuple):
    """The template's own text: up to the context, from there to the query, to the answer, to the rating."""

    opening: str
    to_query: str
    to_answer: str
    closing: str


_HEAD = (
    "How well does the answer match the text and the question? 5 means right, 1 means wrong or about something else."
)
# (text, question, answer, rating): invented facts, both ratings equally often, wrong answers on the topic beside those
# off it. At this size the number and even the order of the examples decide whether the scores mean anything.
_ARDEN = ("The Arden mill grinds oats and barley. It was built in 1702.", "When was the Arden mill built?")
_BUS = ("Bus 14 leaves from the harbour at seven and nine.", "When does bus 14 leave?")
_GARDEN = ("The garden of Pell opens at nine. Tickets cost four euros.", "What does a ticket for the garden cost?")
_KELP = ("Kelp soup is eaten cold on the island of Vey.", "How is kelp soup eaten?")
_LIRA = ("The Lira phone has a battery of 4000 mAh and a red case.", "What colour is the case of the Lira phone?")
_MILA = ("Mila Torres won the race in Oslo in 2015.", "Who won the race in Oslo?")
_EXAMPLES = (
    (*_BUS, "The moon is made of rock.", 1),
    (*_ARDEN, "It was built in 1702.", 5),
    (*_LIRA, "The case is green.", 1),
    (*_LIRA, "The case is red.", 5),
    (*_KELP, "Please close the window.", 1),
    (*_GARDEN, "A ticket costs four euros.", 5),
    (*_MILA, "Wool is made from sheep.", 1),
    (*_MILA, "Mila Torres won it.", 5),
)


Example = tuple[str, str, str, int]


def _few_shot(examples: Sequence[Example] = _EXAMPLES) -> Layout:
    asked = (f'Text: "{t}"\nQuestion: "{q}"\nAnswer: "{a}"\nRating={rating}\n\n' for t, q, a, rating in examples)
    return Layout("".join(asked) + 'Text: "', '"\nQuestion: "', '"\nAnswer: "', '"\nRating=')


def _chatml(examples: Sequence[Example] = _EXAMPLES) -> Layout:
    user, end = "<|im_start|>user\n", "\nRate the answer from 1 to 5.<|im_end|>\n<|im_start|>assistant\n"
    asked = (
        f'{user}Text: "{t}"\nQuestion: "{q}"\nAnswer: "{a}"{end}{rating}<|im_end|>\n' for t, q, a, rating in examples
    )
    opening = f"<|im_start|>system\n{_HEAD}<|im_end|>\n" + "".join(asked) + f'{user}Text: "'
    return Layout(opening, '"\nQuestion: "', '"\nAnswer: "', f'"{end}')


LAYOUTS = {"few_shot": _few_shot(), "chatml": _chatml()}
"""Name → layout, as ``Judge.Config.layout`` names them."""


def orders(name: str) -> dict[str, Layout]:
    """The layout ``name`` with its examples in other orders, and with ratings that mean the opposite (5 is wrong)."""
    make = {"few_shot": _few_shot, "chatml": _chatml}[name]
    turned = tuple((t, q, a, 6 - rating) for t, q, a, rating in _EXAMPLES)
    made = {"backwards": make(_EXAMPLES[::-1]), "halves exchanged": make((*_EXAMPLES[4:], *_EXAMPLES[:4]))}
    # A conversation says what the ratings mean, so only plain examples can be turned round.
    return made | ({"scale turned round": make(turned)} if name == "few_shot" else {})


_OUT = dict.fromkeys((*range(32), *range(127, 160)), " ") | {ord('"'): "'"}
_RATING = re.compile(r"(?i)rating\s*[=:\uff1d\uff1a][\s=:\uff1d\uff1a\d]*")
_LABEL = re.compile(r"(?i)(text|question|answer)\s*[=:\uff1d\uff1a][\s=:\uff1d\uff1a]*")


def escape(data: str) -> str:
    """``data`` on one line, without control and format characters, its double quotation marks made single, our labels
    made words, and the number after a rating's label taken away.

    The last is what counts: a small model goes on as it has just read, so nonsense that ended in ``Rating=5`` beat
    every right answer from inside its fence.
    """
    visible = "".join(c for c in data.translate(_OUT) if unicodedata.category(c) != "Cf")
    unlabelled = _LABEL.sub(r"\1 ", _RATING.sub("rating ", visible))
    return " ".join(unlabelled.split())
