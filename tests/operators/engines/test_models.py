"""A model file is used only if it is the one the profile names."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import pytest

from operators.engines.files import checksums
from operators.engines.files.models import CACHE, inspect, open_model, resolve
from operators.engines.make import make_engine, make_here
from operators.errors import Stop
from operators.tiers import ModelFile
from tests.operators.engines import kit
from tests.operators.engines import tiny_gguf as tiny

DATA = b"weights" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed."""
    seen: list[str] = []
    digest = hashlib.file_digest

    def watch(file: Any, name: str) -> object:
        seen.append(Path(f"/proc/self/fd/{file.fileno()}").readlink().name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", watch)
    return seen


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second has gone by since the files were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable package that carries a file and a function; importing it twice would fail."""
    folder = tmp_path / "site" / "ruvllm_test_weights"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(DATA)
    (folder / "__init__.py").write_text(
        "from pathlib import Path\ncalls = []\n"
        "def assemble():\n    calls.append(1)\n    return Path(__file__).with_name('model.bin')\n"
        "def broken():\n    raise FileNotFoundError('part 3')\n"
    )
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "ruvllm_test_weights", raising=False)
    return "ruvllm_test_weights"


@pytest.mark.usefixtures("settled")
def test_a_path_is_hashed_once(file: Path, tmp_path: Path, reads: list[str]) -> None:
    model = ModelFile(id="m", path=str(file), sha256=SHA.upper())
    assert resolve(model, tmp_path / "cache") == file
    assert resolve(model, tmp_path / "cache") == file
    assert reads == ["model.bin"]
    assert inspect(model, tmp_path / "cache")["state"] == "ok"
    assert len(reads) == 1
    assert inspect(model, tmp_path / "cache", anew=True)["state"] == "ok"
    assert len(reads) == 2


def test_a_file_that_was_written_just_now_is_not_remembered(
    file: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the same tick of the clock would leave its times as they are."""
    model, written = ModelFile(id="m", path=str(file), sha256=SHA), file.stat().st_ctime_ns
    for later, hashed in ((1_000_000, 1), (1_000_000, 2), (1_000_000_000, 3), (1_000_000_000, 3)):
        monkeypatch.setattr(time, "time_ns", lambda later=later: written + later)
        resolve(model, tmp_path)
        assert len(reads) == hashed


def test_what_is_remembered_is_of_the_inode(file: Path, tmp_path: Path, reads: list[str], settled: None) -> None:
    """Another name for the same file is no new file; another file of the same name is."""
    model = ModelFile(id="m", path=str(file), sha256=SHA)
    (other := file.with_name("other")).write_bytes(DATA)
    os.link(file, linked := file.with_name("linked"))
    resolve(model, tmp_path)
    resolve(ModelFile(id="n", path=str(linked), sha256=SHA), tmp_path)
    assert len(reads) == 1
    os.replace(other, file)
    resolve(model, tmp_path)
    assert len(reads) == 2


@pytest.mark.usefixtures("settled")
def test_many_files_are_remembered(file: Path, tmp_path: Path, reads: list[str]) -> None:
    (other := file.with_name("other")).write_bytes(DATA)
    for path in (file, other, file, other):
        resolve(ModelFile(id="m", path=str(path), sha256=SHA), tmp_path)
    assert reads == ["model.bin", "other"]


def test_a_changed_file_is_hashed_again_and_refused(file: Path, tmp_path: Path, reads: list[str]) -> None:
    model = ModelFile(id="m", path=str(file), sha256=SHA)
    resolve(model, tmp_path)
    file.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(Stop, match=f"expected {SHA}"):
        resolve(model, tmp_path)
    assert len(reads) == 2


def test_setting_the_time_back_hides_nothing(file: Path, tmp_path: Path) -> None:
    model = ModelFile(id="m", path=str(file), sha256=SHA)
    resolve(model, tmp_path)
    before = file.stat()
    file.write_bytes(DATA[:-1] + b"!")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Stop, match="SHA-256"):
        resolve(model, tmp_path)


def test_a_wrong_checksum_is_never_remembered_as_right(file: Path, tmp_path: Path) -> None:
    wrong = ModelFile(id="m", path=str(file), sha256="0" * 64)
    for _ in range(2):
        with pytest.raises(Stop, match=SHA) as caught:
            resolve(wrong, tmp_path)
        assert "install or download it again" in caught.value.remedy


