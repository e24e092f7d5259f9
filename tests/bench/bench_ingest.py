"""The ingest job beside a plain loop: the same small documents, steps and encoder, into a sink that only counts.

The loop reads, parses, embeds and posts in one process, one file after another, with the job's own writer. Documents a
second are given with the start of each (processes, weights, Ray) and without it: from the first written block to the
last. Memory is the sum of the unique set sizes of all processes of a run, sampled; two sizes of folder show whether it
grows. ``bench_ingest.py [files]``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from conf.load import load
from jobs.door import Door, from_ipc
from jobs.ingest import NICE, plan
from jobs.ingesting.steps import Nodes, read
from jobs.ingesting.write import Report, Writer
from jobs.journal import Journal
from operators.errors import Stop
from operators.files import find

FILES = 10_000
WORDS = ["harbour", "lighthouse", "river", "market", "captain", "copper", "garden", "winter", "signal", "bridge"]


class Sink(ThreadingHTTPServer):
    """Takes nodes and forgets them; ``seen`` has (time, nodes so far) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []
        self.nodes = 0
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """The one endpoint."""

    protocol_version = "HTTP/1.1"
    server: Sink

    def do_POST(self) -> None:
        """Count."""
        rows = from_ipc(self.rfile.read(int(self.headers["content-length"]))).num_rows
        if rows:
            self.server.nodes += rows
            self.server.seen.append((time.perf_counter(), self.server.nodes))
        answer = json.dumps({"added": rows, "duplicates": 0, "edges": 0}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def make(folder: Path, count: int) -> None:
    """``count`` documents of one to three sentences, about 30 tokens, one chunk each."""
    folder.mkdir()
    dice = random.Random(0)
    for i in range(count):
        lines = (f"The {' '.join(dice.choices(WORDS, k=5))} of town {i} is number {n}." for n in range(1 + i % 3))
        (folder / f"{i:05}.txt").write_text(" ".join(lines))


def loop(folder: Path, url: str, data_dir: Path) -> None:
    """The plain loop, run in a process of its own."""
    os.nice(NICE)
    settings = load("local", overrides=[f"data_dir={data_dir}"], env={}).settings
    cache = data_dir / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    files = find([folder])
    journal, report, door = Journal(data_dir / "loop.sqlite", url, ""), Report(files=len(files)), Door(url, "k")
    model = settings.embed.model.id
    writer = Writer(door, "default", journal, report, lambda more: None, encoder=model, max_bytes=8 * 2**20)
    nodes = Nodes("default", settings.embed, settings.documents, settings.privacy, cache, time.time())
    for row in plan(files, {}, report):
        writer.take(nodes(read(row, settings.documents)))
    writer.flush()
    nodes.close()


def run(command: list[str], count: int) -> dict[str, float]:
    """Seconds, documents a second, and the largest memory of a run of ``command`` with a sink's address put in."""
    with Sink() as sink:
        url = f"http://127.0.0.1:{sink.server_address[1]}"
        began, largest = time.perf_counter(), 0
        with subprocess.Popen([word.replace("{url}", url) for word in command], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                largest = max(largest, memory(process.pid))
                time.sleep(1.0)
        seconds = time.perf_counter() - began
        sink.shutdown()
        if process.returncode or sink.nodes != count:
            raise Stop("bench", f"{command[1:3]}: code {process.returncode}, {sink.nodes} nodes", "see above")
        (first, before), (last, after) = sink.seen[0], sink.seen[-1]
    return {
        "seconds": seconds,
        "per_s": count / seconds,
        "per_s_once_started": (after - before) / (last - first),
        "start_s": first - began,
        "memory_mb": largest / 1e6,
    }


def memory(pid: int) -> int:
    """Bytes that only this process and its descendants have."""
    total = 0
    try:
        for process in [(parent := psutil.Process(pid)), *parent.children(recursive=True)]:
            total += process.memory_full_info().uss
    except psutil.NoSuchProcess:  # one ended while we looked; the next sample will do
        return 0
    return total


def main() -> None:
    """Print the table and, as the last line, JSON."""
    if sys.argv[1:2] == ["--loop"]:
        loop(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
        return
    most = int(sys.argv[1]) if len(sys.argv) > 1 else FILES
    if most < 1000:  # the smaller folder needs several requests, or there is no rate between them
        raise Stop("bench", f"{most} files", "take at least 1000")
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as root:
        for count in (most // 5, most):
            folder = Path(root) / str(count)
            make(folder, count)
            data = Path(root) / f"data-{count}"
            data.mkdir()
            (data / "admin-key").write_text("k")
            job = [sys.executable, "-m", "jobs.ingest", str(folder), "--json", "--url", "{url}"]
            plain = [sys.executable, __file__, "--loop", str(folder), "{url}", str(data / "loop")]
            job += ["--profile", "local", "--set", f"data_dir={data}"]
            for name, command in (("job", job), ("loop", plain)):
                report[f"{name}, {count}"] = row = run(command, count)
                print(
                    f"{name:>4}, {count} documents: {row['seconds']:.1f} s, {row['per_s']:.1f} a second "
                    f"({row['per_s_once_started']:.1f} once started; the first is written after "
                    f"{row['start_s']:.1f} s), {row['memory_mb']:.0f} MB",
                    flush=True,
                )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
