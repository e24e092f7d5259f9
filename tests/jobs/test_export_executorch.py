"""What is exported equals torch, and is served. ``make test-executorch`` runs this: the export takes a minute."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from conf.load import load
from operators.attend import Attend
from operators.embed import Embed
from operators.engines.executorch.files import manifest_path
from operators.engines.files.models import resolve
from operators.errors import Stop
from operators.learning import rollout as changes
from operators.learning.weights import FILE
from operators.networks import attention
from operators.networks.fastgrnn import Outputs, Snapshot
from operators.networks.prior import prior
from operators.records import HIDDEN, RELATIONS
from operators.route import Router
from operators.stores.checkpoints import Registry
from operators.tiers import ModelFile, Tier
from tests.operators.engines import minilm_fp32, weights
from tests.service import ROOT, Running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not os.environ.get("RUVLLM_TEST_EXECUTORCH"), reason="make test-executorch runs this"),
]
PARTS = ["encoder", "router", "attention"]
CLOSE = 1e-4
QUESTION = "How tall is the Vell lighthouse?"
TEXTS = [
    "What is the capital of France?",
    "¿Dónde está la biblioteca? 図書館はどこですか 🤩",
    "x",
    "",
    "The harbour bridge was closed for repairs in March, and the ferry ran every ten minutes instead. " * 30,
]


def noisy() -> Snapshot:
    """Weights of the router in which nothing is zero, so that forgetting any of them shows."""
    rng, start = np.random.default_rng(1), prior()
    params = {k: (v + 0.2 * rng.standard_normal(v.shape)).astype(np.float32) for k, v in start.params.items()}
    return Snapshot(params, "noisy")


def ranking() -> attention.AttentionWeights:
    """The same for the attention network."""
    rng, start = np.random.default_rng(2), attention.init(384, seed=2)
    arrays: dict[str, Any] = {
        k: (v + 0.1 * rng.standard_normal(v.shape) / 384**0.5).astype(np.float32) for k, v in start.arrays().items()
    }
    for name in ("relation", "weight", "decay"):
        arrays[name] = rng.standard_normal(arrays[name].shape).astype(np.float32)
    return attention.AttentionWeights(**arrays, trained=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote: the router's weights are the promoted ones, not those of route.checkpoint."""
    data = tmp_path_factory.mktemp("data")
    registry = Registry(data / "checkpoints")
    version = registry.publish({FILE: noisy().to_bytes()})
    why = changes.Why("admin", 0.0, "test")
    registry.rollouts.change(lambda now: changes.activate(changes.present(now, "router", "prior"), version, why))
    attention.save(ranking(), data / "ranking.safetensors")
    command = [sys.executable, "-m", "pipeline.cli", "export", "executorch", "--profile", "test", "--json"]
    for setting in (f"data_dir={data}", f"attend.checkpoint={data}/ranking.safetensors", "expand.max_nodes=60"):
        command += ["--set", setting]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr[-4000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["part"] for row in said] == PARTS
    assert max(row["difference"] for row in said) < CLOSE
    assert said[1]["source"] == version
    return data / "executorch"


@pytest.fixture(scope="module")
def served(folder: Path) -> Any:
    """The edge profile with what the command wrote."""
    env = {"RUVLLM_CONFIG": str(folder / "settings.yaml")}
    return load("edge", overrides=[f"data_dir={folder.parent}"], env=env).settings


def test_a_manifest_stands_beside_each(folder: Path, served: Any) -> None:
    made = sorted(folder.glob("*.pte"))
    assert len(made) == len(PARTS)
    for path in made:
        about = json.loads(manifest_path(path).read_text())
        assert about["versions"].keys() == {"executorch", "torch"}
        assert len(about["weights"]) == 64
        assert about["inputs"]
        assert about["bytes"] == path.stat().st_size
    assert served.route.pte.sha256 in {json.loads(manifest_path(path).read_text())["sha256"] for path in made}


async def router(served: Any, cache: Path, start: Snapshot, **knobs: Any) -> Router:
    start.save(cache / "start.safetensors")
    config = served.route.model_copy(update={"checkpoint": str(cache / "start.safetensors"), **knobs})
    tier = Tier(name="t", slot=0, model=ModelFile(id="m", sha256="0" * 64), template="chatml")
    made = Router(config, [tier], cache)
    await made.start()
    return made


async def test_the_router_equals_torch_over_expected_sessions(served: Any, tmp_path: Path) -> None:
    import torch

    from operators.networks.fastgrnn_torch import FastGRNN

    snapshot = (await router(served, tmp_path, noisy())).snapshot
    rng, sessions, turns = np.random.default_rng(0), 20, 12
    x = rng.uniform(-1, 1, (turns, sessions, 128)).astype(np.float32)
    with torch.no_grad():
        expected_ = FastGRNN(noisy()).sequence(torch.from_numpy(x), torch.zeros(sessions, HIDDEN))
    worst = 0.0
    for session in range(sessions):
        h = np.zeros(HIDDEN, np.float32)
        for turn in range(turns):
            x[turn, session].setflags(write=False)
            out = snapshot.forward(x[turn, session], h)
            h = out.hidden
            for name in Outputs._fields:
                expected = expected_[name][turn, session].numpy()
                got = np.asarray(getattr(out, name))
                assert (got.shape, got.dtype) == (expected.shape, np.float32)
                worst = max(worst, float(np.abs(got - expected).max()))
    assert worst < CLOSE
    assert np.ptp(expected_["tier"].numpy()) > 0.5, (
        "the network says the same of everything, so agreeing proves nothing"
    )


