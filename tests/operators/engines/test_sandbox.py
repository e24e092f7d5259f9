"""What an engine's process can't do any more once it has entered its sandbox, and what it still can.

Everything is tried in processes of their own (``sandbox_acts``, ``sandbox_engines``), before and after they enter.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest

from operators.engines.child import sandbox
from operators.errors import Stop
from tests.operators.engines import tiny_gguf

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
NOT, NO_ACCESS = "EPERM", "EACCES"
"""What the filter answers, and what Landlock does."""

REFUSED = {
    **dict.fromkeys(("socket", "socket in an old thread", "socket in a new thread", "unix socket"), NOT),
    **dict.fromkeys(("connect, unix", "connect, tcp", "bind", "listen", "datagram pair"), NOT),
    **dict.fromkeys(("run", "fork", "fork in an old thread", "memfd"), NOT),
    **dict.fromkeys(("signal another process", "limit another process", "chmod outside", "chmod inside"), NOT),
    **dict.fromkeys(("read outside", "read in a new thread", "read through /proc", "list outside"), NO_ACCESS),
    **dict.fromkeys(("read /etc/passwd", "read the parent's variables"), NO_ACCESS),
}
WRITES = (
    *("write outside", "append outside", "truncate outside", "make a folder outside", "rename outside"),
    *("remove outside", "write through /proc"),
)
WRONG_ARGUMENTS = {"exec": "ENOENT", "execveat": "ENOENT", "ptrace": "ESRCH", "type into the terminal": "EBADF"}
"""What these calls answer without a filter: they would do something, were their arguments right."""
ALLOWED = (
    *("stream pair", "thread", "read /proc/meminfo", "read /proc/self/status", "import", "signal itself", "own limits"),
)
INSIDE = ("write inside", "read inside", "remove inside")


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    # NumPy's BLAS would start threads on import, before anything can be entered.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment | options, cwd=ROOT, text=True, **pipes)


def last_line(process: subprocess.Popen[str]) -> Any:
    """What it prints as its last line when it ends by itself."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


class Tried:
    """A process that tried everything, as it said and as it was seen from outside before and after its end."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.outside, self.inside = folder / "outside", folder / "inside"
        self.outside.mkdir(parents=True)
        self.inside.mkdir()
        for stage in ("before", "after"):
            for name in ("rename", "remove"):
                (self.outside / f"{stage}-{name}").write_text(name)
        (self.outside / "notes").write_text("a secret")
        (self.inside / "given").write_text("given")
        with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
            unix.bind(str(self.outside / "listening"))
            unix.listen()
            process = start(HERE / "sandbox_acts.py", folder, tcp.getsockname()[1], *options)
            line = process.stdout.readline()
            if not line:
                pytest.fail(process.communicate()[1])
            proc = Path(f"/proc/{process.pid}")
            self.status, self.limits = (proc / "status").read_text(), (proc / "limits").read_text()
            self.errors = process.communicate(timeout=60)[1]
            self.code = process.returncode
            self.reached = [accepted(unix), accepted(tcp)]
        self.said = json.loads(line)
        self.before, self.after, self.sandbox = self.said["before"], self.said["after"], self.said["sandbox"]

    def files(self) -> set[str]:
        return {path.name for path in (*self.outside.iterdir(), *self.inside.iterdir())}


def accepted(server: socket.socket) -> int:
    """How many connections wait at ``server``."""
    server.setblocking(False)
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(tmp_path_factory.mktemp("alone") / "f")


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(tmp_path_factory.mktemp("writing") / "f", "writable")


def test_the_filter_and_the_limits_are_in_force_and_landlock_says_where_it_is_not(alone: Tried) -> None:
    assert alone.sandbox["seccomp"]
    assert alone.sandbox["limits"]
    # A thread ran before: on kernels that can't reach it, that is told, and true.
    reached = alone.after["read in an old thread"] == NO_ACCESS
    assert alone.sandbox["landlock"] == reached
    assert reached or "older threads without it: " in alone.sandbox["missing"][0]
    assert len(alone.sandbox["missing"]) == (not reached)


@pytest.mark.parametrize("act", REFUSED)
def test_it_is_refused(alone: Tried, writing: Tried, act: str) -> None:
    for tried in (alone, writing):
        assert (tried.before[act], tried.after[act]) == ("ok", REFUSED[act])


@pytest.mark.parametrize("act", WRONG_ARGUMENTS)
def test_the_call_is_refused_before_its_arguments_are_read(alone: Tried, act: str) -> None:
    assert (alone.before[act], alone.after[act]) == (WRONG_ARGUMENTS[act], NOT)


@pytest.mark.parametrize("act", WRITES)
def test_nothing_outside_is_written(alone: Tried, writing: Tried, act: str) -> None:
    """Where a folder is writable, Landlock decides; where none is, the filter does, in all threads."""
    assert (alone.before[act], alone.after[act]) == ("ok", NOT)
    assert (writing.before[act], writing.after[act]) == ("ok", NO_ACCESS)


def test_an_old_thread_writes_nothing_either(alone: Tried) -> None:
    act = "write outside in an old thread"
    assert (alone.before[act], alone.after[act]) == ("ok", NOT)


@pytest.mark.parametrize("act", ALLOWED)
def test_it_still_works(alone: Tried, writing: Tried, act: str) -> None:
    for tried in (alone, writing):
        assert (tried.before[act], tried.after[act]) == ("ok", "ok")


@pytest.mark.parametrize("act", INSIDE)
def test_the_writable_folder_is_writable_only_if_named(alone: Tried, writing: Tried, act: str) -> None:
    assert (writing.before[act], writing.after[act]) == ("ok", "ok")
    assert alone.before[act] == "ok"
    assert alone.after[act] == (NO_ACCESS if act == "read inside" else NOT)


def test_every_act_is_expected(alone: Tried) -> None:
    others = {"write outside in an old thread", "read in an old thread"}
    assert alone.before.keys() == {*REFUSED, *WRITES, *WRONG_ARGUMENTS, *ALLOWED, *INSIDE} | others


def test_seen_from_outside(alone: Tried, writing: Tried) -> None:
    for tried in (alone, writing):
        assert "\nSeccomp:\t2\n" in tried.status
        assert "\nNoNewPrivs:\t1\n" in tried.status
        assert tried.reached == [1, 1], "one connection each, from before"
        files = tried.files()
        assert {"before-made", "before-old", "before-folder", "before-renamed", "before-proc"} <= files
        assert {"after-rename", "after-remove"} <= files
        assert not files & {"after-made", "after-folder", "after-renamed", "after-proc"}
    assert "after-old" not in alone.files()
    assert (alone.outside / "notes").read_text() == "a s"


def test_it_can_abort_and_leaves_no_core(alone: Tried) -> None:
    assert alone.code == -signal.SIGABRT
    limits = {line[:25].strip(): line[26:].split()[:2] for line in alone.limits.splitlines()}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max file size"] == ["0", "0"]
    assert int(limits["Max open files"][1]) < 200


MEMORY = """
import mmap, resource, sys
from operators.engines.child import sandbox
from operators.errors import Stop
with open(sys.argv[1], "rb") as file:
    size = 256 << 20
    bytearray(size)
    try:
        sandbox.enter(memory_bytes=1 << 20)
    except Stop as error:
        assert "private memory are taken already" in str(error)
    else:
        raise AssertionError("it has more than that already")
    sandbox.enter(memory_bytes=sandbox.private_bytes() + (64 << 20))
    weights = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    assert weights[-1] == 7
    bytearray(32 << 20)
    try:
        bytearray(size)
    except MemoryError:
        print('"limited"')
