"""attend: what ends up in the context, in which order, and what never does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.attend import Attend, AttendInput
from operators.dedupe import Seen, signature
from operators.errors import Stop
from operators.extract import Words, best_sentences
from operators.networks import attention
from operators.ranking import edge_features, similarity_scores
from operators.records import HIDDEN, RELATIONS, Embedded, Neighbourhood, Query, Route

DIM = 32
TOPICS = (
    "The archive in Orsk keeps its records in the east tower and opens on Tuesdays at nine.",
    "Mira Halvorsen founded the company in Bergen and led it until she retired in the spring.",
    "To rotate the keys, run the rotate command and restart the gateway within one hour.",
    "Photosynthesis turns light into chemical energy inside the chloroplasts of plants.",
    "A customer may return an unused product within thirty days for a full refund.",
)


def near(similarity, *, texts=None, hop=None, score=None, tokens=20, edges=(), mode="hybrid", degraded=()):
    """A neighbourhood whose nodes have the given cosine with the query e₀; ids are n0, n1, …; score is the cosine."""
    n = len(similarity)
    vectors = np.zeros((n, DIM), np.float32)
    if n:
        vectors[:, 0] = similarity
        vectors[np.arange(n), 1 + np.arange(n) % (DIM - 1)] = np.sqrt(1 - np.square(similarity))
    hop = np.zeros(n, np.int32) if hop is None else np.array(hop, np.int32)
    if score is None:
        score = [max(s, 0) if h == 0 else 0 for s, h in zip(similarity, hop, strict=True)]
    columns = list(zip(*edges, strict=True)) or [(), (), (), ()]
    return Neighbourhood(
        node_ids=tuple(f"n{i}" for i in range(n)),
        kinds=("document",) * n,
        texts=tuple(texts or (f"{TOPICS[i % 5]} Case {i} of many." for i in range(n))),
        sources=tuple(f"file{i}.md" for i in range(n)),
        vectors=vectors,
        hop=hop,
        score=np.array(score, np.float32),
        similarity=np.array(similarity, np.float32),
        tokens=np.full(n, tokens, np.int32),
        edge_from=np.array(columns[0], np.int32),
        edge_to=np.array(columns[1], np.int32),
        edge_relation=np.array(columns[2], np.int8),
        edge_weight=np.array(columns[3], np.float32),
        snapshot=1,
        truncated=False,
        mode=mode,
        degraded=degraded,
    )


def ask(neighbourhood, text="When does the archive in Orsk open?", context_tokens=1024, dim=DIM):
    vector = np.eye(dim, dtype=np.float32)[0]
    return AttendInput(
        query=Query(interaction_id="i", tenant="t", session="s", text=text, messages=(), created_at=0.0),
        embedded=Embedded(vector=vector, tokens=8, truncated=False, encoder="test"),
        neighbourhood=neighbourhood,
        route=Route(
            tier="350M",
            context_tokens=context_tokens,
            temperature=0.0,
            top_p=1.0,
            confidence=1.0,
            probabilities={"350M": 1.0},
            propensity=1.0,
            propensities={},
            checkpoint="v1",
            reason="router",
            hidden=np.zeros(HIDDEN, np.float32),
            features=np.zeros(128, np.float32),
        ),
    )


async def attend(item, **knobs):
    stage = Attend(Attend.Config(**knobs))
    await stage.start()
    (context,) = await stage([item])
    await stage.close()
    return context


def ids(context):
    return [passage.node_id for passage in context.passages]


def trained(path, **change):
    weights = attention.init(DIM, seed=1)
    made = attention.AttentionWeights(
        **{**{k: np.array(v) for k, v in weights.arrays().items()}, **change}, trained=True
    )
    attention.save(made, path)
    return str(path)


def test_it_reads_and_writes_what_the_flow_says():
    assert [part.__name__ for part in Attend.reads()] == ["Query", "Embedded", "Neighbourhood", "Route"]
    assert Attend.writes().__name__ == "Context"


async def test_a_clear_winner_stands_alone():
    context = await attend(ask(near([0.4, 0.7, 0.35])))
    assert ids(context) == ["n1"]
    assert context.ranking == "similarity"
    assert context.tokens == 20
    assert (context.passages[0].source, context.passages[0].attention) == ("file1.md", 0.0)
    assert 0.6 < context.passages[0].score <= 0.7


async def test_a_passage_says_what_kind_of_node_it_is():
    item = ask(dataclasses.replace(near([0.66, 0.64, 0.65]), kinds=("document", "interaction", "summary")))
    assert [passage.kind for passage in (await attend(item)).passages] == ["document", "summary", "interaction"]


async def test_near_ties_travel_together_best_first_up_to_the_cap():
    item = ask(near([0.60, 0.62, 0.66, 0.61, 0.64]))
    assert ids(await attend(item)) == ["n2", "n4", "n1"]
    assert ids(await attend(item, max_passages=8)) == ["n2", "n4", "n1", "n3", "n0"]
    assert ids(await attend(item, max_passages=8, min_relative=0.96)) == ["n2", "n4"]


def test_the_score_is_the_formula():
    similar, next_turn = RELATIONS.index("similar"), RELATIONS.index("next_turn")
    item = near(
        [0.5, 0.9, 0.7, 0.6, 0.8, -0.4, 0.9],
        hop=[0, 0, 1, 2, 2, 1, 1],
        score=[0.8, 0.4, 0, 0, 0, 0, 0],
        # n2 hangs on both hits, n3 and n4 on n2; n3–n4 lie level; n6's own edge was cut off.
        edges=[
            (2, 0, similar, 0.5),
            (1, 2, similar, 0.9),
            (2, 3, next_turn, 0.9),
            (4, 2, similar, 0.5),
            (3, 4, similar, 1.0),
            (0, 5, next_turn, 1.0),
        ],
    )
    carried = 0.5 * max(0.8 * 0.5, 0.4 * 0.9)
    expected = [0.8, 0.4, 0.7 * carried, 0.6 * carried * 0.5 * 0.9, 0.8 * carried * 0.5 * 0.5, 0, 0]
    np.testing.assert_allclose(similarity_scores(item, 0.5), expected, rtol=1e-6)
    assert similarity_scores(near([0.5, 0.4]), 0.5) == pytest.approx([0.5, 0.4])


async def test_hits_keep_the_order_of_the_search_whatever_their_cosine():
    texts = ["Ben: In Lisbon.", "Ada: Where was the pottery class?", "Ben: I like pottery."]
    item = ask(near([0.1, 0.7, 0.6], texts=texts, score=[0.7, 0.68, 0.2]), text="Where was Ben's pottery class?")
    assert ids(await attend(item)) == ["n0", "n1"]
    assert [passage.score for passage in (await attend(item)).passages] == pytest.approx([0.7, 0.68])


async def test_a_neighbour_comes_in_by_a_good_hit_a_strong_edge_and_its_own_meaning():
    cites = RELATIONS.index("cites")
    for weight, cosine, taken in ((1.0, 0.9, True), (0.5, 0.9, False), (1.0, 0.5, False)):
        item = near([0.5, cosine], hop=[0, 1], score=[0.8, 0], edges=[(0, 1, cites, weight)])
        assert ids(await attend(ask(item), min_relative=0.7)) == (["n0", "n1"] if taken else ["n0"])
    for score, cosine, taken in ((0.4, 0.3, ["n0", "n1"]), (0.4, 0.29, ["n0"]), (0.29, 0.9, [])):
        item = near([0.5, cosine], hop=[0, 1], score=[score, 0], edges=[(0, 1, cites, 1.0)])
        assert ids(await attend(ask(item), min_relative=0)) == taken, "a relevant hit must lead there"


async def test_irrelevant_nodes_give_an_empty_context():
    for mode in ("hybrid", "vector"):
        context = await attend(ask(near([0.1, 0.29, -0.3], mode=mode), text="Tell me a joke about horses"))
        assert (ids(context), context.tokens, context.ranking, context.summary) == ([], 0, "none", "")
    context = await attend(ask(near([0.9, 0.8], score=[0.29, 0.2])))
    assert ids(context) == [], "after a hybrid search the fused score decides"
    context = await attend(ask(near([], degraded=("memory",))))
    assert (ids(context), context.ranking, context.degraded) == ([], "none", ("memory",))


@pytest.mark.parametrize("mode", ["vector", "text"])
async def test_letters_give_a_hit_a_second_chance_but_no_neighbour(mode):
    texts = ["When E4711 shows, replace the fuse.", "Nothing of the kind is known.", "E4711 is described elsewhere."]
    item = near([0.2, 0.25, 0.2], texts=texts, hop=[0, 0, 1], mode=mode)
    assert ids(await attend(ask(item, text="E4711?"))) == ["n0"]
    assert ids(await attend(ask(item, text="fuse"))) == []
    assert ids(await attend(ask(item, text="replace which fuse"))) == ["n0"]
    assert ids(await attend(ask(item, text="E471"))) == []


async def test_near_copies_are_left_out_and_counted():
    long = " ".join(TOPICS)
    texts = [
        long,
        long.upper() + "  ",
        long.replace("nine", "ten"),
        TOPICS[3] + " Entirely another text, on other things.",
    ]
    context = await attend(ask(near([0.7, 0.69, 0.68, 0.67], texts=texts)))
    assert ids(context) == ["n0", "n3"]
    assert context.duplicates == 2


async def test_a_memory_full_of_copies_costs_no_more_than_the_cap():
    texts = [" ".join(TOPICS) + f" {i}" for i in range(8)] + ["Something else altogether stands here."]
    item = ask(near([0.7] * 9, texts=texts))
    assert (await attend(item)).duplicates == 7
    capped = await attend(item, max_candidates=4)
    assert (ids(capped), capped.duplicates) == (["n0"], 3)


async def test_passages_fit_the_routes_budget():
    item = near([0.70, 0.69, 0.68, 0.67], tokens=100)
    whole = {"max_passages": 4, "reserve_share": 0.25, "reserve_tokens": 32}
    for context_tokens, fitting in ((256, 1), (512, 3), (1024, 4)):
        context = await attend(ask(item, context_tokens=context_tokens), **whole)
        assert len(context.passages) == fitting
        assert context.tokens == 100 * fitting <= context_tokens * 0.75 - 32 - 8


async def test_a_smaller_passage_takes_the_room_a_larger_one_left():
    item = near([0.70, 0.69, 0.68])
    tokens = np.array([100, 60, 20], np.int32)
    context = await attend(ask(dataclasses.replace(item, tokens=tokens), context_tokens=256))
    assert ids(context) == ["n0", "n2"]


async def test_a_best_passage_that_is_too_large_is_cut_to_its_best_sentences():
    filler = "Some other sentence that has nothing to do with what was asked at all, but is long enough. "
    text = filler * 6 + TOPICS[0] + " " + filler * 6
    item = near([0.8], texts=[text], tokens=300)
    context = await attend(ask(item, context_tokens=256))
    (passage,) = context.passages
    assert TOPICS[0] in passage.text
    assert len(passage.text) < len(text) / 2
    assert passage.tokens == context.tokens <= 152


async def test_no_room_no_context():
    context = await attend(ask(near([0.8])), reserve_tokens=2000)
    assert (ids(context), context.ranking) == ([], "none")


async def test_the_summary_is_the_sentences_nearest_to_the_query():
    text = "The tower was built long ago. The archive in Orsk opens on Tuesdays. Visitors bring a coat."
    item = ask(near([0.7], texts=[text]))
    assert (await attend(item)).summary == "The archive in Orsk opens on Tuesdays."
    assert (await attend(item, summary_chars=20)).summary == "The archive in Orsk"
    assert (await attend(item, summary_chars=0)).summary == ""
    assert best_sentences([text], Words("zebra"), 40) == "The tower was built long ago."


async def test_edge_features_are_those_of_the_strongest_edge_towards_the_hits():
    similar, next_turn, cites = (RELATIONS.index(r) for r in ("similar", "next_turn", "cites"))
    item = near(
        [0.5, 0.5, 0.5, 0.5, 0.5],
        hop=[0, 0, 1, 2, 1],
        score=[0.02, 0.01, 0, 0, 0],
        # n2 hangs on n0 and on n1, n3 on n2; n2–n4 lie level; n4's own edge was cut off.
        edges=[(0, 2, similar, 0.3), (2, 1, cites, 0.9), (2, 3, next_turn, 0.4), (2, 4, similar, 1.0)],
    )
    relation, weight = edge_features(item)
    assert relation.tolist() == [attention.HIT, attention.HIT, cites, next_turn, attention.LOOSE]
    np.testing.assert_allclose(weight, [1, 0.5, 0.9, 0.4, 0])


async def test_trained_attention_ranks_and_its_weights_are_passed_on(tmp_path):
    path = trained(tmp_path / "a.safetensors")
    item = ask(near([0.5, 0.8, 0.6]))
    context = await attend(item, checkpoint=path, min_relative_attention=0)
    assert context.ranking == "attention"
    assert ids(context) == ["n1", "n2", "n0"]
    for passage in context.passages:
        assert 0 < passage.score == passage.attention < 1
    assert sum(passage.attention for passage in context.passages) == pytest.approx(1, abs=1e-5)


async def test_what_attention_learned_about_relations_changes_the_order(tmp_path):
    relation = np.zeros((3, 8, attention.LOOSE + 1), np.float32)
    relation[:, :, RELATIONS.index("cites")] = 9
    path = trained(tmp_path / "a.safetensors", relation=relation)
    item = ask(near([0.6, 0.5], hop=[0, 1], edges=[(0, 1, RELATIONS.index("cites"), 1.0)]))
    assert ids(await attend(item, min_relative=0)) == ["n0", "n1"]
    assert ids(await attend(item, checkpoint=path)) == ["n1"]


async def test_untrained_or_absent_weights_fall_back_and_say_so(tmp_path):
    path = tmp_path / "a.safetensors"
    attention.save(attention.init(DIM), path)
    item = ask(near([0.5, 0.8]))
    assert (await attend(item)).ranking == "similarity"
    assert (await attend(item, checkpoint=str(path))).ranking == "similarity"
    assert (await attend(item, checkpoint=trained(path), ranking="similarity")).ranking == "similarity"


async def test_attention_that_can_not_be_had_stops(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(Stop, match="without a checkpoint"):
        await attend(ask(near([0.5])), ranking="attention")
    with pytest.raises(Stop, match="can't be read"):
        await attend(ask(near([0.5])), checkpoint=str(path))
    attention.save(attention.init(DIM), path)
    with pytest.raises(Stop, match="untrained"):
        await attend(ask(near([0.5])), ranking="attention", checkpoint=str(path))
    with pytest.raises(Stop, match="checkpoint size 32"):
        await attend(ask(near([0.5]), dim=16), checkpoint=trained(path))


async def test_a_nan_in_memory_stops_instead_of_ranking():
    with pytest.raises(Stop, match="node n1"):
        await attend(ask(near([0.5, np.nan])))


async def test_a_batch_is_answered_in_order_and_its_inputs_stay_as_they_were():
    items = [ask(near([0.8])), ask(near([])), ask(near([0.4, 0.9]))]
    before = [item.neighbourhood.similarity.copy() for item in items]
    stage = Attend(Attend.Config())
    await stage.start()
    assert [ids(context) for context in await stage(items)] == [["n0"], [], ["n1"]]
    for item, old in zip(items, before, strict=True):
        assert np.array_equal(item.neighbourhood.similarity, old)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=16), max_size=30),
    st.sampled_from([256, 512, 1024, 2048, 4096]),
    st.integers(1, 400),
    st.integers(1, 6),
)
async def test_a_context_never_breaks_its_promises(similarity, context_tokens, tokens, cap):
    item = ask(near(similarity, tokens=tokens), context_tokens=context_tokens)
    context = await attend(item, max_passages=cap)
    assert len(context.passages) <= cap
    assert context.tokens == sum(p.tokens for p in context.passages) <= context_tokens
    assert len(set(ids(context))) == len(context.passages)
    scores = [p.score for p in context.passages]
    assert scores == sorted(scores, reverse=True)
    assert (context.ranking == "none") == (not context.passages)
    known = dict(zip(item.neighbourhood.node_ids, item.neighbourhood.texts, strict=True))
    assert all(p.text in known[p.node_id] for p in context.passages)
    assert len(context.summary) <= Attend.Config().summary_chars


async def test_without_limits_everything_is_ranked_once():
    item = ask(near([0.9, 0.05, 0.2, -0.5, 0.1], texts=["One.", "Two.", "Three.", "Four.", "one."]))
    knobs = Attend.Config().unlimited(10, 100).model_dump()
    assert ids(await attend(item, **knobs)) == ["n0", "n2", "n1", "n3"]
    assert ids(await attend(item)) == ["n0"]


def test_minhash_estimates_jaccard():
    words = [f"w{i}" for i in range(400)]
    base = signature(" ".join(words))
    half = signature(" ".join(words[:200] + [f"x{i}" for i in range(200)]))
    assert base.jaccard(signature(" ".join(words))) == 1
    assert base.jaccard(half) == pytest.approx(198 / (398 * 2 - 198), abs=0.15)  # exact Jaccard ± 3.5 standard errors
    assert len(base.digest()) == 128


def test_seen_tells_copies_from_texts_that_share_words():
    seen = Seen(0.7)
    assert seen.take("one two three four five six seven eight nine ten")
    assert not seen.take("ONE two three four five six seven\neight nine ten")
    assert seen.take("ten nine eight seven six five four three two one")
    assert seen.take("图书馆星期一上午十点开门下午六点关门")
    assert not seen.take("图书馆星期一上午十点开门,下午六点关门!")
    assert seen.take("档案馆位于东塔每周二九点开放")
    assert Seen(1.0).take("a b c")
