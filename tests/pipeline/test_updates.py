"""New weights reach the router: whole, at once, and only if they are good."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from annotated_types import Le

from conf.promotion import Promotion
from operators.learning import rollout as changes
from operators.learning.rollout import Why
from operators.learning.weights import FILE
from operators.networks import drawing
from operators.networks.acting import Active, place
from operators.networks.fastgrnn import Snapshot
from operators.networks.prior import NAME, prior
from operators.records import Route, decode, encode
from operators.route import RouteInput, Router
from operators.stores.checkpoints import Registry
from pipeline.updates import Updates
from tests.operators.test_route import COVERED, EASY, flat, started, turn

DECISIONS = 1_000_000 if os.environ.get("RUVLLM_TEST_FAULTS") == "all" else 5_000
WHY = Why("admin", 0.0, "a test")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "checkpoints")


def of_tier(slot: int) -> bytes:
    """Weights that always take one tier."""
    return flat(tier_b=np.eye(4)[slot] * 20, confidence_b=[9.0]).to_bytes()


def change(registry, make, *args, **fields):
    return registry.rollouts.change(lambda now: make(changes.present(now, "router", NAME), *args, WHY, **fields))


def decided(router: Router, session: str = "s", interaction: str = "i") -> Route:
    item = turn(EASY, COVERED, interaction=interaction)
    return router.decide(dataclasses.replace(item, query=dataclasses.replace(item.query, session=session)))


async def test_the_router_follows_what_is_rolled_out(registry, caplog):
    router = await started(deterministic=True)
    updates = Updates(router, registry, 0.1)
    assert not updates.look()
    assert decided(router).checkpoint == NAME
    large = registry.publish({FILE: of_tier(3)})
    assert not updates.look(), "published is not promoted"
    change(registry, changes.activate, large)
    assert updates.look()
    assert not updates.look(), "nothing new"
    assert (decided(router).tier, decided(router).checkpoint) == ("large", large)
    change(registry, changes.roll_back)
    assert updates.look()
    assert decided(router).checkpoint == NAME
    assert not [line for line in caplog.records if line.levelname == "ERROR"]


async def test_a_running_watcher_takes_an_update_over_by_itself(registry):
    """Within a second: it looks every ``promotion.poll_s``, which is half a second at most."""
    assert max(bound.le for bound in Promotion.model_fields["poll_s"].metadata if isinstance(bound, Le)) == 0.5
    router = await started(deterministic=True)
    watcher = asyncio.create_task(Updates(router, registry, Promotion().poll_s).run())
    versions = [registry.publish({FILE: of_tier(slot)}) for slot in (2, 3)]
    try:
        for version in versions:
            change(registry, changes.activate, version)
            async with asyncio.timeout(30):
                while decided(router).checkpoint != version:
                    await asyncio.sleep(0.01)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


@pytest.mark.parametrize("harm", ["missing", "damaged", "no weights", "NaN", "rollout"])
async def test_what_is_bad_is_refused_with_its_reason_and_what_acted_goes_on(registry, caplog, harm):
    router = await started(deterministic=True)
    updates = Updates(router, registry, 0.1)
    good = registry.publish({FILE: of_tier(1)})
    change(registry, changes.activate, good)
    assert updates.look()
    data = of_tier(3)
    if harm == "no weights":
        data = b"noise"
    if harm == "NaN":
        at = data.index(np.float32(20).tobytes())
        data = data[:at] + np.float32(np.nan).tobytes() + data[at + 4 :]
    bad = registry.publish({FILE: data})
    change(registry, changes.activate, "router-000009" if harm == "missing" else bad)
    path = registry.root / bad / FILE
    whole = path.read_bytes()
    if harm == "damaged":
        path.write_bytes(whole[:-1])
    if harm == "rollout":
        for file in registry.root.glob("rollout*"):
            file.write_bytes(b"{}")
    for _ in range(3):
        assert not updates.look()
        assert (decided(router).tier, decided(router).checkpoint) == ("small", good)
    errors = [line.getMessage() for line in caplog.records if line.levelname == "ERROR"]
    assert len(errors) == 1, "said once"
    expected = {"missing": "there is no", "damaged": "damaged", "no weights": "no router", "NaN": "NaN"}
    assert expected.get(harm, "is damaged") in errors[0]
    if harm == "damaged":
        path.write_bytes(whole)
        assert updates.look(), "whole again, and taken"
        assert decided(router).checkpoint == bad


async def test_a_start_with_a_damaged_checkpoint_takes_what_was_active_before(registry, caplog):
    versions = [registry.publish({FILE: of_tier(slot)}) for slot in (1, 2, 3)]
    for version in versions:
        change(registry, changes.activate, version)
    (registry.root / versions[2] / FILE).unlink()
    (registry.root / versions[1] / FILE).write_bytes(b"x")
    router = await started(deterministic=True)
    assert not Updates(router, registry, 0.1).look()
    assert decided(router).checkpoint == versions[0]
    assert f"{versions[0]} acts instead of {versions[2]}" in caplog.text
    (registry.root / versions[0] / FILE).unlink()
    router = await started(deterministic=True)
    Updates(router, registry, 0.1).look()
    assert decided(router).checkpoint == NAME


async def test_a_shadow_is_recorded_and_does_not_act(registry):
    router = await started(epsilon=0.2)
    updates = Updates(router, registry, 0.1)
    alone = [decided(router, interaction=str(n)) for n in range(200)]
    assert {route.shadow for route in alone} == {None}
    watched = registry.publish({FILE: of_tier(3)})
    change(registry, changes.offer, watched)
    assert updates.look()
    beside = [decided(router, interaction=str(n)) for n in range(200)]
    assert [(r.tier, r.propensity, r.checkpoint) for r in beside] == [
        (r.tier, r.propensity, r.checkpoint) for r in alone
    ]
    change(registry, changes.activate, watched)
    assert updates.look()
    acting = [decided(router, interaction=str(n)) for n in range(200)]
    assert {route.shadow for route in acting} == {None}
    for route, would in zip(beside, acting, strict=True):
        shadow = route.shadow
        assert shadow is not None
        assert (shadow.checkpoint, shadow.tier, shadow.confidence) == (watched, would.tier, would.confidence)
        assert shadow.propensity == would.probabilities[route.tier]
        again = decode(Route, encode(route)).shadow
        assert again is not None
        assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(shadow))


async def test_a_shadow_that_gives_no_number_is_not_recorded():
    router = await started()
    expected = decided(router)
    for wild in ({"tier_w": np.full((4, 64), 3e38, np.float32)}, {"confidence_w": np.full((1, 64), 3e38, np.float32)}):
        router.act(Active(prior(), shadow=Snapshot(prior().params | wild, "wild")))
        with np.errstate(all="ignore"):
            route = decided(router)
        assert (route.tier, route.checkpoint) == (expected.tier, NAME)
        assert route.shadow is None or 0 <= route.shadow.confidence <= 1
        decode(Route, encode(route))
    router.act(Active(prior(), shadow=Snapshot(prior().params | {"tier_w": wild["confidence_w"].repeat(4, 0)}, "wild")))
    with np.errstate(all="ignore"):
        assert decided(router).shadow is None


async def test_a_canary_decides_for_its_share_of_the_sessions_and_for_all_their_turns(registry):
    router = await started()
    updates = Updates(router, registry, 0.1)
    canary = registry.publish({FILE: of_tier(3)})
    change(registry, changes.widen, canary, 0.3)
    assert updates.look()
    sessions = [f"session {n}" for n in range(5000)]

    def tried() -> list[bool]:
        return [router.active.deciding("t", session).checkpoint != NAME for session in sessions]

    first = tried()
    assert np.mean(first) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 5000) ** 0.5)
    for session, new in list(zip(sessions, first, strict=True))[:30]:
        turns = {decided(router, session, f"turn {n}").checkpoint for n in range(5)}
        assert turns == {canary if new else NAME}, "whatever is drawn, one session has one version"
    draws = [drawing.uniforms(0, session)[0] for session in sessions]  # even where the interaction is named like it
    assert abs(np.corrcoef(draws, first)[0, 1]) < 0.05
    tenants = [place(canary, tenant, "s") < 0.3 for tenant in sessions]
    assert np.mean(tenants) == pytest.approx(0.3, abs=0.03)
    other = registry.publish({FILE: of_tier(3)})
    change(registry, changes.widen, other, 0.3)
    assert updates.look()
    assert np.mean(np.array(first) & np.array(tried())) == pytest.approx(0.09, abs=0.02), (
        "another canary, other sessions"
    )
    for share in (0.0, 1.0):
        change(registry, changes.widen, other, share)
        assert updates.look()
        assert np.mean(tried()) == share


async def test_a_damaged_canary_leaves_the_active_one_alone(registry, caplog):
    router = await started()
    updates = Updates(router, registry, 0.1)
    canary = registry.publish({FILE: of_tier(3)})
    change(registry, changes.widen, canary, 1.0)
    path = registry.root / canary / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    for _ in range(3):
        updates.look()
        assert decided(router).checkpoint == NAME
    assert len([line for line in caplog.records if line.levelname == "ERROR"]) == 1
    path.write_bytes(whole)
    updates.look()
    assert decided(router).checkpoint == canary


def facts(route: Route) -> tuple[object, ...]:
    """All that the weights say in a route."""
    shadow = None if route.shadow is None else dataclasses.astuple(route.shadow)
    drawn = (route.tier, route.context_tokens, route.temperature, route.top_p, route.confidence, route.propensity)
    return (*drawn, route.checkpoint, tuple(route.probabilities.values()), route.hidden.tobytes(), shadow)


async def test_no_decision_is_torn_by_a_swap():
    """Every decision equals that of one version alone, its shadow included, while versions change all the time."""
    random = np.random.default_rng(0)

    def snapshot(name: str) -> Snapshot:
        shaken = {k: np.float32(v + random.normal(0, 0.3, v.shape)) for k, v in prior().params.items()}
        return Snapshot(shaken, name)

    actives = [Active(snapshot(f"v{n}"), shadow=snapshot(f"shadow of v{n}")) for n in range(5)]
    router = await started()
    items: list[RouteInput] = [turn(EASY, COVERED, interaction=str(n)) for n in range(20)]
    alone: dict[tuple[str, int], tuple[object, ...]] = {}
    for active in actives:
        router.act(active)
        alone |= {(active.snapshot.checkpoint, n): facts(router.decide(item)) for n, item in enumerate(items)}
    for n in range(len(items)):  # what is mixed of two versions differs from both
        hidden, shadows = zip(*(alone[active.snapshot.checkpoint, n][-2:] for active in actives), strict=True)
        assert len(set(hidden)) == len(set(shadows)) == len(actives)
    done = threading.Event()
    torn: list[object] = []
    seen: Counter[str] = Counter()
    swaps = itertools.count()

    def swap() -> None:
        for active in itertools.cycle(actives):
            router.act(active)
            next(swaps)
            if done.wait(1e-5):
                return

    def decide() -> None:
        mine: Counter[str] = Counter()
        for n in range(DECISIONS // 2):
            at = n % len(items)
            route = router.decide(items[at])
            mine[route.checkpoint] += 1
            if facts(route) != alone[route.checkpoint, at]:
                torn.append((route.checkpoint, at))
        seen.update(mine)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    try:
        workers = [threading.Thread(target=decide) for _ in range(2)]
        swapper = threading.Thread(target=swap)
        for thread in (swapper, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        swapper.join()
    finally:
        sys.setswitchinterval(interval)
    assert not torn
    assert seen.total() == DECISIONS
    assert len(seen) == len(actives), "it did swap while it decided"
    assert next(swaps) > 100
