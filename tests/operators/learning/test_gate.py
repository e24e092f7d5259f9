"""The promotion gate: what harms is refused with its reason, what helps passes, what changes nothing is not harmed.

A world with a known answer: hard turns are answered well by the dear tiers only, easy ones by all. So the right weights
are known, and what a policy is worth is known exactly.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pytest

from operators.errors import Reject
from operators.learning.gate import GateConfig, GateResult, gate
from operators.learning.offpolicy import EvaluationSet, difference, forward, policy, value
from operators.networks.exemplars import Exemplars
from operators.networks.fastgrnn import SHARPNESS, Snapshot
from operators.networks.prior import prior
from operators.records import decode, encode
from operators.route import Router
from tests.operators.test_route import EASY, HARD, TIERS, flat, started, turn

COST = np.array([1.0, 2.0, 3.5, 7.5])
ROUTER, CONFIG = Router.Config(), GateConfig(rounds=500)
HARDNESS = 7
"""The feature that says how hard a turn is."""


def world(n: int, seed: int, *, known: bool = True, name: str = "holdout") -> EvaluationSet:
    """Turns whose tiers were drawn by a uniform policy; without ``known`` only the drawn tier has a verdict."""
    random = np.random.default_rng(seed)
    features = random.normal(0, 0.3, (n, 128)).astype(np.float32)
    hard = random.random(n)
    features[:, HARDNESS] = hard
    skill = np.array([0.25, 0.5, 0.75, 1.0])
    clear = 0.9 - 0.75 * np.clip(hard[:, None] - skill + 0.2, 0, 1)
    quality = np.clip(clear + random.normal(0, 0.1, (n, 4)), 0, 1).astype(np.float32)
    tier = random.integers(4, size=n).astype(np.int32)
    if not known:
        quality = np.where(np.arange(4) == tier[:, None], quality, np.nan).astype(np.float32)
    return EvaluationSet(
        name=name,
        features=features,
        hidden=np.zeros((n, 64), np.float32),
        quality=quality,
        tier=tier,
        propensity=np.full(n, 0.25, np.float32),
        session=(np.arange(n) // 3).astype(np.int32),
    )


def trained(data: EvaluationSet, quality: npt.NDArray[np.float32], name: str = "trained") -> Snapshot:
    """Weights whose tier head was fitted to ``quality``, and whose confidence is the share of good turns."""
    params = dict(prior().params)
    w = np.zeros_like(params["w"])
    w[0, 0, HARDNESS] = 1.0
    params |= {"w": w, "b_h": np.zeros(64, np.float32), "b_z": np.full(64, -6, np.float32)}
    base = Snapshot(params, "base")
    hidden = base.forward(data.features, data.hidden).hidden
    design = np.column_stack([hidden[:, :1], hidden[:, :1] ** 0])
    fit, *_ = np.linalg.lstsq(design.astype(np.float64), quality.astype(np.float64), rcond=None)
    heads = np.zeros((4, 64), np.float32)
    heads[:, 0] = 12 * fit[0]
    params |= {"tier_w": heads, "tier_b": np.float32(12 * fit[1])}
    params |= {"confidence_w": np.zeros((1, 64), np.float32), "confidence_b": np.float32([0.4])}
    return Snapshot(params, name)


TRAIN = world(3000, 1)
CLEAN = trained(TRAIN, TRAIN.quality, "clean")
SAME = {"tier_w": np.zeros((4, 64), np.float32), "tier_b": np.float32([0, 0.5, 1, 2.8])}
BLIND = Snapshot({**CLEAN.params, **SAME}, "blind")
"""Weights that know nothing of hard and easy, and spend a little more than the clean ones."""
SETS = [world(900, 2, known=False), world(300, 3, name="golden"), world(600, 4, known=False, name="old tasks")]


def asked(candidate: Snapshot | dict, active: Snapshot = CLEAN, sets=SETS, **knobs: float) -> GateResult:
    return gate(candidate, active, sets, COST, ROUTER, CONFIG.model_copy(update=knobs))


def test_weights_with_nan_are_refused() -> None:
    broken = {**CLEAN.params, "tier_b": np.float32([0, np.nan, 0, 0])}
    result = asked(broken)
    assert (result.passed, result.active, result.sets) == (False, "clean", ())
    assert "NaN" in result.reasons[0]


@pytest.mark.parametrize("harm", [{"tier_b": 1e30}, {"tier_w": 3e38}, {"context_b": 1e6}, {"confidence_w": 3e38}])
def test_exploded_outputs_are_refused(harm: dict[str, float]) -> None:
    ((name, size),) = harm.items()
    sign = np.where(np.arange(CLEAN.params[name].size) % 2, -1, 1).reshape(CLEAN.params[name].shape)
    result = asked({**CLEAN.params, name: np.float32(size * sign)})
    assert not result.passed
    assert any(
        "a logit of" in reason or "NaN or infinite" in reason or "overrates" in reason for reason in result.reasons
    )


def test_training_on_flipped_verdicts_is_refused() -> None:
    """30 % of the verdicts flipped: on the hard turns, where it pays to lie."""
    lies = TRAIN.features[:, HARDNESS] > 0.7
    assert lies.mean() == pytest.approx(0.3, abs=0.03)
    poisoned = trained(TRAIN, np.where(lies[:, None], 1 - TRAIN.quality, TRAIN.quality))
    result = asked(poisoned)
    assert not result.passed
    assert any("quality may be worse" in reason for reason in result.reasons)
    assert {reason.split(":")[0] for reason in result.reasons} == {"holdout", "golden", "old tasks"}


def test_random_flips_are_refused_too() -> None:
    random = np.random.default_rng(5)
    lies = random.random((len(TRAIN.quality), 1)) < 0.3
    poisoned = trained(TRAIN, np.where(lies, 1 - TRAIN.quality, TRAIN.quality).astype(np.float32))
    assert not asked(poisoned).passed


def test_the_dearest_tier_for_everyone_with_confidence_one_is_refused() -> None:
    hacked = {**CLEAN.params, "tier_b": np.float32([0, 0, 0, 40]), "confidence_b": np.float32([30])}
    result = asked(hacked)
    assert not result.passed
    assert any("cost may be higher" in reason for reason in result.reasons)
    assert any("overrates itself" in reason for reason in result.reasons)
    assert result.sets[0].quality_gain.mean > 0, "its verdicts are better, and that does not help it"
    # also where the active weights take the dearest tier already, the claim alone is refused
    dear = Snapshot({**CLEAN.params, "tier_b": np.float32([0, 0, 0, 40])}, "dear")
    claims = asked(hacked, dear)
    assert not claims.passed
    assert all("overrates itself" in reason for reason in claims.reasons)


def test_a_truly_better_one_passes() -> None:
    result = asked(CLEAN, BLIND)
    assert result.passed, result.reasons
    assert result.reasons == ()
    for one in result.sets:
        assert one.quality_gain.low > 0
        assert one.cost_gain.high < CONFIG.cost_margin
        assert one.utility_gain.mean > 0
    assert not asked(BLIND, CLEAN).passed, "and not the other way round"


def test_a_dearer_one_passes_only_where_it_is_worth_it() -> None:
    """Active: the smallest tier for all. Candidates spend more: on hard turns, where it helps, or on everybody's."""
    small = Snapshot({**CLEAN.params, **SAME, "tier_b": np.float32([40, 0, 0, 0])}, "small")
    worth = asked(CLEAN, small, cost_ceiling=1.0)
    assert worth.passed, worth.reasons
    assert all(one.cost_gain.low > CONFIG.cost_margin for one in worth.sets)
    assert all(one.utility_gain.low > 0 for one in worth.sets)
    spent = asked({**BLIND.params, "tier_b": np.float32([0, 0, 0, 40])}, CLEAN, cost_ceiling=1.0)
    assert any("may not be worth it: utility" in reason for reason in spent.reasons)
    ceiling = worth.sets[0].cost_gain.mean
    stopped = asked(CLEAN, small, cost_ceiling=ceiling)
    assert any(f"ceiling {ceiling}" in reason for reason in stopped.reasons)


