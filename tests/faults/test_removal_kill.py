"""kill −9 at every step of a removal: the next start finishes it, and nothing of it is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from operators.stores import removal
from operators.stores.consistency import check
from tests.operators.stores.memory_kit import NODES, SECRET, SECRETS, build, files_with, shown

ROOT = Path(__file__).parents[2]
# The real stores and the real removal; the process says which step is done, and kills itself at the one it was told.
JOB = """
import os, signal, sys
from pathlib import Path
from operators.stores import removal
from tests.operators.stores.memory_kit import NODES, SECRETS, build

def at(step):
    print(step, flush=True)
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

memory = build(Path(sys.argv[1]))
memory.add("acme", NODES)
memory.add("umbra", NODES)
memory.at = at
removal.remove(memory, "acme", SECRETS, "asked to", purge=True)
"""
STEPS = ["intent", "removed vectors", "removed from graph", "removed from snapshot"]


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_removal_is_finished_by_the_next_start(tmp_path: Path, step: str) -> None:
    command = [sys.executable, "-c", JOB, str(tmp_path), step]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    assert done.stdout.splitlines() == STEPS[: STEPS.index(step) + 1], "it worked until it was killed"
    assert list((tmp_path / "removing").iterdir()), "the intent waits"
    memory = build(tmp_path)
    (receipt,) = removal.receipts(memory, "acme")
    assert (set(receipt.node_ids), receipt.purged) == (set(SECRETS), True)
    view, other = shown(memory), shown(memory, "umbra")
    left = {n.node_id for n in NODES} - set(SECRETS)
    assert set(view["nodes"]) == view["graph"] == set(view["snapshot"]) == left
    assert set(view["gone"]) == set(SECRETS)
    assert check(memory, "acme").sound
    assert {n.node_id for n in NODES} == set(other["nodes"]) == other["graph"] == set(other["snapshot"])
    assert list((tmp_path / "removing").iterdir()) == []
    held = files_with(tmp_path, SECRET)
    assert held
    assert all("umbra" in path for path in held)
    memory.close()
