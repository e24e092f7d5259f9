import collections
import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators import records
from operators.base import parts
from operators.errors import Reject, Retry, Stop
from operators.networks import drawing
from operators.networks.fastgrnn import CONTEXT_TOKENS, Snapshot
from operators.networks.features import SLOT, TABLE
from operators.networks.prior import prior
from operators.records import Embedded, Hit, Hits, Load, Message, Neighbourhood, Query, Sampling, SessionState, TierLoad
from operators.route import RouteInput, Router, SafeRoute
from operators.tiers import SLOTS, ModelFile, Tier

NAMES = ("tiny", "small", "medium", "large")
HARD = """Compare both designs and explain why the second loses messages. How would you fix it? What are the trade-offs?
1. a queue with acknowledgements
2. a log with offsets
```python
for event in log[offset:]: handle(event); offset += 1
```
Analyse the failure modes step by step and prove that the fixed version never loses an event."""
EASY = "What is the capital of Freedonia?"
COVERED = (0.8, 0.55, 0.5, 0.4, 0.35)


def tier(slot, name=None, **fields):
    model = ModelFile(id=f"model-{slot}", sha256="0" * 64)
    defaults = {"context_tokens": 8192, "cost": (1.0, 2.0, 3.5, 7.5)[slot], "model": model, "template": "chatml"}
    return Tier(name=name or NAMES[slot], slot=slot, **defaults | fields)


TIERS = tuple(tier(slot) for slot in range(4))


def turn(text=EASY, similarities=(), interaction="i", up=NAMES, session=None, tokens=100, **fields):
    n = len(similarities)
    hits = tuple(
        Hit(
            node_id=str(i), kind="document", text="", source=str(i % 2), domain="", created_at=0.0, quality=1.0,
            tokens=tokens, score=1 / (60 + i), similarity=cosine, text_score=2.0 * (i < 2),
        )
        for i, cosine in enumerate(similarities)
    )  # fmt: skip
    vectors = np.zeros((n, 384), np.float32)
    near = Neighbourhood(
        node_ids=tuple(hit.node_id for hit in hits), kinds=("document",) * n, texts=("",) * n, sources=("",) * n,
        vectors=vectors, hop=np.zeros(n, np.int32), score=np.zeros(n, np.float32),
        similarity=np.array(similarities, np.float32), tokens=np.full(n, tokens, np.int32),
        edge_from=np.zeros(0, np.int32), edge_to=np.zeros(0, np.int32), edge_relation=np.zeros(0, np.int8),
        edge_weight=np.zeros(0, np.float32), snapshot=0, truncated=False,
    )  # fmt: skip
    vector = np.random.default_rng(len(text)).standard_normal(384).astype(np.float32)
    return RouteInput(
        query=Query(
            interaction_id=interaction, tenant="t", session="s", text=text, created_at=1e6,
            messages=(Message(role="user", content=text),), **fields,
        ),
        session=session or SessionState.new(),
        load=Load(tiers=tuple(TierLoad(tier=name) for name in up)),
        embedded=Embedded(
            vector=vector / np.linalg.norm(vector), tokens=2 + len(text) // 4, truncated=False, encoder="e"
        ),
        hits=Hits(hits=hits, vectors=vectors, mode="hybrid"),
        neighbourhood=near,
    )  # fmt: skip


FAILING = SessionState(turn=3, hidden=np.zeros(64, np.float32), last_verdict=0.0)


async def started(tiers=TIERS, **knobs):
    router = Router(Router.Config(**knobs), tiers)
    await router.start()
    return router


def flat(**biases):
    """Weights that read nothing: every head is its bias, the hidden state included."""
    params = {name: np.zeros_like(value) for name, value in prior().params.items()}
    return Snapshot(params | {name: np.float32(value) for name, value in biases.items()}, "flat")


async def test_what_the_prior_does_in_plain_cases():
    router = await started(deterministic=True)
    easy, hard = router.decide(turn(EASY, COVERED)), router.decide(turn(HARD))
    assert (easy.tier, easy.reason, easy.checkpoint) == ("tiny", "router", "prior-2")
    assert (hard.tier, hard.reason) == ("large", "router")
    much = router.decide(turn(EASY, (0.8,) * 12, tokens=300))
    assert easy.context_tokens <= 512 < 2048 <= much.context_tokens
    assert easy.confidence > 0.8 > hard.confidence
    assert 0.3 <= easy.temperature <= 0.7
    assert easy.top_p == pytest.approx(0.9, abs=0.02)


