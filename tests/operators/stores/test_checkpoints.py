"""The checkpoint registry: what is read is what was published, damage is found, nothing in use is removed."""

from __future__ import annotations

import dataclasses
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from operators.errors import Reject, Stop
from operators.learning import rollout as changes
from operators.learning.rollout import Why
from operators.learning.weights import FILE, weights
from operators.networks.exemplars import Exemplars
from operators.networks.fastgrnn import Snapshot
from operators.networks.prior import prior
from operators.records import Rollout, decode
from operators.stores.checkpoints import Registry
from operators.stores.rollouts import Rollouts, announce
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import ROUTER_UPDATES, create_topics

WHY = Why("admin", 1e9, "a test")
FILES = {FILE: prior().to_bytes(), "learner.safetensors": bytes(range(256)) * 40}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "checkpoints", clock=lambda: 5.0)


def activate(registry: Registry, version: str) -> Rollout | None:
    return registry.rollouts.change(
        lambda now: changes.activate(changes.present(now, "router", "prior-1"), version, WHY)
    )


def test_what_is_published_is_read_again(registry: Registry) -> None:
    assert registry.versions() == []
    assert registry.newest_good() is None
    first = registry.publish(FILES, parent="prior-1", window={"t/0": (3, 9)}, metrics={"gate": {"passed": True}})
    second = registry.publish({FILE: b"x"}, parent=first, note="by hand")
    assert registry.versions() == [first, second] == ["router-000001", "router-000002"]
    assert {name: registry.read(first, name) for name in FILES} == FILES
    manifest = registry.manifest(first)
    assert (manifest.parent, manifest.created_at, manifest.window) == ("prior-1", 5.0, {"t/0": (3, 9)})
    assert manifest.metrics == {"gate": {"passed": True}}
    found = registry.newest_good()
    assert found is not None
    assert (found.version, found.manifest.note, found.passed_over) == (second, "by hand", ())
    assert weights(registry, first, prior()).checkpoint == first, "named by the registry, whatever the file says"
    exemplars = Exemplars.of(np.eye(3, 128, dtype=np.float32), np.full((3, 4), 0.5, np.float32))
    whole = Snapshot(prior().params, "x", exemplars, True)
    again = weights(registry, registry.publish({FILE: whole.to_bytes()}), prior())
    assert dataclasses.replace(again, checkpoint="x").to_bytes() == whole.to_bytes(), "with all it has"


def test_a_prefix_of_another_name_is_another_registry(tmp_path: Path) -> None:
    for name in ("router", "router-2"):
        assert Registry(tmp_path, name).publish(FILES) == f"{name}-000001"
        assert Registry(tmp_path, name).versions() == [f"{name}-000001"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "manifest.json", "STABLE"])
def test_names_that_lead_elsewhere_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(Reject, match="plain name"):
        registry.publish({name: b""})
    with pytest.raises(Stop, match="there is no"):
        registry.read(f"../{name}", FILE)
    with pytest.raises(Stop, match="has no file"):
        registry.read(registry.publish(FILES), name)


def test_every_flipped_byte_and_every_cut_is_found_and_the_version_before_is_given(registry: Registry) -> None:
    good = registry.publish({name: data[:4000] for name, data in FILES.items()})
    bad = registry.publish({name: data[:4000] for name, data in FILES.items()}, parent=good, note="n" * 500)
    paths = sorted(path for path in (registry.root / bad).iterdir())
    assert {path.name for path in paths} == {*FILES, "manifest.json", "STABLE"}
    draw = random.Random(3)
    for harm in ["flip"] * 200 + ["cut"] * 50:
        path = draw.choice(paths)
        data = path.read_bytes()
        at = draw.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]
        path.write_bytes(flipped if harm == "flip" else data[:at])
        found = registry.newest_good()
        assert found is not None
        assert found.version == good, (harm, path.name, at)
        assert len(found.passed_over) == 1
        assert bad in found.passed_over[0]
        if path.suffix == ".safetensors":
            with pytest.raises(Stop, match="damaged"):
                registry.read(bad, path.name)
        path.write_bytes(data)
    found = registry.newest_good()
    assert found is not None
    assert found.version == bad, "whole again"
    for version in (good, bad):
        (registry.root / version / FILE).unlink()
    with pytest.raises(Stop, match="none is whole"):
        registry.newest_good()


def test_two_writers_at_once_never_get_one_number(tmp_path: Path) -> None:
    ready = threading.Barrier(8)

    def write(writer: int) -> list[tuple[str, bytes]]:
        registry, mine = Registry(tmp_path), []
        ready.wait()
        for n in range(5):
            data = f"{writer} {n}".encode()
            mine.append((registry.publish({FILE: data}), data))
        return mine

    with ThreadPoolExecutor(8) as pool:
        written = [pair for mine in pool.map(write, range(8)) for pair in mine]
    assert sorted(version for version, _ in written) == [f"router-{n:06d}" for n in range(1, 41)]
    assert all(Registry(tmp_path).read(version, FILE) == data for version, data in written)


