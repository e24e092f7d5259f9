import contextlib
import dataclasses

import numpy as np
import pytest

from jobs.learning.turns import row, together
from operators.documents import node_id
from operators.errors import Retry, Skip
from operators.learning.arrays import to_bytes
from operators.learning.gate import GATE
from operators.learning.reservoir import key
from operators.learning.weights import FILE
from operators.networks.exemplars import AT
from operators.networks.fastgrnn import Snapshot
from operators.stores.checkpoints import Registry
from operators.stores.removal import Receipt
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, dlq
from tests import learn_rig as rig


def test_it_learns_publishes_and_promotes_what_is_better(tmp_path):
    rig.fill(tmp_path, 500)
    loop = rig.learn_all(tmp_path)
    assert loop.learned > 480  # what is left over does not fill a batch
    registry = Registry(tmp_path / "checkpoints")
    versions = registry.versions()
    assert versions
    assert loop.candidates >= len(versions)
    about = registry.manifest(versions[-1])
    assert about.metrics[GATE]["sets"]
    assert about.window
    snapshot = Snapshot.from_bytes(registry.read(versions[-1], FILE))
    assert snapshot.learned
    low, high = (quality(snapshot, digits) for digits in (0.1, 0.9))
    assert low[0] - high[0] > 0.2  # slot 0 is for few digits
    assert high[3] > high[0]


def quality(snapshot, digits):
    random = np.random.default_rng(1)
    x = np.zeros((50, 128), np.float32)
    x[:, :32] = random.standard_normal((50, 32)) / 6
    x[:, rig.SLOT["digit_share"]] = digits
    x[:, AT] = snapshot.exemplars.recall_all(x)
    return (1 / (1 + np.exp(-snapshot.forward(x, np.zeros((50, 64), np.float32)).tier))).mean(axis=0)


def test_repeats_teach_nothing_and_a_users_verdict_takes_the_place_of_a_models(tmp_path):
    with contextlib.closing(rig.opened(tmp_path)) as log:
        for _ in range(3):
            for i in range(40):
                rig.put(log, *rig.turn(i))
        loop = rig.loop_on(tmp_path, log)
        loop.begin()
        while loop.turn():
            pass
        once = len(loop.learner.buffer)
        assert once < 40
        said = rig.turn(4)
        for i in range(8):
            user = dataclasses.replace(said[1], event_id=f"u{i}", by="user", score=0.0)
            rig.put(log, said[0], user)
        while loop.turn():
            pass
        assert len(loop.learner.buffer) + len(loop.holdout.sets(1)[0].tier) <= 40


def test_what_is_broken_becomes_a_dead_letter_and_the_rest_is_learned(tmp_path):
    with contextlib.closing(rig.opened(tmp_path)) as log:
        for i in range(60):
            rig.put(log, *rig.turn(i))
            log.append(JUDGEMENTS, f"t|s{i // 2}", b"not json", {})
        nan, verdict = rig.turn(99)
        route = dataclasses.replace(nan.route, features=np.full(128, np.nan, np.float32))
        rig.put(log, dataclasses.replace(nan, route=route), verdict)
        loop = rig.loop_on(tmp_path, log)
        loop.begin()
        while loop.turn():
            pass
        letters = log.read(dlq(JUDGEMENTS), 0, 0, 1000)
        assert len(letters) == loop.dead
        assert loop.dead >= 55
        assert len(loop.learner.buffer) > 30


def test_a_restored_loop_is_the_one_that_went_on(tmp_path):
    rig.fill(tmp_path, 300)
    with contextlib.closing(rig.opened(tmp_path)) as log:
        loop = rig.loop_on(tmp_path, log)
        loop.begin()
        for _ in range(40):
            loop.turn()
        again = rig.loop_on(tmp_path, log)
        again.begin()
        assert 0 < again.learned <= loop.learned
        while again.learned < loop.learned:
            assert again.turn()
        assert to_bytes(again.state()) == to_bytes(loop.state())


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.zeros(5, np.float32)},
        {"propensities": {}},
        {"propensities": {"tier": 0.0, "context_tokens": 1.0}},
        {"features": np.full(128, np.inf, np.float32)},
    ],
)
def test_numbers_that_can_not_be_are_skipped(change):
    interaction, verdict = rig.turn(1)
    route = dataclasses.replace(interaction.route, **change)
    with pytest.raises(Skip, match="interaction i1"):
        row(dataclasses.replace(interaction, route=route), verdict, rig.SLOTS)


