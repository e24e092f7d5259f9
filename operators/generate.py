"""generate: the answer, from the engine of the routed tier or, if that fails before its first word, from another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

from pydantic import Field

from operators.base import Knobs, Operator
from operators.engines.make import make_engine
from operators.engines.ports import Engine, Generated, Generation
from operators.errors import Reject, Retry, RuvError, Stop
from operators.prompts import Prompt, fit, template
from operators.records import Answer, Context, Piece, Query, Route, record
from operators.tiers import Tier


@record
class GenerateInput:
    """What generate reads: the query, its route, and the context that was built for it."""

    query: Query
    route: Route
    context: Context


Progress = Callable[[str, str], None]
"""Called while loading with (tier, state): ``loading``, ``ready``, or ``unavailable: …`` with the reason."""


class Generate(Operator[GenerateInput, Answer]):
    """Fits the prompt to the tier's window and streams the answer.

    A tier whose weights are missing or damaged is left out; ``start`` raises ``Stop`` only if none is left.
    """

    name = "generate"

    class Config(Knobs):
        """How long answers may be."""

        max_tokens: int = Field(256, ge=1)
        """Completion tokens of an answer when the caller doesn't say; never more than half of the tier's window."""

    def __init__(
        self, config: Config, tiers: Sequence[Tier], cache_dir: Path, on_progress: Progress = lambda tier, state: None
    ) -> None:
        super().__init__()
        self.config = config
        self.tiers = {tier.name: tier for tier in sorted(tiers, key=lambda tier: tier.slot)}
        self.cache_dir = cache_dir
        self.engines: dict[str, Engine] = {}
        """The loaded engines by tier."""
        self.failures: dict[str, str] = {}
        """Why the other tiers could not be loaded."""
        self.fallbacks = 0
        """Answers that came from another tier than the routed one."""
        self._on_progress = on_progress

    async def start(self) -> None:
        """Load the tiers one after another, the smallest first."""
        for tier in self.tiers.values():
            template(tier.template)  # a wrong name is a wrong profile, not a missing model
        for name, tier in self.tiers.items():
            self._on_progress(name, "loading")
            engine = make_engine(
                tier.engine,
                tier.model,
                self.cache_dir,
                context_tokens=tier.context_tokens,
                parallel=tier.parallel,
                threads=tier.threads,
            )
            try:
                await engine.start()
            except Stop as e:
                await engine.close()
                self.failures[name] = str(e)
                self._on_progress(name, f"unavailable: {e}")
            else:
                self.engines[name] = engine
                self._on_progress(name, "ready")
        if not self.engines:
            raise Stop("generate", f"no tier could be loaded: {self.failures}", "mend one of these models")

    def available(self) -> dict[str, bool]:
        """Tier → whether it can serve, smallest first."""
        return {name: name in self.engines for name in self.tiers}

    def queues(self) -> dict[str, int]:
        """Tier → requests waiting or running."""
        return {name: self.engines[name].queue() if name in self.engines else 0 for name in self.tiers}

    async def run(self, batch: Sequence[GenerateInput]) -> list[Answer]:
        """All answers of the batch, generated side by side."""
        # Every one is awaited, also beside a failed one, so that no generation is left running behind our back.
        results = await asyncio.gather(*(self._collect(one) for one in batch), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return cast("list[Answer]", results)

    async def _collect(self, one: GenerateInput) -> Answer:
        async with aclosing(self._pieces(one)) as pieces:
            async for piece in pieces:
                if piece.answer is not None:
                    return piece.answer
        raise Stop("generate", "a stream without an answer", "this is a bug in the stage")

    async def stream(self, one: GenerateInput) -> AsyncGenerator[Piece, None]:
        """The answer in pieces as they come; the last one carries the ``Answer``, whose text is that of all pieces.

        Closing the stream stops the engine. Raises ``Reject`` if the messages don't fit the window, ``Retry`` if every
        tier failed, or the one that had begun to answer.
        """
        began, error = time.perf_counter(), None
        try:
            async with aclosing(self._pieces(one)) as pieces:
                async for piece in pieces:
                    yield piece
        except Exception as e:
            error = e
            raise
        finally:
            self.count(1, time.perf_counter() - began, error)

    async def _pieces(self, one: GenerateInput) -> AsyncGenerator[Piece, None]:
        failed: RuvError | None = None
        for name in self._order(one.route.tier):
            begun = False
            try:
                async with aclosing(self._answer(name, one)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except Reject as e:
                if failed is None:
                    raise
                failed = e  # it may fit the window of another tier
            except Exception as e:
                failed = Retry(f"generate: tier {name}", f"{type(e).__name__}: {e}", "try again")
                if begun:
                    raise failed from e
        raise failed or Retry("generate", "no tier is available", "try again when a model is loaded")

    def _order(self, routed: str) -> list[str]:
        """The tiers to try: the routed one, then smaller ones from the nearest on, then larger ones."""
        if routed not in self.tiers:
            raise Stop("generate", f"route to tier {routed!r}", f"route among the profile's tiers {list(self.tiers)}")
        slot = self.tiers[routed].slot
        return sorted(self.engines, key=lambda n: (self.tiers[n].slot > slot, abs(self.tiers[n].slot - slot)))

    async def _answer(self, name: str, one: GenerateInput) -> AsyncGenerator[Piece, None]:
        """Pieces from one tier. White space around the answer is held back: neither pieces nor text have it."""
        engine, sampling = self.engines[name], one.query.sampling
        most = sampling.max_tokens or min(self.config.max_tokens, engine.context_tokens // 2)
        prompt = self._prompt(name, one, most)
        request = Generation(
            prompt=prompt.tokens,
            max_tokens=most,
            temperature=one.route.temperature if sampling.temperature is None else sampling.temperature,
            top_p=one.route.top_p if sampling.top_p is None else sampling.top_p,
            stop=prompt.stop + sampling.stop,
            seed=sampling.seed,
        )
        began, first, text, space = time.perf_counter(), 0.0, "", ""
        last: Generated | None = None
        async with aclosing(cast("AsyncGenerator[Generated, None]", engine.generate(request))) as generated:
            async for last in generated:
                fresh = space + last.text if text else last.text.lstrip()
                visible = fresh.rstrip()
                space = fresh[len(visible) :]
                if visible:
                    first = first or time.perf_counter() - began
                    text += visible
                    yield Piece(text=visible)
        if last is None or last.finish_reason is None:
            raise Retry(f"engine {engine.model}", "the stream ended without a finish_reason", "try again")
        degraded = one.context.degraded
        if prompt.turns_dropped:
            degraded += (f"turns:-{prompt.turns_dropped}",)
        if name != one.route.tier:
            self.fallbacks += 1
            degraded += (f"tier:{one.route.tier}→{name}",)
        duration = time.perf_counter() - began
        answer = Answer(
            text=text,
            tier=name,
            model=engine.model,
            finish_reason=last.finish_reason,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            cached_tokens=last.cached_tokens,
            used=prompt.used,
            first_token_s=first or duration,
            duration_s=duration,
            degraded=degraded,
        )
        yield Piece(text="", answer=answer)

    def _prompt(self, name: str, one: GenerateInput, most: int) -> Prompt:
        """The prompt in the route's context size, and with ``most`` tokens of answer in the engine's window."""
        engine, tier = self.engines[name], self.tiers[name]
        if most >= engine.context_tokens:
            got = f"max_tokens {most} fills the window of tier {name}, {engine.context_tokens} tokens"
            raise Reject("generate", got, "ask for fewer tokens", 400, "max_tokens", "context_length_exceeded")
        room = engine.context_tokens - most
        return fit(template(tier.template), engine, one.query, one.context.passages, one.route.context_tokens, room)

    async def check(self) -> None:
        """Every engine that was loaded takes work. Raises ``Stop`` when there is none."""
        if not self.engines:
            raise Stop("generate", "no engine", "await start() first")
        for engine in self.engines.values():
            await engine.check()

    async def close(self) -> None:
        """Stop what runs and free the models."""
        for engine in self.engines.values():
            await engine.close()
        self.engines = {}
