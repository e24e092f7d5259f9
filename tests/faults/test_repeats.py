"""Every judgement three times, some an hour late, sessions shuffled: the state is that of the clean stream.

What restores what: repeats are known by their event ids, wherever they stand. The order within a session is the log's,
for a session lies in one partition. The order *between* sessions is nobody's promise, so with sessions shuffled the
learner has learned from the same turns and counted the same, but its weights are those of another order.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.evidence import Evidence
from operators.learning.arrays import to_bytes
from operators.learning.weights import FILE
from operators.records import Writeback, decode
from operators.stores.checkpoints import Registry
from operators.stores.ports import Event, EventLog
from operators.stores.remembering import APPLIED
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, WRITEBACKS, create_topics
from tests import learn_rig
from tests.writeback_rig import Owner, memory_at, say, state, write_back

PARTITIONS, HOUR_S = 2, 3600.0
ALL = os.environ.get("RUVLLM_TEST_FAULTS") == "all"
TURNS = 400 if ALL else 136
"""Four a session, which is a batch: none is left over in any order."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def opened(root: Path, clock: Callable[[], float]) -> Iterator[SqliteLog]:
    log = SqliteLog(root / "events.sqlite", clock=clock)
    log.open()
    with contextlib.closing(log):
        create_topics(log, PARTITIONS)
        yield log


def everything(log: EventLog, topic: str) -> list[Event]:
    return [event for p in range(log.topics()[topic]) for event in log.read(topic, p, 0, 99_999)]


def put(log: EventLog, events: list[Event]) -> None:
    for event in events:
        log.append(event.topic, event.key, event.value, event.headers)


def dirty(clean: EventLog, log: EventLog, clock: Clock, *, shuffle: bool) -> None:
    """All of ``clean`` in ``log``: each judgement at once, soon after, and an hour later among shuffled others."""
    chance = random.Random(5)
    put(log, everything(clean, INTERACTIONS))  # first, and where they were: judgements name their places
    judged = everything(clean, JUDGEMENTS)
    if shuffle:
        sessions = list(dict.fromkeys(event.key for event in judged))
        chance.shuffle(sessions)
        judged.sort(key=lambda event: sessions.index(event.key))  # stable: a session keeps its order
    for i, event in enumerate(judged):
        put(log, [event, judged[chance.randrange(max(0, i - 9), i + 1)]])
    clock.now += HOUR_S
    put(log, everything(clean, INTERACTIONS))
    late = judged * 2
    chance.shuffle(late)
    put(log, late)
    assert len(everything(log, JUDGEMENTS)) == 4 * len(judged)


# ------------------------------------------------------------------------------------------------------ the learner


class Learned:
    """What a learner in ``root`` makes of the stream that ``fill`` writes."""

    def __init__(self, root: Path, fill: Callable[[EventLog, Clock], None]) -> None:
        clock = Clock()
        with opened(root, clock) as log:
            loop = learn_rig.loop_on(root, log)
            loop.begin()
            fill(log, clock)
            while loop.turn():
                pass
        registry = Registry(root / "checkpoints")
        self.weights = to_bytes(loop.learner.state())
        self.held = to_bytes(loop.holdout.state())
        self.published = [registry.read(version, FILE) for version in registry.versions()]
        self.evidence: Evidence = loop._promoter._tally.evidence()
        self.candidates = loop.candidates
        self.counts = (loop.learned, loop.dead, len(loop.learner.buffer), loop.learner.steps)
        self.kept, self.offered = loop.learner.buffer.sizes, loop.learner.buffer.seen
        self.had = learn_rig.had(loop)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learned]:
    def fill(log: EventLog, clock: Clock) -> None:
        for i in range(TURNS):
            learn_rig.put(log, *learn_rig.turn(i, session=f"s{i // 4}", turn_of=i % 4))

    root = tmp_path_factory.mktemp("clean")
    return root, Learned(root, fill)


def learned_from(taught: tuple[Path, Learned], root: Path, *, shuffle: bool) -> Learned:
    with opened(taught[0], Clock()) as clean:
        return Learned(root, lambda log, clock: dirty(clean, log, clock, shuffle=shuffle))


