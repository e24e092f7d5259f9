"""``ruvllm serve``: from settings to a service that answers, and back to nothing when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conf.schema import Settings
from operators.engines.files.models import resolve
from operators.errors import Stop
from operators.tiers import ModelFile
from pipeline.children import jobs
from pipeline.graph import ANSWER_PATH
from pipeline.guard import admin_key
from pipeline.host import Host, open_emitter
from pipeline.service import Service
from pipeline.verdicts import Verdicts

Say = Callable[..., None]
URL_FILE = "url"
"""File of the data directory that says where the service listens, for jobs; http.port may be 0."""
PROBE_BYTES = 16 * 2**20
"""Free space that must be there at the start, in bytes: a store that can't write its first page is no start."""


def launch(settings: Settings, *, profile: str | None, overrides: Sequence[str], say: Say) -> None:
    """Run the service until SIGINT or SIGTERM. Raises ``Stop`` when it can't start."""
    began = time.monotonic()
    prepare_data_dir(settings.data_dir)
    check_port("http.port", settings.http.host, settings.http.port)
    if settings.binding == "serve" and not settings.ray.address:
        check_port("ray.dashboard_port", "127.0.0.1", settings.ray.dashboard_port)
    with owned(settings.data_dir):
        for problem in check_weights(settings):
            say(f"  without {problem}", missing=problem)
        run = _inproc if settings.binding == "inproc" else _serve
        (settings.data_dir / URL_FILE).unlink(missing_ok=True)
        admin_key(settings.data_dir)  # before the jobs look for it
        with jobs(settings, profile, overrides, say):
            run(settings, say, began)


def prepare_data_dir(path: Path) -> None:
    """Create the data directory and prove that it can be written. Raises ``Stop`` naming what is wrong."""
    probe = path / ".probe"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)  # it will hold what users asked and were answered
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


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Hold the data directory for this process; the kernel lets go of it however the process ends.

    Raises ``Stop`` at once if another service has it: the stores would say so too, but only once models are loaded.
    """
    with (path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            remedy = "end that one, or set data_dir to another directory"
            raise Stop("data_dir", f"{path} is in use by the service with pid {file.read().strip()}", remedy) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_weights(settings: Settings) -> list[str]:
    """What tiers have to do without, in words. Raises ``Stop`` when the encoder or every tier is missing or damaged."""
    cache = settings.data_dir / "cache"
    cache.mkdir(exist_ok=True)
    needed = [file for file in (settings.embed.model, settings.embed.tokenizer) if file is not None]
    broken = [str(error) for file in needed if (error := _problem(file, cache))]
    if broken:
        made = ": ruvllm export executorch --only encoder" if settings.embed.backend == "executorch" else ""
        raise Stop("embed", " / ".join(broken), f"the encoder is needed for everything{made}")
    elsewhere = {tier.name for tier in settings.tiers if tier.vllm is not None and tier.vllm.url}
    tiers = {tier.name: "" if tier.name in elsewhere else _problem(tier.model, cache) for tier in settings.tiers}
    bad = [f"tier {name}: {error}" for name, error in tiers.items() if error]
    if len(bad) == len(tiers):
        raise Stop("generate", "no tier could be loaded: " + " / ".join(bad), "mend at least one")
    return bad


def _problem(file: ModelFile, cache: Path) -> str:
    try:
        resolve(file, cache)
    except Stop as error:
        return str(error)
    return ""


def check_port(name: str, host: str, port: int) -> None:
    """Raise ``Stop`` if ``port`` is taken: who needs it would say so late, and less clearly. ``name``: the setting."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"can't be used: {error.strerror}"
            raise Stop(name, f"{host}:{port} {what}", f"end what listens there or set {name}") from error


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
    service = Service(settings, backend, emitter)
    verdicts = asyncio.create_task(Verdicts(emitter.log, service.sessions).run(settings.sessions.verdicts_s))
    app = create_app(service)
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
        verdicts.cancel()
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
        with _asked_to_stop() as asked:  # only now: starting Ray sets signal handlers of its own
            say("  loading models into their deployments …", loading="deployments")
            with _deployments_shown(APP, say):
                try:
                    serve.run(application(settings), name=APP, route_prefix="/")
                except RuntimeError as error:
                    found = serve.status().applications[APP].deployments
                    reasons = [f"{name}: {_last(state.message)}" for name, state in found.items() if state.message]
                    raise Stop("serve", "; ".join(reasons) or str(error), "mend that and start again") from error
            if not asked.is_set():
                _announce(settings, say, began, settings.http.port, dashboard)
                asked.wait()
            say("stopping …")
    finally:
        # Whatever Serve says while it ends, Ray ends everything next; and Ray's threads print a failure for every
        # replica whose last task is its own exit.
        out, err = contextlib.redirect_stdout, contextlib.redirect_stderr
        with open(os.devnull, "w") as nowhere, out(nowhere), err(nowhere):
            with contextlib.suppress(Exception):
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
        ended = False
        while not ended:
            ended = done.wait(0.5)  # and one last look when all are there
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
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, also while something else is waited for."""
    asked = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(settings: Settings, say: Say, began: float, port: int, dashboard: str) -> None:
    url = settings.http.url(port)
    (settings.data_dir / URL_FILE).write_text(url)
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
