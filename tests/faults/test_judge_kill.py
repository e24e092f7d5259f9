"""kill −9 of the judge job between writing a verdict and committing it: still one verdict for each interaction."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from operators.judge import verdict_id
from operators.records import Interaction, Verdict, decode, encode
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, TOPICS, create_topics, session_key

ROOT = Path(__file__).parents[2]
COUNT = 12
MANY = 200
# The real operator and the real job; only the model is a double: the rating depends on the prompt alone. The process
# prints what it is about to commit, kills itself at the fault point if it has one, and ends when it has caught up.
JOB = """
import asyncio, os, signal, sys
import numpy as np
from jobs.judge import judge_consumer
from operators.judge import Judge
from operators.stores.sqlite_log import SqliteLog

class Model:
    model, context_tokens = "double", 10_000
    async def start(self): pass
    async def close(self): pass
    def bos(self): return ()
    def tokenize(self, text, *, special=False): return [ord(c) for c in text]
    async def score(self, prompt, choices):
        p = np.arange(1, 6) + sum(prompt) % 7
        return np.log(p / p.sum())

path, die_at, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
stop, commits = asyncio.Event(), 0

def before_commit():
    global commits
    commits += 1
    print("written", commits, flush=True)
    if commits == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if commits == total:
        stop.set()

async def main():
    log = SqliteLog(path)
    log.open()
    judge = Judge(Judge.Config(), Model())
    await judge.start()
    await judge_consumer(log, judge, idle_s=0.01, before_commit=before_commit).run(stop)
    log.close()

asyncio.run(main())
"""


def start(path: Path, *, die_at: int = 0, total: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, str(path), str(die_at), str(total)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def committed(log: SqliteLog) -> int:
    return sum(log.committed("judge", INTERACTIONS, p) for p in range(TOPICS[INTERACTIONS]))


def verdicts(log: SqliteLog) -> list[Verdict]:
    events = [e for p in range(TOPICS[JUDGEMENTS]) for e in log.read(JUDGEMENTS, p, 0, 9_999)]
    return [decode(Verdict, e.value) for e in events]


@pytest.mark.parametrize("die_at", [1, 5, COUNT])
def test_a_kill_between_write_and_commit_repeats_a_verdict_under_the_same_id(tmp_path: Path, die_at: int) -> None:
    log = SqliteLog(tmp_path / "events.db")
    log.open()
    create_topics(log)
    for n in range(COUNT):
        one = Interaction(
            event_id=f"e{n}",
            interaction_id=f"i{n}",
            tenant="acme",
            session=f"s{n % 5}",
            turn=n,
            created_at=0.0,
            query=f"question {n}",
            answer=f"answer {n}",
        )
        log.append(INTERACTIONS, session_key(one.tenant, one.session), encode(one))

    first = start(log.path, die_at=die_at)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == -9
    assert out.split("\n")[-2] == f"written {die_at}", "it worked until it was killed"
    assert committed(log) == die_at - 1
    before = verdicts(log)
    assert len(before) == die_at, "one verdict is written that is not committed"

    left = COUNT - die_at + 1
    second = start(log.path, total=left)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert committed(log) == COUNT

    after = verdicts(log)
    ids = Counter(v.event_id for v in after)
    assert set(ids) == {verdict_id(f"e{n}") for n in range(COUNT)}, "every interaction has exactly one verdict id"
    assert sorted(ids.values()) == [1] * (COUNT - 1) + [2], "the replayed one was written again"
    repeated = [v for v in after if ids[v.event_id] == 2]
    assert repeated[0].score == repeated[1].score
    assert repeated[0].probabilities == repeated[1].probabilities
    log.close()


def test_a_kill_from_outside_at_any_moment_loses_no_interaction(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "events.db")
    log.open()
    create_topics(log)
    one = Interaction(
        event_id="",
        interaction_id="i",
        tenant="acme",
        session="s",
        turn=0,
        created_at=0.0,
        query="question",
        answer="answer",
    )
    names = [f"e{n}" for n in range(MANY)]
    items = [
        (f"acme|s{n}", encode(one).replace(b'"event_id":""', f'"event_id":"{name}"'.encode()), {})
        for n, name in enumerate(names)
    ]
    log.append_many(INTERACTIONS, items)
    for seen in (3, 8):
        process = start(log.path)
        assert process.stdout is not None
        with process.stdout:
            assert [process.stdout.readline() for _ in range(seen)][-1] == f"written {seen}\n"
            process.kill()
        assert process.wait(30) == -9
        assert seen - 1 <= committed(log)
    last = start(log.path, total=MANY - committed(log))
    last.communicate(timeout=60)
    assert last.returncode == 0
    assert committed(log) == MANY
    found = Counter(v.event_id for v in verdicts(log))
    assert set(found) == {verdict_id(name) for name in names}
    assert sum(found.values()) <= MANY + 2, "a kill repeats one verdict at most"
    log.close()
