"""What is refused before a program is read, and without ExecuTorch being there; drawing from logits."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from operators.engines.executorch import files
from operators.engines.executorch.runtime import Program, installed
from operators.engines.sampling import draw, log_probabilities
from operators.errors import Stop
from operators.records import encode
from operators.tiers import ModelFile

DATA = b"no program"
MANIFEST = files.Manifest(
    kind="router",
    bytes=len(DATA),
    sha256=hashlib.sha256(DATA).hexdigest(),
    source="prior",
    weights="0" * 64,
    versions={"executorch": "1.5.1", "torch": "2.13.0"},
    inputs=(files.Tensor(name="x", dtype="float32", shape=(1, "2..9")),),
    outputs=(),
    facts={},
    difference=0.0,
)


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that version were installed: nothing here comes as far as running it."""
    monkeypatch.setattr(files, "installed", lambda: "1.5.1")


def load(path: Path, kind: files.Kind = "router", sha256: str = MANIFEST.sha256) -> None:
    files.load(ModelFile(id="m", path=str(path), sha256=sha256), kind, path.parent)


def test_a_program_and_its_manifest_are_written_together(tmp_path: Path, version: None) -> None:
    path = files.write(tmp_path, DATA, MANIFEST)
    assert (path.read_bytes(), path.name) == (DATA, f"router-{MANIFEST.sha256[:12]}.pte")
    assert encode(files.read_manifest(path, "m")) == encode(MANIFEST)
    assert files.write(tmp_path, DATA, MANIFEST) == path
    with pytest.raises(Stop, match="can't write"):
        files.write(tmp_path / "absent", DATA, MANIFEST)


def test_no_program_of_another_kind_or_version_is_read(tmp_path: Path, version: None) -> None:
    path = files.write(tmp_path, DATA, MANIFEST)
    with pytest.raises(Stop, match="kind router"):
        load(path, "encoder")
    files.write(tmp_path, DATA, dataclasses.replace(MANIFEST, versions={"executorch": "1.4.0", "torch": "2.12.0"}))
    with pytest.raises(Stop, match=r"exported by ExecuTorch 1\.4\.0, here is 1\.5\.1"):
        load(path)
    files.write(tmp_path, DATA, dataclasses.replace(MANIFEST, format=2))
    with pytest.raises(Stop, match="format 2"):
        load(path)


def test_no_program_with_another_checksum_is_read(tmp_path: Path, version: None) -> None:
    path = files.write(tmp_path, DATA, MANIFEST)
    path.write_bytes(b"another one")
    with pytest.raises(Stop, match="expected"):
        load(path)
    with pytest.raises(Stop, match="its manifest says"):
        load(path, sha256=hashlib.sha256(b"another one").hexdigest())
    with pytest.raises(Stop, match="its manifest says"), pytest.warns(UserWarning, match="unchecked"):
        load(path, sha256="unchecked")


@pytest.mark.parametrize("text", ["", "{", '{"kind": "router"}'])
def test_no_program_without_its_manifest_is_read(tmp_path: Path, version: None, text: str) -> None:
    path = files.write(tmp_path, DATA, MANIFEST)
    if text:
        files.manifest_path(path).write_text(text)
    else:
        files.manifest_path(path).unlink()
    with pytest.raises(Stop, match="is no manifest" if text else "can't read the manifest"):
        load(path)


def test_without_executorch_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch.extension.pybindings", None)
    with pytest.raises(Stop, match="make executorch"):
        Program(DATA, "m")
    monkeypatch.setattr("importlib.metadata.version", lambda name: (_ for _ in ()).throw(_absent(name)))
    with pytest.raises(Stop, match="make executorch"):
        installed()
    with pytest.raises(Stop, match="make executorch"):
        load(files.write(tmp_path, DATA, MANIFEST))


def _absent(name: str) -> Exception:
    import importlib.metadata

    return importlib.metadata.PackageNotFoundError(name)


def test_a_fingerprint_is_of_names_and_values() -> None:
    a, b = np.arange(4, dtype=np.float32), np.ones((2, 2), np.float32)
    first = files.fingerprint({"a": a, "b": b})
    assert first == files.fingerprint({"b": b, "a": np.asfortranarray(a)})
    others = [{"a": a, "c": b}, {"a": a + 1, "b": b}, {"a": a, "b": b.reshape(4)}, {"a": a.astype(np.float64), "b": b}]
    assert len({first, *(files.fingerprint(one) for one in others)}) == 5


def test_drawing_follows_temperature_and_top_p() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.05, 0.35], np.float32))
    np.testing.assert_allclose(np.exp(log_probabilities(logits)), [0.1, 0.5, 0.05, 0.35], atol=1e-6)
    np.testing.assert_allclose(log_probabilities(logits + 500), log_probabilities(logits), atol=1e-4)
    random = np.random.default_rng(0)
    assert {draw(logits, 0.0, 1.0, random) for _ in range(9)} == {1}

    def drawn(temperature: float, top_p: float) -> np.ndarray:
        return np.bincount([draw(logits, temperature, top_p, random) for _ in range(2000)], minlength=4) / 2000

    np.testing.assert_allclose(drawn(1.0, 1.0), [0.1, 0.5, 0.05, 0.35], atol=0.04)
    np.testing.assert_allclose(drawn(1.0, 0.8), [0, 0.5 / 0.85, 0, 0.35 / 0.85], atol=0.04)
    np.testing.assert_allclose(drawn(1.0, 0.86), [0.1 / 0.95, 0.5 / 0.95, 0, 0.35 / 0.95], atol=0.04)
    np.testing.assert_allclose(drawn(1.0, 0.3), [0, 1, 0, 0])
    squared = np.array([0.01, 0.25, 0.0025, 0.1225])
    np.testing.assert_allclose(drawn(0.5, 1.0), squared / squared.sum(), atol=0.04)
