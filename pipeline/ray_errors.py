"""The one door where errors of Ray and Serve become ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterator
from typing import TypeVar

import ray
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from operators.errors import Retry, RuvError
from operators.privacy.logs import masked_traceback

T = TypeVar("T")
_log = logging.getLogger("ruvllm.serve")


async def translated(who: str, response: Awaitable[T]) -> T:
    """The answer of a call to ``who``. Raises ``RuvError`` only."""
    with door(who):
        return await response


@contextlib.contextmanager
def door(who: str) -> Iterator[None]:
    """The same for a block, such as one that reads a stream of ``who``."""
    try:
        yield
    except RuvError:  # raised in the replica and handed on whole
        raise
    except BackPressureError as error:
        raise Retry(who, "its queue is full", "try again", 1.0, 429) from error
    except (DeploymentUnavailableError, ray.exceptions.RayError) as error:
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, RuvError):
            raise error.cause from None
        raise Retry(who, f"its replica is away: {type(error).__name__}", "it is being restarted; try again") from error
    except Exception as error:  # Serve's own, of no common class, or a bug in the replica
        _log.warning("%s failed\n%s", who, masked_traceback(error))
        raise Retry(who, f"its replica failed: {type(error).__name__}", "try again; the log has the details") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # we were cancelled, not the replica's work
        raise Retry(who, "its replica cancelled the call", "it is being restarted; try again") from error
