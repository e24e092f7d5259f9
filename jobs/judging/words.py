"""Self-preference: what a judge's model would itself have said, and how likely it finds what others said.

Judges rate answers higher that are likely under their own model (Panickssery et al. 2024, arXiv:2404.13076; Wataoka et
al. 2024, arXiv:2410.21819). So the gold set gets answers in the judge's own words, right and wrong, and every wording
its likelihood.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jobs.judging.gold import Item
from operators.engines.ports import Engine, Generation

_UNIT = re.compile(r"\d|\s+(?=\d)|\s*[^\W\d]+|\s*[^\w\s]")
"""What is scored by its first token. Most vocabularies have one for each digit, so a number is as many units."""


async def own_words(engine: Engine, items: Sequence[Item]) -> list[Item]:
    """``items`` answered by the judge's model itself, without chance; only those that say what they should are kept.

    For a wrong answer it reads a passage in which the wrong value stands, so right and wrong ones are worded alike.
    """
    made = []
    for item in items:
        told = item.context[item.position]
        asked = _prompt(told.replace(item.right, item.stated), item.query)
        prompt = (*engine.bos(), *engine.tokenize(asked))
        request = Generation(prompt=prompt, max_tokens=24, temperature=0.0, top_p=1.0, stop=("\n",))
        answer = "".join([piece.text async for piece in engine.generate(request)]).strip()
        if item.stated in answer and (item.stated == item.right or item.right not in answer):
            made.append(dataclasses.replace(item, answer=answer, author="judge"))
    return made


async def likelihood(engine: Engine, item: Item) -> float:
    """Mean ln p(unit | query, what stands before) of the answer's words and digits, without its passages."""
    asked = [*engine.bos(), *engine.tokenize(_prompt("", item.query))]
    text = f" {item.answer}"
    found = []
    for unit in _UNIT.finditer(text):
        before = engine.tokenize(text[: unit.start()]) if unit.start() else []
        found.append(float((await engine.score([*asked, *before], [unit[0]]))[0]))
    return float(np.mean(found))


def _prompt(passage: str, query: str) -> str:
    return f"{passage}\nQuestion: {query}\nAnswer:".lstrip()
