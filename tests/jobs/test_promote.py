"""From a candidate to the active weights and back: the rule without a clock, and the job on a real registry and log."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from conf.promotion import Promotion
from jobs.evidence import Evidence, Tally
from jobs.promote import Promoter, offered, step
from operators.learning import rollout as changes
from operators.learning.gate import GateResult
from operators.learning.rollout import Why
from operators.records import Interaction, Rollout, Route, ShadowRoute, Verdict, decode, encode
from operators.stores.checkpoints import Registry
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, ROUTER_UPDATES, create_topics, session_key

CONFIG = Promotion(shadow_events=40, canary_events=50, canary_share=0.2, alarm_events=60, alarm_min=20)
START = changes.present(None, "router", "prior-1")
WHY = Why("admin", 1.0, "a test")
GOOD, BAD = [0.7, 0.9] * 30, [0.3, 0.5] * 30
NOTHING = Evidence(verdicts={}, watched={})


def verdicts(**scores: list[float]) -> Evidence:
    """``v1=…`` are scores of router-000001."""
    return Evidence(verdicts={named(short): values for short, values in scores.items()}, watched={})


def watched(version: str, gains: list[float]) -> Evidence:
    return Evidence(verdicts={}, watched={version: gains})


def named(short: str) -> str:
    return "prior-1" if short == "prior" else f"router-{int(short[1:]):06d}"


V1, V2 = named("v1"), named("v2")
SHADOW = changes.offer(START, V1, WHY)
CANARY = changes.widen(START, V1, 0.2, WHY)
ACTIVE = changes.activate(START, V1, WHY)


def test_a_candidate_goes_from_the_gate_to_the_shadow_to_a_share_to_all() -> None:
    now = offered(START, V1, CONFIG, 7.0)
    assert now is not None
    assert (now.version, now.active, now.shadow, now.canary, now.by) == (1, "prior-1", V1, None, "learn")
    assert (now.created_at, "passed the gate" in now.reason) == (7.0, True)
    assert step(now, watched(V1, [0.0] * 39), CONFIG, 8.0) is None
    now = step(now, watched(V1, [0.0] * 40), CONFIG, 9.0)
    assert now is not None
    assert (now.version, now.active, now.shadow, now.canary, now.share) == (2, "prior-1", None, V1, 0.2)
    assert step(now, verdicts(v1=GOOD[:49], prior=GOOD), CONFIG, 10.0) is None
    now = step(now, verdicts(v1=GOOD[:50], prior=GOOD), CONFIG, 11.0)
    assert now is not None
    assert (now.version, now.active, now.canary, now.share, now.before) == (3, V1, None, 0.0, ("prior-1",))
    assert step(now, verdicts(v1=GOOD, prior=GOOD), CONFIG, 12.0) is None, "and stays there"


@pytest.mark.parametrize(("shadow", "canary"), [(0, 50), (40, 0), (0, 0)])
def test_steps_can_be_left_out(shadow: int, canary: int) -> None:
    config = CONFIG.model_copy(update={"shadow_events": shadow, "canary_events": canary})
    now = offered(START, V1, config, 1.0)
    assert now is not None
    assert (now.shadow, now.canary, now.active) == {
        (0, 50): (None, V1, "prior-1"),
        (40, 0): (V1, None, "prior-1"),
        (0, 0): (None, None, V1),
    }[shadow, canary]
    if shadow:
        now = step(now, watched(V1, [0.0] * 40), config, 2.0)
        assert now is not None
        assert now.active == V1


@pytest.mark.parametrize(
    ("now", "knobs"),
    [(SHADOW, {}), (CANARY, {}), (changes.freeze(START, WHY), {}), (START, {"automatic": False}), (ACTIVE, {"v": V1})],
    ids=["one is watched", "one is tried", "frozen", "by hand", "active already"],
)
def test_a_candidate_may_have_to_wait(now: Rollout, knobs: dict[str, object]) -> None:
    version = str(knobs.pop("v", V2))
    assert offered(now, version, CONFIG.model_copy(update=knobs), 1.0) is None


def test_an_alarm_goes_back_and_says_why() -> None:
    back = step(ACTIVE, verdicts(v1=BAD, prior=GOOD), CONFIG, 5.0)
    assert back is not None
    assert (back.version, back.active, back.before, back.by) == (ACTIVE.version + 1, "prior-1", (), "alarm")
    assert "0.400 over 60 turns" in back.reason
    assert "prior-1 0.800" in back.reason
    assert step(back, verdicts(v1=BAD, prior=GOOD), CONFIG, 6.0) is None


def test_an_alarm_ends_a_canary_and_a_shadow() -> None:
    for now, evidence in (
        (CANARY, verdicts(v1=BAD, prior=GOOD)),
        (SHADOW, watched(V1, [-0.2, -0.1] * 20)),
    ):
        for each in (now, changes.freeze(now, WHY)):
            after = step(each, evidence, CONFIG, 5.0)
            assert after is not None
            assert (after.active, after.shadow, after.canary, after.share) == ("prior-1", None, None, 0.0)
            assert (after.by, V1 in after.reason) == ("alarm", True)


@pytest.mark.parametrize(
    "evidence",
    [
        NOTHING,
        verdicts(v1=BAD[:19], prior=GOOD),  # too few
        verdicts(v1=BAD, prior=GOOD[:19]),
        verdicts(v1=[0.76] * 60, prior=[0.8] * 60),  # surely worse, but by less than alarm_drop
        verdicts(v1=[0.0, 1.0] * 15, prior=[1.0, 1.0, 0.0] * 10),  # much worse, but by chance
        verdicts(v1=GOOD, prior=BAD),
    ],
)
def test_no_alarm_without_reason(evidence: Evidence) -> None:
    assert step(ACTIVE, evidence, CONFIG, 5.0) is None


def test_frozen_promotes_nothing_and_still_goes_back() -> None:
    assert step(changes.freeze(CANARY, WHY), verdicts(v1=GOOD, prior=GOOD), CONFIG, 1.0) is None
    assert step(changes.freeze(SHADOW, WHY), watched(V1, [0.0] * 60), CONFIG, 1.0) is None
    back = step(changes.freeze(ACTIVE, WHY), verdicts(v1=BAD, prior=GOOD), CONFIG, 1.0)
    assert back is not None
    assert (back.active, back.frozen) == ("prior-1", True)


def test_going_back_twice_and_what_is_remembered() -> None:
    now = START
    for n in range(1, 8):
        now = changes.activate(now, named(f"v{n}"), WHY)
    assert now.before == tuple(named(f"v{n}") for n in (6, 5, 4, 3))
    now = changes.activate(now, named("v5"), WHY)
    assert now.before == tuple(named(f"v{n}") for n in (7, 6, 4, 3)), "each once"
    now = changes.roll_back(changes.roll_back(now, WHY), WHY)
    assert (now.active, now.before) == (named("v6"), (named("v4"), named("v3")))


def test_more_evidence_can_t_be_asked_for_than_is_remembered() -> None:
    with pytest.raises(ValidationError, match="raise it"):
        Promotion(alarm_events=99)


# ------------------------------------------------------------------------------------------ what is known


def turn(n: int, checkpoint: str, shadow: ShadowRoute | None = None, chance: float = 0.5) -> Interaction:
    route = Route(
        tier="tiny",
        context_tokens=256,
        temperature=0.7,
        top_p=0.9,
        confidence=0.5,
        probabilities={"tiny": chance, "large": 1 - chance},
        propensity=chance,
        propensities={"tier": chance, "context_tokens": 1.0},
        checkpoint=checkpoint,
        reason="router",
        hidden=np.zeros(64, np.float32),
        features=np.zeros(128, np.float32),
        shadow=shadow,
    )
    return Interaction(
        event_id=f"e{n}",
        interaction_id=f"i{n}",
        tenant="t",
        session=f"s{n}",
        turn=0,
        created_at=0.0,
        query="q",
        answer="a",
        route=route,
    )


def rated(n: int, score: float | None, by: str = "model") -> Verdict:
    return Verdict(
        event_id=f"v{n}{by}",
        interaction_id=f"i{n}",
        tenant="t",
        session=f"s{n}",
        created_at=0.0,
        status="unjudged" if score is None else "judged",
        score=score,
        uncertainty=0.0,
        judge="j",
        by=by,  # type: ignore[arg-type]
    )


def test_verdicts_are_counted_for_the_checkpoint_that_decided_and_a_user_outranks_the_judge() -> None:
    tally = Tally(3)
    for n, score in enumerate([0.1, 0.2, 0.3, 0.4]):
        tally.add(turn(n, V1), rated(n, score))
    tally.add(turn(9, V2), rated(9, 0.9))
    tally.add(turn(9, V2), rated(9, 0.0, "user"))
    tally.add(turn(9, V2), rated(9, 1.0))
    tally.add(turn(8, V2), rated(8, None))
    tally.add(dataclasses.replace(turn(8, V2), route=None), rated(8, 0.5))
    caller = turn(7, V2)
    assert caller.route is not None
    tally.add(dataclasses.replace(caller, route=dataclasses.replace(caller.route, reason="caller")), rated(7, 0.5))
    found = tally.evidence().verdicts
    assert {name: list(values) for name, values in found.items()} == {V1: [0.2, 0.3, 0.4], V2: [0.0]}


def test_what_a_shadow_would_have_gained_is_estimated_without_bias() -> None:
    """Tier tiny gives 0.2, large 0.8; the real policy takes them evenly, the shadow takes large with 0.9: +0.24."""
    random, tally = np.random.default_rng(0), Tally(4000)
    for n in range(4000):
        large = random.random() < 0.5
        shadow = ShadowRoute(checkpoint=V1, tier="large", confidence=0.5, propensity=0.9 if large else 0.1)
        tally.add(turn(n, "prior-1", shadow), rated(n, (0.8 if large else 0.2) + random.normal(0, 0.05)))
    gains = tally.evidence().watched[V1]
    assert np.mean(gains) == pytest.approx(0.24, abs=4 * np.std(gains) / 4000**0.5)
    assert step(SHADOW, Evidence(verdicts={}, watched={V1: gains[:40]}), CONFIG, 1.0) is not None


# ------------------------------------------------------------------------------------------ on files


@pytest.fixture
def log(tmp_path: Path):
    log = SqliteLog(tmp_path / "events.sqlite")
    log.open()
    create_topics(log, 1)
    yield log
    log.close()


def record(log: SqliteLog, interaction: Interaction, verdict: Verdict) -> None:
    key = session_key(interaction.tenant, interaction.session)
    partition, offset = log.append(INTERACTIONS, key, encode(interaction))
    headers = {"src.topic": INTERACTIONS, "src.partition": str(partition), "src.offset": str(offset)}
    log.append(JUDGEMENTS, key, encode(verdict), headers)


def told(log: SqliteLog) -> list[Rollout]:
    return [decode(Rollout, event.value) for event in log.read(ROUTER_UPDATES, 0, 0, 100)]


def test_a_candidate_is_promoted_and_rolled_back_on_disk(tmp_path: Path, log: SqliteLog) -> None:
    registry = Registry(tmp_path / "checkpoints")
    config = CONFIG.model_copy(update={"keep": 1})
    clock: Callable[[], float] = iter(range(100)).__next__
    promoter = Promoter(registry, log, "prior-1", config, clock)
    said = GateResult(passed=True, active="prior-1", reasons=(), sets=())
    refused = dataclasses.replace(said, passed=False, reasons=("worse",))
    files, window = {"router.safetensors": b"x"}, {"ruvllm.judgements.v1/0": (0, 7)}
    versions = [promoter.publish(files, refused, parent="prior-1", window=window)]
    assert registry.rollouts.current() is None
    versions.append(promoter.publish(files, said, parent="prior-1", window=window, metrics={"loss": 0.5}))
    now = registry.rollouts.current()
    assert now is not None
    assert now.shadow == versions[1]
    assert registry.manifest(versions[1]).metrics == {"loss": 0.5, "gate": json.loads(encode(said))}
    versions.append(promoter.publish(files, said, parent=versions[1], window=window))
    assert promoter.offer(versions[2]) is None, "one at a time"
    shadow = ShadowRoute(checkpoint=versions[1], tier="tiny", confidence=0.5, propensity=0.5)
    for n in range(40):
        assert promoter.step() is None
        promoter.seen(turn(n, "prior-1", shadow), rated(n, GOOD[n]))
    now = promoter.step()
    assert now is not None
    assert now.canary == versions[1]
    assert registry.versions() == versions[1:], "nobody needs the first"
    for n in range(100, 150):
        promoter.seen(turn(n, versions[1]), rated(n, GOOD[n % 2]))
    now = promoter.step()
    assert now is not None
    assert now.active == versions[1]
    for n in range(200, 260):
        record(log, turn(n, versions[1]), rated(n, BAD[n % 2]))
        record(log, turn(n + 100, "prior-1"), rated(n + 100, GOOD[n % 2]))
    # the job is started again: what it knows comes from the log
    again = Promoter(registry, log, "prior-1", config.model_copy(update={"alarm_events": 200}), clock)
    assert again.step() is None
    assert again.recall() == 120
    now = again.step()
    assert now is not None
    assert (now.active, now.by) == ("prior-1", "alarm")
    assert again.offer(versions[2]) is not None
    assert [each.event_id for each in told(log)] == [each.event_id for each in registry.rollouts.history()]
    assert [each.version for each in told(log)] == [1, 2, 3, 4, 5]


def test_verdicts_whose_interaction_is_gone_are_passed_over(tmp_path: Path, log: SqliteLog) -> None:
    promoter = Promoter(Registry(tmp_path / "checkpoints"), log, "prior-1", CONFIG)
    record(log, turn(1, V1), rated(1, 0.5))
    log.append(JUDGEMENTS, "t|s1", encode(rated(2, 0.5)))
    log.append(JUDGEMENTS, "t|s1", b"no verdict")
    log.append(JUDGEMENTS, "t|s1", encode(rated(3, 0.5)), {"src.partition": "0", "src.offset": "77"})
    assert promoter.recall() == 1
