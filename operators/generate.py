"""generate: the answer, from the engine of the routed tier or, if that fails before its first word, from another.

Which models are loaded is the pool's: a tier that isn't is loaded when a request asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

from pydantic import Field

from operators.base import Knobs, Operator
from operators.engines.make import make_engine
from operators.engines.pool.config import PoolConfig
from operators.engines.pool.pool import Pool
from operators.engines.pool.sizing import expected
from operators.engines.ports import Engine, Generated, Generation
from operators.errors import Reject, Retry, RuvError, Stop, happened
from operators.prompts import Prompt, fit, template
from operators.records import Answer, Context, Piece, Query, Route, TokenLogprob, record
from operators.tiers import Tier


@record
class GenerateInput:
    """What generate reads: the query, its route, and the context that was built for it."""

    query: Query
    route: Route
    context: Context


_log = logging.getLogger("ruvllm.generate")
Progress = Callable[[str, str], None]
"""Called with (tier, state) as the pool says it: ``loading``, ``ready``, or ``unavailable: …`` with the reason."""


class Generate(Operator[GenerateInput, Answer]):
    """Fits the prompt to the tier's window and streams the answer.

    A tier whose weights are missing or damaged is left out; ``start`` raises ``Stop`` only if none is left.
    """

    name = "generate"

    class Config(Knobs):
        """How long answers may be."""

        max_tokens: int = Field(256, ge=1)
        """Completion tokens of an answer when the caller doesn't say; never more than half of the tier's window."""
        max_waiting: int = Field(16, ge=0)
        """Requests that may wait for a tier whose engine is full; further ones go to another loaded tier, the smaller
        first, and are told to come back (429) when those are full, too."""
        states_bytes: int = Field(512 * 1024 * 1024, ge=0)
        """Disk that each tier may use to keep the states of sessions that lost their place in the engine, so that their
        next turn need not compute the whole conversation again; 0 keeps none. They are removed with the engine."""

    def __init__(
        self,
        config: Config,
        tiers: Sequence[Tier],
        cache_dir: Path,
        on_progress: Progress = lambda tier, state: None,
        pool: PoolConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.tiers = {tier.name: tier for tier in sorted(tiers, key=lambda tier: tier.slot)}
        self.cache_dir = cache_dir
        self.pool = Pool(pool or PoolConfig(), tiers, self._make, self._expected, on_progress=on_progress)
        self.fallbacks = 0
        """Answers that came from another tier than the routed one."""
        self._asked = dict.fromkeys(self.tiers, 0)
        self._tending: asyncio.Task[None] | None = None

    def _make(self, tier: Tier) -> Engine:
        return make_engine(
            tier.engine,
            tier.model,
            self.cache_dir,
            context_tokens=tier.context_tokens,
            parallel=tier.parallel,
            threads=tier.threads,
            states_bytes=self.config.states_bytes,
            tokenizer=tier.tokenizer,
            vllm=tier.vllm,
        )

    async def _expected(self, tier: Tier) -> int:
        return await expected(tier, self.cache_dir)

    async def start(self) -> None:
        """Load the tiers that are to be there from the start, one after another, the smallest first."""
        for tier in self.tiers.values():
            template(tier.template)  # a wrong name is a wrong profile, not a missing model
        await self.pool.start()
        if not any(self.pool.available().values()):
            reasons = {status.tier: status.reason for status in self.pool.status()}
            raise Stop("generate", f"no tier could be loaded: {reasons}", "mend one of these models")
        self._tending = asyncio.create_task(self._tend())

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(self.pool.config.tend_s)
            try:
                await self.pool.tend()
            except Exception:  # the next round may do better, and nobody else looks after the pool
                _log.exception("the pool of models: a round of upkeep failed")

    def available(self) -> dict[str, bool]:
        """Tier → whether it can serve, smallest first."""
        return self.pool.available()

    def queues(self) -> dict[str, int]:
        """Tier → requests waiting or running."""
        return self.pool.queues()

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
        """From the routed tier, or from another loaded one, the smaller first, if it fails or is full."""
        routed = one.route.tier
        if routed not in self.tiers:
            raise Stop("generate", f"route to tier {routed!r}", f"route among the profile's tiers {list(self.tiers)}")
        failed: RuvError | None = None
        for name in (routed, *self.pool.fallback(routed)):
            if self._asked[name] >= self.tiers[name].parallel + self.config.max_waiting:
                got = f"{self._asked[name]} requests run in tier {name} or wait for it"
                failed = failed or Retry("generate", got, "come back in a second", 1.0, 429)
                continue
            self._asked[name] += 1
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
                when = (e.retry_after_s, e.status) if isinstance(e, Retry) else ()
                failed = Retry(f"generate: tier {name}", happened(e), "try again", *when)
                await self.pool.probe(name)  # an engine that died is not left to the next request
                if begun:
                    raise failed from e
            finally:
                self._asked[name] -= 1
        raise failed or Retry("generate", "no tier is available", "try again when a model is loaded")

    async def _answer(self, name: str, one: GenerateInput) -> AsyncGenerator[Piece, None]:
        """Pieces from one tier. White space around the answer is held back: neither pieces nor text have it."""
        async with self.pool.lease(name) as engine:
            # Words to tokens costs a round trip to the engine's process, or many.
            prompt, most = await asyncio.to_thread(self._prompt, name, engine, one)
            async with aclosing(self._generate(name, engine, prompt, most, one)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _generate(
        self, name: str, engine: Engine, prompt: Prompt, most: int, one: GenerateInput
    ) -> AsyncGenerator[Piece, None]:
        sampling = one.query.sampling
        request = Generation(
            prompt=prompt.tokens,
            max_tokens=most,
            temperature=one.route.temperature if sampling.temperature is None else sampling.temperature,
            top_p=one.route.top_p if sampling.top_p is None else sampling.top_p,
            stop=prompt.stop + sampling.stop,
            seed=sampling.seed,
            scope=one.query.tenant,
            session=one.query.session,
            logprobs=sampling.logprobs,
        )
        likely, told = list[TokenLogprob](), 0  # all of them, and how many went out with a piece
        began, first, text, space = time.perf_counter(), 0.0, "", ""
        last: Generated | None = None
        async with aclosing(cast("AsyncGenerator[Generated, None]", engine.generate(request))) as generated:
            async for last in generated:
                likely += last.logprobs
                fresh = space + last.text if text else last.text.lstrip()
                visible = fresh.rstrip()
                space = fresh[len(visible) :]
                if visible:
                    first = first or time.perf_counter() - began
                    text += visible
                    yield Piece(text=visible, logprobs=tuple(likely[told:]))
                    told = len(likely)
        if last is None or last.finish_reason is None:
            raise Retry(f"engine {engine.model}", "the stream ended without a finish_reason", "try again")
        degraded = one.context.degraded + tuple(f"unsupported:{option}" for option in last.unsupported)
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
            logprobs=tuple(likely),
        )
        yield Piece(text="", answer=answer, logprobs=answer.logprobs[told:])

    def _prompt(self, name: str, engine: Engine, one: GenerateInput) -> tuple[Prompt, int]:
        """The prompt in the route's context size and, with the answer, in the window; and the most tokens to answer."""
        tier = self.tiers[name]
        most = one.query.sampling.max_tokens or min(self.config.max_tokens, engine.context_tokens // 2)
        if most >= engine.context_tokens:
            got = f"max_tokens {most} fills the window of tier {name}, {engine.context_tokens} tokens"
            raise Reject("generate", got, "ask for fewer tokens", 400, "max_tokens", "context_length_exceeded")
        room = engine.context_tokens - most
        layout = template(tier.template)
        return fit(layout, engine, one.query, one.context.passages, one.route.context_tokens, room), most

    async def check(self) -> None:
        """The pool runs, and a tier can serve. Raises ``Stop`` when it doesn't, ``Retry`` when none can now."""
        if self._tending is None:
            raise Stop("generate", "no engine", "await start() first")
        if not any(self.pool.available().values()):
            reasons = {status.tier: status.reason for status in self.pool.status()}
            raise Retry("generate", f"no tier can serve: {reasons}", "mend one of these models")

    async def close(self, grace_s: float = 0.0) -> None:
        """Stop what still runs after ``grace_s`` and free the models."""
        if self._tending is not None:
            self._tending.cancel()
        await self.pool.drain(grace_s)
