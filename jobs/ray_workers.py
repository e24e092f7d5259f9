"""Who does the parts of a job: actors of Ray Data, or this process alone. Ray starts with the first part to do.

Under ``ray job submit`` the job joins the cluster that it was submitted to, else it starts a small Ray of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

from jobs.local_ray import local_ray
from operators.errors import Stop

Row = dict[str, Any]
CLUSTER = "RAY_ADDRESS"
"""The environment variable in which ``ray job submit`` names the cluster."""


class Worker(Protocol):
    """Does one part at a time. What it makes, it writes; what it returns are a few numbers or words."""

    def __call__(self, row: Row) -> Row:
        """Do the part that ``row`` names."""

    def close(self) -> None:
        """Free what it opened; Ray's workers just end."""


class Workers:
    """A context in which ``each`` has parts done by ``count`` actors, or by this process (0)."""

    def __init__(
        self, count: int, object_store_bytes: int, who: str, remedy: str = "mend that and start again"
    ) -> None:
        self._count, self._object_store_bytes, self._who, self._remedy = count, object_store_bytes, who, remedy
        self._open, self._begun = contextlib.ExitStack(), False

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def each(self, rows: Sequence[Row], make: Callable[..., Worker], *args: Any, alone: bool = False) -> Iterator[Row]:
        """What a worker gives for each of ``rows``, as they are finished, in no particular order.

        ``make(*args)`` makes a worker; ``alone``: there is only one. Raises ``Stop`` if a worker of Ray's fails.
        """
        if not rows:
            return
        if not self._count:
            with contextlib.closing(make(*args)) as worker:
                yield from map(worker, rows)
            return
        self._begin()
        import ray.data

        dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(
            make,
            fn_constructor_args=args,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=1 if alone else min(self._count, len(rows))),
            # By default a worker that dies is started again, for ever: what kills it would never end.
            max_restarts=0,
            max_task_retries=0,
        )
        yield from results(dataset, self._who, self._remedy)

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        if os.environ.get(CLUSTER):
            import ray

            ray.init(log_to_driver=False, logging_level="error")
            self._open.callback(ray.shutdown)
        else:
            self._open.enter_context(local_ray(self._count + 1, self._object_store_bytes))
        quiet()


def quiet() -> Any:
    """Ray Data's context; it prints nothing from here on."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # ``max_restarts`` and ``max_task_retries`` have no other name yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    return context


def results(dataset: Any, who: str, remedy: str) -> Iterator[Row]:
    """The rows of a Ray ``dataset`` as they are finished. Raises ``Stop`` if a worker fails."""
    from ray.exceptions import RayError

    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from block.to_pylist()
    except RayError as error:
        last = str(error).strip().splitlines()[-1][:300]
        raise Stop(who, f"a worker failed: {last}", remedy) from error
