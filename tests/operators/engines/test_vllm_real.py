"""vLLM itself, on the CPU: `make test-vllm`, in an environment of its own.

SmolLM2 and a tiny random LFM2 are turned from GGUF into what vLLM reads, so llama.cpp has to agree about both.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest

from operators.engines.make import make_engine
from operators.engines.ports import Engine, Generation
from operators.engines.vllm.server import VllmServer
from operators.tiers import ModelFile

STORY = "Nobody had told the miller that his new wheel would turn the other way in winter. "


def beside(name: str) -> ModuleType:
    """A helper file of this folder; tests/ is not a package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kit, recorder, rig = map(beside, ("kit", "vllm_recorder", "vllm_rig"))
pytestmark = [pytest.mark.skipif(not rig.PYTHON, reason=rig.REASON), pytest.mark.timeout(1800)]
WINDOW = rig.WINDOW


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module", params=["smollm2", "tiny-lfm2"])
async def pair(request: pytest.FixtureRequest, home: Path) -> AsyncIterator[tuple[VllmServer, ModelFile]]:
    """The engine, and the GGUF its weights came from."""
    model, source = rig.model(request.param, home)
    made = await rig.start(model, home)
    yield made, source
    child = made._launched.child  # type: ignore[union-attr]
    pids = child.pids()
    assert len(pids) >= 3, "a guard, the server and its engine"
    await made.close()
    assert not any(map(rig.alive, pids))


@pytest.fixture(scope="module")
def engine(pair: tuple[VllmServer, ModelFile]) -> VllmServer:
    return pair[0]


@pytest.fixture
def smollm2(engine: VllmServer) -> VllmServer:
    if engine.model != "smollm2":
        pytest.skip("random weights know no words")
    return engine


@pytest.mark.parametrize("check", kit.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_kit(smollm2: VllmServer, check: Callable[[Engine], Awaitable[None]]) -> None:
    await check(smollm2)


ANY_WEIGHTS = [
    kit.check_streams_then_finishes_with_counts,
    kit.check_temperature_0_is_deterministic,
    kit.check_stop_strings_cut_exactly,
    kit.check_text_held_back_for_a_stop_string_is_given_out,
    kit.check_max_tokens_1,
    kit.check_the_window_can_be_filled_but_not_overrun,
    kit.check_concurrent_requests_get_their_own_answers,
    kit.check_it_says_that_it_works_also_while_it_works,
]


@pytest.mark.parametrize("check", ANY_WEIGHTS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_kit_on_lfm2(engine: VllmServer, check: Callable[[Engine], Awaitable[None]]) -> None:
    if engine.model != "tiny-lfm2":
        pytest.skip("the whole kit runs on this one")
    await check(engine)


async def test_control_tokens_and_memory(engine: VllmServer) -> None:
    await kit.check_control_tokens_only_when_asked(engine, "<|im_end|>")
    assert 100_000_000 < engine.memory_bytes() < 6_000_000_000


async def test_llama_cpp_agrees(pair: tuple[VllmServer, ModelFile], home: Path) -> None:
    """The same weights in other kernels: tokens, probabilities, and those of an answer's own tokens."""
    made, source = pair
    other = make_engine("llama_cpp", source, home, context_tokens=WINDOW, threads=1)
    await other.start()
    try:
        assert other.bos() == made.bos()
        for text in (kit.SEA, kit.EMOJI, "1234 <|im_end|> été\n\n\tx  y", "don't STOP"):
            assert other.tokenize(text) == made.tokenize(text)
        prompt = kit.request(made).prompt
        choices = [" Paris", " London", " the", "1", "5", " zebra", "é"]
        ours, theirs = await made.score(prompt, choices), await other.score(prompt, choices)
        np.testing.assert_allclose(ours, theirs, atol=0.02 if made.model == "tiny-lfm2" else 0.35)
        assert np.ptp(ours) > 0.1
    finally:
        await other.close()


async def test_log_probabilities_of_an_answer_are_those_of_score(engine: VllmServer) -> None:
    asked = kit.request(engine, max_tokens=5, logprobs=True)
    for temperature in (0.0, 1.3):
        warm = Generation(**{name: getattr(asked, name) for name in asked.__slots__} | {"temperature": temperature})
        pieces = await kit.collect(engine, warm)
        told = [one for piece in pieces for one in piece.logprobs]
        assert len(told) == pieces[-1].completion_tokens
        first = told[0]
        if "\ufffd" not in first.text:
            np.testing.assert_allclose((await engine.score(asked.prompt, [first.text]))[0], first.logprob, atol=1e-3)
    assert not [one for piece in await kit.collect(engine, kit.request(engine)) for one in piece.logprobs]


async def test_only_one_scope_finds_its_prefixes_again(engine: VllmServer) -> None:
    prompt = (*engine.bos(), *engine.tokenize(STORY * 20))[: WINDOW - 8]
    counts = []
    for scope in ("acme", "acme", "other", "other", ""):
        asked = Generation(prompt=prompt, max_tokens=2, temperature=0.0, top_p=1.0, scope=scope, session="s")
        counts.append((await kit.collect(engine, asked))[-1].cached_tokens)
    assert (counts[0], counts[2], counts[4]) == (0, 0, 0)
    assert counts[1] == counts[3]
    assert counts[1] > 0


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_leaving_an_answer_frees_the_request(engine: VllmServer, how: str) -> None:
    asked = kit.request(engine, "zzzz" if engine.model == "tiny-lfm2" else STORY, max_tokens=WINDOW - 100)
    before = rig.metric(engine, "generation_tokens_total")
    if how == "closed":
        async with aclosing(engine.generate(asked)) as stream:
            await anext(stream)
            assert rig.metric(engine, "num_requests_running") == 1
    else:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in engine.generate(asked):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert engine.queue() == 0
    await rig.until(lambda: rig.metric(engine, "num_requests_running") == 0, "end of the request")
    assert rig.metric(engine, "generation_tokens_total") - before < asked.max_tokens - 20


async def test_what_was_recorded_is_what_it_says(engine: VllmServer, tmp_path: Path) -> None:
    if engine.model != "tiny-lfm2":
        pytest.skip("recorded from the other one")
    with rig.http(engine) as client:
        found = recorder.record(client, engine)
    fresh = tmp_path.parent / "vllm_recorded.json"
    fresh.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    known = json.loads(Path(__file__).with_name("vllm_recorded.json").read_text())
    assert recorder.shape(found) == recorder.shape(known), f"see whether the engine reads it, then keep {fresh}"
    assert found["facts"]["text"] == known["facts"]["text"]


async def test_nobody_else_can_reach_it(engine: VllmServer) -> None:
    assert engine._launched is not None
    assert engine._launched.socket.parent.stat().st_mode & 0o077 == 0
    for pid in engine._launched.child.pids():
        for one in psutil.Process(pid).net_connections("inet"):
            assert one.status != psutil.CONN_LISTEN or one.laddr.ip in ("127.0.0.1", "::1"), one
