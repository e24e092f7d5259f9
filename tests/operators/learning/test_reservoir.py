"""The replay buffer: every row equally likely to be kept, shares that are fair, and nothing lost by a restart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from operators.errors import Skip, Stop
from operators.learning.reservoir import Reservoir, key

SCHEMA = {"id": ("int64", ()), "tenant": ("int64", ()), "x": ("float32", (3,))}
SEEDS = 600


def rows(ids):
    """Rows whose every value follows from the id, so that a mixed-up row is seen."""
    ids = np.asarray(ids, np.int64)
    return {"id": ids, "tenant": ids % 7, "x": np.stack([ids, 2 * ids, -ids], axis=-1).astype(np.float32)}


def offer(buffer, stratum, ids):
    return buffer.add_many([stratum] * len(ids), rows(ids))


def kept(buffer):
    """Stratum → ids, read from the state; checks that rows are whole."""
    state = buffer.state()
    ids, sizes = state["rows/id"], list(buffer.sizes.values())
    for name, column in rows(ids).items():
        assert np.array_equal(state[f"rows/{name}"], column)
    return dict(zip(buffer.sizes, np.split(ids, np.cumsum(sizes)[:-1]), strict=True))


def chi_square_is_small(counts):
    """Counts of how often each row was kept, of SEEDS times; each is binomial, up to the fixed sum of all."""
    counts = np.asarray(counts, np.float64)
    share = counts.mean() / SEEDS
    value = ((counts - counts.mean()) ** 2).sum() / (SEEDS * share * (1 - share))
    freedom = len(counts)
    return value < freedom + 4.5 * np.sqrt(2 * freedom)  # four and a half standard deviations


# ------------------------------------------------------------------------------------------------------ uniformity


def test_every_row_offered_is_equally_likely_to_be_kept():
    counts = np.zeros(40)
    for seed in range(SEEDS):
        buffer = Reservoir(SCHEMA, capacity=10, seed=seed)
        offer(buffer, "a", range(40))
        counts[kept(buffer)["a"]] += 1
    assert counts.sum() == 10 * SEEDS
    assert chi_square_is_small(counts)


def test_and_stays_so_when_other_strata_take_their_share():
    """Before, at and after the coming of two more strata, which also shrink each other."""
    counts = {"a": np.zeros(60), "b": np.zeros(30), "c": np.zeros(3)}
    first = np.zeros(40)
    for seed in range(SEEDS):
        buffer = Reservoir(SCHEMA, capacity=12, seed=seed)
        offer(buffer, "a", range(40))
        first[kept(buffer)["a"]] += 1
        offer(buffer, "b", range(30))
        offer(buffer, "c", range(3))
        offer(buffer, "a", range(40, 60))
        sizes = buffer.sizes
        assert sum(sizes.values()) == 12
        assert sizes["c"] == 3  # the rare one keeps all
        assert abs(sizes["a"] - sizes["b"]) <= 1
        for name, ids in kept(buffer).items():
            counts[name][ids] += 1
    assert chi_square_is_small(first)
    assert chi_square_is_small(counts["a"])
    assert chi_square_is_small(counts["b"])
    assert (counts["c"] == SEEDS).all()


def test_and_after_a_deletion_made_room():
    """A quarter of what was offered is deleted, then more is offered: old and new rows are equally likely."""
    counts = np.zeros(80)
    for seed in range(SEEDS):
        buffer = Reservoir(SCHEMA, capacity=20, seed=seed)
        offer(buffer, "a", range(40))
        buffer.forget(range(10))
        offer(buffer, "a", range(40, 80))
        counts[kept(buffer)["a"]] += 1
    assert counts[:10].sum() == 0
    assert abs(counts[10:40].mean() / counts[40:].mean() - 1) < 0.04
    assert counts.sum() / SEEDS > 18  # the room is used again


def test_the_check_of_uniformity_can_fail():
    counts = np.zeros(40)
    for seed in range(SEEDS):  # a buffer that keeps new rows too often
        counts[np.random.default_rng(seed).choice(40, 10, replace=False, p=np.linspace(0.8, 1.2, 40) / 40)] += 1
    assert not chi_square_is_small(counts)


# --------------------------------------------------------------------------------------------------------- sampling


def test_strata_are_drawn_alike_or_by_their_size():
    buffer = Reservoir(SCHEMA, capacity=100)
    offer(buffer, "large", range(90))
    offer(buffer, "small", range(1000, 1010))
    random = np.random.default_rng(0)
    found = buffer.sample(10_001, random)
    assert found["x"].shape == (10_001, 3)
    assert (found["id"] >= 1000).sum() in (5000, 5001)
    assert np.array_equal(found["x"], rows(found["id"])["x"])
    assert np.bincount(found["id"][found["id"] < 1000], minlength=90).min() > 20  # every row's turn comes
    by_rows = buffer.sample(10_000, random, balanced=False)
    assert 850 < (by_rows["id"] >= 1000).sum() < 1150


def test_sampling_leaves_the_buffers_own_chance_alone():
    one, other = Reservoir(SCHEMA, capacity=5, seed=3), Reservoir(SCHEMA, capacity=5, seed=3)
    for start in range(0, 100, 10):
        offer(one, "a", range(start, start + 10))
        offer(other, "a", range(start, start + 10))
        one.sample(8, np.random.default_rng(start))
    assert np.array_equal(kept(one)["a"], kept(other)["a"])


def test_what_was_drawn_is_the_callers():
    buffer = Reservoir(SCHEMA, capacity=5)
    offer(buffer, "a", range(5))
    buffer.sample(5, np.random.default_rng(0))["x"][:] = 99.0
    kept(buffer)


# --------------------------------------------------------------------------------------------------------- deletion


def test_a_tenant_is_forgotten_whole():
    buffer = Reservoir(SCHEMA, capacity=50)
    for stratum in ("a", "b"):
        offer(buffer, stratum, np.arange(200) + 1000 * (stratum == "b"))
    before = kept(buffer)
    gone = sum((ids % 7 == 3).sum() for ids in before.values())
    assert buffer.forget([3], column="tenant") == gone > 0
    assert len(buffer) == 50 - gone
    after = kept(buffer)
    for name, ids in before.items():
        assert np.array_equal(after[name], ids[ids % 7 != 3])
    assert not (buffer._columns["tenant"] == 3).any()  # nor in the memory that was freed
    assert buffer.forget([3], column="tenant") == 0
    assert buffer.forget(after["a"]) == len(after["a"])
    assert buffer.sizes.keys() == {"b"}


def test_keys_are_stable_and_fit():
    assert key("019a-1") == key("019a-1") != key("019a-2")
    assert key("019a-1") == -1_486_230_256_218_518_134  # buffers that were saved hold it
    assert len({key(f"i{n}") for n in range(10_000)}) == 10_000


# ------------------------------------------------------------------------------------------------------------ state


@settings(max_examples=30, deadline=None)
@given(data=st.data(), stop=st.integers(0, 120))
def test_a_restart_changes_nothing(data, stop):
    """Also across deletion: the resumed buffer is byte for byte the uninterrupted one."""
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=121, max_size=121))
    at = data.draw(st.integers(0, 120))
    whole, resumed = Reservoir(SCHEMA, capacity=17, seed=5), Reservoir(SCHEMA, capacity=17, seed=5)
    for i, name in enumerate(names):
        if i == stop:
            resumed = Reservoir.from_state(resumed.state(), SCHEMA, capacity=17)
        for buffer in (whole, resumed):
            if i == at:
                buffer.forget(range(0, i, 3))
            offer(buffer, name, [i])
    one, other = whole.state(), resumed.state()
    assert one.keys() == other.keys()
    assert all(one[part].tobytes() == other[part].tobytes() for part in one)


def test_what_it_does_not_know_is_refused():
    buffer = Reservoir(SCHEMA, capacity=5)
    offer(buffer, "a", range(20))
    state = buffer.state()
    about = state["about"].tobytes()
    bad = [
        ({}, "lacks or adds"),
        ({**state, "more": state["chance"]}, "lacks or adds"),
        ({**state, "about": np.frombuffer(about.replace(b'"format": 1', b'"format": 2'), np.uint8)}, "format 2"),
        ({**state, "about": np.frombuffer(about[:-1], np.uint8)}, "can't be read"),
        ({**state, "about": np.frombuffer(about.replace(b"20]", b" 2]"), np.uint8)}, "numbers can't be"),
        ({**state, "rows/x": state["rows/x"][:4]}, "expected float32"),
        ({**state, "rows/x": np.full((5, 3), np.nan, np.float32)}, "NaN"),
        ({**state, "chance": np.full(13, 9, np.uint64)}, "numbers can't be"),
    ]
    for some, says in bad:
        with pytest.raises(Stop, match=says):
            Reservoir.from_state(some, SCHEMA, capacity=5)
    with pytest.raises(Stop, match="capacity 5, expected 6"):
        Reservoir.from_state(state, SCHEMA, capacity=6)
    with pytest.raises(Stop, match="schema"):
        Reservoir.from_state(state, {**SCHEMA, "y": ("float32", ())} | {"x": ("float32", (4,))}, capacity=5)


def test_rows_that_do_not_fit_are_refused_and_none_is_taken():
    buffer = Reservoir(SCHEMA, capacity=5)
    good = rows([1, 2])
    with pytest.raises(Stop, match=r"\['x'\]"):
        buffer.add_many(["a", "a"], {name: value for name, value in good.items() if name != "x"})
    with pytest.raises(Stop, match="expected float32"):
        buffer.add_many(["a", "a"], {**good, "x": good["x"][:, :2]})
    with pytest.raises(Stop, match="id is float64"):
        buffer.add_many(["a", "a"], {**good, "id": np.array([1.5, 2.5])})
    with pytest.raises(Skip, match="NaN"):
        buffer.add_many(["a", "a"], {**good, "x": np.array([[0, 0, 0], [0, np.inf, 0]], np.float32)})
    assert len(buffer) == 0
    with pytest.raises(Stop, match="empty"):
        buffer.sample(1, np.random.default_rng(0))
    assert buffer.add("a", {"id": 3, "tenant": 3, "x": np.array([3.0, 6.0, -3.0], np.float32)})
    assert kept(buffer)["a"].tolist() == [3]
    with pytest.raises(Stop, match="id"):
        Reservoir({"x": ("float32", ())})
    with pytest.raises(Stop, match="capacity"):
        Reservoir(SCHEMA, capacity=0)


# ------------------------------------------------------------------------------------------------- any order of all


class Any(RuleBasedStateMachine):
    """Whatever is done in whatever order: bounded, whole, counted, fair."""

    @initialize(capacity=st.integers(1, 12), seed=st.integers(0, 99))
    def begin(self, capacity, seed):
        self.buffer = Reservoir(SCHEMA, capacity=capacity, seed=seed)
        self.next, self.gone = 0, set()

    @rule(name=st.sampled_from("abcde"), n=st.integers(1, 9))
    def offers(self, name, n):
        offer(self.buffer, name, range(self.next, self.next + n))
        self.next += n

    @rule(part=st.integers(2, 9))
    def forgets(self, part):
        ids = set(range(0, self.next, part))
        self.buffer.forget(ids)
        self.gone |= ids

    @rule()
    def restarts(self):
        self.buffer = Reservoir.from_state(self.buffer.state(), SCHEMA, capacity=self.buffer.capacity)

    @invariant()
    def holds(self):
        buffer = self.buffer
        found = kept(buffer) if len(buffer) else {}
        ids = np.concatenate(list(found.values())) if found else np.array([], np.int64)
        assert len(buffer) == len(ids) == len(set(ids.tolist())) <= buffer.capacity
        assert not self.gone & set(ids.tolist())
        assert len(buffer) + len(buffer._free) == len(buffer._columns["id"]) <= max(buffer.capacity, 64)
        assert all(0 < size <= buffer.seen[name] for name, size in buffer.sizes.items())
        if not self.gone:
            thin = [size for name, size in buffer.sizes.items() if size < buffer.seen[name]]
            assert not thin or len(buffer) == buffer.capacity
            assert all(size <= min(thin) + 1 for size in buffer.sizes.values() if thin)


Any.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAny = Any.TestCase
