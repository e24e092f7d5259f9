"""The learner's job: one long-lived run of Ray Train whose training loop is the loop over judgements.

A ``.fit()`` for every update would cost 16 s each; this one goes on until it is stopped. With ``learn.workers`` 0 Ray
Train runs the loop in this process (its local mode), with 1 in a worker of the Ray cluster. Either way the loop's own
states (``learn_loop``) are what a restart goes on from; Ray Train is told of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import numpy as np

from conf.schema import Settings
from jobs.judge import step_back
from jobs.learn_loop import LearnLoop
from jobs.process import main
from jobs.promote import Promoter
from operators.networks.acting import starting
from operators.stores import removal
from operators.stores.checkpoints import Registry
from operators.stores.make import open_log

STATES = "learner"
"""Name of the registry of the learner's states, beside the router's checkpoints."""


def make_loop(settings: Settings, log: Any, at: Any = lambda step: None) -> LearnLoop:
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
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """The job of a profile, until ``stop``."""
    import torch
    from ray import train
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    step_back(settings.learn.nice)
    torch.set_num_threads(1)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    told = asyncio.get_running_loop()
    here = settings.learn.workers == 0

    def loop_per_worker() -> None:
        async def until_told() -> None:
            ended = asyncio.Event()
            if here:
                asyncio.run_coroutine_threadsafe(stop.wait(), told).add_done_callback(
                    lambda _: mine.call_soon_threadsafe(ended.set)
                )
            mine = asyncio.get_running_loop()
            with contextlib.closing(open_log(settings.events)) as log:
                await make_loop(settings, log).run(ended, train.report)

        asyncio.run(until_told())

    trainer = TorchTrainer(
        loop_per_worker,
        scaling_config=ScalingConfig(num_workers=settings.learn.workers),
        run_config=RunConfig(name="learn", storage_path=str(settings.data_dir / "train")),
    )
    fitting = asyncio.create_task(asyncio.to_thread(trainer.fit))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([fitting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if here or fitting.done():
        await fitting


if __name__ == "__main__":
    main("learn", serve)
