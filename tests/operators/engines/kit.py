"""What every engine must do. A test module hands a started engine to these checks; what passes may stand in."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from operators.engines.ports import Engine, Generated, Generation
from operators.errors import Reject

SEA = "The capital of France is"
EMOJI = "Emoji list: 😀 😃 😄 😁 😆 😅 🤣 😂 🙂 🙃 😉 😊 😇 🥰 😍 🤩 😘 😗 😚 😙 🥲 😋 😛 😜 🤪 😝 😀 😃 😄 😁"


def request(engine: Engine, text: str = SEA, **options: Any) -> Generation:
    prompt = (*engine.bos(), *engine.tokenize(text))
    return Generation(prompt=prompt, **({"max_tokens": 12, "temperature": 0.0, "top_p": 1.0} | options))


async def collect(engine: Engine, wanted: Generation) -> list[Generated]:
    return [piece async for piece in engine.generate(wanted)]


async def text_of(engine: Engine, wanted: Generation) -> str:
    return "".join(piece.text for piece in await collect(engine, wanted))


async def check_streams_then_finishes_with_counts(engine: Engine) -> None:
    wanted = request(engine)
    pieces = await collect(engine, wanted)
    assert len(pieces) > 6
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    last = pieces[-1]
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", len(wanted.prompt), 12)


async def check_temperature_0_is_deterministic(engine: Engine) -> None:
    first = await text_of(engine, request(engine, seed=1))
    assert first
    assert first == await text_of(engine, request(engine, seed=2))


async def check_seed_decides_what_is_drawn(engine: Engine) -> None:
    hot = {"temperature": 1.5, "max_tokens": 6}
    first = await text_of(engine, request(engine, seed=7, **hot))
    assert first == await text_of(engine, request(engine, seed=7, **hot))
    others = {await text_of(engine, request(engine, seed=seed, **hot)) for seed in range(2)}
    assert len(others | {first}) > 1
    unseeded = {await text_of(engine, request(engine, **hot)) for _ in range(2)}
    assert len(unseeded) > 1


async def check_stop_strings_cut_exactly(engine: Engine) -> None:
    whole = await text_of(engine, request(engine))
    middle = len(whole) // 2
    # Five characters from the middle of words: they span several pieces.
    stop = whole[middle : middle + 5]
    pieces = await collect(engine, request(engine, stop=("never in it", stop)))
    assert "".join(p.text for p in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"


async def check_an_answer_may_be_empty(engine: Engine) -> None:
    whole = await text_of(engine, request(engine))
    pieces = await collect(engine, request(engine, stop=(whole[:1],)))
    assert "".join(p.text for p in pieces) == ""
    assert pieces[-1].finish_reason == "stop"


async def check_text_held_back_for_a_stop_string_is_given_out(engine: Engine) -> None:
    whole = await text_of(engine, request(engine))
    assert await text_of(engine, request(engine, stop=(whole[-4:] + "\x00",))) == whole


async def check_pieces_never_split_a_character(engine: Engine) -> None:
    assert len(engine.tokenize("🤩")) > 1
    pieces = await collect(engine, request(engine, EMOJI, max_tokens=24))
    text = "".join(p.text for p in pieces)
    assert any(ord(char) > 0xFFFF for char in text), text
    assert "�" not in text


async def check_max_tokens_1(engine: Engine) -> None:
    last = (await collect(engine, request(engine, max_tokens=1)))[-1]
    assert (last.finish_reason, last.completion_tokens) == ("length", 1)


async def check_the_window_can_be_filled_but_not_overrun(engine: Engine) -> None:
    prompt = (*engine.bos(), *engine.tokenize(" a" * engine.context_tokens))
    full = Generation(prompt=prompt[: engine.context_tokens - 8], max_tokens=8, temperature=0.0, top_p=1.0)
    assert (await collect(engine, full))[-1].completion_tokens <= 8
    over = Generation(prompt=prompt[: engine.context_tokens - 8], max_tokens=9, temperature=0.0, top_p=1.0)
    with pytest.raises(Reject, match="window") as caught:
        await collect(engine, over)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(Reject):
        await engine.score(prompt[: engine.context_tokens], ["1"])


async def check_control_tokens_only_when_asked(engine: Engine, control: str) -> None:
    assert len(engine.tokenize(control, special=True)) == 1
    assert len(engine.tokenize(control)) > 1


async def check_concurrent_requests_get_their_own_answers(engine: Engine) -> None:
    prompts = [SEA, "One two three four", "Once upon a time", "def main():"]
    alone = [await text_of(engine, request(engine, p, max_tokens=6)) for p in prompts]
    together = await asyncio.gather(*(text_of(engine, request(engine, p, max_tokens=6)) for p in prompts))
    # Batched kernels sum in another order, so one greedy token may differ; a mix-up of requests would differ in all.
    assert [a[:4] for a in alone] == [t[:4] for t in together]
    assert engine.queue() == 0


async def check_closing_the_stream_stops_the_work(engine: Engine, sampled: Any) -> None:
    """``sampled()`` is the engine's own count of sampled tokens."""
    before, length = sampled(), engine.context_tokens - 100
    async with aclosing(engine.generate(request(engine, max_tokens=length))) as stream:  # type: ignore[type-var]
        async for piece in stream:
            if piece.text:
                break
        assert engine.queue() == 1
    assert engine.queue() == 0
    # As long as the abandoned one: if that still ran beside it, it would be over, and counted, by now.
    last = (await collect(engine, request(engine, max_tokens=length)))[-1]
    assert last.completion_tokens == length
    assert sampled() - before < 1.5 * length, "the abandoned one was not computed to its end"