def test_an_equal_one_passes_and_is_measured_as_equal() -> None:
    result = asked(Snapshot(CLEAN.params, "again"))
    assert result.passed
    for one in result.sets:
        assert dataclasses.astuple(one.quality_gain) == (0.0, 0.0, 0.0) == dataclasses.astuple(one.cost_gain)
        assert one.overconfidence[0] == one.overconfidence[1]


def test_one_bad_set_is_enough() -> None:
    """Better on two sets and worse on the old tasks: what was known is forgotten."""
    turned = world(600, 4, name="old tasks")
    turned = dataclasses.replace(turned, quality=turned.quality[:, ::-1].copy())
    result = asked(CLEAN, BLIND, [SETS[0], SETS[1], turned])
    assert not result.passed
    assert {reason.split(":")[0] for reason in result.reasons} == {"old tasks"}


def test_too_few_turns_decide_nothing() -> None:
    result = asked(CLEAN, CLEAN, [world(49, 1)])
    assert not result.passed
    assert "49 turns decide nothing" in result.reasons[0]


def test_the_result_is_a_record_with_every_figure() -> None:
    result = asked(CLEAN, prior())
    again = decode(GateResult, encode(result))
    assert [one.name for one in again.sets] == ["holdout", "golden", "old tasks"]
    assert (again.sets[0].turns, again.sets[0].sessions) == (900, 300)
    assert all(math.isfinite(x) for one in again.sets for x in (*one.utility, *one.cost, one.worst_weight))
    assert [one.utility[0] for one in again.sets] == pytest.approx(
        [one.quality[0] - ROUTER.cost_weight / SHARPNESS * one.cost[0] for one in again.sets]
    )