def test_prune_keeps_what_is_in_use(registry: Registry) -> None:
    made = [registry.publish(FILES, parent=f"router-{n:06d}" if n else "prior-1") for n in range(9)]
    activate(registry, made[1])
    activate(registry, made[3])  # its parent is made[2]; made[1] is what a rollback goes back to
    registry.rollouts.change(lambda now: changes.offer(changes.present(now, "router", ""), made[4], WHY))
    registry.pin(made[5])
    assert registry.prune(1) == [made[0], made[6], made[7]]
    assert registry.versions() == [*made[1:6], made[8]]
    registry.pin(made[5], keep=False)
    assert registry.prune(1) == [made[5]]
    assert registry.prune(1) == []
    shutil.rmtree(registry.root / made[8])
    shutil.rmtree(registry.root / made[4])
    activate(registry, made[2])
    assert registry.publish(FILES) == made[4], "the number of what is gone and never acted"
    shutil.rmtree(registry.root / made[4])
    shutil.rmtree(registry.root / made[3])
    assert registry.publish(FILES) == made[4], "a number that once acted is not given again"


def test_what_a_killed_publisher_left_is_not_seen_and_goes(registry: Registry) -> None:
    whole = registry.publish(FILES)
    left = registry.root / "router-000002"
    shutil.copytree(registry.root / whole, left)
    (left / "STABLE").unlink()
    (registry.root / ".router-000003.new").mkdir()
    assert registry.versions() == [whole]
    with pytest.raises(Stop, match="there is no 'router-000002'"):
        registry.manifest("router-000002")
    assert registry.prune(5) == []
    assert not left.exists()
    assert not (registry.root / ".router-000003.new").exists()


# ------------------------------------------------------------------------------------------ what acts


def test_a_rollout_is_kept_with_its_history(registry: Registry) -> None:
    assert registry.rollouts.current() is None
    one, two = registry.publish(FILES), registry.publish(FILES)
    for version in (one, two):
        activate(registry, version)
    registry.rollouts.change(lambda now: changes.roll_back(changes.present(now, "router", ""), WHY))
    history = registry.rollouts.history()
    assert [(each.version, each.active, each.before) for each in history] == [
        (1, one, ("prior-1",)),
        (2, two, (one, "prior-1")),
        (3, one, ("prior-1",)),
    ]
    now = Rollouts(registry.root).current()
    assert now is not None
    assert (now.event_id, now.reason, now.by) == (history[-1].event_id, "a test", "admin")
    assert registry.rollouts.change(lambda now: None) is None
    with pytest.raises(Stop, match="make it from the present one"):
        registry.rollouts.change(lambda now: history[0])


def test_a_damaged_rollout_is_not_believed(registry: Registry) -> None:
    version = registry.publish(FILES)
    activate(registry, version)
    path = registry.rollouts.path
    data, draw = path.read_bytes(), random.Random(1)
    for _ in range(200):
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :])
        now = registry.rollouts.current()
        assert now is not None
        assert now.active == version, "its log has it"
    log = path.with_name("rollouts-router.jsonl")
    log.write_bytes(log.read_bytes()[:-9])
    with pytest.raises(Stop, match="damaged"):
        registry.rollouts.current()
    with pytest.raises(Stop, match="damaged"):
        registry.prune(1)
    path.write_bytes(data)
    activate(registry, "prior-1")
    assert [each.active for each in registry.rollouts.history()] == [version, "prior-1"], "the cut line is written anew"


def test_changes_at_once_are_made_one_after_the_other(registry: Registry) -> None:
    def freeze(n: int) -> None:
        frozen = n % 2 == 0
        Rollouts(registry.root).change(
            lambda now: changes.freeze(changes.present(now, "router", "prior-1"), WHY, frozen=frozen)
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(freeze, range(24)))
    assert [each.version for each in registry.rollouts.history()] == list(range(1, 25))


def test_the_topic_is_told_every_change_once_and_what_it_missed(registry: Registry, tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "events.sqlite")
    log.open()
    create_topics(log)
    assert announce(log, registry.rollouts) == 0
    activate(registry, "router-000001")
    assert announce(log, registry.rollouts) == 1
    activate(registry, "router-000002")
    activate(registry, "router-000003")
    # of another router, so that the last of ours stands far back
    log.append_many(ROUTER_UPDATES, [("other", b"{}", {})] * 600)
    assert announce(log, registry.rollouts) == 2
    assert announce(log, registry.rollouts) == 0
    events = [event for event in log.read(ROUTER_UPDATES, 0, 0, 9999) if event.key == "router"]
    told = [decode(Rollout, event.value) for event in events]
    assert [(each.version, each.active) for each in told] == [(n, f"router-{n:06d}") for n in (1, 2, 3)]
    assert [event.headers["ce_id"] for event in events] == [each.event_id for each in registry.rollouts.history()]
    log.close()


def test_a_newer_schema_is_not_read(registry: Registry) -> None:
    activate(registry, "router-000001")

    def newer(now: Rollout | None) -> Rollout:
        assert now is not None
        return dataclasses.replace(now, version=2, schema_version=99)

    registry.rollouts.change(newer)
    registry.rollouts.path.with_name("rollouts-router.jsonl").unlink()
    with pytest.raises(Stop, match="schema_version 99"):
        registry.rollouts.current()


def test_weights_of_another_kind_are_refused(registry: Registry) -> None:
    with pytest.raises(Stop, match="no router checkpoint"):
        weights(registry, registry.publish({FILE: b"noise"}), prior())
    start = Snapshot(prior().params, "mine")
    assert weights(registry, "mine", start) is start
    assert weights(registry, "prior-0", start) is start, "what an older release started with"
    with pytest.raises(Stop, match="there is no 'router-000009'"):
        weights(registry, "router-000009", start)
    assert not np.shares_memory(weights(registry, registry.publish(FILES), start).params["w"], prior().params["w"])
