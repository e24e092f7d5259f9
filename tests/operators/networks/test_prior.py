import numpy as np
import pytest

from operators.networks.fastgrnn import CONTEXT_TOKENS
from operators.networks.features import SLOT
from operators.networks.prior import prior

NO_MEMORY = np.zeros(64, np.float32)
SHORT = {"query_tokens": 0.3, "question_count": 0.32, "lookup_form": 1.0}
LONG = {"query_tokens": 0.75, "question_count": 0.6, "reasoning_words": 0.9, "code_fence": 1.0, "list_items": 0.6}
COVERED = {"hit_count": 0.5, "similarity_max": 0.8, "similarity_mean": 0.45, "text_match": 0.6,
           "similarity_margin": 0.8, "similarity_entropy": 0.3, "source_spread": 0.5}  # fmt: skip
POOR = {"hit_count": 0.5, "similarity_max": 0.15, "similarity_mean": 0.1, "text_match": 0.2,
        "similarity_margin": 0.05, "similarity_entropy": 0.95, "source_spread": 1.0}  # fmt: skip


def step(*features, hidden=NO_MEMORY, tied=True):
    x = np.zeros(128, np.float32)
    for name, value in (pair for group in features for pair in group.items()):
        x[SLOT[name]] = value
    return prior(tied).forward(x, hidden)


def softmax(logits):
    p = np.exp(logits - logits.max())
    return p / p.sum()


def mean_tier(*features, **kwargs):
    return float(softmax(step(*features, **kwargs).tier) @ np.arange(4))


def test_a_short_covered_question_goes_to_the_smallest_tier():
    assert softmax(step(SHORT, COVERED).tier)[0] > 0.8


def test_a_long_uncovered_question_goes_to_the_largest_tier():
    assert softmax(step(LONG, POOR).tier)[3] > 0.8


def test_length_code_and_poor_cover_each_ask_for_more():
    assert mean_tier(SHORT, COVERED) < mean_tier(SHORT, POOR) < mean_tier(LONG, POOR)
    assert mean_tier(SHORT, COVERED) < mean_tier(LONG, COVERED) < mean_tier(LONG, POOR)
    for name in ("query_tokens", "question_count", "code_fence", "reasoning_words", "symbol_share", "list_items"):
        assert mean_tier(SHORT, POOR) < mean_tier(SHORT, POOR, {name: 0.9}), name


def test_ambiguity_and_a_bad_verdict_ask_for_more():
    assert mean_tier(SHORT, COVERED) < mean_tier(SHORT, COVERED, {"similarity_entropy": 1.0, "similarity_margin": 0.0})
    assert mean_tier(SHORT, POOR, {"last_verdict": 1.0}) < mean_tier(SHORT, POOR)
    assert mean_tier(SHORT, POOR) < mean_tier(SHORT, POOR, {"last_verdict": -1.0})


def test_earlier_hard_turns_are_remembered_and_fade():
    after_hard = step(LONG, POOR).hidden
    sizes = [mean_tier(SHORT, POOR, hidden=after_hard)]
    hidden = after_hard
    for _ in range(8):
        hidden = step(SHORT, POOR, hidden=hidden).hidden
        sizes.append(mean_tier(SHORT, POOR, hidden=hidden))
    assert sizes[0] > mean_tier(SHORT, POOR) + 0.05
    assert sizes == sorted(sizes, reverse=True)
    after_easy = step(SHORT, COVERED).hidden
    assert mean_tier(SHORT, POOR, hidden=after_easy) <= mean_tier(SHORT, POOR)


@pytest.mark.parametrize("k", range(4))
def test_evidence_and_warmth_lift_a_tier_and_a_queue_lowers_it(k):
    plain = step(SHORT, POOR).tier
    better = step(SHORT, POOR, {f"verdict_tier{k}": 0.8, f"count_tier{k}": 0.6}).tier
    warm = step(SHORT, POOR, {f"warm_tier{k}": 1.0}).tier
    queued = step(SHORT, POOR, {f"queue_tier{k}": 0.8}).tier
    assert better[k] > plain[k] + 0.5
    assert warm[k] > plain[k] + 0.1
    assert queued[k] < plain[k] - 0.5
    others = np.arange(4) != k
    for changed in (better, warm, queued):
        np.testing.assert_allclose(changed[others], plain[others], atol=1e-5)


def test_the_context_grows_with_relevant_material():
    chosen = []
    for tokens in (0, *CONTEXT_TOKENS, 10_000):
        v = min(np.log1p(tokens) / np.log1p(4096), 1.0)
        chosen.append(int(step(SHORT, {"relevant_tokens": v, "neighbourhood_tokens": v}).context.argmax()))
    assert chosen[0] == 0
    assert chosen == sorted(chosen)
    assert chosen[-1] >= 3
    assert abs(chosen[3] - 2) <= 1  # 1024 tokens of material want about 1024 tokens of context


def test_temperatures_are_sensible():
    grounded, bare = step(SHORT, COVERED), step(SHORT, POOR)
    invented = step({"query_tokens": 0.3, "creative_words": 0.63})
    coded = step(LONG, COVERED, {"symbol_share": 0.5})
    assert 0.3 <= grounded.temperature < bare.temperature <= 0.7
    assert 0.3 <= coded.temperature < 0.45
    assert invented.temperature > 0.7
    for out in (grounded, bare, coded):
        assert out.top_p == pytest.approx(0.9, abs=0.01)


def test_confidence_ranks_covered_above_uncovered_and_after_a_bad_verdict():
    good, bad = step(SHORT, COVERED).confidence, step(LONG, POOR).confidence
    failing = step(LONG, POOR, {"last_verdict": -0.8}).confidence
    assert good > 0.8
    assert good > step(LONG, COVERED).confidence > bad > failing
    assert failing < 0.35 < step(SHORT, POOR).confidence


def test_ninety_percent_of_w_are_zero_and_the_cell_starts_as_in_the_paper():
    for tied in (True, False):
        params = prior(tied).params
        for w in params["w"]:
            assert 800 <= np.count_nonzero(w) <= 0.1 * w.size
        assert float(params["zeta"]) == 1.0
        assert float(params["nu"]) == -4.0
        assert not (params["u1"] @ params["u2"].swapaxes(1, 2)).any()


def test_untied_starts_equal_to_tied():
    for ours, theirs in zip(step(LONG, COVERED), step(LONG, COVERED, tied=False), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_prior_is_the_same_every_time_and_ignores_the_embedding():
    prior.cache_clear()
    first = prior().to_bytes()
    prior.cache_clear()
    assert prior().to_bytes() == first
    x = np.zeros(128, np.float32)
    plain = prior().forward(x, NO_MEMORY)
    x[:32] = np.random.default_rng(0).uniform(-1, 1, 32)
    shifted = prior().forward(x, NO_MEMORY)
    np.testing.assert_allclose(plain.tier, shifted.tier, atol=1e-6)
    assert np.abs(plain.hidden - shifted.hidden).max() > 0.05  # but the state carries it, for learning to use
