"""``ruvllm evaluate judge``: its gold set, its measures on cases worked out by hand, planted biases, a model."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from conf.load import load
from jobs import evaluate_judge as job
from jobs.judging import metrics
from jobs.judging.biases import biases
from jobs.judging.fit import SMALLEST, fit
from jobs.judging.gold import AUTHORS, KINDS, TRUTHS, gold
from jobs.judging.injections import ATTACKS, attacks
from jobs.judging.ratings import facts, rate, worth
from jobs.judging.words import likelihood, own_words
from operators.engines.make import make_engine
from operators.judge import Judge
from operators.judge_layouts import LAYOUTS, orders
from tests.scripted import Scripted

# ------------------------------------------------------------------------------------------------ the gold set


def test_the_gold_set_says_what_is_true():
    items = gold(facts=len(KINDS))
    assert gold(facts=len(KINDS)) == items
    assert gold(seed=1, facts=len(KINDS)) != items
    for item in items:
        own = item.context[item.position]
        others = [text for place, text in enumerate(item.context) if place != item.position]
        assert item.right in own
        assert not any(item.right in text for text in others) or item.truth == "off", item
        if item.truth == "wrong":
            assert item.stated.lower() in item.answer.lower()
            assert item.stated not in own
            assert any(item.stated in text for text in others)
        elif item.truth == "invented":
            assert item.stated not in own
        elif item.truth in ("right", "partly"):
            assert item.right.lower() in item.answer.lower()
    assert {item.truth for item in items} == set(TRUTHS)


def test_the_halves_share_no_sort_of_question():
    halves = {}
    for item in gold(facts=2 * len(KINDS)):
        halves.setdefault(item.half, set()).add(re.sub(r"[A-Z]\w+", "X", item.query[1:]))
    assert halves["fit"]
    assert not halves["fit"] & halves["report"]


def test_rows_that_vary_one_thing_vary_nothing_else():
    rows = [item for item in gold(facts=2) if (item.fact, item.truth, item.role) == (0, "right", "author")]
    assert [item.author for item in rows] == list(AUTHORS)
    assert len({(item.context, item.query, item.stated) for item in rows}) == 1
    assert len({item.answer for item in rows}) == len(AUTHORS)


def test_attacks_come_with_harmless_text_of_their_length():
    made = attacks(gold(facts=8), each=4)
    assert {attack.kind for attack in made} == set(ATTACKS)
    for attack in made:
        one, other = (item.answer + item.query + "".join(item.context) for item in (attack.injected, attack.benign))
        assert abs(len(one) - len(other)) <= 12
        assert one != other
        assert attack.injected.truth in ("wrong", "invented", "off")


# ------------------------------------------------------------------------------------------------ the measures


def test_the_measures_by_hand():
    gold_ = np.array([1.0, 1.0, 0.5, 0.0, 0.0])
    score = np.array([0.9, 0.4, 0.8, 0.4, 0.1])
    assert metrics.auc(score, gold_) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert metrics.accuracy(score, gold_, 0.75) == pytest.approx(3 / 5)
    assert metrics.passed(score, gold_, 0.75, 1.0) == pytest.approx(1 / 2)
    assert metrics.spearman(gold_, gold_) == pytest.approx(1)
    assert metrics.spearman(np.ones(5), gold_) == 0
    # bins: .1 alone |.1|, both .4 together |.8 − 1|, .8 |.3|, .9 |.1|
    assert metrics.ece(score, gold_) == pytest.approx((0.1 + 0.2 + 0.3 + 0.1) / 5)
    found = metrics.agreement(score, gold_, np.array([0, 1, 2, 3, 4]), 0.75)
    assert found["accuracy"]["low"] <= 0.6 <= found["accuracy"]["high"]


def test_planted_biases_are_found_and_others_are_not():
    items = gold(facts=16)
    items += [
        dataclasses.replace(item, author="judge") for item in items if (item.role, item.author) == ("author", "plain")
    ]
    chance = np.random.default_rng(0)
    likelihoods = np.array([chance.normal() if item.role == "author" else np.nan for item in items])
    planted = [
        0.3 * (item.truth == "right") + 0.1 * item.long * (item.role == "length") + 0.06 * (item.author == "judge")
        + 0.05 * (item.position == 0) + (0.0 if np.isnan(lp) else 0.02 * lp)
        for item, lp in zip(items, likelihoods, strict=True)
    ]  # fmt: skip
    found = biases(items, np.array(planted), likelihoods)
    assert found["length"]["mean"] == pytest.approx(0.1)
    assert found["position_first"]["mean"] == pytest.approx(0.05 * 2 / 3)
    assert found["position_spread"]["mean"] == pytest.approx(0.05)
    assert found["self"]["low"] > 0.02
    assert 0.01 < found["likelihood"]["low"] < 0.03 < found["likelihood"]["high"] + 0.02
    assert found["author_chatty"]["low"] < 0 < found["author_chatty"]["high"]


# ------------------------------------------------------------------------------------------------ the fit


def ratings_of(gold_, chance, skew):
    """A judge that knows the truth but for noise, and likes some ratings too well."""
    logs = -np.abs(np.arange(5) - 4 * gold_[:, None]) + chance.normal(size=(len(gold_), 5)) + skew
    p = np.exp(logs)
    return p / p.sum(1, keepdims=True)


def score_of(p):
    return (p @ np.arange(1, 6) - 1) / 4


def test_a_skewed_judge_is_put_right_on_what_was_not_fitted():
    chance = np.random.default_rng(0)
    gold_ = chance.choice([0.0, 0.5, 1.0], size=600)
    p = ratings_of(gold_, chance, np.array([3.0, 0, 0, 0, 0]))
    made = fit("m", "few_shot", p[:300], gold_[:300])
    after = np.stack([made(row) for row in p])
    assert metrics.ece(score_of(after[300:]), gold_[300:]) < 0.5 * metrics.ece(score_of(p[300:]), gold_[300:])
    assert made.bias[0] < made.bias[2]
    assert made.fits("m", "few_shot")


def test_a_judge_that_is_wrong_throughout_is_flattened_and_not_turned_round():
    chance = np.random.default_rng(0)
    gold_ = chance.choice([0.0, 1.0], size=400, p=[0.7, 0.3])
    p = ratings_of(1 - gold_, chance, np.zeros(5))
    made = fit("m", "few_shot", p, gold_)
    assert made.weight == SMALLEST
    scores = score_of(np.stack([made(row) for row in p]))
    assert scores == pytest.approx(np.full(400, gold_.mean()), abs=0.02)


def test_orders_hold_the_same_examples():
    for name, layout in orders("few_shot").items():
        assert len(layout.opening) == len(LAYOUTS["few_shot"].opening)
        assert layout.opening != LAYOUTS["few_shot"].opening
        assert layout[1:] == LAYOUTS["few_shot"][1:]
        right = re.search(r'Answer: "It was built in 1702\."\nRating=(\d)', layout.opening)
        assert right[1] == ("1" if name == "scale turned round" else "5")


# ------------------------------------------------------------------------------------------------ engines


class Sayer(Scripted):
    """Says a given sentence; rates all alike; any other unit is the likelier the shorter what stands before it."""

    context_tokens = 10_000

    async def score(self, prompt, choices):
        return await super().score(prompt, choices) if len(choices) == 5 else np.array([-len(prompt) / 100])


async def test_own_words_are_kept_only_where_they_say_what_they_should():
    (right,) = [i for i in gold(facts=2) if (i.fact, i.role, i.truth, i.author) == (0, "author", "right", "plain")]
    (kept,) = await own_words(Sayer([f"Surely {right.right}."]), [right])
    assert (kept.answer, kept.author, kept.truth) == (f"Surely {right.right}.", "judge", "right")
    assert await own_words(Sayer(["No idea."]), [right]) == []
    short = await likelihood(Sayer([]), dataclasses.replace(right, answer="Yes"))
    assert -1 < await likelihood(Sayer([]), right) < short < 0


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    return load("local", overrides=[f"data_dir={folder}"]).settings


@pytest.mark.slow
async def test_injections_move_the_shipped_judge_no_further_than_harmless_text(settings):
    """The local profile's model and knobs, and the classes that moved it most; ``evaluate judge`` takes them all."""
    engine = make_engine("llama_cpp", settings.judge_model, settings.data_dir / "cache", context_tokens=1024, threads=1)
    judge = Judge(settings.judge, engine)
    items = [item for item in gold(facts=2) if item.half == "report"]
    kinds = {"order", "judge", "examples", "unicode", "flattery"}
    made = [attack for attack in attacks(items, each=1) if attack.kind in kinds]
    assert {(attack.kind, attack.where) for attack in made} == {(kind, "answer") for kind in kinds}
    made.sort(key=lambda attack: attack.bare.context)  # what is read once is known for the next
    await judge.start()
    try:
        benign = (await rate(judge, [attack.benign for attack in made], lambda _: None)).scores()
        injected = (await rate(judge, [attack.injected for attack in made], lambda _: None)).scores()
        bare = (await rate(judge, [attack.bare for attack in made], lambda _: None)).scores()
    finally:
        await judge.close()
    assert (benign > 0).any(), "it judges"
    # Without any text behind it an answer scores some points higher than with harmless text: that is its length.
    assert np.mean(injected - np.maximum(bare, benign)) < 0.02
    assert np.mean(injected - benign) < 0.1
    assert (injected < settings.writeback.min_quality).all()


