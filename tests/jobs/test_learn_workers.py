"""The learner on two workers: each reads its partitions, both end with the same state, and so they do after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from operators.learning.arrays import from_bytes
from operators.stores.checkpoints import Registry
from tests import learn_rig as rig
from tests.service import free_port

ROOT = Path(__file__).parents[2]
TURNS = 200
POINTS = [("saved", 2), ("learned", 9), ("candidate", 1)] if os.environ.get("RUVLLM_TEST_FAULTS") == "all" else []


def run(root, *fault):
    """Both workers, the fault in the first one; their processes, ended."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    made = []
    for rank in (0, 1):
        command = [sys.executable, "-m", "tests.learn_rig", str(root), *(map(str, fault) if rank == 0 else ())]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        made.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | group | {"RANK": str(rank)}, **pipes))
    return [(one, *one.communicate(timeout=240)) for one in made]


def saved(root):
    states = Registry(root / "checkpoints", "learner")
    return states.read(states.newest_good().version, "state.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    rig.fill(root, TURNS)
    done = run(root)
    for process, _, errors in done:
        assert process.returncode == 0, errors
    return root, [out.splitlines()[-1].split() for _, out, _ in done]


def test_both_workers_end_with_the_same_state_and_have_learned_what_one_learns(whole, tmp_path):
    root, (first, second) = whole
    assert first == second
    rig.fill(tmp_path, TURNS)
    alone = rig.learn_all(tmp_path)
    assert first[:2] == [str(alone.learned), rig.had(alone)]
    assert Registry(root / "checkpoints").versions(), "the first one publishes"
    positions = from_bytes(saved(root))["positions"]
    assert positions.min() > 0


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_killed_workers_end_as_those_that_were_not(whole, tmp_path, point, count):
    rig.fill(tmp_path, TURNS)
    (first, out, _), (second, _, _) = run(tmp_path, point, count)
    assert "learning" in out
    assert first.returncode == -signal.SIGKILL
    assert second.returncode != 0, "it can't go on alone"
    done = run(tmp_path)
    assert [out.splitlines()[-1].split() for _, out, _ in done] == whole[1]
    assert saved(tmp_path) == saved(whole[0])