async def test_other_weights_are_routed_by_numpy(served: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = await router(served, tmp_path, noisy())
    renamed = dataclasses.replace(noisy(), checkpoint="router-000007")
    assert type(made.snapshot).__name__ == "ExecutorchSnapshot"
    made.swap(prior())
    assert type(made.snapshot) is Snapshot
    assert "numpy routes" in caplog.text
    made.swap(renamed)
    assert (type(made.snapshot).__name__, made.snapshot.checkpoint) == ("ExecutorchSnapshot", "router-000007")
    rows = np.random.default_rng(3).uniform(-1, 1, (5, 128)).astype(np.float32)
    many = made.snapshot.forward(rows, np.zeros((5, HIDDEN), np.float32))
    np.testing.assert_allclose(
        many.tier[2], made.snapshot.forward(rows[2], np.zeros(HIDDEN, np.float32)).tier, atol=CLOSE
    )


async def test_a_router_that_was_damaged_or_is_of_another_version_stops(
    folder: Path, served: Any, tmp_path: Path
) -> None:
    path = Path(served.route.pte.path)
    copy, manifest = tmp_path / path.name, json.loads(manifest_path(path).read_text())
    pte = served.route.pte.model_copy(update={"path": str(copy)})
    copy.write_bytes(path.read_bytes())
    manifest["versions"]["executorch"] = "1.4.0"
    manifest_path(copy).write_text(json.dumps(manifest))
    with pytest.raises(Stop, match=r"exported by ExecuTorch 1\.4\.0"):
        await router(served, tmp_path, noisy(), pte=pte)
    manifest_path(copy).write_bytes(manifest_path(path).read_bytes())
    copy.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Stop, match="SHA-256"):
        await router(served, tmp_path, noisy(), pte=pte)
    with pytest.raises(Stop, match="kind router"):
        await Attend(
            Attend.Config(checkpoint=str(folder.parent / "ranking.safetensors"), pte=served.route.pte), tmp_path
        ).start()


async def test_attention_equals_torch(folder: Path, served: Any, tmp_path: Path) -> None:
    import torch

    from operators.networks.attention_torch import Attention

    stage = Attend(served.attend, tmp_path)
    await stage.start()
    assert stage.weights is not None
    network, rng = Attention(ranking()), np.random.default_rng(5)
    for n in (1, 2, 3, 7, 31, 59, 60, 2):
        nodes = rng.standard_normal((n, 384)).astype(np.float32)
        nodes /= np.linalg.norm(nodes, axis=1, keepdims=True)
        query = (nodes[0] + nodes[-1]) / np.linalg.norm(nodes[0] + nodes[-1])
        hop = rng.integers(0, 3, n).astype(np.int32)
        relation = np.where(hop == 0, attention.HIT, rng.integers(0, len(RELATIONS), n)).astype(np.int8)
        inputs = (query, nodes, relation, rng.random(n).astype(np.float32), hop)
        got = stage._network(stage.weights, *inputs)
        with torch.no_grad():
            kinds = (torch.from_numpy(part.astype(np.int64) if part.dtype.kind == "i" else part) for part in inputs)
            batch = [part[None] for part in kinds]
            expected = network(*batch, torch.ones((1, n), dtype=torch.bool))[0].numpy()
        assert got.shape == expected.shape == (3, 8, n)
        assert np.abs(got - expected).max() < CLOSE
        np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)
    many = np.zeros((61, 384), np.float32)
    with pytest.raises(Stop, match="exported for 60"):
        stage._network(stage.weights, many[0], many, np.zeros(61, np.int8), many[:, 0], np.zeros(61, np.int32))


async def test_attention_made_from_other_weights_stops(folder: Path, served: Any, tmp_path: Path) -> None:
    attention.save(dataclasses.replace(attention.init(384), trained=True), tmp_path / "other.safetensors")
    config = served.attend.model_copy(update={"checkpoint": str(tmp_path / "other.safetensors")})
    with pytest.raises(Stop, match="other weights"):
        await Attend(config, tmp_path).start()
    with pytest.raises(Stop, match="without the checkpoint"):
        await Attend(served.attend.model_copy(update={"checkpoint": ""}), tmp_path).start()