async def test_the_contract_of_the_stage():
    assert Router.name == "route"
    assert Router.writes() is records.Route
    assert Router.reads() == parts(RouteInput)
    assert [t.__name__ for t in Router.reads()] == [
        "Query", "SessionState", "Load", "Embedded", "Hits", "Neighbourhood",
    ]  # fmt: skip
    router = await started()
    batch = [turn(interaction=str(i)) for i in range(5)]
    routes = await router(batch)
    assert [r.propensity for r in routes] == [router.decide(item).propensity for item in batch]
    assert router.stats.records == 5


async def test_the_state_and_the_features_are_those_the_network_read():
    router = await started()
    item = turn(HARD, COVERED, session=SessionState(turn=2, hidden=np.full(64, 0.1, np.float32)))
    route = router.decide(item)
    again = prior().forward(route.features, item.session.hidden)
    np.testing.assert_array_equal(route.hidden, again.hidden)
    assert route.confidence == float(again.confidence)
    assert route.hidden.dtype == route.features.dtype == np.float32
    np.testing.assert_array_equal(item.session.hidden, np.full(64, 0.1, np.float32))


@pytest.mark.parametrize(
    "knobs", [{}, {"epsilon": 0.4}, {"temperature": 4.0, "epsilon": 0.0}, {"confidence_threshold": 1.0}]
)
async def test_frequencies_match_the_logged_propensities(knobs):
    router = await started(**knobs)
    drawn, n = collections.Counter(), 2000
    said: dict[tuple[str, int], float] = {}
    for i in range(n):
        route = router.decide(turn(HARD, COVERED, interaction=f"turn {i}"))
        drawn[route.tier, route.context_tokens] += 1
        said[route.tier, route.context_tokens] = route.propensity
        assert route.propensity == pytest.approx(route.propensities["tier"] * route.propensities["context_tokens"])
        assert route.propensities["tier"] == route.probabilities[route.tier]
    assert len(drawn) > 3
    for choice, p in said.items():
        assert abs(drawn[choice] / n - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-3, choice
    for name in NAMES:
        p, count = route.probabilities[name], sum(c for (t, _), c in drawn.items() if t == name)
        assert abs(count / n - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-3


@given(seed=st.integers(), text=st.text(max_size=300), up=st.sets(st.sampled_from(NAMES), min_size=1))
@settings(max_examples=60, deadline=None)
async def test_probabilities_sum_to_one_over_what_is_up(seed, text, up):
    router = await started(seed=seed)
    route = router.decide(turn(text, COVERED, up=sorted(up)))
    assert sum(route.probabilities.values()) == pytest.approx(1.0)
    assert {name for name, p in route.probabilities.items() if p > 0.0} == up
    assert tuple(route.probabilities) == NAMES
    assert route.tier in up
    assert 0.0 < route.propensity <= 1.0
    assert 0.0 < route.temperature < 2.0


async def test_the_draw_depends_on_seed_and_interaction_alone():
    one, same, other = await started(epsilon=1.0), await started(epsilon=1.0), await started(epsilon=1.0, seed=1)
    items = [turn(interaction=str(i)) for i in range(50)]
    choices = [[(r.tier, r.context_tokens) for r in await router(items)] for router in (one, same, other)]
    assert choices[0] == choices[1]
    assert [(r.tier, r.context_tokens) for r in await one(items[::-1])] == choices[0][::-1]
    assert choices[0] != choices[2]
    assert len(set(choices[0])) > 5


async def test_deterministic_takes_the_best_with_propensity_one():
    router = await started(deterministic=True, epsilon=0.5)
    for i in range(20):
        route = router.decide(turn(EASY, COVERED, interaction=str(i)))
        assert (route.tier, route.propensity, route.reason) == ("tiny", 1.0, "router")
        assert route.propensities == {"tier": 1.0, "context_tokens": 1.0}
        assert route.probabilities == {"tiny": 1.0, "small": 0.0, "medium": 0.0, "large": 0.0}


async def test_a_drawn_part_that_is_not_the_best_is_called_explored():
    router = await started(epsilon=1.0)
    best = (await started(deterministic=True)).decide(turn(EASY, COVERED))
    seen = set()
    for i in range(60):
        route = router.decide(turn(EASY, COVERED, interaction=str(i)))
        as_best = (route.tier, route.context_tokens) == (best.tier, best.context_tokens)
        assert route.reason == ("router" if as_best else "explored")
        seen.add(route.reason)
    assert seen == {"router", "explored"}


async def test_low_confidence_takes_the_safe_route():
    router = await started(epsilon=0.0)
    route = router.decide(turn(HARD, session=FAILING))
    assert route.confidence < 0.35
    assert (route.tier, route.context_tokens, route.temperature, route.top_p) == ("medium", 2048, 0.7, 0.9)
    assert (route.reason, route.propensity) == ("low_confidence", 1.0)
    assert SLOTS[router.config.safe.slot] == "1.2B"


async def test_learned_weights_in_doubt_are_careful_but_keep_the_tier_they_think_best():
    router = await started(epsilon=0.0, deterministic=True, confidence_threshold=1.0)
    router.swap(dataclasses.replace(flat(tier_b=[2.0, 0.0, 0.0, 0.0]), learned=True))
    route = router.decide(turn(HARD))
    assert (route.tier, route.context_tokens, route.temperature, route.top_p) == ("tiny", 2048, 0.7, 0.9)
    assert route.reason == "low_confidence"


@pytest.mark.parametrize(
    ("slots", "safe", "expected"),
    [((0, 1, 3), 2, 3), ((0, 1), 2, 1), ((0, 3), 2, 3), ((0, 2), 1, 2), ((3,), 0, 3)],
)
async def test_the_safe_tier_is_the_nearest_available_one(slots, safe, expected):
    router = await started(
        [tier(slot) for slot in slots], epsilon=0.0, safe=SafeRoute(slot=safe), confidence_threshold=1.0
    )
    assert router.decide(turn(up=[NAMES[slot] for slot in slots])).tier == NAMES[expected]


async def test_low_confidence_still_explores_with_the_logged_propensity():
    router = await started(epsilon=0.4, confidence_threshold=1.0)
    reasons = collections.Counter()
    for i in range(200):
        route = router.decide(turn(interaction=str(i)))
        reasons[route.reason] += 1
        p = 0.7 if route.tier == "medium" else 0.1
        q = 0.68 if route.context_tokens == 2048 else 0.08
        assert route.propensity == pytest.approx(p * q)
        assert (route.temperature, route.top_p) == (0.7, 0.9)
    assert set(reasons) == {"low_confidence", "explored"}


async def test_unavailable_and_absent_tiers_are_never_chosen():
    router = await started(epsilon=1.0)
    load = Load(tiers=(TierLoad(tier="tiny"), TierLoad(tier="large", available=False), TierLoad(tier="small")))
    for i in range(40):
        route = router.decide(dataclasses.replace(turn(HARD, interaction=str(i)), load=load))
        assert route.tier in ("tiny", "small")
        assert route.probabilities["large"] == route.probabilities["medium"] == 0.0


async def test_no_tier_is_a_retry():
    router = await started()
    with pytest.raises(Retry, match="no tier is available") as caught:
        router.decide(turn(up=()))
    assert caught.value.status == 503


@pytest.mark.parametrize(
    ("window", "cap", "largest"),
    [(8192, 4096, 4096), (2048, 4096, 2048), (1500, 4096, 1024), (8192, 600, 512), (256, 256, 256)],
)
async def test_context_sizes_beyond_the_window_or_the_cap_are_masked(window, cap, largest):
    router = await started([tier(0, context_tokens=window)], epsilon=1.0, max_context_tokens=cap)
    sizes = {router.decide(turn(up=["tiny"], interaction=str(i))).context_tokens for i in range(60)}
    assert sizes == {size for size in CONTEXT_TOKENS if size <= largest}
    safe = await started(
        [tier(0, context_tokens=window)], epsilon=0.0, max_context_tokens=cap, confidence_threshold=1.0
    )
    assert safe.decide(turn(up=["tiny"])).context_tokens == min(largest, 2048)


async def test_the_window_that_counts_is_the_drawn_tiers():
    router = await started([tier(0, context_tokens=512), tier(3)], epsilon=1.0)
    seen = collections.defaultdict(set)
    for i in range(80):
        route = router.decide(turn(up=["tiny", "large"], interaction=str(i)))
        seen[route.tier].add(route.context_tokens)
        assert route.propensities["context_tokens"] == pytest.approx(0.5 if route.tier == "tiny" else 0.2)
    assert seen == {"tiny": {256, 512}, "large": set(CONTEXT_TOKENS)}


async def test_the_callers_tier_is_taken_with_propensity_one():
    router = await started()
    for i in range(20):
        route = router.decide(turn(EASY, COVERED, interaction=str(i), sampling=Sampling(tier="large")))
        assert (route.tier, route.reason, route.propensities["tier"]) == ("large", "caller", 1.0)
        assert route.propensity == route.propensities["context_tokens"] < 1.0
        assert route.probabilities == {"tiny": 0.0, "small": 0.0, "medium": 0.0, "large": 1.0}


async def test_a_named_tier_that_is_down_is_a_retry_and_no_other_is_taken():
    router = await started()
    with pytest.raises(Retry, match="tier large is unavailable"):
        router.decide(turn(up=["tiny"], sampling=Sampling(tier="large")))


async def test_an_unknown_tier_is_refused_with_the_nearest_names():
    router = await started()
    with pytest.raises(Reject) as caught:
        router.decide(turn(sampling=Sampling(tier="larg")))
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert caught.value.remedy.startswith("nearest: large")
    with pytest.raises(Reject, match="tiny, small, medium, large"):
        router.decide(turn(sampling=Sampling(tier="qq")))


async def test_the_callers_temperature_and_top_p_replace_the_routes():
    router = await started(epsilon=0.0)
    for session in (None, FAILING):  # the router's own choice, then the safe route
        route = router.decide(turn(HARD, session=session, sampling=Sampling(temperature=0.0, top_p=0.5)))
        assert (route.temperature, route.top_p) == (0.0, 0.5)
    only = router.decide(turn(EASY, COVERED, sampling=Sampling(top_p=0.5)))
    assert only.temperature == pytest.approx(router.decide(turn(EASY, COVERED)).temperature)


async def test_quality_bias_shifts_towards_larger_tiers():
    router = await started(cost_weight=4.0)

    def mean_tier(bias):
        p = router.decide(turn(HARD, COVERED, quality_bias=bias)).probabilities
        return sum(NAMES.index(name) * chance for name, chance in p.items())

    means = [mean_tier(bias) for bias in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.3
    with pytest.raises(Reject, match=r"quality_bias 1\.5") as caught:
        router.decide(turn(quality_bias=1.5))
    assert caught.value.param == "quality_bias"


async def test_quality_bias_works_through_cost_alone():
    router = await started([tier(slot, cost=1.0) for slot in range(4)])
    router.swap(flat(tier_b=[0.1, 0.2, 0.3, 0.4], confidence_b=[5.0]))
    low, high = (router.decide(turn(quality_bias=bias)).probabilities for bias in (0.0, 1.0))
    assert low == pytest.approx(high)


async def test_an_explanation_names_features_by_their_effect():
    router = await started(deterministic=True)
    item = turn(EASY, COVERED, explain=True)
    route = router.decide(item)
    assert route.tier == "tiny"
    assert [e.feature for e in route.explanation][:1] == ["similarity_max"]
    effects = [abs(e.effect) for e in route.explanation]
    assert effects == sorted(effects, reverse=True)
    assert len(effects) == router.config.explained
    # each effect is what the logit really loses, and without the first the decision is another
    for effect in route.explanation:
        row = next(row for row in TABLE if row.name == effect.feature)
        without = route.features.copy()
        without[row.start : row.stop] = 0.0
        whole, less = (prior().forward(x, item.session.hidden).tier[0] for x in (route.features, without))
        assert effect.effect == pytest.approx(float(whole - less), abs=1e-5)
    assert router.decide(turn(EASY, (0.1,) * 5)).tier != "tiny"
    without = route.features.copy()
    without[SLOT["similarity_max"]] = 0.0
    assert int(prior().forward(without, item.session.hidden).tier.argmax()) != 0


async def test_no_explanation_unless_asked():
    assert (await started()).decide(turn()).explanation == ()


async def test_swapping_changes_the_next_decision_and_gives_back_the_old_weights():
    router = await started(deterministic=True)
    large = flat(tier_b=[0.0, 0.0, 0.0, 9.0], context_b=[0, 9, 0, 0, 0], confidence_b=[9.0])
    old = router.swap(large)
    route = router.decide(turn(EASY, COVERED))
    assert (route.tier, route.context_tokens, route.checkpoint) == ("large", 512, "flat")
    assert (route.temperature, route.top_p) == (pytest.approx(1.0), pytest.approx(0.5))
    assert router.swap(old) is large
    assert router.decide(turn(EASY, COVERED)).checkpoint == "prior-2"


async def test_a_checkpoint_is_loaded_and_an_unfit_one_stops_the_start(tmp_path):
    path = tmp_path / "router.safetensors"
    Snapshot(flat().params, "router-12").save(path)
    router = await started(checkpoint=str(path))
    assert router.decide(turn()).checkpoint == "router-12"
    for name, data in {"missing": None, "noise": b"\x00" * 64, "cut": path.read_bytes()[:-8]}.items():
        bad = tmp_path / name
        if data is not None:
            bad.write_bytes(data)
        with pytest.raises(Stop, match=name) as caught:
            await started(checkpoint=str(bad))
        assert caught.value.who == "route"
        assert caught.value.remedy
    with pytest.raises(Stop, match="NaN"):
        flat(tier_b=[math.nan, 0.0, 0.0, 0.0])


async def test_both_forms_of_the_prior_route_alike():
    tied, untied = await started(), await started(tied=False)
    assert (tied.snapshot.tied, untied.snapshot.tied) == (True, False)
    assert tied.decide(turn(HARD)).probabilities == untied.decide(turn(HARD)).probabilities


async def test_wiring_mistakes_stop_with_a_remedy():
    with pytest.raises(Stop, match="no weights yet"):
        Router(Router.Config(), TIERS).decide(turn())
    for tiers in ([], [tier(0), tier(0, "other")], [tier(0, "same"), tier(1, "same")]):
        with pytest.raises(Stop, match="own name and slot"):
            Router(Router.Config(), tiers)
    router = await started()
    with pytest.raises(Stop, match="unknown tier 'ghost'"):
        router.decide(turn(up=("tiny", "ghost")))
    with pytest.raises(Stop, match=r"hidden state of shape \(3,\)"):
        router.decide(turn(session=SessionState(turn=0, hidden=np.zeros(3, np.float32))))
    with pytest.raises(Stop, match="NaN"):
        router.decide(turn(session=SessionState(turn=0, hidden=np.full(64, np.nan, np.float32))))


async def test_a_route_survives_pickling_and_json():
    route = (await started()).decide(turn(HARD, COVERED, explain=True))
    for again in (pickle.loads(pickle.dumps(route)), records.decode(records.Route, records.encode(route))):
        assert again.tier == route.tier
        assert again.propensity == pytest.approx(route.propensity)
        assert again.explanation[0].feature == route.explanation[0].feature
        np.testing.assert_array_equal(again.features, route.features)
        np.testing.assert_array_equal(again.hidden, route.hidden)


@pytest.mark.parametrize("knobs", [{"epsilon": 1.1}, {"temperature": 0.0}, {"max_context_tokens": 100}, {"lock": True}])
def test_knobs_out_of_range_are_refused(knobs):
    with pytest.raises(ValidationError):
        Router.Config(**knobs)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_pick_is_the_inverse_of_the_cumulative_distribution(weights, u, epsilon):
    chances = drawing.mix(drawing.softmax([math.log(w) for w in weights], 1.0), epsilon)
    assert sum(chances) == pytest.approx(1.0)
    i = drawing.pick(chances, u)
    assert sum(chances[:i]) <= u + 1e-9
    assert u < sum(chances[: i + 1]) + 1e-9


def test_pick_never_takes_what_has_no_chance():
    assert drawing.pick([0.0, 1.0, 0.0], 0.0) == 1
    assert drawing.pick([0.0, 0.999999, 0.0], 0.9999999999) == 1
