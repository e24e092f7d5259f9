"""A language model as an ExecuTorch program: the kit, llama.cpp and ExecuTorch's own runner on the same weights, state.

``make test-executorch`` runs this: the export alone takes a minute or two.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.engines.executorch.llm import ExecuTorchLLM
from operators.engines.files.models import OpenModel, open_model
from operators.engines.make import make_engine
from operators.engines.ports import Engine
from operators.errors import Reject, Stop
from operators.tiers import ModelFile
from tests.operators.engines import kit
from tests.operators.engines import tiny_gguf as tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not os.environ.get("RUVLLM_TEST_EXECUTORCH"), reason="make test-executorch runs this"),
]
HERE = Path(__file__).parent
PROMPT = "The capital of the sea is in a"
OTHER = "def main():"


SEED, WINDOW = 7, 1024
"""As in ``tiny_pte``."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pte")
    done = subprocess.run(
        [sys.executable, str(HERE / "tiny_pte.py"), str(made)], capture_output=True, text=True, timeout=1100
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return made


OPENED: list[OpenModel] = []


@pytest.fixture(scope="module", autouse=True)
def closing() -> Iterator[None]:
    yield
    for one in OPENED:
        one.close()


def opened(path: Path) -> OpenModel:
    with pytest.warns(UserWarning, match="unchecked"):
        OPENED.append(open_model(ModelFile(id=path.stem, path=str(path), sha256="unchecked"), path.parent))
    return OPENED[-1]


def make(folder: Path, name: str, **options: Any) -> ExecuTorchLLM:
    files = opened(folder / f"{name}.pte"), opened(folder / "tokenizer.json")
    return ExecuTorchLLM(*files, **({"context_tokens": WINDOW, "threads": 1} | options))


@pytest.fixture(scope="module", params=["named", "tiny"])
async def engine(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[ExecuTorchLLM]:
    made = make(folder, request.param)
    await made.start()
    yield made
    await made.close()


@pytest.fixture(scope="module")
async def llama(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """The same weights in llama.cpp."""
    gguf = pytest.importorskip("gguf")
    from operators.engines.llama.llama_cpp import LlamaCpp

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny.write(gguf, path, seed=SEED)
    made = LlamaCpp(opened(path), context_tokens=WINDOW, threads=1)
    await made.start()
    yield made
    await made.close()


MEANING = {
    kit.check_streams_then_finishes_with_counts,
    kit.check_scores_are_log_probabilities,
    kit.check_pieces_never_split_a_character,
    kit.check_every_token_of_the_answer_has_its_log_probability,
}
"""Random weights have no opinion about Paris, and their bytes are half characters: our own tests stand in."""
NAMED = {kit.check_a_shared_prefix_is_not_computed_again, kit.check_no_scope_finds_what_another_computed}
"""Without names of its buffers a program can't come back to the end of a prompt."""


@pytest.mark.parametrize(
    "check", [c for c in kit.CHECKS if c not in MEANING], ids=lambda c: c.__name__.removeprefix("check_")
)
async def test_kit(engine: Engine, check: Callable[[Engine], Awaitable[None]]) -> None:
    if check in NAMED and engine.model == "tiny":
        with pytest.raises(AssertionError):
            await check(engine)
        return
    await check(engine)


async def test_an_answer_ends_with_counts(engine: Engine) -> None:
    wanted = kit.request(engine, PROMPT, max_tokens=30)
    *before, last = await kit.collect(engine, wanted)
    assert len(before) > 5
    assert {piece.finish_reason for piece in before} == {None}
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", len(wanted.prompt), 30)


async def test_control_tokens_are_read_only_when_asked(engine: Engine) -> None:
    await kit.check_control_tokens_only_when_asked(engine, "<|im_end|>")
    assert engine.bos() == (1,)


async def test_abandoned_work_stops(engine: ExecuTorchLLM) -> None:
    await kit.check_closing_the_stream_stops_the_work(engine, engine.sampled)
    await kit.check_a_cancelled_task_stops_the_work(engine, engine.sampled)


async def test_scores_are_those_of_llama_cpp(engine: ExecuTorchLLM, llama: Engine) -> None:
    choices = [*"abcdefgh0123", " the", "é"]
    for text in (PROMPT, OTHER, "x" * 150):
        prompt = kit.request(engine, text).prompt
        assert prompt == kit.request(llama, text).prompt
        ours, theirs = await engine.score(prompt, choices), await llama.score(prompt, choices)
        np.testing.assert_allclose(ours, theirs, atol=0.02)
        assert np.ptp(ours) > 1, "the model has no opinion, so agreeing proves nothing"
        assert np.exp(ours).sum() < 1
    with pytest.raises(Reject):
        await engine.score(prompt, ["1", ""])


async def test_a_new_text_is_read_as_the_first_one_was(engine: ExecuTorchLLM) -> None:
    """Also after another text, its own beginning, and a request that was abandoned in the middle."""
    wanted = kit.request(engine, PROMPT, max_tokens=40)
    first = await kit.text_of(engine, wanted)
    assert len(first) > 10
    for before in (OTHER, PROMPT[:12], PROMPT):
        await kit.collect(engine, kit.request(engine, before, max_tokens=3))
        assert await kit.text_of(engine, wanted) == first
    stream = engine.generate(wanted)
    await anext(stream)
    await stream.aclose()
    assert await kit.text_of(engine, wanted) == first


async def test_what_goes_on_is_read_only_from_there_on_and_only_in_its_scope(engine: ExecuTorchLLM) -> None:
    wanted = kit.request(engine, PROMPT, max_tokens=5, scope="a", temperature=1.0, seed=3)
    [*_, last] = await kit.collect(engine, wanted)
    assert last.cached_tokens == 0
    same = {"max_tokens": 5, "temperature": 0.0, "top_p": 1.0}
    state = engine._state
    assert state is not None
    longer = type(wanted)(prompt=(*state._tokens, *engine.tokenize(" and")), scope="a", **same)
    other = type(wanted)(prompt=longer.prompt, scope="b", **same)
    reused, anew = (await kit.collect(engine, longer))[-1], (await kit.collect(engine, other))[-1]
    assert reused.cached_tokens == len(wanted.prompt) + 4
    assert anew.cached_tokens == 0
    assert await kit.text_of(engine, longer) == await kit.text_of(engine, other)


async def test_log_probabilities_and_top_p(engine: ExecuTorchLLM) -> None:
    compared = 0
    for seed in range(30):
        wanted = kit.request(engine, PROMPT, max_tokens=2, logprobs=True, temperature=1.3, seed=seed)
        pieces = await kit.collect(engine, wanted)
        likely = [one for piece in pieces for one in piece.logprobs]
        assert len(likely) == pieces[-1].completion_tokens
        assert pieces[-1].unsupported == ()
        if len(engine.tokenize(likely[0].text)) == 1 and likely[0].text.isascii():
            [score] = await engine.score(wanted.prompt, [likely[0].text])
            assert likely[0].logprob == pytest.approx(score, abs=1e-4)
            compared += 1
    assert compared > 3
    # Of a nucleus of one token, the heat does not matter.
    cold = await kit.text_of(engine, kit.request(engine, PROMPT))
    assert await kit.text_of(engine, kit.request(engine, PROMPT, temperature=2.0, top_p=1e-6, seed=1)) == cold


async def test_names_of_buffers_spare_loading_anew(folder: Path) -> None:
    kept = {}
    for name in ("named", "tiny"):
        made = make(folder, name)
        await made.start()
        assert made._state is not None
        kept[name] = (made._state.recurrent, made._state.reloads)
        assert made.memory_bytes() >= (folder / f"{name}.pte").stat().st_size
        await made.close()
        assert made.memory_bytes() == 0
    assert kept == {"named": (True, False), "tiny": (True, True)}


def runner(folder: Path) -> list[bytes]:
    """What ExecuTorch's own runner answers to PROMPT: at first, and again after OTHER and a reset. It prints it."""
    code = f"""
from executorch.extension.llm.custom_ops import custom_ops
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
run = TextLLMRunner({str(folder / "tiny.pte")!r}, {str(folder / "tokenizer.json")!r})
config = GenerationConfig(echo=False, max_new_tokens=40, temperature=0.0)
for prompt in ({PROMPT!r}, {OTHER!r}, {PROMPT!r}):
    run.reset()
    run.generate("<|startoftext|>" + prompt, config)  # it reads control tokens in any text
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, _, again = re.findall(rb"(.*?)\nPyTorchObserver [^\n]*\n\n?", done.stdout, re.DOTALL)
    return [first, again]


def printed(tokens: Sequence[int]) -> bytes:
    """How the runner prints them: single bytes that C can't print are left out."""
    others = [b for b in range(256) if chr(b) not in tiny.vocabulary()]
    pieces = []
    for token in tokens:
        piece = bytes(ord(c) if ord(c) < 256 else others[ord(c) - 256] for c in tiny.vocabulary()[token])
        pieces.append(piece if len(piece) > 1 or 32 <= piece[0] < 127 or piece.isspace() else b"")
    return b"".join(pieces)


async def test_executorchs_own_runner_says_the_same_until_it_remembers(folder: Path) -> None:
    made = make(folder, "named")
    await made.start()
    wanted = kit.request(made, PROMPT, max_tokens=40)
    await kit.collect(made, wanted)
    assert made._state is not None
    ours = made._state._tokens[len(wanted.prompt) :]  # all but the last, which nothing has read
    await made.close()
    first, again = runner(folder)
    assert len(printed(ours)) > 6
    assert first.startswith(printed(ours))
    # Why it is not what serves: its reset leaves the convolutions what the last text left in them.
    assert not again.startswith(printed(ours))


async def test_a_program_that_does_not_fit_stops(folder: Path) -> None:
    with pytest.raises(Stop, match="exported with 1024"):
        await make(folder, "tiny", context_tokens=2 * WINDOW).start()
    bad = folder / "bad.pte"
    bad.write_bytes((folder / "tiny.pte").read_bytes()[:1000])
    with pytest.raises(Stop, match="can't load it"):
        await make(folder, "bad").start()


async def test_closing_ends_streams(folder: Path) -> None:
    made = make(folder, "named")
    await made.start()
    stream = made.generate(kit.request(made, max_tokens=200))
    await anext(stream)
    await asyncio.gather(made.close(), made.close())
    with pytest.raises(Exception, match="closed"):
        async for _ in stream:
            pass
    with pytest.raises(Exception, match="closed"):
        await made.check()


async def test_it_runs_in_a_process_of_its_own_that_is_locked_in(folder: Path, tmp_path: Path) -> None:
    model, words = (
        ModelFile(id=name, path=str(folder / name), sha256="unchecked") for name in ("named.pte", "tokenizer.json")
    )
    here, child = (
        make(folder, "named"),
        make_engine("executorch", model, tmp_path, context_tokens=WINDOW, threads=1, tokenizer=words),
    )
    await here.start()
    with pytest.warns(UserWarning, match="unchecked"):
        await child.start()
    try:
        asked = kit.request(here, PROMPT)
        assert await kit.text_of(child, asked) == await kit.text_of(here, asked)
        np.testing.assert_allclose(
            await child.score([1, 5], ["a", "b"]), await here.score([1, 5], ["a", "b"]), atol=1e-4
        )
        assert child.sandbox.missing == ()  # type: ignore[attr-defined]
    finally:
        await child.close()
        await here.close()
