"""``ruvllm serve``: from settings to a service that answers, and back to nothing when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conf.schema import Settings
from operators.errors import Stop
from pipeline.graph import ANSWER_PATH
from pipeline.host import Host, open_emitter
from pipeline.service import Service

Say = Callable[..., None]
PROBE_BYTES = 16 * 2**20
"""Free space that must be there at the start, in bytes: a store that can't write its first page is no start."""


def launch(settings: Settings, *, profile: str | None, overrides: Sequence[str], say: Say) -> None:
    """Run the service until SIGINT or SIGTERM. Raises ``Stop`` when it can't start."""
    began = time.monotonic()
    prepare_data_dir(settings.data_dir)
    check_port(settings.http.host, settings.http.port)
    with _judge(settings, profile, overrides, say):
        run = _inproc if settings.binding == "inproc" else _serve
        run(settings, say, began)


def prepare_data_dir(path: Path) -> None:
    """Create the data directory and prove that it can be written. Raises ``Stop`` naming what is wrong."""
    probe = path / ".probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            # Really written: sparse files and quotas make free space a promise that only a write keeps.
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "free some space or set data_dir" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "set data_dir"
        raise Stop("data_dir", f"{path} can't be written: {error.strerror}", remedy) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def check_port(host: str, port: int) -> None:
    """Raise ``Stop`` if ``port`` is taken: HAProxy and uvicorn would say so late, and less clearly."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"can't be used: {error.strerror}"
            raise Stop("http.port", f"{host}:{port} {what}", "end what listens there or set http.port") from error


def _inproc(settings: Settings, say: Say, began: float) -> None:
    asyncio.run(_inproc_main(settings, say, began))


async def _inproc_main(settings: Settings, say: Say, began: float) -> None:
    import uvicorn

    from pipeline.ingress import create_app

    backend = Host(ANSWER_PATH, settings, progress=lambda stage: say(f"  loading {stage} …", loading=stage))
    await backend.start()
    emitter = open_emitter(settings)
    family = socket.AF_INET6 if ":" in settings.http.host else socket.AF_INET
    # The protocol must be named: asyncio turns Nagle's algorithm off only then, and with it every answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.http.host, settings.http.port))
    listener.listen(2048)  # before it is announced: who connects at once waits a moment instead of being refused
    app = create_app(Service(settings, backend, emitter))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    # Not uvicorn's own handlers: they raise the signal again at the end, and what comes after serve() would never run.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    _announce(settings, say, began, listener.getsockname()[1], "")
    try:
        await server.serve(sockets=[listener])
    finally:
        say("stopping …")
        await emitter.close(10.0)
        await backend.close()


def _serve(settings: Settings, say: Say, began: float) -> None:
    if settings.http.port == 0:
        raise Stop("http.port", "0", "name a port: HAProxy can't take a free one")
    from pipeline import raylocal

    raylocal.prepare(settings)
    say("  starting Ray …", loading="ray")
    dashboard = raylocal.start(settings)
    import ray
    from ray import serve

    from pipeline.serve import APP, application

    try:
        with _until_signal() as wait:  # only now: starting Ray sets signal handlers of its own
            say("  loading models into their deployments …", loading="deployments")
            with _deployments_shown(APP, say):
                try:
                    serve.run(application(settings), name=APP, route_prefix="/")
                except RuntimeError as error:
                    found = serve.status().applications[APP].deployments
                    reasons = [f"{name}: {_last(state.message)}" for name, state in found.items() if state.message]
                    raise Stop("serve", "; ".join(reasons) or str(error), "mend that and start again") from error
            _announce(settings, say, began, settings.http.port, dashboard)
            wait()
            say("stopping …")
    finally:
        with contextlib.suppress(Exception):  # whatever Serve says while it ends, Ray ends everything next
            serve.shutdown()
        ray.shutdown()


def _last(trace: str) -> str:
    """The last line of a traceback: what was raised."""
    lines = [line for line in trace.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


@contextlib.contextmanager
def _deployments_shown(app: str, say: Say) -> Iterator[None]:
    """While the body waits for the deployments, say of each when it is there."""
    from ray import serve

    done = threading.Event()

    def watch() -> None:
        seen: set[str] = set()
        while not done.wait(0.5):
            found = serve.status().applications.get(app)
            deployments = found.deployments if found else {}
            for name, state in deployments.items():
                if name not in seen and state.status == "HEALTHY":
                    seen.add(name)
                    say(f"    {name} is ready ({len(seen)} of {len(deployments)})", loaded=name)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(10)


@contextlib.contextmanager
def _until_signal() -> Iterator[Callable[[], None]]:
    """Yields a function that returns at SIGINT or SIGTERM; a signal that comes before is kept."""
    read, write = socket.socketpair()
    before = {number: signal.signal(number, lambda *_: write.send(b"x")) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: (read.recv(1), None)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        read.close()
        write.close()


def _announce(settings: Settings, say: Say, began: float, port: int, dashboard: str) -> None:
    url = f"http://{settings.http.host}:{port}"
    seconds = time.monotonic() - began
    say(
        f"RuvLLM listens on {url} (profile {settings.profile}, binding {settings.binding}; ready in {seconds:.0f} s)",
        ready=True,
        url=url,
        pid=os.getpid(),
        seconds=round(seconds, 1),
    )
    if dashboard:
        from pipeline.raylocal import token_path

        token = f"; it asks for the token in {token_path(settings)}" if settings.ray.token_auth else ""
        say(f"Ray's dashboard: http://{dashboard}{token}", dashboard=f"http://{dashboard}")
    say(
        "Try:\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        '    -d \'{"messages": [{"role": "user", "content": "What is a lighthouse for?"}]}\''
    )


@contextlib.contextmanager
def _judge(settings: Settings, profile: str | None, overrides: Sequence[str], say: Say) -> Iterator[None]:
    """The judge job as a child process, ended with the service; it dies with this process even by SIGKILL."""
    if not settings.judge_job.enabled:
        yield
        return
    command = [sys.executable, "-m", "jobs.judge", "--parent", str(os.getpid())]
    command += ["--profile", profile] if profile else []
    for override in overrides:
        command += ["--set", override]
    ending = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def watch() -> None:
        pause = 1.0
        while not ending.is_set():
            code = children[-1].wait()
            if ending.wait(pause):
                return
            children.append(subprocess.Popen(command))  # noqa: S603 - as below
            say(f"  judge ended with {code}, started again (pid {children[-1].pid})", judge=children[-1].pid)
            pause = min(2 * pause, 60.0)

    children.append(subprocess.Popen(command))  # noqa: S603 - our own module, arguments not from a shell
    say(f"  judge started (pid {children[-1].pid})", judge=children[-1].pid)
    # The kernel ends a child with the thread that started it (its own wish), so the watcher must live as long as we do.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ending.set()
        child = children[-1]
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        watcher.join(5)