RUBBISH = [b"", b"{", b"[]", b'{"inodes": 3}', b'{"inodes": {"x": 1}, "calls": []}', b"\xff"]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_a_damaged_cache_only_costs_time(file: Path, tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / CACHE).write_bytes(rubbish)
    assert resolve(ModelFile(id="m", path=str(file), sha256=SHA), tmp_path) == file
    assert SHA in (tmp_path / CACHE).read_text()
    json.loads((tmp_path / CACHE).read_bytes())


def test_a_package_is_not_imported_for_its_file(package: str, tmp_path: Path) -> None:
    path = resolve(ModelFile(id="m", package=package, file="model.bin", sha256=SHA), tmp_path)
    assert path.read_bytes() == DATA
    assert package not in sys.modules


def test_a_package_function_is_called_once(package: str, tmp_path: Path) -> None:
    model = ModelFile(id="m", package=package, file="assemble()", sha256=SHA)
    assert resolve(model, tmp_path) == resolve(model, tmp_path)
    assert sys.modules[package].calls == [1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"path": "/no/such/file"}, "no file at /no/such/file"),
        ({"package": "ruvllm_no_such_package", "file": "x"}, "'ruvllm_no_such_package' is not installed"),
        ({"package": "ruvllm_test_weights", "file": "other.bin"}, "'other.bin' of package"),
        ({"package": "ruvllm_test_weights", "file": "broken()"}, "part 3"),
        ({"package": "ruvllm_test_weights", "file": "absent()"}, "absent"),
        ({"package": "ruvllm_test_weights"}, "give a package with a file"),
        ({}, "or a path"),
        ({"package": "ruvllm_test_weights", "file": "model.bin", "path": "model.bin"}, "or a path"),
    ],
)
def test_what_is_missing_is_said(package: str, tmp_path: Path, fields: dict[str, str], words: str) -> None:
    with pytest.raises(Stop, match=r"^model m: ") as caught:
        resolve(ModelFile(id="m", sha256=SHA, **fields), tmp_path)
    assert words in str(caught.value)


