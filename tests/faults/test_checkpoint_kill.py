"""kill −9 between any two steps of publishing and rolling out: what is seen is whole, or is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from operators.learning import rollout as changes
from operators.learning.rollout import Why
from operators.stores.checkpoints import Registry

ROOT = Path(__file__).parents[2]
WHY = Why("admin", 0.0, "a test")
# The real registry; the process says which step is done, and kills itself at the one it was told.
JOB = """
import os, signal, sys
from pathlib import Path
from operators.learning import rollout as changes
from operators.learning.rollout import Why
from operators.stores.checkpoints import Registry

left = int(sys.argv[2])

def at(step):
    global left
    print(step, flush=True)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

registry = Registry(Path(sys.argv[1]), at=at)
version = registry.publish({"router.safetensors": b"r" * 9000, "learner.safetensors": b"l" * 9000})
make = lambda now: changes.activate(changes.present(now, "router", "prior-1"), version, Why("learn", 1.0, "the job"))
registry.rollouts.change(make)
"""
PUBLISHED = ["wrote router.safetensors", "wrote learner.safetensors", "wrote manifest", "renamed", "marked"]
STEPS = [*PUBLISHED, "rollout", "logged"]
SOME = ["wrote manifest", "renamed", "rollout"]
"""Where most is half done; ``RUVLLM_TEST_FAULTS=all`` takes every step."""


@pytest.mark.parametrize("step", STEPS if os.environ.get("RUVLLM_TEST_FAULTS") == "all" else SOME)
def test_a_killed_publisher_leaves_a_whole_checkpoint_or_none(tmp_path: Path, step: str) -> None:
    last = STEPS.index(step) + 1
    registry = Registry(tmp_path)
    first = registry.publish({"router.safetensors": b"first"})
    registry.rollouts.change(lambda now: changes.activate(changes.present(now, "router", "prior-1"), first, WHY))
    command = [sys.executable, "-c", JOB, str(tmp_path), str(last)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    assert done.stdout.splitlines() == STEPS[:last], "it worked until it was killed"

    second, there = "router-000002", last >= len(PUBLISHED)
    assert registry.versions() == ([first, second] if there else [first])
    found, now = registry.newest_good(), registry.rollouts.current()
    assert found is not None
    assert now is not None
    assert (found.version, found.passed_over) == (second if there else first, ())
    rolled_out = last > len(PUBLISHED)
    assert now.active == (second if rolled_out else first)
    assert [each.active for each in registry.rollouts.history()] == ([first, second] if rolled_out else [first])

    # the next one goes on from there, and nothing that was left is in its way
    third = registry.publish({"router.safetensors": b"third"})
    assert third == ("router-000003" if there else second)
    registry.rollouts.change(lambda now: changes.activate(changes.present(now, "router", ""), third, WHY))
    assert [each.version for each in registry.rollouts.history()] == list(range(1, 4 if rolled_out else 3))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".new"] == []
    lines = (tmp_path / "rollouts-router.jsonl").read_bytes().splitlines()
    assert len(lines) == len(registry.rollouts.history()), "the log has what the crash kept from it"
