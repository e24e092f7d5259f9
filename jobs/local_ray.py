"""A small Ray for one job: on this machine's loopback, with a token of its own, gone with the job."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Iterator

from operators.errors import Stop

ENVIRONMENT = {
    # As for the service's Ray (pipeline/raylocal.py): every port of Ray's core on 127.0.0.1, and no telemetry.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
}


@contextlib.contextmanager
def local_ray(cpus: int, object_store_bytes: int) -> Iterator[None]:
    """Ray runs inside the block. ``cpus`` is what it plans with. Raises ``Stop`` if Ray was imported before.

    Never the service's own Ray: that one's processors are promised to its replicas, and it ends with the service.
    """
    if "ray" in sys.modules:  # it reads its environment when it is imported
        raise Stop("ray", "it is imported already", "start the job in a process of its own")
    os.environ.update(ENVIRONMENT, RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    with own_signals():
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """After the block the process ends on a signal as it did before: Ray's core takes SIGTERM and aborts on it."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)