def test_unchecked_is_loud(file: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"model m: model\.bin is read unchecked"):
        assert resolve(ModelFile(id="m", path=str(file), sha256="unchecked"), tmp_path) == file


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_warns(file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.warns(UserWarning, match="hash the model files again"):
        assert resolve(ModelFile(id="m", path=str(file), sha256=SHA), blocked) == file


# ------------------------------------------------------------------------------------ what was checked is what is read


def test_another_file_in_its_place_changes_nothing_for_who_has_it_open(file: Path, tmp_path: Path) -> None:
    model = ModelFile(id="m", path=str(file), sha256=SHA)
    (other := file.with_name("other")).write_bytes(b"evil" * 1000)
    with open_model(model, tmp_path) as opened:
        os.replace(other, file)
        assert opened.path.read_bytes() == DATA
        assert opened.found.read_bytes() != DATA
        assert (opened.bytes, opened.sha256, opened.file.tell()) == (len(DATA), SHA, 0)
        opened.unchanged()
    with pytest.raises(Stop, match=f"expected {SHA}"):
        open_model(model, tmp_path)


def test_a_swap_while_it_is_hashed_is_a_swap_of_the_name_only(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other := file.with_name("other")).write_bytes(DATA[:-1] + b"!")
    digest = hashlib.file_digest

    def swapping(opened: Any, name: str) -> object:
        if other.exists():
            os.replace(other, file)
        return digest(opened, name)

    monkeypatch.setattr(hashlib, "file_digest", swapping)
    with open_model(ModelFile(id="m", path=str(file), sha256=SHA), tmp_path) as opened:
        assert opened.path.read_bytes() == DATA
        assert file.read_bytes() != DATA


def test_writing_into_the_file_while_it_is_loaded_is_seen(file: Path, tmp_path: Path) -> None:
    with open_model(ModelFile(id="m", path=str(file), sha256=SHA), tmp_path) as opened:
        with file.open("r+b") as same:
            same.write(b"W")
        with pytest.raises(Stop, match="changed while it was loaded"):
            opened.unchanged()


def test_writing_within_a_tick_of_the_clock_is_seen(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was made so shortly before that its times don't tell."""
    state, now = checksums.state, time.time_ns()
    monkeypatch.setattr(checksums, "state", lambda opened: [*state(opened)[:3], now, now])
    monkeypatch.setattr(time, "time_ns", lambda: now)
    with open_model(ModelFile(id="m", path=str(file), sha256=SHA), tmp_path) as opened:
        opened.unchanged()
        with file.open("r+b") as same:
            same.write(b"W")
        with pytest.raises(Stop, match="changed while it was loaded"):
            opened.unchanged()


def test_where_the_open_file_has_no_path_its_name_is_looked_at_again(file: Path, tmp_path: Path) -> None:
    (other := file.with_name("other")).write_bytes(DATA)
    with open_model(ModelFile(id="m", path=str(file), sha256=SHA), tmp_path) as opened:
        opened.path = opened.found  # as on a system without /proc
        opened.unchanged()
        os.replace(other, file)
        with pytest.raises(Stop, match="changed while it was loaded"):
            opened.unchanged()
        file.unlink()
        with pytest.raises(Stop, match="changed while it was loaded"):
            opened.unchanged()


def test_links_are_followed_once(file: Path, tmp_path: Path) -> None:
    """Installers make links; one that is turned round later leads nobody astray who has the file open."""
    (evil := file.with_name("evil")).write_bytes(b"evil")
    (link := file.with_name("link")).symlink_to(file)
    model = ModelFile(id="m", path=str(link), sha256=SHA)
    with open_model(model, tmp_path) as opened:
        link.unlink()
        link.symlink_to(evil)
        assert opened.path.read_bytes() == DATA
    with pytest.raises(Stop, match="SHA-256"):
        open_model(model, tmp_path)


def test_what_is_no_file_is_refused_and_never_waited_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that takes a file's place after a first look."""
    os.mkfifo(pipe := tmp_path / "pipe")
    model = ModelFile(id="m", path=str(pipe), sha256=SHA)
    with pytest.raises(Stop, match="no file at"):
        open_model(model, tmp_path)
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    with pytest.raises(Stop, match="is no regular file"):
        open_model(model, tmp_path)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def weights(tmp_path: Path) -> ModelFile:
    found: ModelFile = tiny.write(gguf, tmp_path / "tiny.gguf")
    return found


async def said(engine: Any) -> str:
    return str(await kit.text_of(engine, kit.request(engine, "The sea", max_tokens=24)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama_cpp", "llama_server"])
async def test_a_running_engine_keeps_its_file(kind: Any, weights: ModelFile, tmp_path: Path) -> None:
    """Replaced on disk: it goes on as before; the next start sees the other file and says so."""
    engine = make_engine(kind, weights, tmp_path, context_tokens=256, threads=1)
    await engine.start()
    try:
        before = await said(engine)
        other = tiny.write(gguf, tmp_path / "other.gguf", seed=1)
        os.replace(other.path, weights.path)
        assert await said(engine) == before
    finally:
        await engine.close()
    again = make_engine(kind, weights, tmp_path, context_tokens=256, threads=1)
    with pytest.raises(Stop, match=f"has SHA-256 {other.sha256}, expected {weights.sha256}"):
        await again.start()
    await again.close()
    changed = make_engine(kind, weights.model_copy(update={"sha256": other.sha256}), tmp_path, context_tokens=256)
    await changed.start()
    try:
        assert await said(changed) != before, "the other weights say the same, so nothing was shown"
    finally:
        await changed.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama_cpp", "llama_server"])
async def test_engines_load_from_the_path_of_an_open_file(
    kind: Any, weights: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name leads to rubbish by then."""
    monkeypatch.chdir(tmp_path)  # the server goes to its states' directory
    with open_model(weights, tmp_path) as opened:
        await asyncio.to_thread(Path(weights.path).unlink)
        Path(weights.path).write_bytes(b"rubbish")
        engine = make_here(kind, opened, tmp_path, context_tokens=256, threads=1)
        await engine.start()
        opened.unchanged()
    try:
        assert len(await said(engine)) > 10
    finally:
        await engine.close()
