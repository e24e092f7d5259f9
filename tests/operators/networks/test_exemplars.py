import numpy as np
import pytest

from operators.errors import Stop
from operators.networks.exemplars import AT, BANDWIDTHS, Exemplars, keys
from operators.networks.fastgrnn import Snapshot
from operators.networks.features import TABLE
from operators.networks.prior import prior

RANDOM = np.random.default_rng(3)


def turns(n):
    x = np.zeros((n, 128), np.float32)
    x[:, :32] = RANDOM.standard_normal((n, 32)) / 6
    return x


def quality(n):
    made = RANDOM.uniform(0, 1, (n, 4)).astype(np.float32)
    made[RANDOM.uniform(size=(n, 4)) < 0.4] = np.nan
    return made


def direct(exemplars, x, without=None):
    """The formula of the docstring, term by term."""
    k = x[:32] / np.linalg.norm(x[:32])
    rows = [i for i in range(len(exemplars.keys)) if i != without]
    cosine = exemplars.keys[rows].astype(float) @ k
    q = exemplars.quality[rows].astype(float)
    means = np.nanmean(exemplars.quality.astype(float), axis=0)
    made = []
    for t in BANDWIDTHS:
        w = np.exp((cosine - cosine.max()) / t)
        for slot in range(4):
            known = ~np.isnan(q[:, slot])
            excess = (w[known] * (q[known, slot] - means[slot])).sum() / (w[known].sum() + 5.0)
            made.append(np.clip(3.0 * excess, -1, 1))
    return np.array(made)


def test_it_is_the_kernel_regression_that_the_docstring_says():
    x = turns(50)
    exemplars = Exemplars.of(x, quality(50))
    new = turns(3)
    expected = [direct(exemplars, row) for row in new]
    np.testing.assert_allclose(exemplars.recall_all(new), expected, atol=1e-5)
    np.testing.assert_allclose(exemplars.recall(new[1]), expected[1], atol=1e-5)


def test_a_turn_is_left_out_of_its_own_evidence():
    x = turns(40)
    exemplars = Exemplars.of(x, quality(40))
    own = np.arange(40)
    own[7] = -1
    made = exemplars.recall_all(x, own)
    np.testing.assert_allclose(made[5], direct(exemplars, x[5], without=5), atol=1e-5)
    np.testing.assert_allclose(made[7], direct(exemplars, x[7]), atol=1e-5)


def test_the_features_stand_where_the_table_says():
    names = [row.name for row in TABLE if AT.start <= row.start < AT.stop]
    assert len(names) == AT.stop - AT.start == 12
    assert names[0] == "exemplar_near_tier0"
    assert names[5] == "exemplar_nearer_tier1"
    assert names[-1] == "exemplar_nearest_tier3"


def test_a_slot_that_did_well_on_similar_turns_says_so():
    x = turns(2)
    q = np.array([[1, np.nan, np.nan, 0], [0, np.nan, np.nan, 1]], np.float32)
    said = Exemplars.of(np.repeat(x, 20, axis=0), np.repeat(q, 20, axis=0)).recall(x[0])
    assert said[8] > 0.9 > 0.0 > said[11]
    assert said[9] == said[10] == 0.0  # nothing is known of these slots


def test_a_snapshot_recalls_and_travels():
    x = turns(30)
    snapshot = Snapshot(prior().params, "router-000001", Exemplars.of(x, quality(30)), learned=True)
    again = Snapshot.from_bytes(snapshot.to_bytes())
    assert again.to_bytes() == snapshot.to_bytes()
    assert again.learned
    seen = again.recall(x[0])
    assert seen[AT].any()
    assert not x[0][AT].any()  # what was given is not written into
    np.testing.assert_array_equal(seen, snapshot.recall(x[0]))
    row = x[0]
    assert prior().recall(row) is row


def test_a_learned_head_gives_qualities_to_the_policy():
    logits = np.array([0.0, 2.0, -2.0, 50.0], np.float32)
    assert prior().preference(logits) == logits.tolist()
    learned = Snapshot(prior().params, "x", learned=True).preference(logits)
    np.testing.assert_allclose(learned, [8.0, 16 / (1 + np.exp(-2)), 16 / (1 + np.exp(2)), 16.0], atol=1e-4)


@pytest.mark.parametrize(
    ("k", "q"),
    [
        (np.zeros((0, 32)), np.zeros((0, 4))),
        (np.eye(32)[:3], np.zeros((2, 4))),
        (np.eye(32)[:2] * 2, np.zeros((2, 4))),
        (np.eye(32)[:2], np.full((2, 4), 1.5)),
        (np.eye(32)[:2], np.full((2, 4), np.inf)),
        (np.full((2, 32), np.nan), np.zeros((2, 4))),
    ],
)
def test_unsound_exemplars_are_refused(k, q):
    with pytest.raises(Stop):
        Exemplars(np.float32(k), np.float32(q))


def test_a_turn_without_a_direction_has_a_key():
    assert np.linalg.norm(keys(np.zeros(128, np.float32))) == 1.0
