"""IPS, SNIPS and DR against a world where every slot's reward is known, so that the truth is known, too."""

import dataclasses

import numpy as np
import pytest

from operators.learning.estimates import Bootstrap, believe, logged, worth
from operators.learning.offpolicy import EvaluationSet

N, CLIP = 240, 1e9


def softmax(logits):
    made = np.exp(logits - logits.max(axis=1, keepdims=True))
    return made / made.sum(axis=1, keepdims=True)


def world(n, seed, *, size=1):
    """(set, the logging policy's chances, a better policy's, expected rewards); sessions of ``size`` turns alike."""
    random = np.random.default_rng(seed)
    sessions = -(-n // size)
    hard = np.repeat(random.uniform(size=sessions), size)[:n]
    expected = np.clip(0.9 - np.outer(hard, [0.8, 0.55, 0.3, 0.05]), 0, 1)
    mood = np.repeat(random.uniform(size=sessions), size)[:n]  # what turns of one session share
    reward = (mood[:, None] < expected).astype(np.float32)
    before = softmax(np.column_stack((1 - hard, 0.3 + 0 * hard, 0 * hard, hard)))
    after = softmax(3 * expected + [0.4, 0.2, 0.1, 0.0])
    tier = (random.uniform(size=(n, 1)) > before.cumsum(axis=1)).sum(axis=1).clip(max=3)
    features = np.zeros((n, 128), np.float32)
    features[:, 7] = hard
    one = EvaluationSet(
        name="world",
        features=features,
        hidden=np.zeros((n, 64), np.float32),
        quality=np.where(np.arange(4) == tier[:, None], reward, np.nan).astype(np.float32),
        tier=tier.astype(np.int32),
        propensity=before[np.arange(n), tier].astype(np.float32),
        session=(np.arange(n) // size).astype(np.int32),
    )
    return one, before, after, expected


def draws_of(one, rounds=300, confidence=0.95):
    return Bootstrap(one.session, confidence, rounds, seed=0)


def truth():
    _, _, after, expected = world(200_000, 99)
    return float((after * expected).sum(axis=1).mean())


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    true, held = truth(), {"ips": 0, "snips": 0, "dr": 0, "wrong belief": 0}
    repeats = 200
    for seed in range(repeats):
        one, _, after, expected = world(N, seed, size=2)
        draws = draws_of(one, rounds=200)
        good = worth(after, one, expected, CLIP, draws)
        poor = worth(after, one, np.full((N, 4), 0.2), CLIP, draws)
        for name, interval in {
            "ips": good.ips, "snips": good.snips, "dr": good.dr, "wrong belief": poor.dr
        }.items():  # fmt: skip
            held[name] += interval.low <= true <= interval.high
    shares = {name: count / repeats for name, count in held.items()}
    assert all(0.90 <= share <= 0.995 for share in shares.values()), shares


def test_all_three_are_right_on_average_and_a_good_belief_makes_the_interval_narrow():
    true, means, widths = truth(), [], []
    for seed in range(60):
        one, _, after, expected = world(N, 1000 + seed)
        said = worth(after, one, expected, CLIP, draws_of(one, rounds=100))
        means.append([said.ips.mean, said.snips.mean, said.dr.mean])
        widths.append([one.high - one.low for one in (said.ips, said.snips, said.dr)])
    assert np.abs(np.mean(means, axis=0) - true).max() < 0.015
    ips, _, dr = np.mean(widths, axis=0)
    assert dr < 0.9 * ips


def test_snips_follows_a_shift_of_the_rewards_exactly_and_ips_does_not():
    one, _, after, expected = world(N, 1)
    moved = dataclasses.replace(one, quality=one.quality + 1.0)
    a, b = (worth(after, each, expected, CLIP, draws_of(one)) for each in (one, moved))
    for bound in ("mean", "low", "high"):
        assert getattr(b.snips, bound) == pytest.approx(getattr(a.snips, bound) + 1.0, abs=1e-9)
    assert abs(b.ips.mean - a.ips.mean - 1.0) > 1e-3


def test_with_a_perfect_model_of_certain_rewards_dr_has_no_variance_from_the_weights():
    one, _, _, _ = world(N, 2)
    known = np.broadcast_to([0.125, 0.25, 0.5, 1.0], (N, 4))
    rewards = known[np.arange(N), one.tier].astype(np.float32)
    sure = dataclasses.replace(
        one, quality=np.where(np.arange(4) == one.tier[:, None], rewards[:, None], np.nan).astype(np.float32)
    )
    chances = np.broadcast_to([0.5, 0.0, 0.0, 0.5], (N, 4))
    said = worth(chances, sure, known, CLIP, draws_of(sure))
    assert (said.dr.low, said.dr.mean, said.dr.high) == pytest.approx((0.5625, 0.5625, 0.5625), abs=1e-12)
    assert said.ips.high - said.ips.low > 0.05


def test_dr_stays_right_when_either_the_propensities_or_the_belief_are_wrong():
    one, _, after, expected = world(30_000, 3)
    true, draws = truth(), draws_of(one, rounds=100)
    lied = dataclasses.replace(one, propensity=np.full(len(one.tier), 0.25, np.float32))
    assert worth(after, lied, expected, CLIP, draws).dr.mean == pytest.approx(true, abs=0.01)
    assert worth(after, one, np.zeros((len(one.tier), 4)), CLIP, draws).dr.mean == pytest.approx(true, abs=0.01)
    assert abs(worth(after, lied, expected, CLIP, draws).ips.mean - true) > 0.02


def test_the_logging_policy_is_worth_what_was_logged():
    one, before, _, _ = world(N, 4)
    said = worth(before, one, np.full((N, 4), 0.3), CLIP, draws_of(one))
    mean = logged(one).mean()
    assert (said.ips.mean, said.snips.mean) == pytest.approx((mean, mean), abs=1e-6)
    assert said.effective_turns == pytest.approx(N, rel=1e-6)
    assert (said.clipped, round(said.largest_weight, 5)) == (0.0, 1.0)


def test_turns_known_whole_are_valued_exactly_whatever_is_believed():
    one, _, after, _ = world(N, 5)
    whole = dataclasses.replace(one, quality=np.random.default_rng(0).uniform(size=(N, 4)).astype(np.float32))
    exact = (after * whole.quality).sum(axis=1)
    said = worth(after, whole, np.full((N, 4), 0.9), CLIP, draws_of(whole))
    assert said.dr.mean == pytest.approx(exact.mean(), abs=1e-12)
    assert said.gain.mean == pytest.approx((exact - logged(whole)).mean(), abs=1e-12)


def test_large_weights_are_cut_and_told():
    one, _, after, expected = world(N, 6)
    rare = dataclasses.replace(one, propensity=np.where(np.arange(N) < 6, 1e-3, one.propensity).astype(np.float32))
    cut, free = (worth(after, rare, expected, clip, draws_of(rare)) for clip in (5.0, CLIP))
    assert cut.clipped == pytest.approx(6 / N, abs=2 / N)
    assert free.clipped == 0.0
    assert cut.largest_weight == free.largest_weight > 100
    assert free.effective_turns < 15 < cut.effective_turns


def test_turns_of_one_session_are_not_counted_as_independent():
    alike, _, after, expected = world(N, 7, size=12)
    alone = dataclasses.replace(alike, session=np.arange(N, dtype=np.int32))
    narrow, wide = (worth(after, one, expected, CLIP, draws_of(one, 1000)).snips for one in (alone, alike))
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_what_the_log_never_tried_is_said_to_have_no_support():
    one, _, _, _ = world(N, 8)
    two = np.flatnonzero(one.tier < 2)
    some = EvaluationSet(name="two", **{
        field.name: getattr(one, field.name)[two] for field in dataclasses.fields(one) if field.name != "name"
    })  # fmt: skip
    chances = np.tile([0.0, 0.0, 0.0, 1.0], (len(two), 1))
    said = worth(chances, some, believe(some, 5, 0), CLIP, draws_of(some))
    assert (said.support, said.effective_turns) == (0.0, 0.0)
    assert np.isnan(said.snips.mean)
    assert said.ips.mean == 0.0


def test_the_belief_is_learned_from_other_sessions_and_follows_the_features():
    one, _, _, expected = world(3000, 9, size=3)
    believed = believe(one, 5, 0)
    usual = np.nanmean(one.quality.astype(np.float64), axis=0)
    assert np.square(believed - expected).mean() < 0.5 * np.square(usual - expected).mean()
    mine = one.session == 17
    turned = dataclasses.replace(one, quality=np.where(mine[:, None], 1 - one.quality, one.quality))
    again = believe(turned, 5, 0)
    assert (again[mine] == believed[mine]).all()
    assert (again != believed).any()


def test_the_same_seed_draws_the_same_intervals():
    one, _, after, expected = world(N, 10)
    a, b = (worth(after, one, expected, CLIP, Bootstrap(one.session, 0.9, 500, seed=3)) for _ in range(2))
    assert dataclasses.asdict(a) == dataclasses.asdict(b)
    c = worth(after, one, expected, CLIP, Bootstrap(one.session, 0.9, 500, seed=4))
    assert c.ips.low != a.ips.low
