"""Replay on a real log: the window, the archive, judging, training and estimating anew; killed in the middle, too."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from conf.load import load
from jobs.evidence import Tally
from jobs.learning.turns import row
from jobs.ray_workers import Workers
from jobs.replay import main
from jobs.replaying.archive import Archive
from jobs.replaying.read import read
from jobs.replaying.rejudge import fingerprint, publish, rejudge, verdict_id
from jobs.replaying.retrain import REPLAY, retrain
from jobs.replaying.standing import standing
from jobs.replaying.turns import turns
from jobs.replaying.window import Window, ranges
from operators.documents import node_id
from operators.errors import Reject
from operators.judge import Judge
from operators.learning.weights import FILE
from operators.records import Verdict, decode, encode
from operators.stores.checkpoints import Registry
from operators.stores.removal import Receipt
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, create_topics, session_key
from tests import learn_rig as rig

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0
NAMES = {"small": "135M", "large": "270M"}
SETS = (
    "replay.workers=0", "replay.nice=0", "replay.fit.epochs=2", "replay.rounds=200", "route.deterministic=false",
    "route.epsilon=0.05", "promotion.gate.min_turns=20", "promotion.gate.rounds=200", "learn.holdout.share=0.3",
)  # fmt: skip


def turn(i, **options):
    interaction, verdict = rig.turn(i, **options)
    route = dataclasses.replace(interaction.route, tier=NAMES[interaction.route.tier])
    return dataclasses.replace(interaction, route=route), verdict


def settings_of(root, *more):
    sets = [f"data_dir={root}", f"events.path={root}/events.db", *SETS, *more]
    return load("test", overrides=sets, env={}).settings


@contextlib.contextmanager
def opened(root, clock=time.time):
    """The log; ``clock`` says when it takes events."""
    log = SqliteLog(Path(root) / "events.db", clock=clock)
    log.open()
    create_topics(log, 2)
    with contextlib.closing(log):
        yield log


def fill(root, n, first=0, **options):
    """Turns and their verdicts, as ``rig.put`` writes them, in two transactions."""
    made = [turn(i, **options) for i in range(first, first + n)]
    keys = [session_key(one.tenant, one.session) for one, _ in made]
    with opened(root) as log:
        said = [(key, encode(one), {}) for key, (one, _) in zip(keys, made, strict=True)]
        places = log.append_many(INTERACTIONS, said)
        log.append_many(
            JUDGEMENTS,
            [
                (key, encode(verdict), {"src.partition": str(partition), "src.offset": str(offset)})
                for key, (_, verdict), (partition, offset) in zip(keys, made, places, strict=True)
            ],
        )


def taken(path, settings, window=None, like=None):
    archive = Archive(Path(path))
    with Workers(settings.replay.workers, 1 << 28, "replay") as workers:
        read(archive, settings, window or Window(), workers, like=like)
    return archive


def removed(root, name, **facts):
    folder = Path(root) / "memory" / "removed"
    folder.mkdir(parents=True, exist_ok=True)
    receipt = Receipt(receipt_id=name, tenant="t", reason="asked", asked_at=1.0, **{"node_ids": (), **facts})
    (folder / f"{name}.json").write_bytes(encode(receipt))


# -------------------------------------------------------------------------------------------------- window and archive


def test_the_same_window_gives_the_same_digest_however_it_is_cut_and_whatever_comes_later(tmp_path):
    fill(tmp_path, 40)
    first = taken(tmp_path / "a", settings_of(tmp_path, "replay.part_events=7"))
    manifest = first.complete()
    assert sum(one.kept for one in manifest.read.values()) == 80
    assert {name: after for name, (_, after) in manifest.ranges.items()} == {
        name: one.last + 1 for name, one in manifest.read.items()
    }
    fill(tmp_path, 5, 40)
    again = taken(tmp_path / "b", settings_of(tmp_path, "replay.part_events=1000"), like=first)
    assert again.complete().digest == manifest.digest
    later = taken(tmp_path / "c", settings_of(tmp_path))
    assert later.complete().digest != manifest.digest
    assert [e.value for e in again.events(INTERACTIONS)] == [e.value for e in first.events(INTERACTIONS)]
    assert not (tmp_path / "a" / "events").stat().st_mode & 0o077


def test_a_part_that_is_missing_is_read_again_and_what_is_there_is_not(tmp_path):
    fill(tmp_path, 40)
    settings = settings_of(tmp_path, "replay.part_events=8")
    archive = taken(tmp_path / "a", settings)
    whole, manifest = archive.complete().digest, archive.complete()
    parts = sorted((tmp_path / "a" / "events").glob("*.parquet"))
    times = {part: part.stat().st_mtime_ns for part in parts}
    for part in parts[::3]:
        part.unlink()
    begun = dataclasses.replace(manifest, complete=False, read={}, digest="")
    (tmp_path / "a" / "manifest.json").write_bytes(encode(begun))
    fill(tmp_path, 3, 40)  # what came meanwhile is not of this window
    taken(tmp_path / "a", settings)
    assert archive.complete().digest == whole
    assert [part for part in parts if part.stat().st_mtime_ns == times[part]] == [
        part for i, part in enumerate(parts) if i % 3
    ]


def test_windows_of_time_offsets_and_tenant(tmp_path):
    now = 1000.0
    with opened(tmp_path, clock=lambda: now) as log:
        for i in range(30):
            now = 1.8e9 + 3600 * i
            rig.put(log, *turn(i, tenant="ann" if i % 3 else "bob"))
        assert sum(after - first for first, after in interactions(ranges(log, Window()))) == 30
        noon = "2027-01-15T12:00"  # 1.8e9 is 08:00 of that day
        assert sum(a - f for f, a in interactions(ranges(log, Window(end=noon)))) == 4
        zoned = Window(begin="2027-01-15T13:00+01:00", end="2027-01-15T16:00:00+00:00")
        assert sum(a - f for f, a in interactions(ranges(log, zoned))) == 4
        one = ranges(log, Window(begin="1:2", end="1:5"))
        assert {name: at for name, at in one.items() if INTERACTIONS in name} == {f"{INTERACTIONS}/1": (2, 5)}
        log.retain(INTERACTIONS, max_events=4)
        assert all(after - first == 4 for first, after in interactions(ranges(log, Window())))
        for bad in (Window(begin="soon"), Window(begin="0:1", end="1:2"), Window(begin="7:0")):
            with pytest.raises(Reject):
                ranges(log, bad)
    settings = settings_of(tmp_path)
    archive = taken(tmp_path / "a", settings, Window(tenant="bob"))
    assert {event.key.split("|")[0] for event in archive.events(JUDGEMENTS)} == {"bob"}
    told = archive.complete().read
    assert sum(one.other_tenants for name, one in told.items() if INTERACTIONS in name) > 0
    assert sum(one.outside for name, one in told.items() if JUDGEMENTS in name) > 0, "verdicts on what retention took"
    with pytest.raises(Reject, match="another window"):
        taken(tmp_path / "a", settings, Window(tenant="ann"))


def interactions(found):
    return [at for name, at in found.items() if name.startswith(INTERACTIONS)]


def test_what_was_removed_is_neither_read_nor_learned_again(tmp_path):
    fill(tmp_path, 20)
    settings = settings_of(tmp_path)
    before = taken(tmp_path / "a", settings)
    removed(tmp_path, "r1", node_ids=(node_id("t", "i3", "interaction"), node_id("t", "i4", "interaction")))
    columns, counts = turns(before, settings, rejudged=False)
    assert (len(columns["id"]), counts.removed) == (18, 2)
    after = taken(tmp_path / "b", settings)
    assert {f"i{i}" for i in range(20)} - {key[1] for key in standing(after)} == {"i3", "i4"}
    assert not any(b'"i3"' in event.value for event in after.events(INTERACTIONS))
    removed(tmp_path, "r2", whole_tenant=True, done_at=time.time())
    fill(tmp_path, 2, 20)  # the tenant came back
    columns, _ = turns(taken(tmp_path / "c", settings), settings, rejudged=False)
    assert len(columns["id"]) == 2


@pytest.mark.skipif(os.environ.get("RUVLLM_TEST_FAULTS") != "all", reason="starts Ray twice: make faults")
@pytest.mark.slow
def test_killed_in_the_middle_on_ray_and_gone_on_with_it_holds_the_same(tmp_path):
    fill(tmp_path, 60)
    sets = [f"data_dir={tmp_path}", f"events.path={tmp_path}/events.db", *SETS, "replay.part_events=1"]
    options = ["--profile", "test", "--json", *(word for one in sets for word in ("--set", one))]
    folder = tmp_path / "killed"
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.replay", "read", str(folder), *options, "--set", "replay.workers=1"], cwd=ROOT
    )
    try:
        deadline = time.monotonic() + WAIT_S
        while len(list(folder.glob("events/*.parquet"))) < 3:
            assert job.poll() is None, "it ended too early"
            assert time.monotonic() < deadline, "no part was read"
    finally:
        family = psutil.Process(job.pid).children(recursive=True)
        assert any(process.name() == "raylet" for process in family), "it runs on Ray"
        for process in [job, *family]:  # as when the machine goes
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        job.wait(30)
    done = len(list(folder.glob("events/*.parquet")))
    assert 3 <= done < 120, "the middle"
    assert not Archive(folder).manifest().complete
    command = [sys.executable, "-m", "pipeline.cli", "replay", "read", str(folder), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert ended.returncode == 0, ended.stderr
    whole = taken(tmp_path / "whole", settings_of(tmp_path)).complete()
    told = json.loads(ended.stdout)
    assert told["digest"] == whole.digest
    assert told["read"] == json.loads(encode(whole))["read"]
    assert not list(folder.glob("events/.*")), "no halves are left"


# ---------------------------------------------------------------------------------------------------- judging it anew


class Strict(Judge):
    """A judge without a model: 0.25 for all, and it can't rate the third."""

    def __init__(self, settings, broken_at=None):
        super().__init__(Judge.Config(), engine=None)
        self.judged, self.broken_at = [], broken_at

    async def start(self):
        pass

    async def close(self):
        pass

    async def run(self, batch):
        (one,) = batch
        if len(self.judged) == self.broken_at:
            raise RuntimeError("the machine is off")
        self.judged.append(one.interaction_id)
        status, score = ("unjudged", None) if one.interaction_id == "i2" else ("judged", 0.25)
        verdict = Verdict(
            event_id="x", interaction_id=one.interaction_id, tenant=one.tenant, session=one.session,
            created_at=time.time(), status=status, score=score, uncertainty=0.1, judge="strict",
        )  # fmt: skip
        return [verdict]


