"""The metrics by hand-worked examples and by what must hold for any ranking."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.metrics import all_gold, ndcg, recall

ids = st.sampled_from("abcdefgh")
rankings = st.lists(ids, unique=True)
golds = st.sets(ids, min_size=1)
ks = st.integers(1, 10)


def test_by_hand():
    ranked = ["a", "b", "c", "d"]
    assert recall(ranked, ["b", "x"], 2) == 0.5
    assert recall(ranked, ["c"], 2) == 0
    assert (all_gold(ranked, ["a", "c"], 2), all_gold(ranked, ["a", "c"], 3)) == (0, 1)
    assert ndcg(ranked, ["b"], 10) == pytest.approx(1 / math.log2(3))
    assert ndcg(ranked, ["a", "c"], 10) == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    assert ndcg(ranked, ["a", "b", "c"], 2) == 1  # no ranking of two could do better
    assert (recall([], ["a"], 5), ndcg([], ["a"], 5), all_gold([], ["a"], 5)) == (0, 0, 0)


@given(ranked=rankings, gold=golds, k=ks)
def test_they_stay_in_bounds_and_agree(ranked, gold, k):
    for metric in (recall, ndcg, all_gold):
        assert 0 <= metric(ranked, gold, k) <= 1 + 1e-12
    assert all_gold(ranked, gold, k) == (recall(ranked, gold, k) == 1)
    assert (ndcg(ranked, gold, k) > 0) == (recall(ranked, gold, k) > 0)
    assert recall(ranked, gold, k) <= recall(ranked, gold, k + 1)
    assert all_gold(ranked, gold, k) <= all_gold(ranked, gold, k + 1)


@given(ranked=rankings.filter(lambda r: len(r) > 1), gold=golds, k=ks, data=st.data())
def test_moving_a_gold_id_up_never_hurts(ranked, gold, k, data):
    at = data.draw(st.integers(1, len(ranked) - 1))
    better = ranked.copy()
    if better[at] in gold and better[at - 1] not in gold:
        better[at - 1], better[at] = better[at], better[at - 1]
    assert ndcg(better, gold, k) >= ndcg(ranked, gold, k)
    assert recall(better, gold, k) >= recall(ranked, gold, k)


@given(gold=golds, k=ks)
def test_gold_first_is_perfect(gold, k):
    ranked = [*sorted(gold), "z"]
    assert ndcg(ranked, gold, k) == pytest.approx(1)
    assert recall(ranked, gold, len(gold)) == all_gold(ranked, gold, len(gold)) == 1