"""


def test_memory_is_limited_but_mapped_weights_are_not_counted(tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb") as file:
        file.truncate((256 << 20) - 1)
        file.seek(0, os.SEEK_END)
        file.write(b"\x07")
    assert last_line(start("-c", MEMORY, tmp_path / "weights")) == "limited"


KERNELS = """
import dataclasses, errno, json
from operators.engines.child import sandbox
class Old(sandbox.Kernel):
    def call(self, name, *arguments):
        return 0 if name == "prctl" else -errno.ENOSYS
class Foreign(sandbox.Kernel):
    machine = "riscv64"
class Forbidding(sandbox.Kernel):
    def call(self, name, *arguments):
        refusals = {"seccomp": -errno.EINVAL, "landlock_restrict_self": -errno.EPERM}
        return refusals[name] if name in refusals else super().call(name, *arguments)
print(json.dumps([dataclasses.asdict(sandbox.enter(kernel=kind())) for kind in (Old, Foreign, Forbidding)]))
"""


def test_what_a_kernel_refuses_is_told_not_raised() -> None:
    old, foreign, forbidding = last_line(start("-c", KERNELS))
    assert (old["seccomp"], old["landlock"], old["limits"]) == (False, False, True)
    assert [why.split(" (")[1] for why in old["missing"]] == ["Function not implemented)"] * 2
    assert (foreign["seccomp"], foreign["limits"]) == (False, True)
    assert foreign["missing"][-1] == "seccomp: riscv64 is none of x86_64, aarch64"
    assert (forbidding["seccomp"], forbidding["landlock"]) == (False, False)
    assert forbidding["missing"][-1] == "seccomp: refused (Invalid argument)"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    with pytest.raises(Stop, match="no file or folder"):
        sandbox.enter(writable=tmp_path / "nowhere")
    assert resource.getrlimit(resource.RLIMIT_CORE) == before, "the test itself has entered"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_gguf.write(gguf, tmp_path_factory.mktemp("gguf") / "tiny.gguf").model_dump_json()


@pytest.fixture(scope="module")
def texts(model: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the engines said: loaded first and locked then, and locked from the beginning."""
    said = []
    for options in ((), ("locked",)):
        scratch = tmp_path_factory.mktemp("scratch")
        said.append(last_line(start(HERE / "sandbox_engines.py", model, scratch, *options, TMPDIR=str(scratch))))
    return said


def test_the_engines_say_the_same_as_without(texts: list[dict[str, Any]]) -> None:
    free = texts[0]["before"]
    assert len(set(free)) == 1
    assert len(free[0]) > 10
    for said in texts:
        assert said["before"] == said["after"] == free
        assert all(said["other"])
        assert said["scores"] == texts[0]["scores"]


def test_all_their_threads_are_held(texts: list[dict[str, Any]]) -> None:
    loaded_first, locked = texts
    assert loaded_first["threads"] > 3
    for said in texts:
        assert said["refused"] == {"socket": NOT, "write": NOT, "read": NO_ACCESS}
        assert all(one["seccomp"] and one["limits"] for one in said["entered"])
    assert [one["landlock"] for one in locked["entered"]] == [True, True], "it had one thread when it entered"
    assert [one["missing"] for one in locked["entered"]] == [[], []]
