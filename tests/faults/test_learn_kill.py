"""kill −9 of the learner at every point: started again, it ends with the very bytes of a run that nobody killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from operators.learning.weights import FILE
from operators.stores.checkpoints import Registry
from tests import learn_rig as rig

ROOT = Path(__file__).parents[2]
TURNS = 200
ALL = os.environ.get("RUVLLM_TEST_FAULTS") == "all"
POINTS = [("candidate", 1)]
MORE = (
    [("learned", 31), ("saved", 2), ("learned", 1), ("learned", 7), ("candidate", 2), ("saved", 1), ("saved", 6)]
    if ALL
    else []
)


def run(root, *fault):
    command = [sys.executable, "-m", "tests.learn_rig", str(root), *map(str, fault)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def outcome(root):
    """The newest state, byte for byte, and what was published: every candidate's weights, in order."""
    states, registry = (Registry(root / "checkpoints", name) for name in ("learner", "router"))
    newest = states.newest_good().version
    published = [registry.read(version, FILE) for version in registry.versions()]
    return states.read(newest, "state.safetensors"), published


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    rig.fill(root, TURNS)
    done = run(root)
    assert done.returncode == 0, done.stderr
    made = outcome(root)
    assert made[1]
    return made


@pytest.mark.parametrize(("point", "count"), POINTS + MORE)
def test_a_killed_learner_ends_as_one_that_was_not(tmp_path, uninterrupted, point, count):
    rig.fill(tmp_path, TURNS)
    killed = run(tmp_path, point, count)
    assert "learning" in killed.stdout
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path) == uninterrupted
