"""kill −9 of processes that append to the event log: what was acknowledged is there, once, and nothing by half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from operators.stores.sqlite_log import SqliteLog

ROOT = Path(__file__).parents[2]
PARTITIONS = 3
# Appends for ever, ``batch`` events a transaction; prints the places only after the log acknowledged them.
WRITER = """
import itertools, sys
from operators.stores.sqlite_log import SqliteLog
path, name, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = SqliteLog(path)
log.open()
for n in itertools.count():
    items = [(f"{name} session {i % 5}", f"{name}/{n}/{i}".encode(), {}) for i in range(batch)]
    for (key, value, _), (partition, offset) in zip(items, log.append_many("t", items)):
        print(partition, offset, value.decode(), flush=True)
"""


def writer(path: Path, name: str, batch: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(batch)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill_after(processes: list[subprocess.Popen[str]], acknowledgements: int) -> list[tuple[int, int, str]]:
    """See every process acknowledge that many appends, kill it, and return all it ever acknowledged."""
    lines: list[str] = []
    for process in processes:
        assert process.stdout is not None
        lines += [process.stdout.readline() for _ in range(acknowledgements)]
        assert all(line.endswith("\n") for line in lines), "a writer ended by itself"
        assert process.poll() is None, "it lives, and now it dies"
    for process in processes:
        process.kill()
    for process in processes:
        assert process.stdout is not None
        with process.stdout:
            lines += process.stdout.readlines()
        assert process.wait(30) == -9
    whole = [line.split() for line in lines if line.endswith("\n")]  # the last line may be cut by the kill
    return [(int(partition), int(offset), value) for partition, offset, value in whole]


@pytest.mark.parametrize("batch", [1, 20])
def test_every_acknowledged_event_survives_kills_once_and_offsets_stay_dense(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "events.db"
    log = SqliteLog(path)
    log.open()
    log.create_topic("t", PARTITIONS)
    acknowledged: list[tuple[int, int, str]] = []
    for round_ in range(4):
        processes = [writer(path, f"{who}{round_}", batch) for who in "ab"]
        acknowledged += kill_after(processes, acknowledgements=10 + 7 * round_)

    log.close()
    log.open()  # a fresh handle, as after a restart
    stored = {(p, e.offset): e.value.decode() for p in range(PARTITIONS) for e in log.read("t", p, 0, 1_000_000)}
    assert len(acknowledged) > 150
    for partition, offset, value in acknowledged:
        assert stored[partition, offset] == value
    assert len(set(stored.values())) == len(stored), "nothing twice"
    for p in range(PARTITIONS):
        offsets = sorted(offset for partition, offset in stored if partition == p)
        assert offsets == list(range(log.end("t", p))), "dense from 0"
    transactions: dict[str, int] = {}
    for value in stored.values():
        transactions[value.rsplit("/", 1)[0]] = transactions.get(value.rsplit("/", 1)[0], 0) + 1
    assert set(transactions.values()) == {batch}, "each transaction is there as a whole or not at all"
    unacknowledged = len(stored) - len({value for _, _, value in acknowledged})
    assert unacknowledged <= 8 * 2 * batch, "at most the transactions whose acknowledgement the kill cut off"
    partition, offset = log.append("t", "a0 session 0", b"after")
    assert offset == log.end("t", partition) - 1
    log.close()
