import threading

import numpy as np
import pytest
import torch

from operators.errors import Stop
from operators.learning.arrays import from_bytes, to_bytes
from operators.learning.config import FitConfig, LearnerConfig
from operators.learning.fit import fit
from operators.learning.learner import Learner
from operators.learning.sessions import columns_of
from operators.learning.turns import SCHEMA, blank
from operators.learning.workers import Alone
from operators.networks.exemplars import AT
from operators.networks.features import SLOT
from operators.networks.prior import prior

PRICES = np.array([0.0, 1.0, 1.5, 2.0], np.float32)
SMALL = LearnerConfig(gather=32, consolidate_steps=7, dense_steps=6, fisher_turns=32, capacity=200)


def world(n, seed=0, first=0):
    """Turns on which slot 0 does well where ``digit_share`` is low, slot 3 always; one slot is seen, drawn evenly."""
    random = np.random.default_rng([seed, first])
    turns = blank(n)
    turns["id"][:] = np.arange(first, first + n)
    turns["session"][:] = turns["id"] // 3
    turns["turn"][:] = turns["id"] % 3
    turns["owner"][:] = turns["id"] % 2
    turns["features"][:, :32] = random.standard_normal((n, 32)) / 6
    turns["features"][:, SLOT["digit_share"]] = random.uniform(0, 1, n)
    turns["features"][:, SLOT["query_tokens"]] = random.uniform(0, 1, n)
    quality = truth(turns["features"])
    slot = random.choice([0, 3], n)
    rows = np.arange(n)
    turns["slot"][:] = slot
    turns["known"][rows, slot] = 1.0
    turns["quality"][rows, slot] = (random.uniform(size=n) < quality[rows, slot]).astype(np.float32)
    turns["propensity"][:] = 0.5
    return turns


def truth(features):
    made = np.zeros((len(features), 4))
    made[:, 0] = np.where(features[:, SLOT["digit_share"]] < 0.5, 0.9, 0.1)
    made[:, 3] = 0.85
    return made


def predicted(snapshot, turns):
    x = np.array(turns["features"])
    x[:, AT] = snapshot.exemplars.recall_all(x)
    logits = snapshot.forward(x, np.zeros((len(x), 64), np.float32)).tier
    return 1 / (1 + np.exp(-logits))


def batches(turns, size=16):
    for at in range(0, len(turns["id"]), size):
        yield {name: turns[name][at : at + size] for name in SCHEMA}


def test_it_learns_what_every_slot_is_good_for_from_the_slot_that_was_drawn():
    learner = Learner(prior(), PRICES, LearnerConfig(gather=64, dense_steps=100))
    losses = [told for batch in batches(world(1200)) if (told := learner.learn(batch)) is not None]
    assert np.mean(losses[-30:]) < np.mean(losses[:10])
    fresh = world(400, seed=9, first=10_000)
    q = predicted(learner.snapshot("x"), fresh)
    hard = fresh["features"][:, SLOT["digit_share"]] > 0.5
    assert q[~hard, 0].mean() - q[hard, 0].mean() > 0.2
    assert abs(q[:, 3].mean() - 0.85) < 0.1
    zeros = np.mean(learner.snapshot("x").params["w"] == 0.0)
    assert zeros >= 0.75


def test_a_restored_learner_goes_on_bit_for_bit():
    turns = list(batches(world(480)))
    whole = Learner(prior(), PRICES, SMALL)
    states = []
    for batch in turns:
        whole.learn(batch)
        states.append(to_bytes(whole.state()))
    for cut in (1, 4, 9, 15, 22):
        again = Learner(prior(), PRICES, SMALL)
        again.restore(from_bytes(states[cut]))
        assert to_bytes(again.state()) == states[cut]
        for batch in turns[cut + 1 :]:
            again.learn(batch)
        assert to_bytes(again.state()) == states[-1]
        assert again.snapshot("x").to_bytes() == whole.snapshot("x").to_bytes()