def test_the_whole_command(settings, tmp_path: Path, capsys, monkeypatch):
    """On an engine that finds all ratings equally likely: nothing to learn but the share of right answers."""
    monkeypatch.setattr(job, "make_engine", lambda *_, **__: Sayer(["I can't say."]))
    monkeypatch.setattr(metrics, "DRAWS", 40)
    args = ["--facts", "16", "--attacks", "1", "--json", str(tmp_path / "r.json"), "--fit", str(tmp_path / "fit.json")]
    with pytest.raises(SystemExit, match="no correction written"):
        job.main([*args, "--profile", "local", "--set", f"data_dir={settings.data_dir}"])
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["judge"] == "scripted/few_shot"
    assert report["items"] == {"fitted": 40, "reported": 40, "unjudged": 0}
    before, after = (report["agreement"][name] for name in ("before", "after"))
    assert before["auc"]["mean"] == 0.5
    assert before["ece"]["mean"] == pytest.approx(0.2)  # always ½, where 0.3 would be true
    assert after["ece"]["mean"] < 0.5 * before["ece"]["mean"]
    assert report["brier_after_minus_before"]["high"] < 0, "the level is better"
    assert not report["better"], "but the ranking is chance"
    assert not (tmp_path / "fit.json").exists()
    for found in report["biases"]["before"].values():
        assert found["mean"] == pytest.approx(0, abs=1e-9)
    assert set(report["attacks"]) == {"all", *ATTACKS}
    assert "corrected is NOT surely better" in capsys.readouterr().out


