"""Time to the first token in a conversation that goes on after 1,500 tokens: its state found in its slot, read back
from a file after other sessions took all slots, and computed anew.

Three tiers of the same model run the same conversations, turn by turn, in another order each turn. Computed anew means
that every turn comes from another tenant: sessions of one tenant share what they begin with.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from operators.engines.llama.slots import WORTH
from operators.engines.llama.slotted import SlottedProcess
from operators.generate import Generate, GenerateInput
from operators.records import Context, Message, Query, Route, Sampling
from operators.tiers import Tier
from tests.bench.engine_kit import PLACES, arguments, interval, shown, watched
from tests.operators.engines.weights import SMOLLM2

WINDOW, SLOTS, ANSWER = 2048, 2, 8
KEPT, LOST, FRESH = "in its slot", "from its file", "computed anew"
AIM = 5.0
QUESTIONS = ("Who lives there?", "What does the keeper do?", "When was it built?", "Why is it on a hill?")


def question(tier: str, tenant: str, session: str, messages: tuple[Message, ...]) -> GenerateInput:
    """The last of ``messages``, asked in a session, answered greedily in a few tokens."""
    text = messages[-1].content
    query = Query(
        interaction_id="i",
        tenant=tenant,
        session=session,
        text=text,
        messages=messages,
        sampling=Sampling(max_tokens=ANSWER, temperature=0.0),
        created_at=0.0,
    )
    route = Route(
        tier=tier,
        context_tokens=WINDOW,
        temperature=0.0,
        top_p=1.0,
        confidence=1.0,
        probabilities={},
        propensity=1.0,
        propensities={},
        checkpoint="none",
        reason="caller",
        hidden=np.zeros(64, np.float32),
        features=np.zeros(128, np.float32),
    )
    return GenerateInput(query=query, route=route, context=Context(passages=(), tokens=0, ranking="none"))


async def ask(stage: Generate, one: GenerateInput) -> dict[str, Any]:
    """Seconds to the first piece, and what the answer says of itself."""
    began, first = time.perf_counter(), 0.0
    async for piece in stage.stream(one):
        first = first or (time.perf_counter() - began if piece.text else 0.0)
    answer = piece.answer
    assert answer is not None
    assert answer.tier == one.route.tier, f"another tier answered: {answer.degraded}"
    assert not answer.degraded, f"the conversation did not fit: {answer.degraded}"
    told = {"text": answer.text, "prompt": answer.prompt_tokens, "cached": answer.cached_tokens}
    return {"first_s": first or time.perf_counter() - began, **told}


def history(number: int, tokens: int) -> tuple[Message, ...]:
    """Some ``tokens`` tokens of talk that no other conversation has, and a question."""
    said: list[Message] = []
    while 41 * len(said) / 2 < tokens:  # what a pair takes
        i = len(said)
        place, year = PLACES[(number + i) % len(PLACES)], 1700 + 7 * number + i
        said.append(Message(role="user", content=f"In {year} the harbour of {place} got a new lamp. Who wrote of it?"))
        said.append(Message(role="assistant", content=f"Its keeper, in {3 + i % 9} letters."))
    return (*said, Message(role="user", content=f"And what is conversation {number} about?"))


async def conversation(stage: Generate, number: int, tokens: int, turns: int) -> list[dict[str, Any]]:
    """All turns of one conversation, a row each turn and way; the first turn is not in it."""
    messages, rows = history(number, tokens), list[dict[str, Any]]()
    for turn in range(1, turns + 1):
        told: dict[str, dict[str, Any]] = {}
        order = [KEPT, LOST, FRESH][turn % 3 :] + [KEPT, LOST, FRESH][: turn % 3]
        for way in order:
            if way == LOST and turn > 1:
                await _crowd(stage, f"{number} {turn}")
            tenant = f"{number} {turn}" if way == FRESH else "one"
            slots = await _slots(stage, way)
            before = slots.restored
            told[way] = await ask(stage, question(way, tenant, str(number), messages))
            told[way] |= {"restored": slots.restored - before, "turn": turn, "way": way, "conversation": number}
        assert len({row["prompt"] for row in told.values()}) == 1, "they read different prompts"
        if turn > 1:
            _really(told)
            rows += told.values()
        # All go on with the same answer, so that their next prompts are the same, too.
        reply = Message(role="assistant", content=told[FRESH]["text"] or "I don't know.")
        messages = (*messages, reply, Message(role="user", content=f"{QUESTIONS[turn % len(QUESTIONS)]} ({turn})"))
    return rows


async def _slots(stage: Generate, way: str) -> Any:
    async with stage.pool.lease(way) as engine:
        assert isinstance(engine, SlottedProcess)
        return engine.slots


async def _crowd(stage: Generate, name: str) -> None:
    """Other sessions take all slots, with too little to be kept."""
    for i in range(SLOTS):
        other = question(LOST, "one", f"crowd {name} {i}", (Message(role="user", content=f"Say {i}, {name}."),))
        assert (await ask(stage, other))["prompt"] < WORTH


def _really(told: dict[str, dict[str, Any]]) -> None:
    """Each went the way it stands for."""
    assert told[FRESH]["cached"] < WORTH, f"a tenant found another's state: {told[FRESH]}"
    for way, restored in ((KEPT, 0), (LOST, 1)):
        row = told[way]
        assert row["restored"] == restored, f"{way}: {row}"
        assert row["cached"] > 0.9 * row["prompt"] - WORTH, f"{way}: most was computed again: {row}"


async def measure(report: dict[str, Any], conversations: int, tokens: int, turns: int, threads: int) -> None:
    """All conversations, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {"model": SMOLLM2, "template": "smollm2", "context_tokens": WINDOW}
        common |= {"threads": threads, "parallel": SLOTS}
        tiers = [Tier(name=name, slot=i, **common) for i, name in enumerate((KEPT, LOST, FRESH))]
        stage = Generate(Generate.Config(), tiers, Path(folder))
        await stage.start()
        with watched(report):
            rows = [row for i in range(conversations) for row in await conversation(stage, i, tokens, turns)]
        await stage.close()
    by = {way: [row for row in rows if row["way"] == way] for way in (KEPT, LOST, FRESH)}
    texts = {way: [row["text"] for row in found] for way, found in by.items()}
    report["ways"] = {
        way: {
            "first_ms": interval([1e3 * row["first_s"] for row in found]),
            "speedup": interval([b["first_s"] / a["first_s"] for a, b in zip(found, by[FRESH], strict=True)]),
            "cached": float(np.mean([row["cached"] / row["prompt"] for row in found])),
            "same_text": float(np.mean([a == b for a, b in zip(texts[way], texts[FRESH], strict=True)])),
        }
        for way, found in by.items()
    }
    report["turns"] = {
        turn: {w: float(np.median([1e3 * r["first_s"] for r in f if r["turn"] == turn])) for w, f in by.items()}
        for turn in range(2, turns + 1)
    }
    report["prompt_tokens"] = [min(row["prompt"] for row in rows), max(row["prompt"] for row in rows)]


def main() -> None:
    """Print the tables and, as the last line, JSON."""
    asked = arguments(__doc__, rounds=4, tokens=1500, threads=0)
    report: dict[str, Any] = {}
    rounds, tokens, turns = (1, 300, 4) if asked.quick else (asked.rounds, asked.tokens, 10)
    asyncio.run(measure(report, rounds, tokens, turns, asked.threads))
    low, high = report["prompt_tokens"]
    print(f"\nms to the first token, turns 2 to {turns} of {rounds} conversations, prompts of {low} to {high} tokens")
    print(f"{'turn':16}" + "".join(f"{turn:>8}" for turn in report["turns"]))
    for way in (KEPT, LOST, FRESH):
        print(f"{way:16}" + "".join(f"{row[way]:>8.0f}" for row in report["turns"].values()))
    for way in (KEPT, LOST):
        row = report["ways"][way]
        verdict = "reached" if row["speedup"]["median"] >= AIM else "MISSED"
        print(
            f"{way}: {shown(row['speedup'], 1)} times as soon as computed anew, aim {AIM}: {verdict}; "
            f"{row['cached']:.0%} of the prompt was known, {row['same_text']:.0%} of the answers are the same"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
