"""``ruvllm evaluate router``: the metrics against cases worked out by hand, the peers, the files, the whole command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from jobs import evaluate_router as job
from jobs.routing import metrics
from jobs.routing import ours as router_ours
from jobs.routing import outcomes as router_outcomes
from jobs.routing import peers as router_peers
from jobs.routing.edits import EDITS, edit
from jobs.routing.metrics import Beliefs, at_cost, curve, measure
from operators.errors import Reject

ROOT = Path(__file__).parents[2]
ROUTERS = {
    *("ruvllm", "ruvllm-bandit", "random", "shuffle", "always-weak", "always-strong", "length", "logistic", "knn-40"),
    *("matrix-factorisation", "oracle"),
}
PRICES = np.array([0.0, 1.0])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ranked(score, **more):
    """Beliefs of two tiers by a score of the strong one."""
    score = np.array(score, np.float64)
    return Beliefs(values=np.stack([np.zeros(len(score)), score], axis=1), prices=PRICES, **more)


def outcomes_of(pairs):
    quality = np.array(pairs, np.float64)
    return quality, np.broadcast_to(PRICES, quality.shape)


def test_the_metrics_of_four_prompts_by_hand():
    """Sent up in order: +1, 0, +1, 0. The gap is ½, the recovered part 0, ½, ½, 1, 1 at cost 0, ¼, ½, ¾, 1."""
    quality, cost = outcomes_of([[0, 1], [0, 0], [0, 1], [1, 1]])
    found = measure(ranked([4, 3, 2, 1]), quality, cost)
    assert found["apgr"] == pytest.approx((0.25 + 0.5 + 0.75 + 1.0) / 4)
    assert (found["cpt50"], found["cpt80"], found["cpt95"]) == pytest.approx((0.25, 0.5 + 0.15, 0.5 + 0.225))
    # the hull: (0, ¼), (¼, ½), (¾, ¾), (1, ¾)
    assert found["aiq"] == pytest.approx((0.375 + 2 * 0.625 + 0.75) / 4)
    assert found["accuracy_matched"] == pytest.approx(0.5)
    assert (found["accuracy"], found["cost"]) == pytest.approx((0.5, 0.5))
    assert found["ece"] is None
    assert found["apgr_edited"] is None


def test_a_score_that_says_nothing_is_chance_exactly():
    quality, cost = outcomes_of([[0, 1], [1, 1], [1, 0], [0, 1]])
    assert measure(ranked([1, 1, 1, 1]), quality, cost)["apgr"] == pytest.approx(0.5)
    assert measure(ranked([1, 1, 1, 1]), quality, cost)["cpt80"] == pytest.approx(0.8)


def test_a_fixed_choice_has_no_curve_and_a_gap_of_nothing_no_share():
    quality, cost = outcomes_of([[0, 1], [1, 1], [1, 0], [0, 1]])
    found = measure(ranked([0, 0, 0, 0], always=1), quality, cost)
    assert {name for name, value in found.items() if value is not None} == {"accuracy", "cost"}
    assert (found["accuracy"], found["cost"]) == (0.75, 1.0)
    level, cost = outcomes_of([[0, 1], [1, 0]])
    found = measure(ranked([2, 1]), level, cost)
    assert found["apgr"] is None
    assert found["aiq"] == pytest.approx((0.75 + 1.0) / 2)


def test_costs_with_nothing_between_are_refused():
    quality, _ = outcomes_of([[0, 1], [1, 1]])
    with pytest.raises(Reject, match="the dearest tier costs 1 on average, the cheapest 1"):
        measure(ranked([2, 1]), quality, np.ones((2, 2)))


def test_paraphrase_is_measured_at_the_threshold_of_the_prompts_as_they_were():
    quality, cost = outcomes_of([[0, 1], [0, 1], [0, 0], [1, 1]])
    edited = np.array([[0, 4], [0, 1], [0, 2.5], [0, 3.5]])
    found = measure(ranked([4, 3, 2, 1], edited=edited), quality, cost)
    assert found["paraphrase_agreement"] == pytest.approx(0.5)  # the second falls below 3, the fourth rises above
    assert found["apgr"] == pytest.approx((0.25 + 0.75 + 1.0 + 1.0) / 4)
    assert found["apgr_edited"] == pytest.approx((0.25 + 0.5 + 0.5 + 0.75) / 4)


def test_calibration_error_by_hand():
    predicted = np.repeat([0.1, 0.9], 50)
    happened = np.concatenate([np.zeros(45), np.ones(5), np.ones(25), np.zeros(25)])
    # bins of ten: four of 0.1 with nothing, one with five of ten right; of 0.9 the same with right 1, 1, ½, 0, 0
    assert metrics.calibration_error(predicted, happened) == pytest.approx((4 * 0.1 + 0.4 + 0.1 + 0.1 + 0.4 + 1.8) / 10)
    assert metrics.calibration_error(happened, happened) == 0.0


def test_three_tiers_climb_the_hull():
    values = np.array([[0.0, 0.6, 1.0], [0.0, 0.1, 1.0], [0.5, 0.2, 0.1]])
    begin, climb = metrics.climbs(values, np.array([0.0, 1.0, 2.0]))
    steps = [*zip(climb.row.tolist(), climb.old.tolist(), climb.new.tolist(), climb.slope.tolist(), strict=True)]
    assert begin.tolist() == [0, 0, 0]
    expected = [(0, 0, 1, 0.6), (1, 0, 2, 0.5), (0, 1, 2, 0.4), (2, 0, 2, -0.2)]
    assert [step[:3] for step in steps] == [step[:3] for step in expected]
    assert [step[3] for step in steps] == pytest.approx([step[3] for step in expected])
    assert metrics.choices(values, np.array([0.0, 1.0, 2.0]), 0.45).tolist() == [1, 2, 0]


@pytest.mark.parametrize("tiers", [2, 3, 4])
def test_the_oracle_is_at_least_as_good_as_anything(tiers):
    random = np.random.default_rng(tiers)
    quality = np.clip(random.random((300, tiers)) + np.arange(tiers) / 10, 0, 1)
    cost = random.random((300, tiers)) + 2.0 * np.arange(tiers)
    prices = cost.mean(axis=0)
    best = at_cost(*curve(Beliefs(values=quality, prices=cost), quality, cost), job.GRID)
    top = measure(Beliefs(values=quality, prices=cost), quality, cost)
    for noise in (0.0, 0.1, 1.0, 10.0):
        beliefs = Beliefs(values=quality + noise * random.standard_normal(quality.shape), prices=prices)
        assert (at_cost(*curve(beliefs, quality, cost), job.GRID) <= best + 1e-9).all()
        found = measure(beliefs, quality, cost)
        assert all(found[name] <= top[name] for name in ("apgr", "aiq", "accuracy_matched"))
        assert all(found[name] >= top[name] for name in ("cpt50", "cpt80"))


def test_peers_find_what_is_plain_to_see():
    """Two kinds of prompt, and the strong tier helps on one of them only."""
    random = np.random.default_rng(0)

    def sample(n):
        kind = random.integers(2, size=n)
        x = np.where(kind[:, None], [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]) + 0.1 * random.standard_normal((n, 3))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x.astype(np.float32), np.stack([1.0 - kind, np.ones(n)], axis=1)

    x, quality = sample(300)
    seen, truth = sample(300)
    cost = np.broadcast_to(PRICES, truth.shape)
    best = measure(Beliefs(values=truth, prices=cost), truth, cost)["apgr"]
    made = {
        "logistic": router_peers.logistic(x, quality),  # the strong tier is always right: a class alone
        "knn-40": router_peers.nearest(x, quality),
        "matrix-factorisation": router_peers.factorised(x, quality, 0),
    }
    for name, model in made.items():
        found = measure(Beliefs(values=model(seen), prices=PRICES, qualities=True), truth, cost)
        assert found["apgr"] == pytest.approx(best, abs=0.02), name
    half = router_peers.logistic(x, quality / 2)(seen)  # fractional qualities weigh both classes
    assert half[:, 1] == pytest.approx(0.5, abs=0.05)
    chance = router_peers.by_score(random.random(300), PRICES)
    assert measure(Beliefs(values=chance, prices=PRICES), truth, cost)["apgr"] == pytest.approx(0.5, abs=0.1)


def test_the_bandit_sees_what_was_drawn_alone():
    features = np.ones((3, 128), np.float32)
    quality = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    full = router_ours.turns(features, quality, [0, 1, 3], None)
    assert full["known"].tolist() == [[1, 1, 0, 1]] * 3
    assert full["quality"][1] == pytest.approx([0.4, 0.5, 0.0, 0.6])
    logged = router_ours.turns(features, quality, [0, 1, 3], np.array([2, 0, 1]))
    assert logged["known"].sum(axis=1).tolist() == [1, 1, 1]
    assert logged["slot"].tolist() == [3, 0, 1]
    assert logged["quality"].sum(axis=1) == pytest.approx([0.3, 0.4, 0.8])
    assert logged["propensity"] == pytest.approx(1 / 3)


CHOICE = (
    "What is the name of the instrument that has not 12 strings, approximately?\nA. It is a lute\nB. Do not know\nC. 4"
)


def test_edits_keep_what_matters():
    edited = {edit(CHOICE, seed) for seed in range(40)}
    assert len(edited) > 10
    assert CHOICE not in edited
    for text in edited:
        assert text.count("A. It is a lute\nB. Do not know\nC. 4") == 1
        assert re.findall(r"\d+", text) == ["12", "4"]
    assert edit(CHOICE, 3) == edit(CHOICE, 3)
    assert edit("für {x}", 0) not in ("", "für {x}")
    random = np.random.default_rng(0)
    prose = "Which of the following is not an instrument. It is approximately right."
    assert all(change(f"{prose}\nA. one", random) != f"{prose}\nA. one" for change in EDITS)
    assert EDITS[2]("Do not go; it's `do not`", random) == "Don't go; it's `do not`"


def test_a_split_parts_no_unit():
    units = tuple(f"u{i % 40}" for i in range(200))
    learned, rest = router_outcomes.split(units, 0.7, 0)
    assert sorted([*learned, *rest]) == list(range(200))
    assert len(learned) == 140
    assert not {units[i] for i in learned} & {units[i] for i in rest}
    again, other = (router_outcomes.split(units, 0.7, seed)[0] for seed in (0, 1))
    assert np.array_equal(learned, again)
    assert set(learned.tolist()) != set(other.tolist())
    assert len(router_outcomes.split(units, 1.0, 0)[1]) == 0


def rows(n, domains=("sums", "words", "names"), seed=0):
    """Prompts of which sums are hard for the weak tier."""
    random = np.random.default_rng(seed)
    kinds = random.integers(len(domains), size=n)
    words = ["harbour", "violet", "engine", "meadow", "lantern", "copper", "window", "thunder"]
    texts = []
    for i, kind in enumerate(kinds):
        a, b, w = random.integers(100, 999), random.integers(100, 999), words[random.integers(len(words))]
        sums = f"Compute {a} * {b} + {i} - {seed}, then take the remainder after division by {a % 7 + 2}."
        texts.append(sums if domains[kind] == "sums" else f"Which word rhymes with {w} in line {i} of song {seed}?")
    hard = np.array([domains[kind] == "sums" for kind in kinds])
    return {
        "id": [f"{seed}-{i}" for i in range(n)],
        "domain": [domains[kind] for kind in kinds],
        "prompt": texts,
        "weak_correct": (random.random(n) < np.where(hard, 0.1, 0.9)).tolist(),
        "strong_correct": (random.random(n) < 0.9).tolist(),
    }


def file(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def priced(n, **more):
    """The same with three tiers, given dearest first."""
    columns, random = rows(n), np.random.default_rng(1)
    weak, strong = columns.pop("weak_correct"), columns.pop("strong_correct")
    for name, good, cost in (("big", strong, 9.0), ("small", weak, 1.0), ("mid", weak, 3.0)):
        columns[f"{name}_quality"] = [float(g) for g in good]
        columns[f"{name}_cost"] = (cost * (0.5 + random.random(n))).tolist()
    return columns | more


def test_a_file_of_three_tiers_is_read_in_order_of_cost(tmp_path):
    found = router_outcomes.read(file(tmp_path / "o.parquet", priced(90)))
    assert found.tiers == ("small", "mid", "big")
    assert found.slots == [0, 1, 3]
    assert (np.diff(found.cost.mean(axis=0)) > 0).all()
    pair = router_outcomes.read(file(tmp_path / "p.parquet", rows(90)))
    assert (pair.tiers, pair.slots) == (("weak", "strong"), [0, 3])
    assert pair.cost[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": None}, "no column 'prompt'"),
        ({"strong_correct": None}, "no column 'strong_correct'"),
        ({"weak_correct": None, "strong_correct": None}, "0 tiers"),
        ({"huge_correct": [True] * 90}, "unknown tier 'huge'"),
        ({"weak_cost": [1.0] * 90}, "both …_correct"),
        ({"weak_correct": [1.0] * 89 + [float("nan")]}, "'weak_correct' has nothing (null or NaN) in row 89"),
        ({"weak_correct": [None] + [True] * 89}, "nothing (null or NaN) in row 0"),
        ({"weak_correct": [1.0] * 89 + [1.5]}, "'weak_correct' has 1.5 in row 89"),
        ({"weak_correct": ["yes"] * 90}, "'weak_correct' holds string"),
        ({"id": ["a"] * 90}, "the id 'a' is there 90 times"),
        ({"domain": [""] * 90}, "'domain' is empty in row 0"),
        ({"prompt": [1] * 90}, "'prompt' holds int64"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, change, says):
    columns = {name: value for name, value in (rows(90) | change).items() if value is not None}
    with pytest.raises(Reject, match=re.escape(says)):
        router_outcomes.read(file(tmp_path / "o.parquet", columns))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mid_cost": None}, "no column 'mid_cost' beside 'mid_quality'"),
        ({"mid_quality": None}, "no column 'mid_quality' beside 'mid_cost'"),
        ({"mid_cost": [float("inf")] * 90}, "'mid_cost' has inf in row 0"),
        ({"mid_cost": [-1.0] * 90}, "finite numbers, 0 or above"),
        ({f"{name}_cost": [1.0] * 90 for name in ("big", "mid", "small")}, "is not above that of"),
    ],
)
def test_bad_costs_are_refused(tmp_path, change, says):
    columns = {name: value for name, value in (priced(90) | change).items() if value is not None}
    with pytest.raises(Reject, match=re.escape(says)):
        router_outcomes.read(file(tmp_path / "o.parquet", columns))


def test_other_files_that_cannot_be_used(tmp_path):
    with pytest.raises(Reject, match="can't be read"):
        router_outcomes.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("id,prompt")
    with pytest.raises(Reject, match="can't be read as Parquet"):
        router_outcomes.read(tmp_path / "text.parquet")
    with pytest.raises(Reject, match="79 rows; give at least 80"):
        router_outcomes.read(file(tmp_path / "few.parquet", rows(79)))
    three = router_outcomes.read(file(tmp_path / "three.parquet", priced(90)))
    with pytest.raises(Reject, match="unknown tiers"):
        router_outcomes.read(file(tmp_path / "two.parquet", rows(90)), like=three)


def test_the_whole_command(tmp_path):
    """By way of ``ruvllm``: every router and metric, an interval of none for one seed, a picture."""
    given, out = file(tmp_path / "o.parquet", rows(150)), tmp_path / "report.json"
    words = [sys.executable, "-m", "pipeline.cli", "evaluate", "router", "--outcomes", str(given), "--seeds", "1"]
    words += ["--json", str(out), "--set", "embed.threads=1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["results"].keys() == ROUTERS
    for row in report["results"].values():
        assert row.keys() == set(metrics.METRICS)
        assert all(cell.keys() == {"mean", "low", "high"} and cell["low"] is None for cell in row.values())
    apgr = {name: row["apgr"]["mean"] for name, row in report["results"].items()}
    assert apgr["always-weak"] is None
    assert all(apgr["oracle"] >= value for value in apgr.values() if value is not None)
    assert apgr["ruvllm"] > 0.8
    assert apgr["ruvllm-bandit"] > apgr["random"]
    assert report["data"]["train"] == report["data"]["test"] == [75]
    assert out.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "by APGR: " in done.stdout
    assert "matrix-factorisation" in done.stdout


def test_another_file_to_test_on_with_new_domains_and_the_seeds_decide(tmp_path, capsys):
    learn = file(tmp_path / "o.parquet", rows(100, ("sums", "words")))
    other = rows(60, ("sums", "words", "new", "newer"), seed=1)
    other["prompt"][0] = rows(100, ("sums", "words"))["prompt"][0]  # never learned from: it is tested on
    test = file(tmp_path / "t.parquet", other)
    words = ["--outcomes", str(learn), "--test", str(test), "--train-fraction", "1", "--seeds", "2"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    job.main([*words, "--json", str(one), "--set", "embed.threads=1"])
    # Again, on Ray, which wants a process that it is new to.
    shared = [*words, "--json", str(two), "--workers", "2", "--set", "embed.threads=1"]
    done = subprocess.run([sys.executable, "-m", "jobs.evaluate_router", *shared], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert one.read_text() == two.read_text()
    report = json.loads(one.read_text())
    assert report["data"]["train"] == [99, 99]
    assert report["data"]["test"] == [60, 60]
    about = report["data"]["test_file"]
    assert (about["domains"], about["unseen_domains"], about["also_in_outcomes"]) == (4, 2, 1)
    assert report["results_seen"].keys() == report["results_unseen"].keys() == ROUTERS
    cell = report["results"]["ruvllm"]["ece"]
    assert cell["low"] < cell["mean"] < cell["high"]
    assert (
        report["results"]["always-strong"]["accuracy"]["low"] == report["results"]["always-strong"]["accuracy"]["high"]
    )
    assert "unseen domains" in capsys.readouterr().out


def test_options_that_do_not_go_together(tmp_path):
    given = ["--outcomes", str(file(tmp_path / "o.parquet", rows(90)))]
    for words, says in (
        (["--seeds", "0"], "give at least 1"),
        (["--train-fraction", "1"], "1 needs --test"),
        (["--train-fraction", "0"], "above 0"),
        (["--by-domain", "--test", "t.parquet"], "leave one out"),
        (["--json", str(tmp_path / "no" / "r.json")], "no folder"),
        (["--json", str(tmp_path / "r.png")], "name another --json"),
        (["--train-fraction", "0.3"], "27 prompts to learn from"),
    ):
        with pytest.raises(SystemExit) as ended:
            job.main([*given, *words])
        assert says in str(ended.value)
