"""Answers are remembered once, near-copies strengthen, and doing it twice changes nothing."""

from __future__ import annotations

import dataclasses
import json

import pytest

from operators.records import RELATIONS
from operators.stores import removal
from operators.stores.domains import GUESSED, Domains
from operators.stores.ports import Node
from operators.stores.remembering import APPLIED, COUNT, LAST_SEEN, Memo, remember
from tests.writeback_rig import NOW, document, memory_at, state, vectors

TEXT = "Who keeps the lamp of Brindle tower? Old Maro Quell keeps the lamp of Brindle tower every night."


@pytest.fixture
def memory(tmp_path):
    made = memory_at(tmp_path)
    yield made
    made.close()


def memo(name, text=TEXT, offset=0, partition="j/0", cites=(), rated_at=NOW, **fields):
    fields = {"kind": "interaction", "session": "s", "created_at": NOW, "quality": 0.9} | fields
    node = Node(node_id=name, text=text, vector=vectors([text]).vectors[0], **fields)
    return Memo(node=node, cites=tuple(cites), rated_at=rated_at, partition=partition, offset=offset)


def outcomes(memory, *memos):
    return [(result.outcome, result.partner) for result in remember(memory, "acme", memos)]


def stored(memory, name):
    return memory.vectors.get("acme", [name])[name]


def edges(memory):
    return {(s, t, RELATIONS[r]) for s, t, r, _ in memory.graph.edges("acme")}


def test_an_answer_becomes_a_node_with_its_edges(memory):
    memory.add("acme", [document("tower", "The tower of Brindle stands on the cliff."), document("far", "Unrelated.")])
    other = "Is there a harbour? Yes, with nine boats."
    assert outcomes(memory, memo("a", cites=["tower", "nowhere"]), memo("b", other, 1, position=3)) == [
        ("written", ""),
        ("written", ""),
    ]
    node = stored(memory, "a")
    assert node.metadata == {COUNT: "1", LAST_SEEN: repr(NOW), APPLIED: '{"j/0": 0}'}
    assert {("a", "tower", "cites"), ("a", "b", "next_turn")} <= edges(memory)
    assert not any("nowhere" in edge or "far" in edge for edge in edges(memory))


def test_a_near_copy_strengthens_what_is_there(memory):
    remember(memory, "acme", [memo("a", quality=0.8)])
    said = TEXT + " Always."
    (result,) = remember(memory, "acme", [memo("b", said, 1, quality=1.0, created_at=NOW + 50)])
    assert (result.outcome, result.partner) == ("duplicate", "a")
    assert result.similarity > 0.95
    assert 0.7 < result.jaccard < 1
    node = stored(memory, "a")
    assert node.text == TEXT
    assert node.quality == pytest.approx(0.9)
    assert (node.metadata[COUNT], node.metadata[LAST_SEEN]) == ("2", repr(NOW + 50))
    assert memory.vectors.count("acme") == 1
    assert memory.graph.count("acme") == (1, 0)


def test_near_copies_within_one_batch(memory):
    assert outcomes(memory, memo("a"), memo("b", offset=1), memo("c", offset=2)) == [
        ("written", ""),
        ("duplicate", "a"),
        ("duplicate", "a"),
    ]
    assert stored(memory, "a").metadata[COUNT] == "3"


@pytest.mark.parametrize(
    "other",
    [
        TEXT.replace("every night", "41 nights a year"),
        TEXT.replace("Quell", "Brask").replace("Maro", "Ilse").replace("Old", "Young"),
        "Entirely different words stand here, about something else.",
    ],
    ids=["another figure", "another person", "another text"],
)
def test_what_says_something_else_is_no_near_copy(memory, other):
    assert outcomes(memory, memo("a", TEXT + " 12 nights."), memo("b", other, 1)) == [("written", ""), ("written", "")]


def test_a_document_is_no_answer_to_strengthen(memory):
    memory.add("acme", [document("d", TEXT)])
    assert outcomes(memory, memo("a")) == [("written", "")]


def test_everything_twice_changes_nothing(memory):
    memory.add("acme", [document("tower", "The tower of Brindle stands on the cliff.")])
    some = [memo("a", cites=["tower"]), memo("b", offset=1), memo("c", "A quite different answer on boats.", 2)]
    first = outcomes(memory, *some)
    before = state(memory)
    assert outcomes(memory, *some) == first == [("written", ""), ("duplicate", "a"), ("written", "")]
    assert outcomes(memory, *some[1:]) == first[1:]
    assert state(memory) == before


def test_two_partitions_count_apart(memory):
    assert outcomes(memory, memo("a", offset=7), memo("b", offset=3, partition="j/1"))[1] == ("duplicate", "a")
    assert json.loads(stored(memory, "a").metadata[APPLIED]) == {"j/0": 7, "j/1": 3}
    assert stored(memory, "a").metadata[COUNT] == "2"


def test_what_was_removed_stays_away_until_it_is_added_on_purpose(memory):
    remember(memory, "acme", [memo("a"), memo("b", "Another answer, about boats.", 1)])
    removal.remove(memory, "acme", ["a", "never-seen"], "by its user")
    assert outcomes(memory, memo("a"), memo("never-seen", offset=2)) == [("gone", ""), ("gone", "")]
    assert [name for name, *_ in state(memory)["nodes"]] == ["b"]
    memory.add("acme", [memo("a").node])
    assert outcomes(memory, memo("a", offset=5)) == [("written", "")]


def test_a_users_verdict_stands_against_a_models(memory):
    def rated(name, judge, quality, offset):
        one = memo(name, offset=offset, quality=quality)
        return dataclasses.replace(one, node=dataclasses.replace(one.node, metadata={"judge": judge}))

    remember(memory, "acme", [rated("a", "gemma", 0.8, 0)])
    remember(memory, "acme", [rated("a", "user", 1.0, 1)])
    assert stored(memory, "a").quality == 1.0
    remember(memory, "acme", [rated("a", "gemma", 0.76, 2)])
    assert (stored(memory, "a").quality, stored(memory, "a").metadata["judge"]) == (1.0, "user")
    assert stored(memory, "a").metadata[COUNT] == "1", "still one answer"


def test_an_answer_gets_the_domain_of_texts_that_carry_one(memory):
    boats = ["boats and nets at the harbour", "the harbour has boats", "nets dry beside boats", "boats harbour nets"]
    memory.add("acme", [dataclasses.replace(document(f"b{i}", t), domain="sea") for i, t in enumerate(boats)])
    memory.add("acme", [dataclasses.replace(document("t", "income tax is due"), domain="money")])
    remember(memory, "acme", [memo("a", "How many boats? The harbour has nine boats."), memo("b", "zyx wvu tsr", 1)])
    node = stored(memory, "a")
    assert node.domain == "sea"
    assert float(node.metadata[GUESSED]) > 0.3
    assert stored(memory, "b").domain == ""


def test_guesses_teach_nothing():
    domains = Domains(Domains.Config(min_named=1))
    domains.learn([dataclasses.replace(document("a", "boats"), domain="sea")])
    guessed = dataclasses.replace(document("b", "tax"), domain="sea", metadata={GUESSED: "0.4"})
    domains.learn([guessed] * 100)
    assert domains.nearest(vectors(["tax"]).vectors[0]) == ("", 0.0)
    assert domains.nearest(vectors(["boats"]).vectors[0]) == ("sea", pytest.approx(1.0))