def test_repeats_leave_the_learner_as_it_would_be(tmp_path: Path, taught: tuple[Path, Learned]) -> None:
    clean, found = taught[1], learned_from(taught, tmp_path, shuffle=False)
    assert clean.counts[0] == TURNS
    assert clean.published
    assert (found.counts, found.candidates) == (clean.counts, clean.candidates)
    assert found.published == clean.published
    assert found.held == clean.held
    assert (found.evidence.verdicts, found.evidence.watched) == (clean.evidence.verdicts, clean.evidence.watched)
    assert found.weights == clean.weights


def test_shuffled_sessions_teach_the_same_turns(tmp_path: Path, taught: tuple[Path, Learned]) -> None:
    clean, found = taught[1], learned_from(taught, tmp_path, shuffle=True)
    assert found.weights != clean.weights, "it was shuffled"
    assert found.counts == clean.counts
    assert found.offered == clean.offered
    # Which of equally large strata gave way for the last turns is the order's; how large they are is not.
    assert sorted(found.kept.values()) == sorted(clean.kept.values())
    assert all(abs(found.kept[name] - clean.kept[name]) <= 1 for name in clean.kept)
    counted = [{name: len(scores) for name, scores in one.evidence.verdicts.items()} for one in (found, clean)]
    assert counted[0] == counted[1]
    if clean.kept == clean.offered:  # none had to give way
        assert found.had == clean.had
        scores = [{name: sorted(given) for name, given in one.evidence.verdicts.items()} for one in (found, clean)]
        assert scores[0] == scores[1]


# ------------------------------------------------------------------------------------------------------- the memory


def tell(log: EventLog) -> None:
    """Good answers, a near-copy in the same session, a correction, and one that its user takes back."""
    for n, word in enumerate(("lamp", "mill", "ferry", "chapel")):
        about: dict[str, Any] = {"session": word}
        text = f"Old Maro Quell keeps the {word} of Brindle, house {n}, from dusk until the last bell of the night."
        say(log, f"Who keeps the {word}?", text, **about)
        say(log, f"Who keeps the {word}?", f"{text} Always.", turn=1, **about)
        say(log, f"Where is the {word}?", f"Behind the {word} stands a house of {word}s.", 0.3, turn=2, **about)
    say(
        log,
        "Who keeps the mill?",
        "",
        0.0,
        session="mill",
        turn=3,
        by="user",
        correction="Tove Lind owns it since May.",
    )
    say(log, "Where does it land?", "Below the customs house.", session="ferry", turn=4)
    say(log, "Where does it land?", "Below the customs house.", 0.0, session="ferry", turn=4, by="user")


async def written(root: Path, log: EventLog, *, restarts: int = 0) -> tuple[dict[str, Any], dict[str, str]]:
    """The memory after writing back, without the places that were counted, and each outcome."""
    memory = memory_at(root)
    with contextlib.closing(memory):
        for left in range(restarts, -1, -1):
            await write_back(log, Owner(memory), batch=4)  # type: ignore[arg-type]
            if left:
                put(log, everything(log, JUDGEMENTS))
        made = state(memory)
    for node in made["nodes"]:
        if node[6]:
            node[6].pop(APPLIED, None)
    outcomes = [decode(Writeback, event.value) for event in everything(log, WRITEBACKS)]
    by_id = {one.event_id: f"{one.interaction_id} {one.outcome}" for one in outcomes}
    assert len(by_id) == len(outcomes), "each verdict is settled once"
    return json.loads(json.dumps(made)), by_id


@pytest.mark.parametrize("shuffle", [False, True] if ALL else [True])
async def test_repeats_leave_the_memory_as_it_would_be(tmp_path: Path, shuffle: bool) -> None:
    clock = Clock()
    for name in ("clean", "dirty"):
        (tmp_path / name).mkdir()
    with opened(tmp_path / "clean", clock) as clean, opened(tmp_path / "dirty", clock) as log:
        tell(clean)
        dirty(clean, log, clock, shuffle=shuffle)
        wanted, settled = await written(tmp_path / "clean", clean)
        counted = sorted((node[6] or {}).get("count", "") for node in wanted["nodes"])
        assert counted == ["1", "2", "2", "2", "2"], "near-copies strengthen, once each"
        assert len(wanted["gone"]) == 1
        found, again = await written(tmp_path / "dirty", log, restarts=1)
        assert again == settled
        assert found == wanted
