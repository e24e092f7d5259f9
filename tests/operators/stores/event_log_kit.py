"""What every ``EventLog`` must do. An implementation is added by one line in ``test_event_log.py``.

A subject is a function from a directory and a clock to an unopened log; asked again with the same directory, it gives
another handle on the same log (a second process, or the first one after a restart).

``append_many`` is all or none for what can't be written at all; what a failing broker wrote of it is not the kit's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.errors import Reject
from operators.stores.ports import Event, EventLog

Subject = Callable[[Path, Callable[[], float]], EventLog]


class Clock:
    """A clock that the test holds."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def everything(log: EventLog, topic: str) -> list[Event]:
    """Every event of ``topic``, partition by partition."""
    return [e for p in range(log.topics()[topic]) for e in log.read(topic, p, 0, 1_000_000)]


def only_if(retains: bool) -> None:
    if not retains:
        pytest.skip("its broker can't remove events when told")


class EventLogKit:
    """Subclass it with a fixture ``subject`` that gives a ``Subject``."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def retains(self) -> bool:
        """Whether ``retain`` can be tried on the subject."""
        return True

    @pytest.fixture
    def log(self, subject: Subject, clock: Clock, tmp_path: Path) -> Iterator[EventLog]:
        log = subject(tmp_path, clock)
        log.open()
        log.create_topic("t", 3)
        log.create_topic("one", 1)
        yield log
        log.close()

    def test_an_event_comes_back_as_it_was_written(self, log: EventLog, clock: Clock) -> None:
        clock.now = 1_234.5
        value = bytes(range(256))
        partition, offset = log.append("t", "tenant|sessiön", value, {"ce_id": "é1", "traceparent": "00-ab"})
        (event,) = log.read("t", partition, offset, 10)
        assert (event.topic, event.partition, event.offset) == ("t", partition, 0)
        assert (event.key, event.value) == ("tenant|sessiön", value)
        assert dict(event.headers) == {"ce_id": "é1", "traceparent": "00-ab"}
        assert event.timestamp == pytest.approx(1_234.5, abs=1e-3)  # Kafka keeps milliseconds

    def test_headers_may_be_left_out(self, log: EventLog) -> None:
        log.append("one", "k", b"")
        assert dict(log.read("one", 0, 0, 1)[0].headers) == {}

    def test_offsets_rise_by_one_from_zero_in_each_partition(self, log: EventLog) -> None:
        places = [log.append("t", f"key {i % 7}", b"%d" % i) for i in range(30)]
        for p in range(3):
            assert [o for q, o in places if q == p] == list(range(log.end("t", p)))
        assert sum(log.end("t", p) for p in range(3)) == 30

    def test_equal_keys_share_a_partition_and_keep_their_order(self, log: EventLog) -> None:
        for i in range(60):
            log.append("t", f"key {i % 10}", b"%d" % i)
        events = everything(log, "t")
        for key in {e.key for e in events}:
            mine = [e for e in events if e.key == key]
            assert len({e.partition for e in mine}) == 1
            assert [int(e.value) % 10 for e in mine] == [int(mine[0].value)] * 6
            assert [int(e.value) for e in mine] == sorted(int(e.value) for e in mine)
        assert len({e.partition for e in events}) == 3, "ten keys fill three partitions"

    def test_the_partition_of_a_key_outlives_a_restart(
        self, log: EventLog, subject: Subject, clock: Clock, tmp_path: Path
    ) -> None:
        before = [log.append("t", f"k{i}", b"")[0] for i in range(20)]
        log.close()
        again = subject(tmp_path, clock)
        again.open()
        try:
            assert [again.append("t", f"k{i}", b"")[0] for i in range(20)] == before
        finally:
            again.close()

    def test_append_many_gives_the_places_in_order(self, log: EventLog) -> None:
        items = [(f"k{i % 5}", b"%d" % i, {"n": str(i)}) for i in range(25)]
        places = log.append_many("t", items)
        for (partition, offset), (key, value, headers) in zip(places, items, strict=True):
            (event,) = log.read("t", partition, offset, 1)
            assert (event.offset, event.key, event.value, dict(event.headers)) == (offset, key, value, headers)
        assert log.append_many("t", []) == []

    def test_append_many_is_all_or_none(self, log: EventLog) -> None:
        log.append("t", "k", b"before")
        with pytest.raises(Exception, match=r".") as caught:
            log.append_many("t", [("k", b"good", {}), ("k", object(), {})])  # type: ignore[list-item]
        assert not isinstance(caught.value, AssertionError)
        assert [e.value for e in everything(log, "t")] == [b"before"]
        partition, offset = log.append("t", "k", b"after")
        assert offset == 1, "the failed append used no offset"
        assert [e.value for e in log.read("t", partition, 0, 9)] == [b"before", b"after"]

    def test_read_stops_at_its_limit_and_at_the_end(self, log: EventLog) -> None:
        for i in range(5):
            log.append("one", "k", b"%d" % i)
        assert [e.offset for e in log.read("one", 0, 1, 3)] == [1, 2, 3]
        assert [e.offset for e in log.read("one", 0, 4, 3)] == [4]
        assert log.read("one", 0, 5, 3) == []
        assert log.read("one", 0, 99, 3) == []
        assert log.read("one", 0, 0, 0) == []

    def test_an_empty_partition_ends_at_zero(self, log: EventLog) -> None:
        assert log.end("one", 0) == 0
        assert log.read("one", 0, 0, 10) == []

    def test_commits_never_move_back_and_belong_to_a_group(self, log: EventLog) -> None:
        assert log.committed("g", "t", 1) == 0
        for i in range(9):
            log.append("one", "k", b"%d" % i)
        log.commit("g", "one", 0, 7)
        log.commit("g", "one", 0, 3)
        assert log.committed("g", "one", 0) == 7
        assert log.committed("other", "one", 0) == 0
        assert log.committed("g", "t", 0) == 0

    def test_everything_outlives_a_restart(self, log: EventLog, subject: Subject, clock: Clock, tmp_path: Path) -> None:
        log.append_many("one", [("k", b"%d" % i, {}) for i in range(4)])
        log.commit("g", "one", 0, 2)
        log.close()
        again = subject(tmp_path, clock)
        again.open()
        try:
            assert again.topics() == {"one": 1, "t": 3}
            assert [e.value for e in again.read("one", 0, again.committed("g", "one", 0), 9)] == [b"2", b"3"]
            assert again.append("one", "k", b"4") == (0, 4)
        finally:
            again.close()

    def test_two_handles_see_each_other_at_once(
        self, log: EventLog, subject: Subject, clock: Clock, tmp_path: Path
    ) -> None:
        other = subject(tmp_path, clock)
        other.open()
        try:
            log.append("one", "k", b"a")
            assert [e.value for e in other.read("one", 0, 0, 9)] == [b"a"]
            assert other.append("one", "k", b"b") == (0, 1)
            assert log.end("one", 0) == 2
            other.create_topic("new", 2)
            assert log.append("new", "k", b"x")[1] == 0
        finally:
            other.close()

    def test_retention_by_count_keeps_the_newest_of_every_partition(self, log: EventLog, retains: bool) -> None:
        only_if(retains)
        log.append_many("t", [(f"k{i}", b"%d" % i, {}) for i in range(40)])
        ends = [log.end("t", p) for p in range(3)]
        assert min(ends) > 4
        assert log.retain("t", max_events=4) == 40 - 12
        assert log.retain("t", max_events=4) == 0
        for p in range(3):
            assert [e.offset for e in log.read("t", p, 0, 99)] == list(range(ends[p] - 4, ends[p]))
            assert log.end("t", p) == ends[p]

    def test_retention_by_age_follows_the_clock(self, log: EventLog, clock: Clock, retains: bool) -> None:
        only_if(retains)
        for clock.now in (100.0, 200.0, 300.0):
            log.append("one", "k", b"%d" % clock.now)
        assert log.retain("one", max_age_s=250.0) == 0
        clock.now = 450.0
        assert log.retain("one", max_age_s=250.0) == 1  # 200 is exactly as old as allowed: it stays
        assert [e.value for e in log.read("one", 0, 0, 9)] == [b"200", b"300"]

    def test_offsets_are_never_used_twice_even_when_retention_took_all(
        self, log: EventLog, subject: Subject, clock: Clock, tmp_path: Path, retains: bool
    ) -> None:
        only_if(retains)
        for i in range(3):
            log.append("one", "k", b"%d" % i)
        assert log.retain("one", max_events=0) == 3
        assert log.read("one", 0, 0, 9) == []
        assert log.end("one", 0) == 3
        log.close()
        again = subject(tmp_path, clock)
        again.open()
        try:
            assert again.append("one", "k", b"new") == (0, 3)
            assert [e.offset for e in again.read("one", 0, 0, 9)] == [3], "the removed ones are skipped over"
        finally:
            again.close()

    def test_retention_without_limits_removes_nothing(self, log: EventLog) -> None:
        log.append("one", "k", b"")
        assert log.retain("one") == 0
        assert log.end("one", 0) == 1

    def test_a_topic_keeps_its_number_of_partitions(self, log: EventLog) -> None:
        log.create_topic("t", 3)
        with pytest.raises(Reject, match="3 partitions"):
            log.create_topic("t", 4)
        with pytest.raises(Reject, match="0 partitions"):
            log.create_topic("none", 0)
        assert log.topics() == {"one": 1, "t": 3}

    def test_unknown_topics_and_partitions_are_refused(self, log: EventLog) -> None:
        for call in (
            lambda: log.append("nope", "k", b""),
            lambda: log.append_many("nope", [("k", b"", {})]),
            lambda: log.read("nope", 0, 0, 1),
            lambda: log.end("nope", 0),
            lambda: log.commit("g", "nope", 0, 0),
            lambda: log.committed("g", "nope", 0),
            lambda: log.retain("nope", max_events=1),
        ):
            with pytest.raises(Reject, match="nope"):
                call()
        for partition in (-1, 3):
            with pytest.raises(Reject, match=f"partition {partition}"):
                log.read("t", partition, 0, 1)

    def test_many_threads_append_without_gaps_or_losses(self, log: EventLog) -> None:
        acknowledged: list[tuple[str, tuple[int, int]]] = []

        def work(n: int) -> None:
            for i in range(12):
                name = f"{n}.{i}"
                acknowledged.append((name, log.append("t", f"s{n}", name.encode())))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        stored = {e.value.decode(): (e.partition, e.offset) for e in everything(log, "t")}
        assert dict(acknowledged) == stored
        assert len(stored) == 72
        for p in range(3):
            assert [e.offset for e in log.read("t", p, 0, 99)] == list(range(log.end("t", p)))

    def test_close_and_open_may_be_called_twice(self, log: EventLog) -> None:
        log.append("one", "k", b"a")
        log.open()
        log.close()
        log.close()
        log.open()
        assert log.append("one", "k", b"b") == (0, 1)

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        steps=st.lists(
            st.one_of(
                st.tuples(st.just("append"), st.lists(st.text(max_size=3), max_size=5)),
                st.tuples(st.just("retain"), st.integers(0, 4)),
                st.tuples(st.just("commit"), st.integers(0, 2), st.integers(0, 9)),
            ),
            max_size=8,
        )
    )
    def test_it_agrees_with_lists(self, log: EventLog, retains: bool, steps: list[tuple[object, ...]]) -> None:
        """The model: a list a partition from which retention cuts the head, and a maximum a commit."""
        name = f"m{len(log.topics())}"
        log.create_topic(name, 3)
        kept: list[list[tuple[int, str]]] = [[], [], []]
        ends, commits = [0, 0, 0], [0, 0, 0]
        for verb, *rest in steps:
            if verb == "append":
                (keys,) = rest
                places = log.append_many(name, [(k, k.encode(), {}) for k in keys])  # type: ignore[attr-defined]
                for key, (p, offset) in zip(keys, places, strict=True):  # type: ignore[call-overload]
                    assert offset == ends[p]
                    kept[p].append((offset, key))
                    ends[p] += 1
            elif verb == "retain" and not retains:
                continue
            elif verb == "retain":
                (n,) = rest
                gone = sum(max(0, len(k) - n) for k in kept)  # type: ignore[operator]
                assert log.retain(name, max_events=n) == gone  # type: ignore[arg-type]
                kept = [k[len(k) - n :] if len(k) > n else k for k in kept]  # type: ignore[operator]
            else:
                p, offset = rest
                log.commit("g", name, p, offset)  # type: ignore[arg-type]
                commits[p] = max(commits[p], offset)  # type: ignore[index, call-overload]
        for p in range(3):
            assert [(e.offset, e.key) for e in log.read(name, p, 0, 999)] == kept[p]
            assert (log.end(name, p), log.committed("g", name, p)) == (ends[p], commits[p])
