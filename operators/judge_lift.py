"""lift: what passages and question change of how likely an answer is. The judge's second signal, for small models.

A small model can't say that an answer is right, but it expects right ones. For the tokens t of the answer it is asked
three times, with the same examples before (``SHOWN``):

    L = ln p(t | text, question)      U = ln p(t | question)      C = ln p(t | text)

    against = Σ min(L − U, 0) / n             what the text speaks against
    asked   = Σ −U · (L − C) / Σ −U           how far this question, and no other, is answered; common words count less
    score   = min(σ(bias + w₁ · against + w₂ · asked), ceiling)

L − U and L − C are pointwise mutual information of a token with text and question, given the other; van der Poel et al.
2022 (arXiv:2210.13210) write by the first of them, against what is made up. ``ruvllm evaluate judge --lift FILE`` fits
w₁, w₂, bias and ceiling.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
from pydantic import Field

from operators.base import Knobs
from operators.engines.ports import Engine
from operators.judge_layouts import RIGHT, escape
from operators.records import Interaction

Array = npt.NDArray[np.float64]
TEXT, QUESTION, ANSWER = 'Text: "', '"\nQuestion: "', '"\nAnswer: "'
SHOWN = "".join(f'{TEXT}{t}{QUESTION}{q}{ANSWER}{a}"\n\n' for t, q, a in RIGHT)
"""Right answers, so that the model expects what comes to be one; what is withheld stands as an empty line."""


class Lift(Knobs):
    """What the two numbers are worth, and for which model. It applies to no other, nor once ``SHOWN`` has changed."""

    model: str = Field(min_length=1)
    """Name of the judge's model, as the profile has it."""
    digest: str = Field(min_length=8)
    """Which examples: the first digits of their SHA-256."""
    against: float = Field(ge=0, allow_inf_nan=False)
    """How far it counts what the text speaks against, w₁."""
    asked: float = Field(ge=0, allow_inf_nan=False)
    """How far it counts that the question is answered, w₂."""
    bias: float = Field(allow_inf_nan=False)
    """What is added."""
    ceiling: float = Field(gt=0, le=1)
    """Highest score: what the best-scored answers of the gold set were worth. A rank is not a certainty."""

    def fits(self, model: str) -> bool:
        """Whether it is for this judge."""
        return (self.model, self.digest) == (model, digest())

    def __call__(self, read: Array) -> float:
        """The score in [0, 1] of ``read`` float64[2], as ``read_answer`` gives it."""
        x = self.bias + self.against * float(read[0]) + self.asked * float(read[1])
        x = min(max(x, -700.0), 700.0)  # where exp() ends
        return min(1 / (1 + math.exp(-x)), self.ceiling)


def digest() -> str:
    """Which examples there are now; two that differ in a sign have other digests."""
    return hashlib.sha256(SHOWN.encode()).hexdigest()[:12]


def uncertainty(score: float) -> float:
    """Entropy of right against wrong in [0, 1]: −(p ln p + (1 − p) ln (1 − p)) / ln 2."""
    return -sum(p * math.log(p) for p in (score, 1 - score) if p > 0) / math.log(2)


async def read_answer(engine: Engine, turn: Interaction, max_context_tokens: int) -> Array | None:
    """(against, asked), float64[2]; ``None`` if query and answer don't fit even without any context.

    The turn's texts are data: escaped, and tokenized without control tokens. Raises ``Stop`` if the engine tells no
    likelihoods, ``ValueError`` if what it tells are none.
    """
    text, query, answer = (
        engine.tokenize(escape(data)) for data in (" ".join(p.text for p in turn.context), turn.query, turn.answer)
    )
    opening = [*engine.bos(), *engine.tokenize(SHOWN + TEXT)]
    to_query, to_answer = engine.tokenize(QUESTION), engine.tokenize(ANSWER)
    room = engine.context_tokens - len(opening) - len(to_query) - len(query) - len(to_answer) - len(answer)
    if room < 0 or not answer:
        return None
    text = text[: min(room, max_context_tokens)]

    async def likely(text: list[int], query: list[int]) -> Array:
        found = await engine.likelihoods([*opening, *text, *to_query, *query, *to_answer], answer)
        if found.shape != (len(answer),) or not (found <= 1e-3).all() or not np.isfinite(found).all():
            raise ValueError(f"{found.tolist()} are not {len(answer)} log-probabilities")
        return found

    # The two that share the text come one after another: what an engine has read of it, it knows.
    both, no_question, no_text = await likely(text, query), await likely(text, []), await likely([], query)
    return compare(both, no_text, no_question)


def compare(both: Array, no_text: Array, no_question: Array) -> Array:
    """(against, asked) of log-probabilities float64[n] each: L, U and C above."""
    surprise = np.maximum(-no_text, 1e-6)  # a token that is certain counts for nothing, and no sum is 0
    against = float(np.minimum(both - no_text, 0.0).mean())
    return np.array([against, float(surprise @ (both - no_question) / surprise.sum())])
