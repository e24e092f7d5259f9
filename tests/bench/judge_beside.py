"""A judge in a process of its own that judges one interaction after another while it is told to.

    PYTHONPATH=. python tests/bench/judge_beside.py CACHE

As the judge job does, it steps back first, then loads its engine. Lines on stdin say ``on``, ``off`` and ``end``; every
``off`` is answered, once the last verdict is there, with a line of JSON: verdicts, seconds, and the processor's seconds
that the engine took.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import psutil

from conf.load import load
from jobs.judge import step_back
from operators.engines.child.engine import EngineProcess
from operators.engines.make import make_engine
from operators.judge import Judge
from operators.records import Interaction, Passage
from tests.bench.engine_kit import story

PASSAGE = "The Vell lighthouse stands on the island of Ormsay. It is 41 metres tall. Its lamp was lit in 1873. "


def interaction(number: int) -> Interaction:
    """Like none before: a judge that knew its prompt would have nothing to do."""
    return Interaction(
        event_id=str(number),
        tenant="default",
        session=str(number),
        query=story(number),
        answer=f"In the year {1000 + number} a ship came into the harbour, and its captain lit the lamp of the tower.",
        context=(Passage(text=f"Note {number}. {PASSAGE * 3}"),),
    )


async def main() -> None:
    """Until ``end``, or the end of stdin."""
    settings = load("test", overrides=[f"data_dir={sys.argv[1]}"], env={}).settings
    job = settings.judge_job
    step_back(job.nice)
    cache = Path(sys.argv[1]) / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    engine = make_engine(job.engine, settings.judge_model, cache, context_tokens=job.context_tokens)
    judge = Judge(settings.judge, engine)
    await judge.start()
    (verdict,) = await judge([interaction(0)])
    assert verdict.status == "judged", verdict
    assert isinstance(engine, EngineProcess)
    child = {"nice": os.getpriority(os.PRIO_PROCESS, engine.pid), "policy": os.sched_getscheduler(engine.pid)}
    print(json.dumps({"ready": settings.judge_model.id, **child, "idle": os.SCHED_IDLE}), flush=True)
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    worked = psutil.Process(engine.pid).cpu_times
    number, going, verdicts, began, before = 0, True, 0, time.perf_counter(), sum(worked()[:2])
    while going:
        asked = asyncio.create_task(words.readline())
        while verdicts >= 0 and not asked.done():
            number += 1
            await judge([interaction(number)])
            verdicts += 1
        said = (await asked).strip()
        if said == b"on":
            verdicts, began, before = 0, time.perf_counter(), sum(worked()[:2])
        else:
            took = {"seconds": time.perf_counter() - began, "processor_s": sum(worked()[:2]) - before}
            print(json.dumps({"verdicts": verdicts} | took), flush=True)
            verdicts, going = -1, said == b"off"
    await judge.close()


if __name__ == "__main__":
    asyncio.run(main())