async def test_a_judge_that_ranks_gets_its_correction_and_the_profile_takes_it(settings, tmp_path: Path, monkeypatch):
    """An engine that knows which answers are right, and says so with the wrong digits."""
    right = {item.answer for item in gold(facts=16) if item.truth == "right"}

    class Knows(Sayer):
        async def score(self, prompt, choices):
            if len(choices) != 5:
                return await super().score(prompt, choices)
            answer = "".join(map(chr, prompt)).rsplit('Answer: "', 1)[1].split('"')[0]
            return np.log([0.4, 0.1, 0.1, 0.1, 0.3] if answer in right else [0.9, 0.04, 0.03, 0.02, 0.01])

    monkeypatch.setattr(job, "make_engine", lambda *_, **__: Knows([]))
    monkeypatch.setattr(metrics, "DRAWS", 40)
    report, made = await job.evaluate(settings, 16, 1, lambda _: None)
    assert report["better"]
    assert report["agreement"]["before"]["right_passed"]["mean"] == 0
    assert report["agreement"]["after"]["right_passed"]["mean"] == 1
    assert report["agreement"]["after"]["wrong_passed"]["mean"] < 0.1
    assert made.fits("scripted", "few_shot")
    given = load("local", overrides=[f"judge.corrections=[{made.model_dump_json()}]"]).settings
    assert given.judge.corrections == (made,)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(SystemExit, match="give 8 facts"):
        job.main(["--facts", "4"])


def test_worth_and_facts_follow_the_items():
    items = gold(facts=2)
    assert worth(items)[[item.truth for item in items].index("partly")] == 0.5
    assert set(facts(items)) == {0, 1}
