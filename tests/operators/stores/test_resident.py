"""Rows in memory against a slow reference that looks up every neighbour by hand; fusion by its formula."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.records import Filter
from operators.stores import fusion
from operators.stores.ports import Node, Prior, SearchRequest
from operators.stores.resident import BLOCK, PASSAGE_K1, B, Resident, speaker
from operators.stores.strands import AFTER, BEFORE, REACH, Strands, strand

DIM, NOW = 4, 1000.0
WORDS = ["red", "fox", "sea", "tea"]


def unit(seed: int) -> Any:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def node(node_id: str, text: str = "", seed: int = 0, **fields: Any) -> Node:
    fields = {"kind": "document", "created_at": NOW} | fields
    return Node(node_id=node_id, text=text, vector=unit(seed), **fields)


def resident(*nodes: Node) -> Resident:
    rows = Resident(DIM, str.split)
    rows.put(nodes)
    return rows


def turn(i: int, text: str, session: str = "s", **fields: Any) -> Node:
    return node(f"{session}{i}", text, i, session=session, position=i, **fields)


# ---------------------------------------------------------------------------------------------------- the reference


def neighbours(held: dict[str, Node], of: Node) -> list[tuple[float, Node]]:
    """(weight, node) of everything within reach; a step leads to the next of another position, if it is the next."""
    found = []
    for sign, decay in ((-1, BEFORE), (1, AFTER)):
        order = sorted((n for n in held.values() if strand(n) == strand(of)), key=lambda n: (n.position, n.node_id))
        at = next(i for i, n in enumerate(order) if n.node_id == of.node_id)
        for distance in range(1, REACH + 1):
            at += sign
            if strand(of) is None or not 0 <= at < len(order) or order[at].position == order[at - sign].position:
                break
            found.append((decay**distance, order[at]))
    return found


def expected(held: dict[str, Node], vector: Any, query: list[str], where: Filter) -> dict[str, tuple[float, ...]]:
    """Node id → (near, passage, says) of every row that may be a hit."""
    alive = {i: n for i, n in held.items() if not 0 < n.expires_at <= NOW}
    windows = {i: [(1.0, n), *((w, m) for w, m in neighbours(held, n) if m.node_id in alive)] for i, n in alive.items()}
    lengths = {i: sum(w * len(m.text.split()) for w, m in window) for i, window in windows.items()}
    mean = (sum(lengths.values()) / len(lengths) if lengths else 0) or 1
    out = {}
    for i, n in alive.items():
        if where.domains and n.domain not in where.domains:
            continue
        near = sum(w * float(m.vector @ vector) for w, m in windows[i]) / sum(w for w, _ in windows[i])
        passage = 0.0
        for word in query:
            df = sum(word in m.text.split() for m in held.values())
            idf = math.log(1 + (len(held) - df + 0.5) / (df + 0.5))
            tf = sum(w * m.text.split().count(word) for w, m in windows[i])
            if tf:
                passage += idf * tf * (PASSAGE_K1 + 1) / (tf + PASSAGE_K1 * (1 - B + B * lengths[i] / mean))
        own, usual = len(n.text.split()), lengths[i] / sum(w for w, _ in windows[i])
        out[i] = (near, passage, own / max(own + usual, 1))
    return out


rows = st.builds(
    node,
    st.sampled_from([f"n{i}" for i in range(12)]),
    st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
    st.integers(0, 50),
    session=st.sampled_from(["", "s", "t"]),
    source=st.sampled_from(["", "s", "u"]),
    position=st.integers(0, 5),
    domain=st.sampled_from(["a", "b"]),
    expires_at=st.sampled_from([0.0, 0.0, NOW, NOW + 1]),
)


@given(
    batches=st.lists(st.lists(rows, max_size=12), max_size=6),
    dropped=st.sets(st.sampled_from([f"n{i}" for i in range(12)]), max_size=4),
    query=st.lists(st.sampled_from([*WORDS, "none"]), max_size=4, unique=True),
    where=st.sampled_from([Filter(), Filter(domains=("a",))]),
)
@settings(max_examples=150, deadline=None)
def test_passages_are_those_of_the_slow_reference(
    batches: list[list[Node]], dropped: set[str], query: list[str], where: Filter
) -> None:
    made, held = resident(), {}
    for batch in batches:
        made.put(batch)
        held.update((n.node_id, n) for n in batch)
    made.keep(held.keys() - dropped)
    held = {i: n for i, n in held.items() if i not in dropped}
    vector = unit(99)
    found = made.search(vector, " ".join(query), where, NOW)
    got = {
        found.nodes[row].node_id: (float(found.near[row]), float(found.passage[row]), float(found.says[row]))
        for row in np.flatnonzero(found.passes)
    }
    want = expected(held, vector, query, where)
    assert got.keys() == want.keys()
    for node_id, values in want.items():
        assert got[node_id] == pytest.approx(values, abs=1e-4)
    some = np.flatnonzero(found.passes)[::-1]
    np.testing.assert_allclose(found.bm25_of(some), found.bm25()[some], rtol=1e-5)
    assert not found.passage[~found.passes].any()
    assert not found.near[~found.passes].any()


# ---------------------------------------------------------------------------------------------------- by example


def ask(rows: Resident, text: str, k: int = 10, mode: Any = "hybrid", **fields: Any) -> list[str]:
    request = SearchRequest(tenant="t", text=text, vector=unit(7), k=k, mode=mode, **fields)
    return [hit.node_id for hit in fusion.search_resident(rows, request, NOW).hits]


def test_an_answer_is_found_by_the_words_of_its_question() -> None:
    said = {10: "where was the pottery class", 11: "in lisbon"}
    talk = [turn(i, said.get(i, "nice weather today again")) for i in range(20)]
    rows = resident(*(dataclasses.replace(t, vector=unit(0)) for t in talk))  # all mean the same: words decide
    assert ask(rows, "pottery class", k=2) == ["s10", "s11"]
    found = rows.search(unit(7), "pottery class", Filter(), NOW)
    assert found.passage[11] > found.passage[9]  # what comes after a mention counts more than what stands before it
    assert found.bm25()[11] == 0


def test_what_has_expired_or_was_replaced_says_nothing_of_its_neighbours() -> None:
    rows = resident(turn(0, "pottery class", expires_at=NOW), turn(1, "in lisbon"), turn(2, "the fox"))
    rows.put([turn(3, "red sea"), turn(3, "red tea")])
    for words in ("pottery", "sea"):
        assert not rows.search(unit(7), words, Filter(), NOW).passage.any(), words
    assert rows.search(unit(7), "pottery", Filter(), NOW - 1).passage[1] > 0


def test_a_row_outside_the_filter_is_no_hit_but_still_tells_what_its_neighbour_is_about() -> None:
    rows = resident(turn(0, "pottery class", domain="b"), turn(1, "in lisbon", domain="a"), turn(5, "else", "t"))
    assert ask(rows, "pottery", filter=Filter(domains=("a",)), k=1) == ["s1"]


def test_neighbours_never_cross_sessions_and_equal_positions_have_no_order() -> None:
    rows = resident(turn(0, "pottery"), turn(1, "one", "t"), node("x", "two", session="s", position=0))
    found = rows.search(unit(7), "pottery", Filter(), NOW)
    assert [n.node_id for n, p in zip(found.nodes, found.passage, strict=True) if p > 0] == ["s0"]


def test_long_queries_are_scored_in_blocks() -> None:
    words = [f"w{i}" for i in range(3 * BLOCK + 1)]
    rows = resident(*(turn(i, f"{word} and more") for i, word in enumerate(words)))
    whole = rows.search(unit(7), " ".join(words), Filter(), NOW).passage
    parts = sum(rows.search(unit(7), word, Filter(), NOW).passage for word in words)
    np.testing.assert_allclose(whole, parts, rtol=1e-4)


@given(
    moves=st.lists(st.tuples(st.sampled_from(["s", "t"]), st.integers(0, 4), st.integers(0, 1)), max_size=30),
)
@settings(deadline=None)
def test_links_always_point_both_ways(moves: list[tuple[str, int, int]]) -> None:
    strands, here = Strands(), {}
    strands.grow(100)
    for row, (session, position, drop) in enumerate(moves):
        added = node(f"n{row}", session=session, position=position)
        strands.add(added, row)
        here[row] = added
        if drop:
            gone = min(here)
            strands.remove(here.pop(gone), gone)
    for row in range(100):
        before, after = strands.neighbours(row)
        if before >= 0:
            assert strands.neighbours(before)[1] == row
            assert here[before].session == here[row].session
            assert here[before].position < here[row].position
        if after >= 0:
            assert strands.neighbours(after)[0] == row
    layout = strands.layout(100)
    place = layout.place
    assert len(set(place.tolist())) == 100
    assert place.min() >= REACH
    assert place.max() < layout.size
    for row in range(100):
        near = {int(at) - int(place[row]) for at in place if 0 < abs(int(at) - int(place[row])) <= REACH}
        before, after = strands.neighbours(row)
        assert (-1 in near) == (before >= 0)
        assert (1 in near) == (after >= 0)


# ---------------------------------------------------------------------------------------------------- fusion


def test_the_fused_score_is_the_formula() -> None:
    text, cosine, near = (np.array(x, np.float32) for x in ([4, 1, 0], [0.5, 0.9, -0.8], [0.1, 0.7, -0.6]))
    named = np.array([False, True, True])

    def fuse(mode: Any, words: Any = text) -> Any:
        return fusion.fuse(mode, words, cosine, near, named)

    np.testing.assert_allclose(fuse("hybrid"), [1.3 / 2.3, 1.35 / 2.3, 0], rtol=1e-6)
    np.testing.assert_allclose(fuse("hybrid", text * 0), [0.3 / 2.3, 1.1 / 2.3, 0], rtol=1e-6)
    np.testing.assert_allclose(fuse("text"), [1, 0.25, 0])
    np.testing.assert_allclose(fuse("vector"), [0.5, 0.9, 0])
    full = fusion.fuse("hybrid", text, cosine, near, named, most=16.0, says=np.array([0.9, 0.1, 0.5], np.float32))
    np.testing.assert_allclose(full, [0.8 / 2.3 * 1.12, (0.125 + 1.1) / 2.3 * 0.88, 0], rtol=1e-6)
    full = fusion.fuse("hybrid", text, cosine, near, named, most=7.9, prior=np.array([0.5, 1.0, 1.0], np.float32))
    np.testing.assert_allclose(full, [1.3 / 2.3 / 2, 1.35 / 2.3, 0], rtol=1e-6)
    best = fusion.fuse("hybrid", text, np.ones_like(cosine), np.ones_like(near), ~named, says=0.99)
    assert best[0] == 1


def test_words_count_less_where_even_the_best_row_has_few_of_them() -> None:
    rows = resident(*(turn(i, "the fox", f"s{i}") for i in range(8)), turn(0, "red sea tea", "t"))
    found = rows.search(unit(7), "red sea tea", Filter(), NOW)
    assert 0.5 < found.passage.max() / found.most < 1  # a row of these words alone comes near
    for unknown, share in ((0, 1.0), (6, 0.5)):  # unknown words are as telling as can be
        text = " ".join(["red sea tea", *(f"w{i}" for i in range(unknown))])
        request = SearchRequest(tenant="t", text=text, vector=np.zeros(DIM, np.float32), k=1)
        (hit,) = fusion.search_resident(rows, request, NOW).hits
        assert hit.score <= 1 / (2 + fusion.NAMED) * share + 1e-6
        assert hit.score > 0.3 / (2 + fusion.NAMED) * share


def test_a_turn_that_says_more_than_its_neighbours_gains_by_it() -> None:
    talk = [turn(0, "where was it"), turn(1, "oh"), turn(2, "it was in a village near the sea"), turn(3, "ah")]
    alone, empty = turn(0, "on its own", "t"), turn(1, "", "u")
    found = resident(*talk, alone, empty).search(unit(7), "pottery", Filter(), NOW)
    says = {n.node_id: float(s) for n, s in zip(found.nodes, found.says, strict=True)}
    assert says["t0"] == 0.5
    assert says["u1"] == 0
    assert says["s1"] <= 0.25 < 0.6 < says["s2"] < 1


# ---------------------------------------------------------------------------------------------------- priors


def prior_scores(prior: Prior, mode: Any = "hybrid", now: float = NOW) -> dict[str, float]:
    """Scores of three equal nodes of the ages 0, 100 and 200 s and of falling quality, and of one from the future."""
    ages = [0, 100, 200, -50]
    nodes = [
        dataclasses.replace(node(f"n{i}", "red fox", 7), created_at=NOW - age, quality=1 - i / 4)
        for i, age in enumerate(ages)
    ]
    request = SearchRequest(tenant="t", text="red fox", vector=unit(7), k=9, mode=mode, prior=prior)
    return {hit.node_id: hit.score for hit in fusion.search_resident(resident(*nodes), request, now).hits}


def test_priors_weigh_as_their_formula_says() -> None:
    plain = prior_scores(Prior())
    assert len(set(plain.values())) == 1
    assert prior_scores(Prior(recency=0.0, half_life_s=1.0, quality=0.0)) == plain
    assert list(plain) == ["n0", "n1", "n2", "n3"]  # equals go by id
    (same,) = set(plain.values())
    half = prior_scores(Prior(recency=0.5, half_life_s=100.0))
    assert half == pytest.approx({"n0": same, "n3": same, "n1": same * 0.75, "n2": same * 0.625})
    assert list(half) == ["n0", "n3", "n1", "n2"]
    whole = prior_scores(Prior(recency=1.0, half_life_s=100.0), now=NOW + 100)
    assert whole == pytest.approx({"n0": same / 2, "n1": same / 4, "n2": same / 8, "n3": same * 2**-0.5})
    good = prior_scores(Prior(quality=0.4))
    assert good == pytest.approx({f"n{i}": same * (1 - 0.4 + 0.4 * (1 - i / 4)) for i in range(4)})
    both = prior_scores(Prior(recency=0.5, half_life_s=100.0, quality=0.4))
    assert both == pytest.approx({name: half[name] * good[name] / same for name in plain})


def test_priors_touch_hybrid_searches_only() -> None:
    prior = Prior(recency=1.0, half_life_s=1.0, quality=1.0)
    for mode in ("vector", "text"):
        assert prior_scores(prior, mode) == prior_scores(Prior(), mode)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Alma: I did it", "Alma"),
        (" Dr Ada Lovelace: yes", "Dr Ada Lovelace"),
        ("see http://x", ""),
        ("at 10:30 we left", ""),
        ("no name", ""),
        (": nobody", ""),
        ("one\ntwo: three", ""),
        ("a" * 41 + ": too long for a name", ""),
        ("Alma:", ""),
    ],
)
def test_who_says_a_text(text: str, want: str) -> None:
    assert speaker(text) == want


def test_of_equal_turns_the_one_of_the_speaker_that_is_asked_about_comes_first() -> None:
    rows = Resident(DIM, lambda text: text.replace(":", " ").split())
    said = ["bo: i went there", "al: i went there", "bo: i went there"]
    rows.put([node(f"n{i}", text) for i, text in enumerate(said)])
    assert ask(rows, "when went al there", k=1) == ["n1"]
    named = rows.search(unit(7), "al", Filter(), NOW).named
    assert named.tolist() == [False, True, False]


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12),
    seed=st.integers(0, 9),
    k=st.integers(1, 14),
)
def test_the_best_are_those_of_a_full_sort(scores: list[float], seed: int, k: int) -> None:
    nodes = [node(f"n{i}") for i in range(len(scores))]
    cosine = np.random.default_rng(seed).integers(0, 2, len(scores)).astype(np.float32)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], -cosine[i], nodes[i].node_id))
    got = fusion.best(nodes, np.arange(len(scores)), np.array(scores, np.float32), cosine, k)
    assert got == order[:k]


def test_the_model_of_an_interaction_stands_in_its_hit_and_no_documents() -> None:
    rows = resident(node("a", "fox", kind="interaction", model="350M"), node("b", "fox", model="encoder"))
    request = SearchRequest(tenant="t", text="fox", vector=unit(7), k=2)
    assert {h.node_id: h.model for h in fusion.search_resident(rows, request, NOW).hits} == {"a": "350M", "b": ""}
