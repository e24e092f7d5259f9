"""``ruvllm evaluate live``: its figures against their definitions, and the whole of it, small, on the real models."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs import evaluate_live as job
from jobs.live import report
from jobs.live.service import LiveService, new_folder
from operators.errors import Reject, Stop

ROOT = Path(__file__).parents[2]


def turns(tier, right, cost):
    n = len(right)
    return report.Turns(tier=tier, right=np.array(right, float), cost=np.full(n, cost), seconds=np.ones(n))


SMALL = turns(("s",) * 4, [1, 1, 0, 0], 0.5)
LARGE = turns(("l",) * 4, [1, 0, 1, 0], 1.0)


def test_the_oracle_takes_the_cheaper_of_two_that_are_right_and_best_fixed_the_better_tier():
    made = report.fixed_and_oracle({"s": SMALL, "l": LARGE}, 0.125)
    assert made["oracle"].tier == ("s", "s", "l", "s")
    assert made["oracle"].right.tolist() == [1, 1, 1, 0]
    assert made["oracle"].cost.tolist() == [0.5, 0.5, 1.0, 0.5]
    assert made["best-fixed"] is SMALL, "equally right, and cheaper"
    assert report.fixed_and_oracle({"s": SMALL, "l": LARGE}, -1.0)["best-fixed"] is LARGE
    assert list(made) == ["always-s", "always-l", "best-fixed", "oracle"]


def test_figures_are_means_with_the_bootstraps_interval():
    found = report.policies({"s": SMALL}, ["s", "l"], 0.125)["s"]
    assert found["quality"]["mean"] == 0.5
    assert found["utility"]["mean"] == pytest.approx(0.5 - 0.0625)
    assert found["cost"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["shares"] == {"s": 1.0, "l": 0.0}
    values = np.random.default_rng(0).normal(size=400)
    wide = report.interval(values)
    assert wide["high"] - wide["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_differences_are_paired():
    found = report.differences({"s": SMALL, "l": LARGE}, [("l", "s")], 0.125)["l - s"]
    assert found["quality"]["mean"] == 0
    assert found["cost"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["utility"]["mean"] == pytest.approx(-0.0625)
    same = report.differences({"s": SMALL, "l": SMALL}, [("l", "s")], 0.125)["l - s"]
    assert same["quality"] == {"mean": 0, "low": 0, "high": 0}


def test_verdicts_are_held_against_the_truth():
    truth = np.array([True, True, False, False, True])
    scores = np.array([0.9, 0.8, 0.2, 0.8, np.nan])
    assert report.auc(scores[:4], truth[:4]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert report.auc(scores[:2], truth[:2]) is None
    found = report.verdicts(scores, truth, ["s", "s", "l", "l", "l"], 0.75)
    assert (found["judged"], found["unjudged"]) == (4, 1)
    assert found["agreement"]["mean"] == 0.75
    assert found["by_tier"]["s"] == {"answers": 2, "mean_score": pytest.approx(0.85), "right": 1.0, "auc": None}
    assert report.verdicts(np.array([np.nan]), truth[:1], ["s"], 0.75) == {"judged": 0, "unjudged": 1}


def test_outcomes_count_who_is_right():
    found = report.outcomes(["a", "a", "b", "b"], {"s": SMALL, "l": LARGE}, {"learned": LARGE})
    assert found["all"] == {
        **{"questions": 4, "s": 0.5, "l": 0.5, "both": 0.25, "only_small": 0.25, "only_large": 0.25, "neither": 0.25},
        "to_large": {"learned": 1.0},
    }
    assert (found["a"]["only_small"], found["b"]["only_large"]) == (0.5, 0.5)


def test_what_was_refused_is_measured_only_with_force_and_is_called_so():
    def router(active):
        rows = [{"version": "router-2"}, {"version": "router-1"}, {"version": "prior-2"}]
        return {"rollout": {"active": active}, "versions": rows}

    assert job._chosen(router("prior-2"), force=False) == ("prior-2", "prior-2", False)
    assert job._chosen(router("prior-2"), force=True) == ("prior-2", "router-2", True)
    assert job._chosen(router("router-1"), force=True) == ("prior-2", "router-1", False)
    assert "FORCED" in job._notes("prior-2", "router-2", True, [{}])[0]
    assert "refused" in job._notes("prior-2", "prior-2", False, [{}])[0]
    assert "nothing was learned" in job._notes("prior-2", "prior-2", False, [])[0]


def test_options_that_cannot_be_are_refused_before_anything_starts(tmp_path):
    given = argparse.Namespace(questions=3000, fresh=1, json=None)
    with pytest.raises(Reject, match="3000 questions"):
        job.check(given)
    with pytest.raises(Reject, match="no folder"):
        job.check(argparse.Namespace(questions=3, fresh=1, json=tmp_path / "no" / "out.json"))
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(Reject, match="not an empty folder"):
        new_folder(tmp_path, tmp_path)


@pytest.mark.slow
def test_a_service_that_cannot_start_is_no_endless_wait(tmp_path):
    sets = (*job.QUIET, f"embed.model.sha256={'0' * 64}")
    with (
        pytest.raises(Stop, match=r"the service ended with 1; see .*service\.log"),
        LiveService("test", sets, tmp_path / "data"),
    ):
        pass
    assert "embed" in (tmp_path / "data" / "service.log").read_text()


@pytest.mark.skipif(os.environ.get("RUVLLM_TEST_FAULTS") != "all", reason="takes a minute of two cores: make faults")
@pytest.mark.slow
@pytest.mark.timeout(600)  # two services with real models, a judge and a learner start: half a minute, if alone
def test_a_service_is_asked_learns_and_is_asked_again(tmp_path):
    out = tmp_path / "report.json"
    words = ["--questions", "12", "--fresh", "1", "--feedback", "truth", "--force", "--json", str(out)]
    # Sessions follow from the seed: of this one's, three are held out, and nine are enough to learn from.
    words += ["--seed", "10", "--profile", "test", "--set", "events.partitions=1", "--set", "learn.learner.rounds=1"]
    command = [sys.executable, "-m", "pipeline.cli", "evaluate", "live", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found["policies"]) == {"always-135M", "always-270M", "best-fixed", "oracle", "prior", "learned"}
    assert found["policies"]["oracle"]["utility"]["mean"] >= found["policies"]["best-fixed"]["utility"]["mean"]
    assert (len(found["turns"]), len(found["fresh"]["learned"]), len(found["fresh"]["135M"])) == (12, 1, 1)
    assert found["verdicts"]["judged"] + found["verdicts"]["unjudged"] == 12
    assert found["candidates"][-1]["judgements"] >= 20, "the last candidate knows most verdicts, the user's among them"
    checkpoints = found["checkpoints"]
    assert checkpoints["learned"] in {one["version"] for one in found["candidates"]}
    assert {turn["checkpoint"] for turn in found["fresh"]["learned"]} == {checkpoints["learned"]}
    assert {turn["checkpoint"] for turn in found["fresh"]["prior"]} == {checkpoints["prior"]}
    assert all(turn["reason"] == "caller" for turn in found["fresh"]["270M"])
    assert set(found["same_answers"]) == {"prior", "learned"}
    assert "always-135M" in done.stdout
