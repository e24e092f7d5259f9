"""The drift detector: what it sees, what it leaves alone, and that a restart changes nothing."""

import numpy as np
import pytest

from operators.errors import Skip, Stop
from operators.learning.drift import Drift


def losses(mean, n, seed=0):
    return np.random.default_rng(seed).beta(12 * mean, 12 * (1 - mean), n)


def alarms(drift, values):
    return [i for i, value in enumerate(values) if drift.update(value)]


def test_a_rise_is_seen_soon_and_once():
    found = alarms(Drift(), np.concatenate([losses(0.2, 3000), losses(0.4, 1000, seed=1)]))
    assert len(found) == 1
    assert 3000 <= found[0] < 3150


def test_a_fall_is_learning():
    assert alarms(Drift(), np.concatenate([losses(0.4, 2000), losses(0.2, 2000, seed=1)])) == []


def test_a_rise_after_a_fall_is_seen():
    parts = [losses(0.4, 1000), losses(0.2, 1000, seed=1), losses(0.4, 1000, seed=2)]
    found = alarms(Drift(), np.concatenate(parts))
    assert len(found) == 1
    assert 2000 <= found[0] < 2200


def test_no_alarm_without_a_change_and_memory_stays_bounded():
    drift = Drift(window=512)
    assert alarms(drift, losses(0.3, 20_000)) == []
    assert 256 <= len(drift.state()["values"]) < 512


@pytest.mark.parametrize("stop", [0, 1, 511, 512, 513, 2999, 3199])
def test_a_restart_changes_nothing(stop):
    """Also where the window was halved, and just before the alarm."""
    values = np.concatenate([losses(0.2, 3000), losses(0.35, 600, seed=1)])
    whole = Drift(window=512)
    expected = alarms(whole, values)
    assert expected
    first = Drift(window=512)
    early = alarms(first, values[:stop])
    again = Drift.from_state(first.state(), window=512)
    assert early + [stop + i for i in alarms(again, values[stop:])] == expected
    assert again.state()["values"].tobytes() == whole.state()["values"].tobytes()


def test_what_it_does_not_know_is_refused():
    drift = Drift()
    alarms(drift, losses(0.2, 100))
    state = drift.state()
    bad = [
        {**state, "more": state["values"]},
        {"values": state["values"]},
        {**state, "values": np.array([np.nan])},
        {**state, "values": np.zeros(4096)},
        {**state, "values": state["values"].astype(np.float32)},
    ]
    for some in bad:
        with pytest.raises(Stop):
            Drift.from_state(some)
    with pytest.raises(Stop, match="settings"):
        Drift.from_state(state, delta=0.01)
    with pytest.raises(Stop, match="window of at least 512"):
        Drift(window=1)
    with pytest.raises(Skip):
        drift.update(float("nan"))
    assert drift.state()["values"].tobytes() == state["values"].tobytes()
