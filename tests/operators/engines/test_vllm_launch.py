"""vLLM's server as a child, without vLLM: its knobs, how it is called, the files it gets, and that it ends with us."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from operators.engines.hf_tokenizer import HfTokenizer
from operators.engines.vllm import launch as vllm_launch
from operators.engines.vllm.leash import Leashed
from operators.engines.vllm.server import VllmServer
from operators.errors import Retry, Stop
from operators.tiers import ModelFile
from tests.operators.engines import hf_model
from tests.operators.engines import tiny_gguf as tiny

ROOT = Path(__file__).parents[3]
KEY = "a-key-that-nobody-may-see"
DEADLINE_S = 20.0
Config = VllmServer.Config


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"no {what}"
        threading.Event().wait(0.02)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """A tiny LFM2 in vLLM's layout, covered by a SHA256SUMS."""
    home = tmp_path_factory.mktemp("model")
    tiny.write(gguf, home / "tiny.gguf", width=128, heads=2)
    found: ModelFile = hf_model.convert(gguf, home / "tiny.gguf", home / "hf", "tiny-lfm2")
    return found


@pytest.fixture
def words(model: ModelFile) -> str:
    return str(Path(model.path).with_name("tokenizer.json"))


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({}, "url of a server, or python"),
        ({"url": "http://a", "python": "/b", "tokenizer": "t"}, "not both"),
        ({"url": "http://a"}, "tokenizer is empty"),
        ({"url": "file:///etc/passwd", "tokenizer": "t"}, "http:// or https://"),
        ({"url": "http://", "tokenizer": "t"}, "name a host"),
        ({"url": "http://a:port", "tokenizer": "t"}, "no address"),
        ({"url": "https://user:pass@a", "tokenizer": "t"}, "belongs into api_key"),
        ({"url": "http://gpu-1:8000", "tokenizer": "t", "api_key": KEY}, "unencrypted"),
        ({"python": "/b", "api_key": KEY}, "for a server at url"),
        ({"python": "/b", "extra_args": ["--trust-remote-code"]}, "trust-remote-code"),
        ({"python": "/b", "extra_args": ["--model=/other"]}, "--model=/other"),
        ({"python": "/b", "extra_args": ["dtype"]}, "'dtype'"),
    ],
)
def test_knobs_that_contradict_or_endanger_are_refused(knobs: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        Config(**knobs)
    assert KEY not in str(caught.value.errors(include_input=False))  # type: ignore[attr-defined]


@pytest.mark.parametrize("url", ["https://gpu-1:8000/", "http://127.0.0.1:8000", "http://[::1]:8", "http://localhost"])
def test_a_key_goes_over_https_or_to_this_machine(url: str) -> None:
    assert KEY not in repr(Config(url=url, tokenizer="t", api_key=KEY))


def test_the_call_has_what_we_promise_and_no_secret(tmp_path: Path) -> None:
    config = Config(python="/vllm/bin/python", extra_args=("--dtype=float32",), sleep=True, kv_bytes=3 << 30)
    call = vllm_launch.command(config, tmp_path, "LFM2-1.2B", 4096, 8, tmp_path / "s")
    assert call[:3] == ["/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    pairs = dict(itertools.pairwise(call))
    wanted = {"--model": str(tmp_path), "--served-model-name": "LFM2-1.2B", "--uds": str(tmp_path / "s")}
    wanted |= {"--max-model-len": "4096", "--max-num-seqs": "8", "--load-format": "safetensors"}
    wanted |= {"--kv-cache-memory-bytes": str(3 << 30)}
    assert {name: pairs[name] for name in wanted} == wanted
    assert {"--enable-prefix-caching", "--enable-sleep-mode", "--dtype=float32"} <= set(call)
    assert not {"--host", "--port", "--api-key", "--trust-remote-code"} & set(call)
    ours = {"PATH": "/bin", "RUVLLM_HTTP__API_KEYS": KEY, "PYTHONPATH": "/x", "CUDA_VISIBLE_DEVICES": "1"}
    theirs = vllm_launch.environment(config, 2, ours)
    assert KEY not in str(theirs)
    assert "PYTHONPATH" not in theirs
    expected = {
        "CUDA_VISIBLE_DEVICES": "1",
        "OMP_NUM_THREADS": "2",
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    assert expected.items() <= theirs.items()


FAMILY = """
import os, sys, threading
from operators.engines.vllm.leash import Leashed
def start():
    global child
    child = Leashed(["sh", "-c", "sleep 600 & sleep 600"], os.environ)
thread = threading.Thread(target=start)  # the thread that forks ends, and the child must not end with it
thread.start()
thread.join()
while len(child.pids()) < 4:
    threading.Event().wait(0.02)
print(*child.pids(), child.running, flush=True)
sys.stdin.read()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_and_its_children_end_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FAMILY], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        *numbers, running = parent.stdout.readline().split()
        pids = [int(number) for number in numbers]
        assert running == "True"
        assert all(map(alive, pids))
        parent.kill()
        parent.wait()
        until(lambda: not any(map(alive, pids)), "end of the family")


def test_a_child_that_ends_takes_its_own_along_and_says_so() -> None:
    child = Leashed(["sh", "-c", "sleep 600 & echo $!; echo to stderr >&2; exit 3"], os.environ)
    until(lambda: not child.running, "end")
    number, *said = child.lines
    assert said == ["to stderr", "ended with 3"]
    until(lambda: not alive(int(number)), "end of the grandchild")
    child.end()
    child.end()


def test_a_child_whose_guard_was_killed_ends_with_us() -> None:
    child = Leashed([sys.executable, "-c", "print('here', flush=True)\nimport time; time.sleep(600)"], os.environ)
    until(lambda: child.lines == ["here"], "first line")
    assert 1_000_000 < child.memory_bytes() < 1_000_000_000
    pids = child.pids()
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not child.running, "end of the guard")
    assert alive(pids[1])
    child.end()
    assert not any(map(alive, pids))


def test_a_model_is_checked_whole(model: ModelFile, tmp_path: Path) -> None:
    home = tmp_path / "copy"
    home.mkdir()
    for file in Path(model.path).parent.iterdir():
        (home / file.name).write_bytes(file.read_bytes())
    copy = model.model_copy(update={"path": str(home / "SHA256SUMS")})
    assert vllm_launch.directory(copy, tmp_path) == home
    (home / "other.safetensors").write_bytes(b"pickle?")
    with pytest.raises(Stop, match=r"other\.safetensors.* not in SHA256SUMS"):
        vllm_launch.directory(copy, tmp_path)
    (home / "other.safetensors").unlink()
    (home / "config.json").write_text("{}")
    with pytest.raises(Stop, match="SHA-256"):
        vllm_launch.directory(copy, tmp_path)
    (home / "config.json").unlink()
    sums = dict(line.split()[::-1] for line in (home / "SHA256SUMS").read_text().splitlines())
    weights = {"path": str(home / "model.safetensors"), "sha256": sums["model.safetensors"]}
    with pytest.raises(Stop, match=r"no config\.json beside"):
        vllm_launch.directory(model.model_copy(update=weights), tmp_path)


def test_control_tokens_are_read_only_when_asked(words: str, tmp_path: Path) -> None:
    tokenizer = HfTokenizer(Path(words), "test")
    assert "<|im_end|>" in tokenizer.control
    assert tokenizer.tokenize("a<|im_end|>b", special=True) == [
        tokenizer.tokenize("a")[0],
        3,
        tokenizer.tokenize("b")[0],
    ]
    assert 3 not in tokenizer.tokenize("a<|im_end|>b")
    assert "".join(map(tokenizer.piece, tokenizer.tokenize("a<|im_end|>b"))) == "a<|im_end|>b"
    assert tokenizer.tokenize("\ud800") == tokenizer.tokenize("?")
    told = json.loads(Path(words).read_text())
    told["model"] = {"type": "WordLevel", "vocab": told["model"]["vocab"], "unk_token": "a"}
    told["pre_tokenizer"] = None
    leaky = tmp_path / "leaky.json"
    leaky.write_text(json.dumps(told))
    with pytest.raises(Stop, match="control tokens in any text"):
        HfTokenizer(leaky, "test")
    with pytest.raises(Stop, match=r"none\.json"):
        HfTokenizer(tmp_path / "none.json", "test")


@pytest.mark.parametrize(
    ("python", "told"), [(sys.executable, "No module named 'vllm'"), ("/no/such/python", "No such file")]
)
async def test_a_server_that_does_not_start_says_why(model: ModelFile, tmp_path: Path, python: str, told: str) -> None:
    made = VllmServer(model, Config(python=python), cache_dir=tmp_path)
    with pytest.raises(Stop, match=told):
        await made.start()
    with pytest.raises(Retry, match="closed"):
        await made.check()


def test_the_first_error_is_the_reason() -> None:
    lines = ["(EngineCore pid=7) ERROR 11-23 08:00:00 [core.py:9] ValueError: no room", "x", "RuntimeError: see above"]
    assert vllm_launch.reason(lines) == "ValueError: no room; RuntimeError: see above"
    warned = "(APIServer pid=7) WARNING 11-23 08:00:00 [x.py:1] this can lead to OSError: too many files"
    wrong = [
        "pydantic_core.ValidationError: 1 validation error for C",
        "  Value error, no sleep here",
        "    For more, see",
    ]
    assert "C Value error, no sleep here" in vllm_launch.reason([warned, *wrong])
    assert "OSError" not in vllm_launch.reason([warned, *wrong])
    assert vllm_launch.reason(["a", "b"]) == "a; b"
