"""The disk is full under the log, the spool, a job and the checkpoints, and has room again: nothing acknowledged is
lost, errors say what to do, and all go on by themselves. What happens is in ``tests/disk_rig.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("RUVLLM_TEST_FAULTS") == "all"
MOUNT = 'mount -t tmpfs -o size=8m ruvllm "$1" && exec "$0" -m tests.disk_rig "$1" tmpfs'
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "ruvllm", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


@pytest.fixture(scope="module", params=["quota", "tmpfs"] if ALL else ["quota"])
def happened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = str(tmp_path_factory.mktemp("disk"))
    command = [sys.executable, "-m", "tests.disk_rig", root, "quota"]
    if request.param == "tmpfs":
        if not may_mount():
            pytest.skip("this machine lets no user mount a file system; the quota stands for it")
        command = [*OWN_MOUNTS, "sh", "-c", MOUNT, sys.executable, root]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {"kind": request.param, **json.loads(done.stdout)}


def test_the_log_keeps_what_it_acknowledged_and_goes_on(happened: dict[str, Any]) -> None:
    log = happened["of_log"]
    # SQLite knows a full disk from one that fails, but a used-up quota only as the latter.
    assert log["error"] == {"tmpfs": "Retry", "quota": "Stop"}[happened["kind"]]
    assert log["who"].startswith("event log /")
    assert "disk" in log["remedy"]
    assert (log["readable"], log["dense"], log["kept"]) == (True, True, True)


def test_answers_are_taken_while_the_spool_has_no_room_and_reach_the_log_in_order(happened: dict[str, Any]) -> None:
    spool = happened["of_spool"]
    assert (spool["error"], spool["who"].startswith("spool /")) == ("Retry", True)
    assert "free disk space" in spool["remedy"]
    assert (spool["taken"], spool["waits"], spool["lost"]) == (True, 20, 0)
    assert spool["refused"] >= 2, "the filler, and the emitter's first attempt"
    assert (spool["flushed"], spool["kept"]) == (True, True)


def test_a_job_waits_for_room_and_deals_with_each_event_once(happened: dict[str, Any]) -> None:
    assert happened["of_consumer"] == {"before": 0, "letters": True}


def test_checkpoints_stay_whole_and_the_active_one_acts(happened: dict[str, Any]) -> None:
    found = happened["of_checkpoints"]
    for failed in (found, found["rolled"]):
        assert (failed["done"], failed["error"], failed["who"]) == (0, "Stop", "checkpoints")
        assert "free some space" in failed["remedy"]
    assert (found["whole"], found["same"], found["later"], found["left"]) == (True, True, True, [])