# ------------------------------------------------------------------------------------------ the estimates


def test_the_estimate_from_drawn_tiers_is_that_of_the_whole_truth() -> None:
    """Doubly robust on the drawn tier, against the exact value of the same turns: no bias, and an honest interval."""
    prices = COST / COST.max()
    misses = []
    for seed in range(30):
        whole = world(600, 100 + seed)
        drawn = np.where(np.arange(4) == whole.tier[:, None], whole.quality, np.nan)
        chances = [policy(s, forward(s, whole), prices, ROUTER) for s in (prior(), CLEAN)]
        exact = [value(each, whole.quality.astype(np.float64), whole, 20.0) for each in chances]
        robust = [value(each, drawn.astype(np.float64), whole, 20.0) for each in chances]
        truth = float((exact[1] - exact[0]).mean())
        found = difference(robust[1] - robust[0], whole.session, 0.95, 500, 0)
        assert (exact[0] >= 0).all()
        misses.append((found.mean - truth, found.low > truth, found.high < truth))
    errors = np.array([miss[0] for miss in misses])
    assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(len(errors)), "unbiased"
    assert sum(miss[1] for miss in misses) + sum(miss[2] for miss in misses) <= 8, "one-sided 5 % each: about 3 of 30"


def test_turns_of_one_session_are_drawn_together() -> None:
    random = np.random.default_rng(0)
    values = np.repeat(random.normal(0, 1, 40), 25)
    alone = difference(values, np.arange(1000), 0.95, 800, 0)
    together = difference(values, np.repeat(np.arange(40), 25), 0.95, 800, 0)
    assert together.high - together.low > 4 * (alone.high - alone.low), "25 copies of a turn are one turn"


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"deterministic": True},
        {"confidence_threshold": 0.6},
        {"temperature": 0.3, "epsilon": 0.2, "cost_weight": 0.5},
    ],
)
@pytest.mark.parametrize("slots", [(0, 1, 2, 3), (0, 3), (1,), (0, 1, 3)])
async def test_the_policy_is_the_router_s_own(knobs: dict, slots: tuple[int, ...]) -> None:
    tiers = [TIERS[slot] for slot in slots]
    router = await started(tiers, **knobs)
    cost = np.array([TIERS[slot].cost if slot in slots else np.nan for slot in range(4)])
    random = np.random.default_rng(2)
    params = {name: np.float32(part + random.normal(0, 0.1, part.shape)) for name, part in prior().params.items()}
    exemplars = Exemplars.of(random.normal(size=(9, 128)).astype(np.float32), random.random((9, 4)).astype(np.float32))
    plain = flat(tier_b=[0.1, 1.0, 0.3, 2.0], confidence_b=[0.5])
    for weights in (prior(), plain, Snapshot(params, "learned", exemplars, True)):
        router.swap(weights)
        for text in (EASY, HARD):
            route = router.decide(turn(text, up=[tier.name for tier in tiers]))
            one = dataclasses.replace(SETS[0], features=route.features[None], hidden=np.zeros((1, 64), np.float32))
            (chances,) = policy(weights, forward(weights, one), cost / np.nanmax(cost), router.config)
            assert [chances[slot] for slot in slots] == pytest.approx(list(route.probabilities.values()), abs=1e-6)
            assert chances.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("features", np.zeros((900, 3), np.float32)),
        ("hidden", np.full((900, 64), np.nan, np.float32)),
        ("propensity", np.zeros(900, np.float32)),
        ("quality", np.full((900, 4), np.nan, np.float32)),
        ("tier", np.full(900, 4, np.int32)),
        ("session", np.zeros(3, np.int32)),
    ],
)
def test_sets_that_can_t_be_valued_are_refused(field: str, bad: npt.NDArray[np.float32]) -> None:
    with pytest.raises(Reject, match="holdout"):
        asked(CLEAN, CLEAN, [dataclasses.replace(SETS[0], **{field: bad})])
    with pytest.raises(Reject, match="no set"):
        asked(CLEAN, CLEAN, [])
