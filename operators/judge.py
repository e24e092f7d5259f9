"""judge: rate an answer after the user has it.

A model reads the context, the query and the answer, and is asked for a rating from 1 to 5. The verdict is not the
token it would say but the mean over all five, weighted with their probabilities, scaled to [0, 1] (the weighting is
that of G-Eval: Liu et al. 2023, arXiv:2303.16634):

    p_r = P(token r | prompt) / Σ P(token s | prompt),  r, s ∈ {1…5}
    score = (Σ r · p_r − 1) / 4          uncertainty = −Σ p_r · ln p_r / ln 5

What can't be rated is ``unjudged`` with a reason and no score. Scores of one judge are comparable with each other, not
with those of another model or layout, so the verdict names both, and whether p was corrected (``judge_correction``).
"""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from operators.base import Knobs, Operator
from operators.engines.ports import Engine
from operators.errors import Retry, Stop
from operators.judge_correction import Correction
from operators.judge_guard import unswayed
from operators.judge_layouts import LAYOUTS, Layout, escape
from operators.records import Interaction, Verdict

RATINGS = ("1", "2", "3", "4", "5")
_VALUES = np.arange(1, 6, dtype=np.float64)
_VERDICTS = uuid.UUID("5f0f3a0e-7c1d-5b53-9d0c-6f6a7564676d")


def verdict_id(interaction_event_id: str) -> str:
    """The event id of the verdict on an interaction: the same however often it is judged, so repeats are dropped."""
    return str(uuid.uuid5(_VERDICTS, interaction_event_id))


class Judge(Operator[Interaction, Verdict]):
    """Rates interactions with the engine it is given, which it starts and closes.

    ``Retry`` from the engine goes up: it is away for a while and the interaction should be judged later. Other errors
    of the engine make the interaction ``unjudged``.
    """

    name = "judge"

    class Config(Knobs):
        """How answers are rated."""

        layout: Literal["few_shot", "chatml"] = "few_shot"
        """How the judge is asked: ``few_shot`` as plain text, for base models and the smallest instructed ones;
        ``chatml`` as a conversation, for larger instructed models."""
        min_mass: float = Field(0.5, ge=0.0, le=1.0)
        """Least probability that the five ratings must have together; below it the model isn't rating: unjudged."""
        max_context_tokens: int = Field(512, ge=0)
        """Tokens of the context that the judge reads, the best passages first; it bounds the time a verdict takes."""
        guard: bool = True
        """Whether sentences that speak to the judge are left out of the answer it reads."""
        corrections: tuple[Correction, ...] = ()
        """What its ratings are worth, by judge; the first that is for this model and layout corrects the verdicts."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        *,
        clock: Callable[[], float] = time.time,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.engine = engine
        self._clock = clock
        self._template = layout or LAYOUTS[config.layout]
        mine = (c for c in config.corrections if layout is None and c.fits(engine.model, config.layout))
        self._correction = next(mine, None)

    async def start(self) -> None:
        """Load the engine. Raises ``Stop`` if its vocabulary can't tell the five ratings apart."""
        await self.engine.start()
        first = [tuple(self.engine.tokenize(rating)[:1]) for rating in RATINGS]
        if len(set(first)) < len(RATINGS) or () in first:
            got = f"{self.engine.model} has the first tokens {first} for {', '.join(RATINGS)}"
            raise Stop(self.name, got, "choose a judge model with one token for each digit")

    @property
    def title(self) -> str:
        """Who judges, as verdicts name it: the model, the layout, and whether its ratings are corrected."""
        return f"{self.engine.model}/{self.config.layout}{'' if self._correction is None else '+corrected'}"

    async def close(self) -> None:
        """Free the engine."""
        await self.engine.close()

    async def run(self, batch: Sequence[Interaction]) -> list[Verdict]:
        """One verdict for each interaction, one after another: the judge leaves the cores to requests."""
        return [await self._judge(interaction) for interaction in batch]

    async def _judge(self, interaction: Interaction) -> Verdict:
        if interaction.finish_reason == "cancelled":
            return self._unjudged(interaction, "cancelled")
        if not interaction.answer.strip():
            return self._unjudged(interaction, "empty_answer")
        if self.config.guard:
            left = unswayed(interaction.answer)
            if not left:
                return self._unjudged(interaction, "speaks_to_judge")
            interaction = dataclasses.replace(interaction, answer=left)
        prompt = self.prompt(interaction)
        if prompt is None:
            return self._unjudged(interaction, "too_long")
        try:
            logs = np.asarray(await self.engine.score(prompt, RATINGS), np.float64)
        except (Retry, Stop):
            raise
        except Exception as e:
            return self._unjudged(interaction, f"engine_error: {type(e).__name__}: {e}"[:300])
        joint = np.exp(logs)
        mass = float(joint.sum())
        if joint.shape != _VALUES.shape or not 0.0 <= mass <= 1.001:  # also catches NaN
            return self._unjudged(interaction, f"engine_error: {joint.tolist()} are not five probabilities")
        if mass < self.config.min_mass or mass == 0.0:
            return self._unjudged(interaction, f"low_mass: {mass:.3g} on 1 to 5, wanted {self.config.min_mass}")
        p = joint / mass
        if self._correction is not None:
            p = self._correction(p)
        entropy = -float(np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p))))
        return self._verdict(
            interaction,
            "judged",
            score=min(max((float(p @ _VALUES) - 1.0) / 4.0, 0.0), 1.0),
            uncertainty=min(max(entropy / math.log(5), 0.0), 1.0),
            probabilities=dict(zip(RATINGS, p.tolist(), strict=True)),
        )

    def prompt(self, interaction: Interaction) -> list[int] | None:
        """The judge's prompt as token ids, or ``None`` if query and answer don't fit even without any context.

        Only the template's own text is read with control tokens; context, query and answer are data: escaped, inside
        quotation marks they can't close, and tokenized as plain text.
        """
        control = [self.engine.tokenize(part, special=True) for part in self._template]
        context, query, answer = (
            self.engine.tokenize(escape(text), special=False)
            for text in (" ".join(p.text for p in interaction.context), interaction.query, interaction.answer)
        )
        fixed = len(self.engine.bos()) + sum(map(len, control)) + len(query) + len(answer)
        room = self.engine.context_tokens - 1 - fixed  # one token for the rating
        if room < 0:
            return None
        context = context[: min(room, self.config.max_context_tokens)]
        opening, to_query, to_answer, closing = control
        return [*self.engine.bos(), *opening, *context, *to_query, *query, *to_answer, *answer, *closing]

    def _unjudged(self, interaction: Interaction, reason: str) -> Verdict:
        return self._verdict(interaction, "unjudged", reason=reason)

    def _verdict(
        self,
        interaction: Interaction,
        status: Literal["judged", "unjudged"],
        *,
        score: float | None = None,
        uncertainty: float | None = None,
        probabilities: dict[str, float] | None = None,
        reason: str = "",
    ) -> Verdict:
        return Verdict(
            event_id=verdict_id(interaction.event_id),
            interaction_id=interaction.interaction_id,
            tenant=interaction.tenant,
            session=interaction.session,
            created_at=self._clock(),
            status=status,
            score=score,
            uncertainty=uncertainty,
            probabilities=probabilities or {},
            judge=self.title,
            reason=reason,
        )