def judged(archive, settings, judge):
    with Workers(settings.replay.workers, 1 << 28, "replay") as workers:
        return rejudge(archive, settings, workers, make=lambda settings: judge)


def test_judging_goes_on_where_it_was_and_says_the_same(tmp_path):
    fill(tmp_path, 12)
    settings = settings_of(tmp_path, "replay.slice_events=2", "replay.part_events=5")
    whole = judged(taken(tmp_path / "a", settings), settings, Strict(settings))
    assert (whole["judged"], whole["unjudged"], whole["judge"]) == (11, 1, ["strict"])
    assert whole["mean"] == 0.25
    archive, broken = taken(tmp_path / "b", settings), Strict(settings, broken_at=3)
    with pytest.raises(RuntimeError, match="off"):
        judged(archive, settings, broken)
    rest = Strict(settings)
    assert judged(archive, settings, rest)["digest"] == whole["digest"]
    assert len(rest.judged) == 12 - 2, "one slice was done, half of the second was not kept"
    idle = Strict(settings)
    judged(archive, settings, idle)
    assert idle.judged == []


def test_new_verdicts_are_published_once_and_a_users_stands(tmp_path):
    fill(tmp_path, 12)
    settings = settings_of(tmp_path)
    archive = taken(tmp_path / "a", settings)
    judged(archive, settings, Strict(settings))
    with opened(tmp_path) as log:
        said = turn(7)
        rig.put(log, said[0], dataclasses.replace(said[1], event_id="u7", by="user", score=1.0))
    removed(tmp_path, "r1", node_ids=(node_id("t", "i5", "interaction"),))
    assert publish(archive, settings) == 10
    assert publish(archive, settings) == 0
    named = fingerprint(settings)
    with opened(tmp_path) as log:
        events = [event for p in range(2) for event in log.read(JUDGEMENTS, p, 0, 1000)]
        new = [event for event in events if event.headers.get("ce_source") == "/ruvllm/replay"]
        made = {verdict.interaction_id: (event, verdict) for event in new for verdict in [decode(Verdict, event.value)]}
        assert made.keys() == {f"i{i}" for i in range(12)} - {"i5", "i7"}
        event, verdict = made["i4"]
        assert verdict.event_id == event.headers["ce_id"] == verdict_id("e4", named)
        assert verdict.replaces == "v4"
        place = int(event.headers["src.partition"]), int(event.headers["src.offset"])
        (origin,) = log.read(INTERACTIONS, *place, 1)
        assert b'"i4"' in origin.value
    assert len({verdict_id("e4", named), verdict_id("e4", "another judge"), verdict_id("e5", named)}) == 3


