"""A model file is used only if it is the one the profile names."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from operators.engines import models
from operators.engines.models import CACHE, resolve
from operators.errors import Stop
from operators.tiers import ModelFile

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

    def watch(file: object, name: str) -> object:
        seen.append(Path(file.name).name)  # type: ignore[attr-defined]
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(models.hashlib, "file_digest", watch)
    return seen


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


def test_a_path_is_hashed_once(file: Path, tmp_path: Path, reads: list[str]) -> None:
    model = ModelFile(id="m", path=str(file), sha256=SHA.upper())
    assert resolve(model, tmp_path / "cache") == file
    assert resolve(model, tmp_path / "cache") == file
    assert reads == ["model.bin"]


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


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"x": 1}}', b"\xff"])
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


def test_a_cache_that_cannot_be_written_warns(file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.warns(UserWarning, match="hash the model files again"):
        assert resolve(ModelFile(id="m", path=str(file), sha256=SHA), blocked) == file