def test_a_state_of_another_learner_is_refused():
    learner = Learner(prior(), PRICES, SMALL)
    for batch in batches(world(96)):
        learner.learn(batch)
    state = learner.state()
    for broken in (
        {name: value for name, value in state.items() if name != "net/w"},
        {name: value for name, value in state.items() if not name.startswith("buffer/")},
        {**state, "net/b_h": np.full(64, np.nan, np.float32)},
    ):
        with pytest.raises(Stop):
            Learner(prior(), PRICES, SMALL).restore(broken)
    with pytest.raises(Stop):
        from_bytes(b"not a state")


def test_forgetting_an_owner_takes_buffer_and_exemplars():
    learner = Learner(prior(), PRICES, SMALL)
    for batch in batches(world(160)):
        learner.learn(batch)
    before = len(learner.buffer)
    gone = learner.forget(np.array([1]))
    assert 0 < gone < before
    assert len(learner.buffer) == before - gone
    assert not learner.forget(np.array([1]))
    left = learner.buffer.sample(500, np.random.default_rng(0))
    assert set(left["owner"].tolist()) == {0}


def test_turns_of_a_session_share_a_column_in_order_and_replayed_ones_stand_alone():
    turns = blank(7)
    turns["id"][:] = range(7)
    turns["session"][:] = [5, 8, 5, 5, 8, 5, 5]
    turns["turn"][:] = [1, 0, 0, 4, 1, 9, 9]
    times, columns = columns_of(turns, 5)
    assert times.tolist() == [1, 0, 0, 0, 1, 0, 0]
    assert columns[0] == columns[2] != columns[3]  # turn 4 does not follow turn 1
    assert columns[1] == columns[4]
    assert len({columns[5], columns[6], columns[0], columns[1], columns[3]}) == 5


def test_a_snapshot_before_enough_was_gathered_is_refused():
    with pytest.raises(Stop, match="0 turns so far"):
        Learner(prior(), PRICES, SMALL).snapshot("x")


def test_fit_learns_the_same_world_and_is_the_same_each_time():
    turns = world(1200)
    made = fit(turns, prior(), "f", PRICES, FitConfig(epochs=20), seed=1)
    fresh = world(400, seed=9, first=10_000)
    q = predicted(made, fresh)
    hard = fresh["features"][:, SLOT["digit_share"]] > 0.5
    assert q[~hard, 0].mean() - q[hard, 0].mean() > 0.4
    assert fit(turns, prior(), "f", PRICES, FitConfig(epochs=20), seed=1).to_bytes() == made.to_bytes()
    with pytest.raises(Stop, match="10 turns"):
        fit(world(10), prior(), "f", PRICES, FitConfig())


class Beside(Alone):
    """Two workers in two threads, which add up what each has."""

    count = 2

    def __init__(self, rank, barrier, shelf):
        self.rank, self._barrier, self._shelf = rank, barrier, shelf

    def add(self, tensors):
        self._shelf[self.rank] = [tensor.detach().clone() for tensor in tensors]
        self._barrier.wait(60)
        with torch.no_grad():
            for tensor, one, other in zip(tensors, *self._shelf, strict=True):
                tensor.copy_(one + other)
        self._barrier.wait(60)


def test_two_workers_with_half_the_turns_each_do_what_one_does_with_all():
    turns = world(300)
    alone = Learner(prior(), PRICES, SMALL)
    barrier, shelf, told = threading.Barrier(2), [[], []], [[], [], []]
    pair = [Learner(prior(), PRICES, SMALL, Beside(rank, barrier, shelf)) for rank in (0, 1)]

    def learn(learner, rank, share):
        for batch in batches(turns):
            mine = (batch["session"] % 2 == rank) if share else None
            told[rank].append(learner.learn(batch, mine))

    threads = [threading.Thread(target=learn, args=(one, rank, True)) for rank, one in enumerate(pair)]
    for thread in threads:
        thread.start()
    learn(alone, 2, False)
    for thread in threads:
        thread.join(60)
    assert to_bytes(pair[0].state()) == to_bytes(pair[1].state())
    assert pair[0].consolidations == alone.consolidations > 1
    assert told[0][3:] == pytest.approx(told[2][3:], abs=1e-3)
    some = world(100, first=1000)
    assert predicted(pair[0].snapshot("a"), some) == pytest.approx(predicted(alone.snapshot("b"), some), abs=5e-3)
