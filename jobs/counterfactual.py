"""Idle-time counterfactuals: what the other tiers would have answered, so that every tier's quality is known.

    1 sample   a judged turn, by a hash of its id; recent, routed by us, of one message, and not removed since
    2 ask      every other tier, through the service, with the same passages: it answers only while nobody asks
    3 judge    with the judge that rated the turn, for scores of two judges can't be compared
    4 write    the turn's verdict again, with ``others``: tier → score

What comes of it is one event on ``ruvllm.judgements.v1`` that takes the verdict's place for the learner, which then has
a whole row in place of one number. The answers are kept nowhere: they are no interactions, enter no memory, and count
for no checkpoint's record. The event's id follows from the turn's and the judge's, so after a crash it is a repeat.

It is part of the judge's process, which has the judge loaded and takes only time that nobody else wants. While the
judge has work, the service is not quiet, or the budget is spent, turns wait (``Retry``).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from conf.counterfactual import Counterfactual
from conf.schema import Settings
from jobs.consumer import Consumer, Out, read_record
from jobs.evidence import interaction_of
from jobs.replaying.removed import Removed
from jobs.replaying.standing import key_of
from operators.errors import Reject, Retry, Skip, Stop
from operators.records import Interaction, Passage, Verdict, encode
from operators.stores.ports import Event, EventLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, event_headers, session_key

ASK = "/v1/admin/counterfactual"
GROUP, SOURCE, WHO = "counterfactual", "/ruvllm/counterfactual", "counterfactual"
SLICE = 256
HOUR_S = 3600.0
_IDS = uuid.UUID("3c1f3f36-4f8e-5d0b-9a37-2f6f9a2b8c11")
_SHARES = 1_000_000
Rate = Callable[[Sequence[Interaction]], Awaitable[Sequence[Verdict]]]


class Budget:
    """Tokens in any hour, and a share of the time. Since the process began; it forgets when that ends."""

    def __init__(self, config: Counterfactual, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._spent: deque[tuple[float, int]] = deque()
        self._rest_until = -float("inf")

    def spend(self, tokens: int, seconds: float) -> None:
        """So much was used up, just now."""
        now = self._clock()
        self._spent.append((now, tokens))
        self._rest_until = max(self._rest_until, now) + seconds * (1.0 / self._config.share_of_time - 1.0)

    def wait_s(self) -> float:
        """Seconds until something may be spent; 0 is now."""
        now = self._clock()
        while self._spent and self._spent[0][0] <= now - HOUR_S:
            self._spent.popleft()
        full = sum(tokens for _, tokens in self._spent) >= self._config.tokens_per_hour
        return max(0.0, self._rest_until - now, self._spent[0][0] + HOUR_S - now if full else 0.0)


class Counterfactuals:
    """Handles judgements; ``handle`` is for a ``Consumer``.

    Args:
        ask: asks the service, and raises ``Retry``, ``Reject`` or ``Stop``; called on a thread.
        rate: the judge. ``judge`` is how its verdicts name it.
        clock: Unix seconds. ``monotonic``: seconds, for what work takes.
    """

    def __init__(
        self,
        log: EventLog,
        ask: Callable[[str, Any], Any],
        rate: Rate,
        judge: str,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.written = 0
        self._log, self._ask, self._rate, self._judge = log, ask, rate, judge
        self._config, self._tiers = settings.counterfactual, [tier.name for tier in settings.tiers]
        self._memory = settings.data_dir / "memory"
        self._clock, self._monotonic = clock, monotonic
        self.budget = Budget(self._config, monotonic)
        self._answers: dict[str, float | None] = {}
        self._of = ""

    async def handle(self, event: Event) -> Sequence[Out]:
        """The verdict with what the other tiers would have got; nothing for a turn that is not taken."""
        verdict = read_record(Verdict, event)
        # 1
        if not self._sampled(event, verdict):
            return []
        interaction = await asyncio.to_thread(self._suitable, event, verdict)
        if interaction is None:
            return []
        if self._of != verdict.event_id:
            self._of, self._answers = verdict.event_id, {}
        # 2, 3; what a Retry interrupts goes on with the tiers that are left
        for tier in self._tiers:
            if interaction.route is not None and tier != interaction.route.tier and tier not in self._answers:
                self._answers[tier] = await self._score(interaction, tier)
        others = {tier: score for tier, score in self._answers.items() if score is not None}
        if not others or await asyncio.to_thread(self._user_spoke, event, verdict):
            return []
        # 4
        self.written += 1
        said = dataclasses.replace(
            verdict,
            event_id=str(uuid.uuid5(_IDS, f"{verdict.event_id} {self._judge}")),
            created_at=self._clock(),
            replaces=verdict.event_id,
            others=others,
        )
        headers = event_headers(said.event_id, JUDGEMENTS, SOURCE, self._clock())
        headers |= {name: text for name, text in event.headers.items() if name.startswith("src.")}
        return [Out(topic=JUDGEMENTS, key=session_key(said.tenant, said.session), value=encode(said), headers=headers)]

    def _sampled(self, event: Event, verdict: Verdict) -> bool:
        if verdict.by != "model" or verdict.replaces or verdict.score is None or verdict.judge != self._judge:
            return False
        drawn = int.from_bytes(hashlib.blake2b(verdict.event_id.encode(), digest_size=8).digest(), "big") % _SHARES
        return drawn < self._config.share * _SHARES and event.timestamp > self._clock() - self._config.max_age_s

    def _suitable(self, event: Event, verdict: Verdict) -> Interaction | None:
        """The interaction, if other tiers can be asked the very same. What was said before it is not in the log, so it
        must have been the only message; and the answer that was judged must be that of the tier which was drawn."""
        interaction = interaction_of(self._log, event, verdict)
        route = interaction.route
        if route is None or route.reason == "caller" or interaction.messages != 1 or not interaction.query.strip():
            return None
        if any(word.startswith("tier:") for word in interaction.degraded) or route.tier not in self._tiers:
            return None
        gone = Removed(self._memory).has(interaction.tenant, interaction.interaction_id, event.timestamp)
        return None if gone else interaction

    async def _score(self, interaction: Interaction, tier: str) -> float | None:
        """What the judge gives ``tier``'s answer; ``None`` if there is none. Raises ``Retry`` when it must wait."""
        if (rest := self.budget.wait_s()) > 0:
            raise Retry(WHO, "the budget is spent", "wait", min(rest, self._config.poll_s))
        if await asyncio.to_thread(self._judge_lags):
            raise Retry(WHO, "the judge has work", "wait", self._config.poll_s)
        began = self._monotonic()
        try:
            said = await asyncio.to_thread(self._ask, ASK, body_of(interaction, tier))
        except Reject as error:
            if error.status in (401, 403, 405) or (error.status == 404 and error.code != "model_not_found"):
                raise Stop(WHO, str(error), "use service and job of one version and data_dir") from error
            return None  # not loaded, or the question does not fit its window
        finally:
            self.budget.spend(0, self._monotonic() - began)
        began = self._monotonic()
        answered = dataclasses.replace(
            interaction, answer=said["text"], model=said["model"], finish_reason=said["finish_reason"], score=None
        )
        (verdict,) = await self._rate([answered])
        tokens = said["prompt_tokens"] + said["completion_tokens"]
        self.budget.spend(tokens, self._monotonic() - began)
        return verdict.score

    def _judge_lags(self) -> bool:
        """Whether interactions wait for the judge."""
        topic = INTERACTIONS
        return any(
            self._log.end(topic, partition) > self._log.committed("judge", topic, partition)
            for partition in range(self._log.topics()[topic])
        )

    def _user_spoke(self, event: Event, verdict: Verdict) -> bool:
        """Whether the user has rated the turn since: that outranks a model. One key, so it is in the same partition."""
        position, wanted = event.offset + 1, verdict.interaction_id.encode()
        while events := self._log.read(JUDGEMENTS, event.partition, position, SLICE):
            for one in events:
                with contextlib.suppress(Skip):  # another job's dead letter
                    said = read_record(Verdict, one) if wanted in one.value else verdict
                    if said.by == "user" and key_of(said) == key_of(verdict):
                        return True
            position = events[-1].offset + 1
        return False


def body_of(interaction: Interaction, tier: str) -> dict[str, Any]:
    """What the service is asked: the same question, passages and sampling, with a seed of the turn's own."""
    route = interaction.route
    if route is None:
        raise Stop(WHO, f"interaction {interaction.interaction_id} without a route", "this is a bug")
    seed = hashlib.blake2b(f"{interaction.event_id} {tier}".encode(), digest_size=4).digest()
    return {
        "tenant": interaction.tenant,
        "tier": tier,
        "query": interaction.query,
        "passages": [_plain(passage) for passage in interaction.context],
        "context_tokens": route.context_tokens,
        "temperature": route.temperature,
        "top_p": route.top_p,
        "seed": int.from_bytes(seed, "big") >> 1,
    }


def _plain(passage: Passage) -> dict[str, Any]:
    return {field.name: getattr(passage, field.name) for field in dataclasses.fields(passage)}


def counterfactual_consumer(
    log: EventLog, work: Counterfactuals, poll_s: float, partitions: Sequence[int] | None = None
) -> Consumer:
    """The consumer that samples, not yet running. One turn a step: it takes seconds, and a crash should cost one."""
    return Consumer(log, JUDGEMENTS, GROUP, work.handle, partitions=partitions, batch=1, idle_s=poll_s)
