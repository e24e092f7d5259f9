"""kill −9 at every numbered step of writing back: afterwards each answer is remembered once, with one set of edges."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from operators.records import Writeback, decode
from operators.stores.consistency import check
from operators.stores.topics import TOPICS, WRITEBACKS
from tests.writeback_rig import STEPS, document, lag, log_at, memory_at, say, state

ROOT = Path(__file__).parents[2]
KEEPER = ("Who keeps the lamp of Brindle tower?", "Old Maro Quell keeps the lamp of Brindle tower every night.")


def run(root: Path, *step: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.writeback_rig", str(root), *step]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def prepare(root: Path) -> None:
    """A document, and verdicts of every kind: new answers, near-copies within and across batches, ones taken back."""
    memory, log = memory_at(root), log_at(root)
    memory.add("acme", [document("tower", "The tower of Brindle stands on the cliff.")])
    memory.close()
    say(log, *KEEPER, cites=["tower"])
    say(log, "Is there a harbour at Brindle?", "Yes, a small one with nine boats.", turn=1)
    say(log, KEEPER[0], KEEPER[1] + " Always.", turn=2)
    say(log, "What is the harbour for?", "Nobody knows.", 0.2, turn=3)
    say(log, KEEPER[0], KEEPER[1] + " Always.", turn=4)
    say(
        log,
        "Who sells nets on market day?",
        "Two sisters from Harrow sell nets there.",
        turn=5,
        cites=["tower", "away"],
    )
    say(log, "Is there a harbour at Brindle?", "It is bad.", 0.0, turn=1, by="user")
    say(log, "Who built the chapel by the mill?", "Masons from the north built it of grey stone.", turn=6)
    say(log, "Where does the ferry land?", "It lands below the customs house at noon.", session="other", tenant="beta")
    assert lag(log) == 9
    log.close()


def outcomes(root: Path) -> dict[str, tuple[str, str]]:
    log = log_at(root)
    events = [e for p in range(TOPICS[WRITEBACKS]) for e in log.read(WRITEBACKS, p, 0, 999)]
    settled = {e.event_id: (e.outcome, e.partner) for e in (decode(Writeback, event.value) for event in events)}
    assert lag(log) == 0
    log.close()
    return settled


def everything(root: Path) -> list[dict]:
    memory = memory_at(root)
    try:
        for tenant in ("acme", "beta"):
            found = check(memory, tenant)
            assert found.sound, found
        return [state(memory, tenant) for tenant in ("acme", "beta")]
    finally:
        memory.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    prepare(root)
    return root


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, prepared):
    root = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    done = run(root)
    assert done.returncode == 0, done.stderr
    wanted = everything(root)
    acme = wanted[0]
    assert len(acme["nodes"]) == 4  # the document, the keeper, the nets, the chapel; the harbour was taken back
    assert sorted((node[6] or {}).get("count", "") for node in acme["nodes"]) == ["", "1", "1", "3"]
    assert len(acme["gone"]) == 1
    settled = outcomes(root)
    counted = sorted(outcome for outcome, _ in settled.values())
    assert counted == ["below_threshold", *["duplicate"] * 2, "withdrawn", *["written"] * 5]
    return wanted, settled


# Each takes two processes that load the stores: `make faults` kills at every step, `make test` at the tightest ones.
SOME = ("vectors", "removed vectors", "appended")


@pytest.mark.parametrize("step", STEPS if os.environ.get("RUVLLM_TEST_FAULTS") == "all" else SOME)
def test_killed_at_a_step_and_started_again(tmp_path, prepared, uninterrupted, step):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    killed = run(tmp_path, step)
    assert killed.returncode == -9, killed.stderr
    assert killed.stdout == f"{step}\n", "it came to the step alive, and died there"
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    assert (everything(tmp_path), outcomes(tmp_path)) == uninterrupted
