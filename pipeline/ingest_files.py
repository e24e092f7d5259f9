"""Files on disk → documents of a running service: a few over HTTP from here, many by the ingest job.

Either way they are parsed outside the service, which never reads a path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conf.schema import Settings, is_loopback
from operators.documents import LONG_BYTES, parse
from operators.errors import Reject, Retry, Stop
from pipeline.client import Client
from pipeline.guard import DEFAULT_TENANT

ATTEMPTS = 10
JOB_FROM = 200
"""Files from which the job is worth starting: Ray takes about 10 s to come up."""


def send(
    client: Client,
    files: Sequence[Path],
    settings: Settings,
    advance: Callable[[], None],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Send every file; one that can't be used is reported and the rest go on. ``say`` is told what will take long."""
    report: dict[str, Any] = {
        "files": len(files),
        "added": 0,
        "duplicates": 0,
        "edges": 0,
        "unchanged": 0,  # the service is asked about every file
        "masked": {},
        "refused": [],
    }
    for path in files:
        try:
            text = parse(path.read_bytes(), name=str(path), config=settings.documents)
            if len(text) > LONG_BYTES:
                say(f"{path} has {len(text):,} characters and is embedded whole: this takes minutes")
            answer = _patiently(client, {"documents": [{"text": text, "source": str(path)}]})
            for key in ("added", "duplicates", "edges"):
                report[key] += answer[key]
            for kind, count in answer["masked"].items():
                report["masked"][kind] = report["masked"].get(kind, 0) + count
        except (Reject, Retry, OSError) as error:
            report["refused"].append({"path": str(path), "error": str(error)})
        advance()
    return report


def job_tenant(settings: Settings, url: str | None, api_key: str | None) -> str | None:
    """Whose memory the job would write to; ``None`` if it can't: no administrator's key here, or an unknown API key."""
    keys = {key.get_secret_value(): tenant for key, tenant in settings.http.api_keys.items()}
    tenant = keys.get(api_key or "") if keys or api_key else DEFAULT_TENANT
    if os.environ.get("RUVLLM_ADMIN_KEY"):
        return tenant
    # The file is the key of the service on this data_dir, not of one elsewhere.
    here = url is None or is_loopback(urlsplit(url).hostname or "")
    return tenant if here and os.access(settings.data_dir / "admin-key", os.R_OK) else None


def run_job(paths: Sequence[Path], url: str, tenant: str, options: Sequence[str]) -> dict[str, Any]:
    """The report of the job over ``paths``; it shows its progress on our stderr, and says there why it could not go on.

    Raises ``Stop`` if it has no report. ``options``: more arguments of ``jobs.ingest``.
    """
    command = [sys.executable, "-m", "jobs.ingest", "--url", url, "--tenant", tenant, *options, "--", *map(str, paths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:  # noqa: S603 - our own module, no shell
        try:
            said, _ = job.communicate()
        except KeyboardInterrupt:  # the job has had it too, and puts its workers away
            job.wait()
            raise
    if job.returncode not in (0, 1) or not said:
        raise Stop("ingest", f"the job ended with {job.returncode}", "see what it said above")
    report: dict[str, Any] = json.loads(said.splitlines()[-1])  # Ray may have had a word before
    return report


def _patiently(client: Client, body: dict[str, Any]) -> Any:
    """Post, and again a few times when the service says it is busy."""
    for _ in range(ATTEMPTS - 1):
        try:
            return client.post("/v1/documents", body)
        except Retry as busy:
            time.sleep(busy.retry_after_s)
    return client.post("/v1/documents", body)
