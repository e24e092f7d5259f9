"""``ruvllm evaluate continual``: tiny runs of every part, and the figures against their formulas."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import evaluate_continual as job
from jobs.continual import digits, routing
from jobs.continual import peer as continual_peer
from jobs.continual.stream import DOMAINS, SWAPPED, Stream, score, utility

ROOT = Path(__file__).parents[2]
TINY = digits.Protocol(tasks=3, passes=4, batch=16, hidden=64, train=400, rate=2e-3)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_four_figures_of_the_digits():
    found = digits.metrics(np.array([[0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.5, 0.6, 0.7]]))
    assert found == pytest.approx({"accuracy": 0.6, "learning": 0.8, "backward": -0.3, "forgetting": 0.325})
    assert digits.metrics(np.array([[0.9, 0.7]])) == {"accuracy": pytest.approx(0.8)}


def test_an_interval_is_students():
    found = job.interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["half"] == pytest.approx(4.302653 / 3**0.5)
    assert job.interval([5.0])["half"] is None


def test_tasks_are_the_same_digits_in_another_order():
    given, again, other = (digits.data(TINY, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(given[name], again[name]) for name in given)
    assert not np.array_equal(given["x_train"], other["x_train"])
    assert given["x_train"].shape == (3, 400, 64)
    rows = [{row.tobytes() for row in np.sort(task, axis=1)} for task in given["x_train"]]
    assert rows[0] == rows[1] == rows[2]
    held = {row.tobytes() for row in np.sort(given["x_test"][0], axis=1)}
    assert len(held & rows[0]) < 5  # 1,797 scans, hardly any twice


def test_replay_forgets_less_than_fine_tuning_and_the_seed_decides():
    given = digits.data(TINY, 0)
    names = ("fine-tune", "online EWC", "replay 200")
    found = {name: digits.run(digits.LINES[name], given, TINY, 0) for name in names}
    figures = {name: digits.metrics(rows) for name, rows in found.items()}
    assert all(figure["learning"] > 0.8 for figure in figures.values())
    assert figures["replay 200"]["backward"] > figures["fine-tune"]["backward"] + 0.05
    assert figures["online EWC"]["backward"] > figures["fine-tune"]["backward"] + 0.05
    assert np.array_equal(found["replay 200"], digits.run(digits.LINES["replay 200"], given, TINY, 0))


def test_the_stream_changes_where_it_says():
    stream = Stream(80, seed=0)
    assert [stream.domain(update) for update in (0, 19, 20, 79)] == [0, 0, 1, 3]
    x = stream.held[0]
    before, after = stream.quality(39, 0, x), stream.quality(40, 0, x)
    unchanged = stream.tiers_unchanged(0)
    assert SWAPPED not in unchanged
    assert np.array_equal(before[:, unchanged], after[:, unchanged])
    assert np.abs(before[:, SWAPPED] - after[:, SWAPPED]).mean() > 0.1
    last = DOMAINS - 1
    assert np.allclose(stream.quality(70, last, x), 1.0 - stream.quality(69, last, x))
    assert stream.tiers_unchanged(2) == [0, 1, 2, 3]


def test_the_score_is_the_part_of_what_could_be_gained():
    quality = Stream(80, seed=1).quality(0, 0, Stream(80, seed=1).held[0])
    tiers = [0, 1, 2, 3]
    assert score(quality, quality, tiers) == pytest.approx((100 * utility(quality).max(1).mean(), 100.0))
    assert abs(score(np.random.default_rng(0).random(quality.shape), quality, tiers)[1]) < 30
    assert score(-quality, quality, tiers)[1] < 0
    assert (utility(quality) <= quality).all()


def test_the_router_learns_the_stream_from_what_it_chose_alone():
    class Short(Stream):
        """One domain, nothing changes."""

        def domain(self, update):
            return 0

    learner, random = routing.Network(routing.Way(replay=1000, strength=0.1, every=100), 0), np.random.default_rng(0)
    stream = Short(10_000, seed=0)
    before = routing._score(learner, stream, 0, 0)[1]
    for update in range(200):
        x = stream.turns(update, 32)
        tier = random.integers(4, size=32)
        verdict = stream.quality(update, 0, x)[np.arange(32), tier].astype(np.float32)
        learner.learn(x, tier, verdict, 0)
    assert routing._score(learner, stream, 0, 0)[1] > before + 20
    assert len(learner.ewc.fisher) > 10
    assert learner.buffer.sizes.keys() == {"0/0", "0/1", "0/2", "0/3"}


def test_the_job_reports_every_line(tmp_path, monkeypatch, capsys):
    """The whole command, its lengths cut down."""
    monkeypatch.setattr(digits, "PEER_LINES", {"fine-tune": digits.Line()})
    monkeypatch.setattr(job, "QUICK", (digits.Protocol(tasks=3, passes=1, train=200), 24))
    out = tmp_path / "report.json"
    job.main(["--quick", "--seeds", "1", "--json", str(out)])
    report = json.loads(out.read_text())
    assert report["digits"]["lines"].keys() == digits.LINES.keys()
    assert report["routing"]["ways"].keys() == routing.WAYS.keys()
    for part in ("digits", "routing"):
        assert report[part]["ewc_minus_none"].keys() == {"beside replay", "alone"}
    gain = report["digits"]["lines"]["online EWC"]["accuracy"]["mean"]
    gain -= report["digits"]["lines"]["fine-tune"]["accuracy"]["mean"]
    assert report["digits"]["ewc_minus_none"]["alone"]["accuracy"]["mean"] == pytest.approx(gain)
    peer = report["digits"]["peer"]
    if continual_peer.PEERS.is_dir():
        assert peer["ours_minus_peer"]["fine-tune"]["accuracy"]["mean"] == pytest.approx(0, abs=0.02)
    else:
        assert peer["missing"].startswith("not measured: ModuleNotFoundError: No module named 'avalanche'")
    shown = capsys.readouterr().out
    assert "LinUCB with decay" in shown
    assert "far too short to mean anything" in shown


def test_what_is_wrong_is_said(tmp_path, capsys):
    for words, says in (
        (["--seeds", "0"], "give at least 1"),
        (["--json", str(tmp_path / "no" / "r.json")], "no folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            job.main(words)
        assert says in str(ended.value)


def test_ruvllm_evaluate_runs_the_job(tmp_path):
    words = [sys.executable, "-m", "pipeline.cli", "evaluate", "continual", "--json", str(tmp_path / "no" / "r.json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no folder" in done.stderr
    assert "Traceback" not in done.stderr
