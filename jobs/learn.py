"""The learner's job: one long-lived run of Ray Train whose training loop is the loop over judgements.

A ``.fit()`` for every update would cost 16 s each; this one goes on until it is stopped. With ``learn.workers`` 0 Ray
Train runs the loop in this process (its local mode), with more in so many workers of the Ray cluster, which share the
partitions. Either way the loop's own states are what a restart goes on from; Ray Train is told of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from conf.schema import Settings
from jobs.judge import step_back
from jobs.learning.loop import LearnLoop
from jobs.local_ray import local_ray, own_signals
from jobs.process import main
from jobs.promote import Promoter
from operators.learning.workers import Alone, Group
from operators.networks.acting import starting
from operators.stores import removal
from operators.stores.checkpoints import Registry
from operators.stores.make import open_log

STATES = "learner"
"""Name of the registry of the learner's states, beside the router's checkpoints."""
OBJECT_STORE_BYTES = 80_000_000
"""For a Ray of its own, which workers get unless ``RAY_ADDRESS`` names a cluster; nothing large is put there."""


def make_loop(settings: Settings, log: Any, at: Any = lambda step: None, workers: Alone | None = None) -> LearnLoop:
    """The loop of a profile, on an open log."""
    root = settings.data_dir / "checkpoints"
    registry, states = Registry(root), Registry(root, STATES)
    start = starting(settings.route.checkpoint, tied=settings.route.tied)
    costs = np.full(4, np.nan)
    for tier in settings.tiers:
        costs[tier.slot] = tier.cost
    return LearnLoop(
        log,
        registry,
        states,
        Promoter(registry, log, start.checkpoint, settings.promotion),
        start,
        {tier.name: tier.slot for tier in settings.tiers},
        costs,
        settings.route,
        settings.learn,
        settings.promotion,
        lambda known: removal.written(settings.data_dir / "memory", known),
        at,
        workers,
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """The job of a profile, until ``stop``."""
    step_back(settings.learn.nice)
    workers = settings.learn.workers
    with contextlib.ExitStack() as ending:
        if workers and "RAY_ADDRESS" not in os.environ:
            ending.enter_context(local_ray(workers, OBJECT_STORE_BYTES))
        elif workers:
            import ray

            with own_signals():
                ray.init(log_to_driver=False)
            ending.callback(ray.shutdown)
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        logging.getLogger("ray.train").setLevel(logging.WARNING)
        trainer = TorchTrainer(
            functools.partial(_work, settings) if workers else _here(settings, stop, asyncio.get_running_loop()),
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(name="learn", storage_path=str(settings.data_dir / "train")),
        )
        fitting = asyncio.create_task(asyncio.to_thread(trainer.fit))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([fitting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not workers or fitting.done():
            await fitting
    # Leaving the block ended Ray and with it the workers, at whatever they did: nothing of it is lost.


def _work(settings: Settings) -> None:
    """The loop of one of several workers, until its process ends."""
    step_back(settings.learn.nice)
    asyncio.run(_loop(settings, Group(), asyncio.Event()))


def _here(settings: Settings, stop: asyncio.Event, told: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """The loop in this process, until ``stop``, which belongs to the event loop ``told``."""

    async def until_told() -> None:
        ended, mine = asyncio.Event(), asyncio.get_running_loop()
        stopped = asyncio.run_coroutine_threadsafe(stop.wait(), told)
        stopped.add_done_callback(lambda _: mine.call_soon_threadsafe(ended.set))
        await _loop(settings, Alone(), ended)

    return lambda: asyncio.run(until_told())


async def _loop(settings: Settings, workers: Alone, stop: asyncio.Event) -> None:
    import torch
    from ray import train

    torch.set_num_threads(1)
    with contextlib.closing(open_log(settings.events)) as log:
        await make_loop(settings, log, workers=workers).run(stop, train.report)


if __name__ == "__main__":
    main("learn", serve)