async def test_the_encoder_equals_torch(served: Any, tmp_path: Path) -> None:
    reference = minilm_fp32.MiniLm(resolve(weights.MINILM_FP32, tmp_path), resolve(weights.MINILM_TOKENIZER, tmp_path))
    embed = Embed(served.embed, tmp_path)
    await embed.start()
    try:
        made = await embed.texts(TEXTS, query=False)
        expected = reference.encode(TEXTS, max_tokens=served.embed.max_tokens)
        assert np.abs(made.vectors - expected).max() < CLOSE
        assert made.truncated == (False, False, False, False, True)
        one = await embed.texts(TEXTS[1:2], query=True)
        assert np.abs(one.vectors - expected[1:2]).max() < CLOSE
        both = await asyncio.gather(*(embed.texts([text], query=True) for text in TEXTS))
        assert np.abs(np.concatenate([each.vectors for each in both]) - expected).max() < CLOSE
        assert embed.id == weights.MINILM_FP32.id
    finally:
        await embed.close()


def asked(service: Running) -> tuple[Any, Any]:
    """The vectors of ``TEXTS`` and a decision, as the service gives them over HTTP."""
    texts = [text for text in TEXTS if text]
    rows = service.http.post("/v1/embeddings", json={"input": texts}).json()["data"]
    question = {"messages": [{"role": "user", "content": QUESTION}]}
    return np.array([row["embedding"] for row in rows], np.float32), service.http.post(
        "/v1/route", json=question
    ).json()


def programs(service: Running) -> set[str]:
    """The kinds of the programs that its process has mapped."""
    maps = psutil.Process(service.process.pid).memory_maps()
    return {Path(one.path).name.partition("-")[0] for one in maps if one.path.endswith(".pte")}


def test_the_edge_service_answers_with_the_programs(folder: Path, served: Any, tmp_path: Path) -> None:
    """A whole service on what was exported, then killed, and again with numpy in the programs' place."""
    env = {"RUVLLM_CONFIG": str(folder / "settings.yaml")}
    sets = ("http.port=0", "route.deterministic=true", "judge_job.enabled=false")
    service = Running(folder.parent, *sets, profile="edge", env=env).start()
    try:
        assert service.ingest()["added"] == 3
        service.wait_published(3)
        body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True, "temperature": 0}
        with service.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert sum(bool(choice["delta"].get("content")) for chunk in chunks for choice in chunk["choices"]) > 1
        facts = next(chunk["ruvllm"] for chunk in chunks if chunk.get("ruvllm"))
        assert (facts["degraded"], facts["route"]["checkpoint"]) == ([], "router-000001")
        assert len(facts["citations"]) > 0
        vectors, decision = asked(service)
        assert programs(service) == {"encoder", "router", "attention"}
    finally:
        service.kill()
    reference = minilm_fp32.MiniLm(resolve(weights.MINILM_FP32, tmp_path), resolve(weights.MINILM_TOKENIZER, tmp_path))
    expected = reference.encode([text for text in TEXTS if text], max_tokens=served.embed.max_tokens)
    assert np.abs(vectors - expected).max() < CLOSE
    assert decision["ranking"] == "attention"
    service.sets += ("route.pte=null", "attend.pte=null")
    service.start()
    try:
        again, plain = asked(service)
        assert programs(service) == {"encoder"}
    finally:
        service.stop()
    np.testing.assert_array_equal(again, vectors)
    assert [row["node_id"] for row in decision["passages"]] == [row["node_id"] for row in plain["passages"]]
    for name in ("confidence", "temperature", "top_p"):
        assert abs(decision["route"][name] - plain["route"][name]) < CLOSE, name
    assert "numpy routes" not in service.log.read_text()


async def test_an_encoder_made_for_other_settings_stops(served: Any, tmp_path: Path) -> None:
    for change in ({"max_tokens": 300}, {"pooling": "cls"}):
        with pytest.raises(Stop, match="a program for 256 tokens and pooling mean"):
            await Embed(served.embed.model_copy(update=change), tmp_path).start()


def test_what_differs_from_torch_is_not_exported(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.export_executorch", "--only", "router", "--out", str(tmp_path / "out")]
    command += ["--profile", "test", "--set", f"data_dir={tmp_path}", "--set", "export.tolerance=1e-12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "the router differs from torch by" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_ranking_is_not_exported_beside_another_encoder(tmp_path: Path) -> None:
    """Of which the service would refuse every question that finds something."""
    attention.save(dataclasses.replace(ranking(), encoder="another"), tmp_path / "ranking.safetensors")
    command = [sys.executable, "-m", "jobs.export_executorch", "--profile", "edge", "--set", f"data_dir={tmp_path}"]
    command += ["--set", f"attend.checkpoint={tmp_path}/ranking.safetensors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "was trained on vectors of another" in done.stderr
    assert list(tmp_path.glob("executorch/*")) == []


def test_what_is_in_the_data_directory_can_be_moved_with_it(folder: Path, served: Any, tmp_path: Path) -> None:
    moved = load("edge", overrides=[f"data_dir={tmp_path}"], env={"RUVLLM_CONFIG": str(folder / "settings.yaml")})
    for file in (moved.settings.embed.model, moved.settings.route.pte, moved.settings.attend.pte):
        assert Path(file.path).parent == tmp_path / "executorch"
    assert moved.settings.attend.checkpoint == str(tmp_path / "ranking.safetensors")
