"""Real services for tests: started on free ports, observed until ready, ended by the pid that was started."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil

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
        "text": "Captain Ilse Brask founded the town of Harrowmere. The town hall of Harrowmere was built by Tove Lind. "
        "Harrowmere's market is held on Thursdays.",
    },
]
"""Invented facts: no model can know them, so a right answer comes from the memory."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """``ruvllm serve`` as a child process; ``lines`` are the JSON objects it printed."""

    def __init__(self, data_dir: Path, *sets: str, profile: str = "test", env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.sets = (f"data_dir={data_dir}", *sets)
        self.profile = profile
        self.env = env or {}
        self.lines: list[dict] = []
        self.url = ""

    def command(self, name: str, *args: str) -> list[str]:
        sets = [word for item in self.sets for word in ("--set", item)]
        return [sys.executable, "-m", "pipeline.cli", name, *args, "--profile", self.profile, *sets]

    def start(self) -> Running:
        self._errors = self.log.open("ab")
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
            found.put(None)

        threading.Thread(target=read, daemon=True).start()
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

    def stop(self) -> int:
        """End it as a user would; returns the exit code."""
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(90)
        self._gone(family)
        return code

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        family = self.family()
        self.process.kill()
        self.process.wait(30)
        self._gone(family)

    def family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def _gone(self, family: list[psutil.Process]) -> None:
        self.http.close()
        self.process.stdout.close()
        self._errors.close()
        _, alive = psutil.wait_procs(family, timeout=60)
        for process in alive:
            process.kill()
        assert not alive, f"processes outlived the service: {[(p.pid, p.cmdline()[:3]) for p in alive]}"
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