def test_rejudged_turns_have_the_new_scores_and_users_theirs(tmp_path):
    fill(tmp_path, 12, score=1.0)
    with opened(tmp_path) as log:
        said = turn(7)
        rig.put(log, said[0], dataclasses.replace(said[1], event_id="u7", by="user", score=0.9))
        rig.put(log, said[0], dataclasses.replace(said[1], event_id="late", score=0.1))
    settings = settings_of(tmp_path)
    archive = taken(tmp_path / "a", settings)
    with pytest.raises(Reject, match="judge first"):
        turns(archive, settings, rejudged=True)
    judged(archive, settings, Strict(settings))
    old, counts = turns(archive, settings, rejudged=False)
    assert sorted(old["quality"].max(axis=1).tolist()) == pytest.approx([0.9] + [1.0] * 11)
    assert counts.repeats == 2
    new, counts = turns(archive, settings, rejudged=True)
    assert sorted(new["quality"].max(axis=1).tolist()) == pytest.approx([0.25] * 10 + [0.9])
    assert counts.unjudged == 1


def test_a_verdict_that_replaces_another_is_no_new_traffic_and_other_tiers_answers_make_a_turn_whole(tmp_path):
    interaction, verdict = turn(1)
    tally = Tally(100)
    tally.add(interaction, verdict)
    tally.add(interaction, dataclasses.replace(verdict, event_id="w", score=0.0, replaces=verdict.event_id))
    assert tally.evidence().verdicts == {"prior-2": [verdict.score]}
    slots = {"135M": 0, "270M": 1}
    other = "270M" if interaction.route.tier == "135M" else "135M"
    made = row(interaction, dataclasses.replace(verdict, score=0.5, others={other: 0.75, "gone": 0.1}), slots)
    assert made["known"].tolist() == [[1, 1, 0, 0]]
    assert made["quality"][0, slots[other]] == 0.75
    assert made["quality"][0, slots[interaction.route.tier]] == 0.5
    with contextlib.closing(rig.opened(tmp_path)) as log:
        for i in range(40):
            rig.put(log, *rig.turn(i))
        loop = rig.loop_on(tmp_path, log)
        loop.begin()
        while loop.turn():
            pass
        known = len(loop.learner.buffer)
        for i in range(8):  # one session's partition, a whole batch
            one, said = rig.turn(i // 2 * 2, session="s0")
            whole = dataclasses.replace(
                said, event_id=f"w{i}", replaces=said.event_id, others={"small": 1.0, "large": 0.5}
            )
            rig.put(log, one, whole)
        while loop.turn():
            pass
        assert len(loop.learner.buffer) == known


# ------------------------------------------------------------------------------------------- training and estimating


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A log of 240 turns, and an archive of it."""
    root = tmp_path_factory.mktemp("world")
    fill(root, 240)
    settings = settings_of(root)
    return root, settings, taken(root / "a", settings)


def test_training_from_scratch_is_the_same_twice_and_handed_in_once(world):
    root, settings, archive = world
    first = retrain(archive, settings, rejudged=False, publish=False)
    registry = Registry(root / "checkpoints")
    assert registry.versions() == []
    twin = taken(root / "twin", settings_of(root, "replay.part_events=9"))
    second = retrain(twin, settings, rejudged=False, publish=True)
    assert second["weights"] == first["weights"]
    assert second["version"] == "router-000001"
    third = retrain(archive, settings, rejudged=False, publish=True)
    assert registry.versions() == [third["version"]]
    about = registry.manifest("router-000001")
    assert about.metrics[REPLAY]["weights"] == first["weights"]
    assert about.metrics["gate"]["passed"] is second["gate"]["passed"]
    assert about.window == archive.complete().ranges
    kept = (archive.path / f"retrained-{first['weights'][:12]}.safetensors").read_bytes()
    assert registry.read("router-000001", FILE) == kept
    if second["gate"]["passed"]:
        assert registry.rollouts.current().shadow == "router-000001"


def test_too_few_turns_held_out_are_refused(tmp_path):
    fill(tmp_path, 30)
    settings = settings_of(tmp_path)
    with pytest.raises(Reject, match="held out"):
        retrain(taken(tmp_path / "a", settings), settings, rejudged=False, publish=True)


def test_estimates_from_the_command_line(world, capsys):
    root, settings, archive = world
    if not Registry(root / "checkpoints").versions():
        retrain(archive, settings, rejudged=False, publish=True)
    sets = [f"data_dir={root}", f"events.path={root}/events.db", *SETS]
    options = ["--profile", "test", *(word for one in sets for word in ("--set", one))]

    def said(*more):
        main(["estimate", str(archive.path), *options, *more])
        return capsys.readouterr().out

    told = json.loads(said("--json", "--checkpoint", "prior-2"))
    scores = [turn(i)[1].score for i in range(240)]
    assert told["logged"]["quality"]["mean"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert (told["turns"], told["held_out_only"]) == (240, False)
    prior = told["checkpoints"]["prior-2"]
    assert prior["dr"]["low"] < prior["dr"]["mean"] < prior["dr"]["high"]
    assert 100 < prior["effective_turns"] <= 240
    assert json.loads(said("--json", "--checkpoint", "prior-2")) == told
    flattered = json.loads(said("--json", "--checkpoint", "router-000001", "--checkpoint", "prior-2"))
    assert flattered["held_out_only"]
    assert 40 < flattered["turns"] < 110, "the sessions that it did not learn from"
    lines = said("--checkpoint", "prior-2").splitlines()
    assert lines[0].split()[:3] == ["IPS", "SNIPS", "DR"]
    assert lines[2].startswith("prior-2")
    assert list(archive.path.glob("estimate-*.json"))
    with pytest.raises(SystemExit) as ended:
        main(["estimate", str(archive.path), *options, "--checkpoint", "router-000009"])
    assert ended.value.code == 2
    assert "router-000009" in capsys.readouterr().err
