"""Ray Serve starts a tier's engine when it is asked for, adds one under load, and lets the last one go.

Two minutes, most of them Ray's own patience, so only with ``RUVLLM_TEST_FAULTS``.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest

from tests.service import Running, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("RUVLLM_TEST_FAULTS") != "all", reason="RUVLLM_TEST_FAULTS is not all"),
]
SETTINGS = (
    *("binding=serve", "plan=per_stage", "generators=per_tier", "pool.idle_s=5", "http.request_timeout_s=240"),
    *("tiers.135M.min_replicas=0", "tiers.270M.max_replicas=2", "judge_job.enabled=false", "learn.enabled=false"),
)


def engines(service: Running) -> Counter[str]:
    """Replicas by tier, as the processes are."""
    found: Counter[str] = Counter()
    for process in service.family():
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        found.update(tier for tier in ("135M", "270M") if f"Generator-{tier}" in words)
    return found


def ask(service: Running, tier: str, number: int = 0, words: int = 4) -> Any:
    body = {"model": tier, "max_tokens": words, "user": f"u{number}"}
    body["messages"] = [{"role": "user", "content": "Tell a long story of the sea."}]
    answer = service.http.post("/v1/chat/completions", json=body, timeout=240)
    assert answer.status_code == 200, answer.text
    return answer.json()["model"]


def test_engines_come_when_they_are_asked_for_and_go_when_they_are_not(tmp_path: Path) -> None:
    ports = (f"http.port={free_port()}", f"ray.dashboard_port={free_port()}")
    service = Running(tmp_path / "data", *SETTINGS, *ports).start()
    try:
        service.wait_ready()
        assert engines(service) == {"270M": 1}, "nobody has asked for the small one"
        assert ask(service, "135M") == "135M"
        assert engines(service) == {"135M": 1, "270M": 1}

        enough = Event()

        def go_on(number: int) -> None:
            while not enough.is_set():
                assert ask(service, "270M", number, 24) == "270M"

        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(go_on, number) for number in range(6)]
            try:
                service.until(lambda: engines(service)["270M"] == 2, "second engine")
            finally:
                enough.set()
            for one in asking:
                one.result()
        service.until(lambda: engines(service)["135M"] == 0, "end of the engine that nobody uses")
        service.wait_ready()
        assert ask(service, "135M") == "135M"
    finally:
        assert service.stop() == 0