@pytest.mark.parametrize(
    ("interaction", "verdict"),
    [
        ({"route": None}, {}),
        ({"degraded": ("tier:small→large",)}, {}),
        ({}, {"status": "unjudged", "score": None}),
    ],
)
def test_what_teaches_nothing_is_no_row(interaction, verdict):
    said, judged = rig.turn(1)
    made = row(dataclasses.replace(said, **interaction), dataclasses.replace(judged, **verdict), rig.SLOTS)
    assert made is None
    assert len(together([])["id"]) == 0


def test_what_the_exemplars_of_that_day_said_is_not_learned():
    interaction, verdict = rig.turn(1)
    features = interaction.route.features.copy()
    features[AT] = 0.5
    route = dataclasses.replace(interaction.route, features=features)
    made = row(dataclasses.replace(interaction, route=route), verdict, rig.SLOTS)
    assert not made["features"][:, AT].any()
    assert features[AT].all()


def test_while_the_log_is_away_nothing_is_taken_for_seen(tmp_path):
    rig.fill(tmp_path, 60)
    with contextlib.closing(rig.opened(tmp_path)) as log:
        whole = rig.loop_on(tmp_path / "whole", log)
        whole.begin()
        loop = rig.loop_on(tmp_path / "again", log)
        loop.begin()
        read, left = log.read, 7

        def flaky(topic, *rest):
            nonlocal left
            left -= topic == INTERACTIONS
            if not left:
                left = 7
                raise Retry("log", "away", "wait", retry_after_s=0.0)
            return read(topic, *rest)

        retries = 0
        while whole.turn():
            log.read = flaky
            while True:
                try:
                    assert loop.turn()
                    break
                except Retry:
                    retries += 1
            log.read = read
        assert retries > 3
        assert to_bytes(loop.state()) == to_bytes(whole.state())


def test_a_learner_whose_every_turn_was_deleted_goes_on(tmp_path):
    rig.fill(tmp_path, 120)
    with contextlib.closing(rig.opened(tmp_path)) as log:
        loop = rig.loop_on(tmp_path, log)
        loop.begin()
        for _ in range(15):
            loop.turn()
        assert loop.learner.ready
        assert loop.learner.forget(np.array([key("t")])) > 0
        assert len(loop.learner.buffer) == 0
        assert loop.turn()
        assert 0 < len(loop.learner.buffer) <= 4


def test_what_is_removed_from_the_memory_is_forgotten_here_and_stays_so_after_a_crash(tmp_path):
    receipts = []

    def receipt(number, **fields):
        return Receipt(receipt_id=f"r{number}", tenant="t", reason="test", asked_at=1.0, **fields)

    def unknown(known):
        return [each for each in receipts if each.receipt_id not in known]

    with contextlib.closing(rig.opened(tmp_path)) as log:
        for i in range(60):
            rig.put(log, *rig.turn(i))
            rig.put(log, *rig.turn(100 + i, tenant="other"))
        loop = rig.loop_on(tmp_path, log, removed=unknown)
        loop.begin()
        while loop.turn():
            pass
        before = kept(loop)
        assert {"i3", "i4"} <= before
        nodes = tuple(node_id("t", name, "interaction") for name in ("i3", "i4"))
        receipts.append(receipt(1, node_ids=nodes))
        assert loop.forget_removed() > 0
        assert kept(loop) == before - {"i3", "i4"}
        assert loop.forget_removed() == 0
        receipts.append(receipt(2, node_ids=(), whole_tenant=True))
        loop.forget_removed()
        assert kept(loop)
        assert all(int(name[1:]) >= 100 for name in kept(loop))
        again = rig.loop_on(tmp_path, log, removed=unknown)
        again.begin()
        assert kept(again) == kept(loop)
        assert again.forget_removed() == 0


def kept(loop):
    names = {key(f"{'t' if i < 100 else 'other'}|i{i}"): f"i{i}" for i in (*range(60), *range(100, 160))}
    columns = [loop.learner.buffer.state()["rows/id"]]
    columns += [value for name, value in loop.holdout.state().items() if name in ("rolling/id", "golden/id")]
    columns.append(loop.holdout.state()["old/rows/id"])
    return {names[int(one)] for column in columns for one in column}