async def check_a_cancelled_task_stops_the_work(engine: Engine, sampled: Any) -> None:
    before, begun, length = sampled(), asyncio.Event(), engine.context_tokens - 100

    async def read() -> None:
        async for _ in engine.generate(request(engine, max_tokens=length)):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await collect(engine, request(engine, max_tokens=length))
    assert sampled() - before < 1.5 * length, "the abandoned one was not computed to its end"


async def check_scores_are_log_probabilities(engine: Engine) -> None:
    prompt = request(engine).prompt
    # 26 letters and a few words are part of the vocabulary's mass, so their probabilities sum to less than 1.
    choices = [" Paris", " London", " the", *(f" {chr(c)}" for c in range(ord("a"), ord("f")))]
    scores = await engine.score(prompt, choices)
    assert scores.dtype == np.float64
    assert scores.shape == (len(choices),)
    assert np.all(scores < 0)
    first_tokens = {engine.tokenize(choice)[0]: score for choice, score in zip(choices, scores, strict=True)}
    assert sum(np.exp(list(first_tokens.values()))) < 1
    assert scores[0] > scores[1]
    again = await engine.score(prompt, choices)
    np.testing.assert_allclose(again, scores, atol=1e-3)
    with pytest.raises(Reject):
        await engine.score(prompt, ["1", ""])


async def check_greedy_takes_the_most_probable(engine: Engine) -> None:
    greedy = await text_of(engine, request(engine, max_tokens=1))
    scores = await engine.score(request(engine).prompt, [greedy, " London", " a", " Rome", "."])
    assert int(np.argmax(scores)) == 0


async def check_every_token_of_the_answer_has_its_log_probability(engine: Engine) -> None:
    wanted = request(engine, logprobs=True, temperature=0.8, seed=3)
    pieces = await collect(engine, wanted)
    tokens = [token for piece in pieces for token in piece.logprobs]
    assert len(tokens) == pieces[-1].completion_tokens == 12
    assert "".join(t.text for t in tokens) == "".join(p.text for p in pieces)
    assert all(t.logprob < 0 for t in tokens)
    # Of the model's own distribution, whatever the temperature: what score says of the first one.
    scored = await engine.score(wanted.prompt, [tokens[0].text])
    np.testing.assert_allclose(tokens[0].logprob, scored[0], atol=1e-3)
    assert not any(piece.logprobs for piece in await collect(engine, request(engine)))


async def check_a_shared_prefix_is_not_computed_again(engine: Engine) -> None:
    story = "Once upon a time there was a small town by the sea where nothing ever happened. " * 4
    await collect(engine, request(engine, story, max_tokens=2))
    last = (await collect(engine, request(engine, story + "Then", max_tokens=2)))[-1]
    assert last.prompt_tokens > 60
    assert last.cached_tokens >= last.prompt_tokens - 8


async def check_no_scope_finds_what_another_computed(engine: Engine) -> None:
    story = "It was a dark night, and in the harbour nobody had seen the ship with the black sails. " * 4
    first, second, again = [
        (await collect(engine, request(engine, story, max_tokens=2, scope=scope, session="s")))[-1]
        for scope in ("one", "another", "another")
    ]
    assert (first.cached_tokens, second.cached_tokens) == (0, 0)
    assert again.cached_tokens > 60


async def check_it_says_that_it_works_also_while_it_works(engine: Engine) -> None:
    async with aclosing(engine.generate(request(engine, max_tokens=30))) as stream:
        await anext(stream)
        await engine.check()
    await engine.check()


CHECKS = [
    check_streams_then_finishes_with_counts,
    check_temperature_0_is_deterministic,
    check_seed_decides_what_is_drawn,
    check_stop_strings_cut_exactly,
    check_an_answer_may_be_empty,
    check_text_held_back_for_a_stop_string_is_given_out,
    check_pieces_never_split_a_character,
    check_max_tokens_1,
    check_the_window_can_be_filled_but_not_overrun,
    check_concurrent_requests_get_their_own_answers,
    check_scores_are_log_probabilities,
    check_greedy_takes_the_most_probable,
    check_every_token_of_the_answer_has_its_log_probability,
    check_a_shared_prefix_is_not_computed_again,
    check_no_scope_finds_what_another_computed,
    check_it_says_that_it_works_also_while_it_works,
]
