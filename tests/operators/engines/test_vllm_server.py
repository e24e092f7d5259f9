"""What vLLM's answers become, without vLLM: from a server that gives the answers of a real one."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest

from operators.engines.ports import Generated, Generation
from operators.engines.vllm.server import PROBE, VllmServer
from operators.engines.vllm.wire import salt
from operators.errors import Reject, Retry, RuvError, Stop
from operators.tiers import ModelFile

KEY = "a-key-that-nobody-may-see"
DEADLINE_S = 20.0
MODEL = ModelFile(id="tiny-lfm2", path="not read", sha256="unchecked")
ASKED = Generation(prompt=(1, 40, 41), max_tokens=8, temperature=0.0, top_p=1.0, scope="acme", logprobs=True)


def beside(name: str) -> ModuleType:
    """A helper file of this folder; tests/ is not a package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hf_model, tiny, kit, recorded_server = map(beside, ("hf_model", "tiny_gguf", "kit", "recorded_server"))
RECORDED = recorded_server.RECORDED


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer.json of the recorded model."""
    home = tmp_path_factory.mktemp("words")
    tiny.write(gguf, home / "tiny.gguf", width=128, heads=2)
    hf_model.convert(gguf, home / "tiny.gguf", home / "hf", "tiny-lfm2")
    return str(home / "hf" / "tokenizer.json")


@pytest.fixture
def server() -> Iterator[Any]:
    made = recorded_server.Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


def by_url(url: str, words: str, **knobs: Any) -> VllmServer:
    config = VllmServer.Config(url=url, tokenizer=words, **({"start_timeout_s": 0.3, "api_key": KEY} | knobs))
    return VllmServer(MODEL, config, cache_dir=Path("not used"), context_tokens=256)


@pytest.fixture
async def engine(server: Any, words: str) -> AsyncIterator[VllmServer]:
    made = by_url(server.url, words)
    await made.start()
    yield made
    await made.close()


async def collect(engine: VllmServer, asked: Generation = ASKED) -> list[Generated]:
    pieces: list[Generated] = await kit.collect(engine, asked)
    return pieces


def event(text: str, reason: str | None = None) -> str:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
END = f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\ndata: [DONE]\n\n"


async def test_a_recorded_answer(engine: VllmServer, server: Any) -> None:
    pieces = await collect(engine)
    facts = RECORDED["facts"]
    assert "".join(piece.text for piece in pieces) == facts["text"]
    last = pieces[-1]
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", 3, 8)
    assert last.cached_tokens == facts["cached_tokens"]
    logprobs = [one for piece in pieces for one in piece.logprobs]
    np.testing.assert_allclose([one.logprob for one in logprobs], facts["logprobs"])
    assert "".join(one.text for one in logprobs).replace("\ufffd", "") == facts["text"].replace("\ufffd", "")
    assert engine.bos() == (1,)
    path, headers, body = server.asked[-1]
    assert (path, headers["Authorization"]) == ("/v1/completions", f"Bearer {KEY}")
    assert (body["prompt"], body["model"], body["cache_salt"]) == ([1, 40, 41], "tiny-lfm2", salt(KEY, "acme"))
    assert engine.queue() == engine.memory_bytes() == 0


async def test_scopes_have_their_own_salts(engine: VllmServer, server: Any) -> None:
    salts = set()
    for scope in ("acme", "acme ", ""):
        await collect(engine, Generation(prompt=(1,), max_tokens=1, temperature=0.5, top_p=0.5, scope=scope))
        salts.add(server.body()["cache_salt"])
    assert len(salts) == 3
    assert all(len(one) == 64 for one in salts)
    assert salt("another key", "acme") not in salts


@pytest.mark.parametrize(
    ("texts", "stop", "expected"),
    [
        (["a\u2028b", "\x85c\u2029"], (), "a\u2028b\x85c\u2029"),
        (["one", " tw", "o three"], ("two", "", "never"), "one "),
        (["one", " tw"], ("two",), "one tw"),
    ],
)
async def test_text_is_cut_at_stop_strings_only(
    engine: VllmServer, server: Any, texts: list[str], stop: tuple[str, ...], expected: str
) -> None:
    server.answers["/v1/completions"] = (200, "".join(map(event, texts)) + event("", "length") + END)
    pieces = await collect(engine, Generation(prompt=(1,), max_tokens=8, temperature=0.0, top_p=1.0, stop=stop))
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].finish_reason == ("stop" if expected == "one " else "length")
    assert (pieces[-1].completion_tokens, pieces[-1].cached_tokens) == (4, 2)
    assert server.body()["stop"] == [one for one in stop if one]
    assert server.body()["include_stop_str_in_output"] is True


async def test_scores(engine: VllmServer, server: Any) -> None:
    server.off, server.answers["/v1/completions"] = None, (200, json.dumps(RECORDED["score"]))
    scores = await engine.score([1, 40, 41], ["a", "b", "a"])
    np.testing.assert_allclose(scores, [RECORDED["facts"]["a"], RECORDED["facts"]["b"], RECORDED["facts"]["a"]])
    assert len(server.body()["logprob_token_ids"]) == 2
    with pytest.raises(Stop, match="logprob_token_ids"):
        await engine.score([1, 40, 41], ["a", "z"])
    with pytest.raises(Reject, match="empty choice"):
        await engine.score([1], ["a", ""])


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [("context", Reject, 400), ("model", Stop, 0), ("key", Stop, 0), ("refused", Stop, 0)],
)
async def test_recorded_errors(engine: VllmServer, server: Any, name: str, kind: type[RuvError], status: int) -> None:
    told = RECORDED["errors"][name]
    server.answers["/v1/completions"] = (told["status"], told["body"])
    with pytest.raises(kind) as caught:
        await collect(engine)
    assert not status or caught.value.status == status  # type: ignore[attr-defined]
    assert KEY not in str(caught.value)
    if name == "context":
        assert caught.value.code == "context_length_exceeded"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((500, "oops"), "500: oops"),
        ((503, "{}"), "503"),
        ((429, '{"error": {"message": "full"}}'), "full"),
        ((200, event("a")), "ended in the middle"),
        ((200, event("a") + 'data: {"error": {"message": "engine died", "code": 500}}\n\ndata: [DONE]\n\n'), "died"),
        ((200, event("a", "abort") + END), "abort"),
    ],
)
async def test_what_may_pass_is_worth_another_try(
    engine: VllmServer, server: Any, answer: tuple[int, str], told: str
) -> None:
    server.answers["/v1/completions"] = answer
    with pytest.raises(Retry, match=told) as caught:
        await collect(engine)
    assert caught.value.status == (429 if answer[0] == 429 else 503)
    assert engine.queue() == 0


async def test_leaving_a_stream_hangs_up(engine: VllmServer, server: Any) -> None:
    server.answers["/v1/completions"], server.endless = (200, event("a")), True
    async with aclosing(engine.generate(ASKED)) as stream:
        assert (await anext(stream)).text == "a"
        assert engine.queue() == 1
    assert engine.queue() == 0
    assert server.hung_up.wait(DEADLINE_S)


async def test_closing_ends_the_streams(engine: VllmServer, server: Any) -> None:
    server.answers["/v1/completions"], server.endless = (200, event("a")), True
    stream = engine.generate(ASKED)
    assert (await anext(stream)).text == "a"
    await engine.close()
    await engine.close()
    with pytest.raises(Retry, match="closed"):
        await anext(stream)
    assert server.hung_up.wait(DEADLINE_S)
    for call in (lambda: collect(engine), engine.check):
        with pytest.raises(Retry, match="closed"):
            await call()


async def test_a_silent_server_is_given_up(words: str, server: Any) -> None:
    made = by_url(server.url, words, answer_timeout_s=0.2)
    await made.start()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        made._http.base_url = f"http://127.0.0.1:{silent.getsockname()[1]}"  # type: ignore[union-attr]
        began = time.monotonic()
        with pytest.raises(Retry, match="ReadTimeout"):
            await collect(made)
        assert time.monotonic() - began < DEADLINE_S
    with pytest.raises(Retry, match="ConnectError"):
        await made.check()
    await made.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.answers.update({"/v1/models": (200, '{"data": [{"id": "other"}]}')}), r"\['other'\], not 'tiny-"),
        (lambda s: s.answers.update({"/health": (503, "loading")}), "no server within 0.3 s: .*loading"),
        (lambda s: s.answers.update({"/v1/models": (401, RECORDED["errors"]["key"]["body"])}), "401"),
        (
            lambda s: s.answers.update({"/v1/models": (200, '{"data": [{"id": "tiny-lfm2", "max_model_len": 9}]}')}),
            "9 t",
        ),
    ],
    ids=["model", "loading", "key", "window"],
)
async def test_a_server_that_does_not_fit_is_refused(
    server: Any, words: str, change: Callable[[Any], None], told: str
) -> None:
    change(server)
    with pytest.raises(Stop, match=told):
        await by_url(server.url, words).start()


async def test_another_tokenizer_and_no_server_are_refused(server: Any, words: str, tmp_path: Path) -> None:
    told = json.loads(Path(words).read_text())
    told["model"]["merges"] = []
    (tmp_path / "other.json").write_text(json.dumps(told))
    assert "the" in PROBE
    with pytest.raises(Stop, match="in different ways"):
        await by_url(server.url, str(tmp_path / "other.json")).start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Stop, match="ConnectError"):
        await by_url(f"http://127.0.0.1:{port}", words).start()


async def test_a_server_that_computes_wrongly_is_refused(server: Any, words: str) -> None:
    server.off = 0.05  # as other kernels may be
    made = by_url(server.url, words)
    await made.start()
    await made.close()
    for server.off in (-0.3, float("nan")):
        with pytest.raises(Stop, match="wrongly"):
            await by_url(server.url, words).start()


async def test_it_says_when_it_can_not_sleep(engine: VllmServer) -> None:
    with pytest.raises(Stop, match=r"vllm\.sleep"):
        await engine.sleep()
