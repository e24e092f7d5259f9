"""Which model goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.engines.pool.eviction import GreedyDual

ONES = {"a": 1, "b": 1, "c": 1}


def test_with_equal_cost_it_is_least_recently_used() -> None:
    worth = GreedyDual()
    for name in "abca":
        worth.used(name, 2.0)
    assert worth.choose(ONES, 3) == ["b", "c", "a"]


def test_the_papers_rule() -> None:
    """Young's algorithm by hand: a costs 3, b and c cost 1, and there is room for two."""
    worth = GreedyDual()
    worth.used("a", 3.0)
    worth.used("b", 1.0)
    for new, old, floor in (("c", "b", 1.0), ("b", "c", 2.0), ("c", "b", 3.0), ("b", "c", 4.0)):
        assert worth.choose({"a": 1, old: 1}, 1) == [old]
        worth.evicted(old)
        assert worth.floor == floor
        worth.used(new, 1.0)
        if floor == 2.0:
            worth.used("a", 3.0)  # a hit: its worth is 5 from here on
    # Four were cheaper to load again than a. Now b is worth 5, too, and a was not used for longer.
    assert worth.choose({"a": 1, "b": 1}, 1) == ["a"]


def test_what_goes_for_another_reason_raises_nobody() -> None:
    worth = GreedyDual()
    worth.used("a", 9.0)
    worth.forget("a")
    assert worth.floor == 0.0
    worth.used("a", 9.0)
    worth.evicted("a")
    assert worth.floor == 9.0


def test_sizes_only_spare() -> None:
    worth = GreedyDual()
    for cost, name in enumerate("abc"):
        worth.used(name, float(cost))
    assert worth.choose({"a": 10, "b": 100, "c": 100}, 90) == ["b"]  # a alone is too small, and b makes it needless
    assert worth.choose({"a": 10, "b": 100, "c": 100}, 10) == ["a"]
    assert worth.choose({"a": 10, "b": 100, "c": 100}, 110) == ["a", "b"]


@pytest.mark.parametrize(("partly", "chosen"), [(False, []), (True, ["a", "b"])])
def test_too_little_is_given_up_only_if_a_part_helps(partly: bool, chosen: list[str]) -> None:
    worth = GreedyDual()
    worth.used("a", 1.0)
    worth.used("b", 1.0)
    assert worth.choose({"a": 10, "b": 20}, 31, partly=partly) == chosen
    assert worth.choose({"a": 10, "b": 20}, 0, partly=partly) == []


@given(
    st.dictionaries(st.sampled_from("abcdefg"), st.tuples(st.integers(1, 50), st.floats(0, 9)), min_size=1),
    st.integers(1, 200),
)
def test_what_is_chosen_is_enough_and_not_one_too_many(models: dict[str, tuple[int, float]], need: int) -> None:
    worth, sizes = GreedyDual(), {name: size for name, (size, _) in models.items()}
    for name, (_, cost) in models.items():
        worth.used(name, cost)
    chosen = worth.choose(sizes, need)
    if sum(sizes.values()) < need:
        assert chosen == []
        return
    total = sum(sizes[name] for name in chosen)
    assert total >= need
    assert all(total - sizes[name] < need for name in chosen)
