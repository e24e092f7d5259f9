import math

import numpy as np
import pytest

from operators.networks import reading
from operators.networks.features import LAYOUT, PROJECTED, SLOT, TABLE, projection
from operators.records import (
    FEATURES,
    Embedded,
    Hit,
    Hits,
    Load,
    Message,
    Neighbourhood,
    Query,
    SessionState,
    TierLoad,
)

DAY = 86_400.0
SLOTS = {"small": 0, "large": 3, "model-large": 3}


def query(text="What is the capital of France?", **fields):
    defaults = {"interaction_id": "i", "tenant": "t", "session": "s", "created_at": 10 * DAY}
    return Query(text=text, messages=(Message(role="user", content=text),), **defaults | fields)


def hit(similarity=0.5, **fields):
    defaults = {
        "node_id": "n", "kind": "document", "text": "", "source": "a", "domain": "", "created_at": 9 * DAY,
        "quality": 0.8, "tokens": 100, "score": 0.1, "text_score": 0.0,
    }  # fmt: skip
    return Hit(similarity=similarity, **defaults | fields)


def found(*hits, **fields):
    return Hits(hits=hits, vectors=np.zeros((len(hits), 3), np.float32), mode="hybrid", **fields)


def around(n=0, hop=(), similarity=(), tokens=(), edges=(), **fields):
    weights = np.array([weight for _, weight in edges], np.float32)
    return Neighbourhood(
        node_ids=tuple(map(str, range(n))), kinds=("document",) * n, texts=("",) * n, sources=("",) * n,
        vectors=np.zeros((n, 3), np.float32), hop=np.array(hop, np.int32), score=np.zeros(n, np.float32),
        similarity=np.array(similarity, np.float32), tokens=np.array(tokens, np.int32),
        edge_from=np.zeros(len(edges), np.int32), edge_to=np.zeros(len(edges), np.int32),
        edge_relation=np.array([relation for relation, _ in edges], np.int8), edge_weight=weights,
        snapshot=1, **{"truncated": False} | fields,
    )  # fmt: skip


PLAIN, NEW, IDLE, NOTHING, ALONE = query(), SessionState.new(), Load(tiers=()), found(), around()


def read(query=PLAIN, session=NEW, load=IDLE, vector=None, tokens=7, hits=NOTHING, near=ALONE):
    vector = np.eye(1, 384, dtype=np.float32)[0] if vector is None else vector
    embedded = Embedded(vector=vector, tokens=tokens, truncated=False, encoder="e")
    return reading.read(query, session, load, embedded, hits, near, SLOTS)


def named(x):
    return {row.name: float(x[row.start]) for row in TABLE[1:]}


def log(x, top):
    return pytest.approx(math.log1p(x) / math.log1p(top), abs=1e-6)


def test_the_table_covers_every_slot_once():
    assert [row.start for row in TABLE] == [0] + [row.stop for row in TABLE[:-1]]
    assert TABLE[0].start == 0
    assert TABLE[-1].stop == FEATURES == 128
    assert TABLE[0].stop == PROJECTED == 32
    assert all(row.width == 1 for row in TABLE[1:])


def test_names_are_unique_and_described():
    assert len(SLOT) == len(TABLE)
    assert all(row.description and row.scale.text for row in TABLE)


def test_the_layout_is_the_one_that_checkpoints_were_made_for():
    # A changed layout makes every stored checkpoint unfit: change this only together with a release note.
    assert LAYOUT == "84e513ba990a3352"


@pytest.mark.parametrize("dim", [3, 32, 384, 1024])
def test_the_projection_is_orthonormal_up_to_its_scale(dim):
    p = projection(dim).astype(float) * 6.0 / math.sqrt(max(dim, 32))
    gram = p @ p.T if dim >= 32 else p.T @ p
    assert p.shape == (32, dim)
    np.testing.assert_allclose(gram, np.eye(min(dim, 32)), atol=1e-5)


def test_the_projection_never_changes():
    np.testing.assert_allclose(
        projection(384)[:2, :3],
        [
            [-0.06772200018167496, -0.39563998579978943, -0.33154499530792236],
            [-0.007348000071942806, 0.029924999922513962, 0.017121000215411186],
        ],
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="read-only"):
        projection(384)[0, 0] = 1.0


