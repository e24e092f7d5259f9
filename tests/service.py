"""Real services for tests: started on free ports, observed until ready, ended by the pid that was started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from operators.stores.snapshot import SnapshotReader
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS

ROOT = Path(__file__).parents[1]
READY_S = 180.0

DOCUMENTS = [
    {
        "source": "vell.txt",
        "text": "The Vell lighthouse stands on the island of Ormsay. The Vell lighthouse is 41 metres tall. "
        "Its lamp was lit for the first time in 1873.",
    },
    {
        "source": "quorl.txt",
        "text": "The quorl is a small river fish of the Tamber valley. The quorl eats duckweed. "
        "Fishers of the valley set it free, for it is said to bring rain.",
    },
    {
        "source": "brask.txt",
        "text": "Captain Ilse Brask founded the town of Harrowmere. Tove Lind built the town hall of Harrowmere. "
        "Harrowmere's market is held on Thursdays.",
    },
]
"""Invented facts: no model can know them, so a right answer comes from the memory."""


def free_port() -> int:
    """Not one of those that the system gives to connections: a service takes seconds until it binds it."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(20_000, 21_000)
            probe.bind(("127.0.0.1", port))
            return port


def _dead(process: psutil.Process) -> bool:
    """Gone, or a zombie that nobody reaps (in containers whose first process doesn't)."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Running:
    """``ruvllm serve`` as a child process; ``lines`` are the JSON objects it printed."""

    def __init__(self, data_dir: Path, *sets: str, profile: str = "test", env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.sets = (f"data_dir={data_dir}", *sets)
        self.profile = profile
        self.env = env or {}
        self.module = "pipeline.cli"
        self.lines: list[dict] = []
        self.strays: list[str] = []
        """Printed lines that are no JSON, which --json promises there are none of."""
        self.url = ""

    def command(self, name: str, *args: str) -> list[str]:
        sets = [word for item in self.sets for word in ("--set", item)]
        return [sys.executable, "-m", self.module, name, *args, "--profile", self.profile, *sets]

    def start(self) -> Running:
        self._errors = self.log.open("ab")
        self.lines.clear()
        self.process = subprocess.Popen(
            [*self.command("serve"), "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **self.env},
        )
        found: queue.Queue[dict | None] = queue.Queue()

        def read() -> None:
            for line in self.process.stdout:
                if line.startswith("{"):
                    found.put(json.loads(line))
                else:
                    self.strays.append(line)
            found.put(None)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        self._found = found
        end = time.monotonic() + READY_S
        while not self.url:
            line = found.get(timeout=max(0.1, end - time.monotonic()))
            if line is None:
                code = self.process.wait()
                self.process.stdout.close()
                self._errors.close()
                raise AssertionError(f"the service ended with {code}:\n{self.log.read_text()[-4000:]}")
            self.lines.append(line)
            self.url = line["url"] if line.get("ready") else ""
        self.http = httpx.Client(base_url=self.url, timeout=120, trust_env=False)
        return self

    def lines_until(self, key: str) -> list[dict]:
        """What it printed, up to a line that has ``key``."""
        while not any(key in line for line in self.lines):
            line = self._found.get(timeout=30)
            assert line is not None, f"it ended without a line that has {key!r}"
            self.lines.append(line)
        return self.lines

    def wait_ready(self) -> None:
        """Return once every part of it works."""
        self.until(lambda: self.http.get("/readyz").json()["status"] == "ok", "ready")

    def events(self, topic: str) -> list[dict]:
        """The values of all events of ``topic``."""
        with contextlib.closing(SqliteLog(self.data_dir / "events.sqlite")) as log:
            log.open()
            partitions = range(log.topics()[topic])
            events = [event for p in partitions for event in log.read(topic, p, 0, 10_000)]
        return [json.loads(event.value) for event in events]

    def emitted(self, topic: str = INTERACTIONS) -> list[str]:
        """Interaction ids in ``topic``."""
        return [event["interaction_id"] for event in self.events(topic)]

    def wait_event(self, interaction_id: str, topic: str = INTERACTIONS) -> dict:
        """The interaction's event in ``topic``, as soon as it is there."""
        self.until(lambda: interaction_id in self.emitted(topic), f"event of {interaction_id} in {topic}")
        return next(event for event in self.events(topic) if event["interaction_id"] == interaction_id)

    def wait_published(self, nodes: int, tenant: str = "default") -> None:
        """Return once the graph's snapshot shows so many nodes."""

        def shown() -> int:
            current = SnapshotReader(self.data_dir / "memory" / "snapshots" / tenant).current()
            return current.manifest["nodes"] if current else 0

        self.until(lambda: shown() >= nodes, f"snapshot of {nodes} nodes")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for ``condition``; what it is about, for the error."""
        end = time.monotonic() + READY_S
        while not condition():
            assert time.monotonic() < end, f"no {what} within {READY_S} s"
            self.process.poll()
            threading.Event().wait(0.05)

    def stop(self) -> int:
        """End it as a user would; returns the exit code."""
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(90)
        self._gone(family)
        self._reader.join(10)
        return code

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        family = self.family()
        # Ray's two agents notice the death of their node, but take a minute over telling it to a server that is gone.
        agents = [p for p in family if p.name().startswith(("ray::DashboardA", "ray::RuntimeEnv"))]
        self.process.kill()
        self.process.wait(30)
        self._gone([process for process in family if process not in agents])
        for agent in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.kill()

    def family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def _gone(self, family: list[psutil.Process]) -> None:
        self.http.close()
        self.process.stdout.close()
        self._errors.close()
        end = time.monotonic() + 60
        alive = family
        while alive and time.monotonic() < end:
            _, alive = psutil.wait_procs(alive, timeout=0.2)
            alive = [process for process in alive if not _dead(process)]
        names = [process.name() for process in alive]
        for process in alive:
            process.kill()
        assert not alive, f"processes outlived the service: {names}"
        self.url = ""

    def ingest(self) -> dict:
        answer = self.http.post("/v1/documents", json={"documents": DOCUMENTS})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask(self, question: str, **rest) -> dict:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24, **rest}
        answer = self.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()
