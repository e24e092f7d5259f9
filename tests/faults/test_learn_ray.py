"""The learner's job with two workers of Ray Train, as a process of its own: it learns, and ends when it is told to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.load import load
from operators.learning.arrays import from_bytes
from operators.stores.checkpoints import Registry
from operators.stores.make import open_log
from operators.stores.topics import JUDGEMENTS, create_topics
from tests import learn_rig as rig

ROOT = Path(__file__).parents[2]
DEADLINE_S = 180.0


@pytest.mark.skipif(os.environ.get("RUVLLM_TEST_FAULTS") != "all", reason="starts Ray, some 40 s: make faults")
def test_two_workers_of_ray_train_learn_from_all_partitions(tmp_path):
    knobs = [
        f"data_dir={tmp_path}",
        "learn.workers=2",
        "learn.nice=0",
        "learn.batch=4",
        "learn.save_turns=8",
        "learn.learner.gather=16",
    ]
    settings = load("test", overrides=knobs, env={}).settings
    log = open_log(settings.events)
    create_topics(log, 2)
    for i in range(120):
        first, verdict = rig.turn(i)
        rig.put(log, first, verdict)
    ends = {partition: log.end(JUDGEMENTS, partition) for partition in (0, 1)}
    log.close()
    command = [sys.executable, "-m", "jobs.learn", "--profile", "test"]
    words = [word for knob in knobs for word in ("--set", knob)]
    with (tmp_path / "log").open("w") as out:
        job = subprocess.Popen([*command, *words], cwd=ROOT, stdout=out, stderr=out)
    states = Registry(tmp_path / "checkpoints", "learner")
    try:
        until, positions = time.monotonic() + DEADLINE_S, {}
        while any(ends[p] - positions.get(p, 0) >= 12 for p in ends):
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            assert job.poll() is None, (tmp_path / "log").read_text()
            found = states.newest_good() if states.versions() else None
            if found:
                state = from_bytes(states.read(found.version, "state.safetensors"))
                positions = dict(enumerate(state["positions"].tolist()))
            time.sleep(0.2)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        if job.poll() is None:
            job.kill()