def test_the_projection_keeps_similar_queries_near():
    rng = np.random.default_rng(0)
    a, other = rng.standard_normal((2, 384)).astype(np.float32)
    near = a + 0.3 * other
    x = [read(vector=v / np.linalg.norm(v))[:PROJECTED] for v in (a, near, other)]
    assert np.linalg.norm(x[0] - x[1]) < 0.5 * np.linalg.norm(x[0] - x[2])


def test_an_empty_memory_reads_as_zeros_with_counts_of_zero():
    x = named(read())
    for row in TABLE[1:]:
        if row.start < SLOT["query_tokens"]:
            assert x[row.name] == 0.0, row.name
    assert x["query_tokens"] == log(7, 2048)


def test_hits():
    hits = (
        hit(0.9, score=0.3, text_score=4.0, kind="interaction", model="small", tokens=200),
        hit(0.5, score=0.1, source="b"),
        hit(0.1, score=0.1, text_score=2.0),
        hit(0.1, score=0.1, kind="summary"),
    )
    x = named(read(hits=found(*hits, degraded=("index",))))
    cosines = np.array([0.9, 0.5, 0.1, 0.1])
    p = np.exp(cosines / 0.1) / np.exp(cosines / 0.1).sum()
    assert x["hit_count"] == log(4, 64)
    assert x["similarity_max"] == pytest.approx(0.9)
    assert x["similarity_mean"] == pytest.approx(0.4)
    assert x["similarity_std"] == pytest.approx(min(4 * cosines.std(), 1.0))
    assert x["similarity_margin"] == pytest.approx(1.0)  # 4 · 0.4, cut
    assert x["similarity_entropy"] == pytest.approx(-(p * np.log(p)).sum() / np.log(4), abs=1e-6)
    assert x["score_share"] == pytest.approx(0.5)
    assert x["text_match"] == pytest.approx(0.5)
    assert x["text_score_max"] == log(4, 32)
    assert x["hit_quality"] == pytest.approx(0.8)
    assert x["document_share"] == pytest.approx(0.5)
    assert x["interaction_share"] == pytest.approx(0.25)
    assert x["source_spread"] == pytest.approx(0.5)
    assert x["hit_age"] == log(1, 365)
    assert x["relevant_tokens"] == log(200 + 0.5 * 100, 4096)
    assert x["search_degraded"] == 1.0


def test_neighbourhood():
    near = around(
        4, hop=(0, 1, 1, 3), similarity=(0.8, 0.5, 0.1, 0.3), tokens=(100, 100, 100, 100),
        edges=((0, 0.5), (1, 1.0), (0, 0.3)), truncated=True,
    )  # fmt: skip
    x = named(read(near=near))
    assert x["node_count"] == log(4, 256)
    assert x["edge_count"] == log(3, 1024)
    assert x["density"] == pytest.approx(0.5)
    assert x["edge_weight_mean"] == pytest.approx(0.6)
    assert x["edge_weight_max"] == pytest.approx(1.0)
    assert x["similar_edges"] == pytest.approx(2 / 3)
    assert x["hop_1"] == pytest.approx(0.5)
    assert x["hop_2"] == pytest.approx(0.25)
    assert x["neighbour_similarity"] == pytest.approx(0.3)
    assert x["neighbourhood_tokens"] == log(150, 4096)
    assert x["neighbourhood_cut"] == 1.0


def test_evidence_counts_interactions_by_the_tier_or_model_that_answered():
    said = {"kind": "interaction", "quality": 0.9}
    hits = found(
        hit(model="large", **said), hit(model="model-large", **said | {"quality": 0.7}),
        hit(model="gone", **said), hit(model="small", quality=0.9),
    )  # fmt: skip
    x = named(read(hits=hits))
    assert x["verdict_tier3"] == pytest.approx(0.6)
    assert x["count_tier3"] == log(2, 16)
    assert [x[f"count_tier{k}"] for k in range(3)] == [0.0, 0.0, 0.0]
    assert x["verdict_tier0"] == 0.0  # a document is no evidence


