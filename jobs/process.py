"""What every job's process does: read its arguments, end with its parent or by a signal, say why it could not go on."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator

from conf.load import load
from conf.schema import Settings
from operators.errors import RuvError

Serve = Callable[[Settings, asyncio.Event], Awaitable[None]]
"""The job of a profile, until the event is set."""


def main(name: str, serve: Serve) -> None:
    """``python -m jobs.NAME [--profile NAME] [--set KEY=VALUE]… [--parent PID]``."""
    parser = argparse.ArgumentParser(prog=f"jobs.{name}")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--parent", type=int, help="end when this process does")
    given = parser.parse_args()
    if given.parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; a kill at any moment is safe
        if os.getppid() != given.parent:  # it ended before we asked
            return
    try:
        settings = load(given.profile, overrides=given.overrides).settings
        asyncio.run(_until_told(serve, settings, alone=given.parent is None))
    except RuvError as error:
        sys.exit(f"{name}: {error}")


async def _until_told(serve: Serve, settings: Settings, alone: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Ctrl-C goes to the whole process group; as part of a service the job ends when the service says so.
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set if alone else lambda: None)
    await serve(settings, stop)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: more would sum in another order from run to run, and take the engines' cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