def test_a_model_that_two_tiers_share_is_no_evidence_for_either():
    assert reading.slots({"a": 0, "b": 2}, {"a": "same", "b": "same"}) == {"a": 0, "b": 2}
    assert reading.slots({"a": 0, "b": 2}, {"a": "one", "b": "two"}) == {"a": 0, "b": 2, "one": 0, "two": 2}


def test_form():
    text = "Compare these:\n- f(x) = x[1];\n- 42\nWhy? How?\n```py\n```"
    x = named(read(query=query(text), tokens=30))
    assert x["line_count"] == log(5, 64)
    assert x["question_count"] == log(2, 8)
    assert x["list_items"] == log(2, 8)
    assert x["code_fence"] == 1.0
    assert x["symbol_share"] == pytest.approx(5 * 4 / len(text))  # = [ ] ;
    assert x["digit_share"] == pytest.approx(4 * 3 / len(text))
    assert x["reasoning_words"] == log(3, 4)
    assert x["lookup_form"] == 0.0
    assert x["conversation_characters"] == log(len(text), 32768)
    words = text.split()
    assert x["word_length"] == pytest.approx(sum(map(len, words)) / len(words) / 12)
    assert named(read(query=query("who wrote it")))["lookup_form"] == 1.0
    assert named(read(query=query("tell me a story")))["creative_words"] == log(1, 2)


def test_only_the_beginning_of_a_long_query_is_read_for_its_form():
    assert named(read(query=query("a" * 4096 + "?")))["question_count"] == 0.0
    assert named(read(query=query("a" * 4095 + "?")))["question_count"] > 0.0


def test_session_and_system():
    session = SessionState(turn=3, hidden=np.zeros(64, np.float32), last_tier="large", last_verdict=0.25)
    load = Load(tiers=(TierLoad(tier="small", queue=5, warm=0.5), TierLoad(tier="large")), latency_budget_s=1.0)
    x = named(read(session=session, load=load, query=query(quality_bias=0.0)))
    assert x["turn"] == log(3, 32)
    assert x["last_verdict"] == pytest.approx(-0.5)
    assert x["last_verdict_known"] == 1.0
    assert [x[f"last_tier{k}"] for k in range(4)] == [0.0, 0.0, 0.0, 1.0]
    assert [x[f"warm_tier{k}"] for k in range(4)] == [0.5, 0.0, 0.0, 0.0]
    assert x["queue_tier0"] == log(5, 16)
    assert x["latency_pressure"] == pytest.approx(0.5)
    assert x["cost_weight"] == 1.0
    assert named(read(query=query(quality_bias=0.75)))["cost_weight"] == pytest.approx(-0.5)
    gone = SessionState(turn=1, hidden=np.zeros(64, np.float32), last_tier="no longer there")
    assert all(named(read(session=gone))[f"last_tier{k}"] == 0.0 for k in range(4))


def test_everything_stays_within_one():
    huge = "why? {[;=9\n- " * 100_000
    hits = found(*[hit(1.0, text_score=1e6, tokens=10**6, created_at=-1e12, kind="interaction", model="small")] * 100)
    near = around(2, (0, 1), (1.0, 1.0), (10**6, 10**6), [(0, 50.0)] * 9)
    load = Load(tiers=(TierLoad(tier="small", queue=10**6, warm=1.0),), latency_budget_s=0.0)
    session = SessionState(turn=10**6, hidden=np.zeros(64, np.float32), last_verdict=1.0)
    x = read(query(huge), session, load, None, 10**6, hits, near)
    assert x.dtype == np.float32
    assert x.shape == (128,)
    assert np.abs(x).max() == 1.0
    assert np.isfinite(x).all()


def test_reading_leaves_its_inputs_alone():
    vector = np.ones(384, np.float32) / np.sqrt(384, dtype=np.float32)
    near = around(2, (0, 1), (0.5, 0.5), (10, 10), [(0, 0.5)])
    for array in (vector, near.similarity, near.tokens, near.hop, near.edge_weight):
        array.setflags(write=False)
    np.testing.assert_array_equal(read(vector=vector, near=near), read(vector=vector, near=near))
