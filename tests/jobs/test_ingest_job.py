"""The ingest job: its steps one by one, and as a process of its own that is killed in the middle and started again."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import pytest

from conf.load import load
from jobs.door import Door, admin_key, from_ipc, to_ipc
from jobs.ingest import fingerprint, ingest, plan
from jobs.ingesting.steps import Nodes, read
from jobs.ingesting.write import Report, Writer
from jobs.journal import Journal, Taken
from operators.documents import DocumentsConfig
from operators.errors import Reject, Retry
from operators.stores import lance_rows
from operators.stores.ports import Node
from pipeline.ingest_files import job_tenant

ROOT = Path(__file__).parents[2]
KEY = "k" * 40
WAIT_S = 120.0


class Memory:
    """A service that remembers what it is handed. ``script`` says what its next answers are instead."""

    def __init__(self):
        self.nodes, self.posts, self.sizes, self.script = {}, [], [], []
        self.full, self.held, self.go_on = 10**9, threading.Event(), threading.Event()

    def take(self, tenant, body):
        """(status, headers, JSON). From ``full`` nodes on, ``held`` is set and the answer waits for ``go_on``."""
        if self.script and (said := self.script.pop(0)):
            return said
        table = from_ipc(body)
        if len(self.nodes) >= self.full:
            self.held.set()
            assert self.go_on.wait(WAIT_S)
        if "poison" in (texts := table["text"].to_pylist()):
            return 400, {}, error(f"memory: poison in {len(texts)} nodes; leave it out")
        new = {row["id"]: row for row in table.to_pylist()}
        added = new.keys() - self.nodes.keys()
        self.nodes |= {node_id: {**new[node_id], "tenant": tenant} for node_id in added}
        self.posts.append(table["source"].to_pylist())
        self.sizes.append(len(body))
        return 200, {}, {"added": len(added), "duplicates": table.num_rows - len(added), "edges": 0}


def error(message):
    return {"error": {"message": message, "type": "x", "param": None, "code": None}}


@pytest.fixture
def memory():
    memory = Memory()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            where = urlsplit(self.path)
            status, headers, said = 404, {}, error(f"{where.path}: no such path; /docs lists them")
            if self.headers["authorization"] != f"Bearer {KEY}":
                status, said = 401, error("guard: no valid key; send the administrator's")
            elif where.path == "/v1/admin/memory/nodes":
                assert self.headers["content-type"] == "application/vnd.apache.arrow.stream"
                status, headers, said = memory.take(parse_qs(where.query)["tenant"][0], body)
            answer = json.dumps(said).encode()
            with contextlib.suppress(ConnectionError):  # who asked may have been killed
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        memory.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield memory
        memory.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def door(memory):
    door = Door(memory.url, KEY)
    yield door
    door.close()


def made(source, *texts, error=""):
    """A row as the workers hand it over."""
    nodes = [
        Node(node_id=f"{source}{i}", kind="document", text=t, vector=np.eye(4, dtype="f4")[0], created_at=1.0)
        for i, t in enumerate(texts)
    ]
    facts = {"path": f"/{source}", "source": source, "known": "", "size": 1, "mtime_ns": 2, "sha256": "s"}
    return {**facts, "error": error, "masked": "{}", "nodes": to_ipc(lance_rows.table(nodes, 4)) if nodes else b""}


@pytest.fixture
def writing(memory, door, tmp_path):
    """Writes rows and gives (report, sources in the journal, seconds slept)."""

    def write(rows, **options):
        journal, report, slept, done = Journal(tmp_path / "j.sqlite", "m", "s"), Report(files=len(rows)), [], []
        options = {"max_bytes": 10**6, **options}
        writer = Writer(door, "acme", journal, report, done.append, encoder="e", sleep=slept.append, **options)
        try:
            writer.knock(4)
            for row in rows:
                writer.take(row)
            writer.flush()
            assert sum(done) == len(rows)
        finally:
            known = {source for source, _ in journal.known()}
            journal.close()
        return report, known, slept

    return write


def test_nodes_of_many_files_go_in_one_request(memory, writing):
    report, known, _ = writing([made(f"f{i}", "a", "b") for i in range(100)])
    assert (report.added, report.duplicates, report.refused) == (200, 0, [])
    assert known == {f"f{i}" for i in range(100)}
    assert [len(sources) for sources in memory.posts] == [0, 128, 72]
    assert {node["tenant"] for node in memory.nodes.values()} == {"acme"}


def test_a_large_file_goes_in_parts_and_no_request_is_larger_than_told(memory, writing):
    writing([made("big", *("word " * 20 for _ in range(400)))], max_bytes=20_000)
    assert len(memory.nodes) == 400
    assert len(memory.posts) > 2
    assert max(memory.sizes) < 2 * 20_000


def test_the_bad_file_of_a_request_is_refused_and_the_others_are_written(memory, writing):
    rows = [made("a", "x"), made("bad", "poison"), made("c", "y"), made("d", error="documents: d is broken; mend it")]
    report, known, _ = writing(rows)
    assert known == {"a", "c"}
    assert {bad["path"]: bad["error"] for bad in report.refused} == {
        "bad": "service (400): memory: poison in 1 nodes; leave it out",
        "d": "documents: d is broken; mend it",
    }


def test_a_busy_service_is_asked_again_as_late_as_it_says(memory, writing):
    memory.script = [None, (429, {"retry-after": "2", "retry-after-ms": "1500"}, error("full; come back")), None]
    report, known, slept = writing([made("a", "x")])
    assert (report.added, known, slept) == (1, {"a"}, [1.5])


def test_patience_ends_and_what_was_not_acknowledged_is_not_noted(memory, writing, tmp_path):
    memory.script = [None] + [(503, {"retry-after": "9"}, error("away; come back"))] * 3
    with pytest.raises(Retry, match="away"):
        writing([made("a", "x")], patience_s=5.0)
    journal = Journal(tmp_path / "j.sqlite", "m", "s")
    assert journal.known() == {}
    journal.close()


def test_a_wrong_key_ends_the_job_before_it_begins(memory, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    settings = load("test", overrides=[f"data_dir={tmp_path}/data"], env={}).settings
    with contextlib.closing(Door(memory.url, "wrong")) as wrong, pytest.raises(Reject, match="no valid key"):
        ingest([tmp_path], settings, wrong)
    assert memory.posts == []


def test_the_job_needs_a_key_that_is_the_services(tmp_path, monkeypatch):
    monkeypatch.delenv("RUVLLM_ADMIN_KEY", raising=False)
    settings = load("test", overrides=[f"data_dir={tmp_path}"], env={}).settings
    assert job_tenant(settings, None, None) is None
    (tmp_path / "admin-key").write_text(KEY)
    assert job_tenant(settings, None, None) == job_tenant(settings, "http://127.0.0.1:1", None) == "default"
    assert job_tenant(settings, "http://10.0.0.1:8000", None) is None
    assert job_tenant(settings, None, "somebody's") is None
    keyed = load("test", overrides=[f"data_dir={tmp_path}", "http.api_keys={sesame: acme}"], env={}).settings
    assert job_tenant(keyed, None, "sesame") == "acme"
    assert job_tenant(keyed, None, None) is None
    monkeypatch.setenv("RUVLLM_ADMIN_KEY", KEY)
    assert job_tenant(settings, "http://10.0.0.1:8000", None) == "default"


def row_of(path, known=""):
    return {"path": str(path), "source": path.name, "known": known}


def test_reading_keeps_bad_files_as_rows_with_a_reason(tmp_path):
    config = DocumentsConfig(max_bytes=50)
    for name, data in {"good.md": b"# One\n\ntwo", "bin.txt": b"\0", "fake.pdf": b"no", "big.txt": b"x" * 60}.items():
        (tmp_path / name).write_bytes(data)
    rows = {p.name: read(row_of(p), config) for p in [*sorted(tmp_path.iterdir()), tmp_path / "gone.txt"]}
    assert rows["good.md"]["error"] == ""
    assert rows["good.md"]["text"] == "# One\n\ntwo"
    assert rows["good.md"]["size"] == 10
    for name, words in {
        "bin": "zero byte",
        "fake": "no PDF header",
        "big": "the limit is 50",
        "gone": "No such",
    }.items():
        (row,) = (row for key, row in rows.items() if key.startswith(name))
        assert words in row["error"]
        assert row["text"] == ""
    again = read(row_of(tmp_path / "good.md", rows["good.md"]["sha256"]), config)
    assert (again["text"], again["error"]) == ("", ""), "known bytes are not parsed again"


def test_the_plan_leaves_out_what_is_as_it_was(tmp_path):
    files = [tmp_path / name for name in ("same", "touched", "new", os.fsdecode(b"\xff"))]
    known = {}
    for file in files:
        file.write_text("x")
        stat = file.stat()
        known[str(file), str(file)] = Taken(
            source=str(file), path=str(file), size=1, mtime_ns=stat.st_mtime_ns, sha256="s"
        )
    del known[str(files[2]), str(files[2])]
    os.utime(files[1], ns=(1, 1))
    report = Report(files=4)
    rows = plan(files, known, report)
    assert [(Path(row["path"]).name, row["known"]) for row in rows] == [("touched", "s"), ("new", "")]
    assert report.unchanged == 1
    assert "no text in UTF-8" in report.refused[0]["error"]


def test_other_settings_make_every_file_new():
    def of(*overrides):
        return fingerprint(load("test", overrides=overrides, env={}).settings)

    assert of() == of("embed.threads=2", "search.k=3", "http.port=9000")
    others = ("documents.max_tokens=100", "embed.model.id=other", "embed.max_tokens=64", "privacy.documents=false")
    assert len({of(), *map(of, others)}) == 1 + len(others)


def step_of(tenant, settings):
    cache = settings.data_dir / "cache"
    return Nodes(tenant, settings.embed, settings.documents, settings.privacy, cache, 1.0)


def expected(folder, settings):
    """The nodes of the folder by a plain loop, in this process."""
    step = step_of("default", settings)
    found = {}
    for file in sorted(folder.iterdir()):
        row = step(read({"path": str(file), "source": str(file), "known": ""}, settings.documents))
        if not row["error"]:
            found |= {node["id"]: node for node in from_ipc(row["nodes"]).to_pylist()}
    step.close()
    return found


def kill(job):
    """SIGKILL the job, and see that its Ray goes with it."""
    family = psutil.Process(job.pid).children(recursive=True)
    assert any(process.name() == "raylet" for process in family), "it runs on Ray"
    job.kill()
    job.wait(30)
    # Ray's agents notice late that their node is dead (tests/service.py); the workers must not go on.
    agents = [p for p in family if p.name().startswith(("ray::DashboardA", "ray::RuntimeEnv"))]
    _, alive = psutil.wait_procs([p for p in family if p not in agents], timeout=60)
    for process in [*agents, *alive]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_the_real_service_takes_what_the_job_hands_in(inproc, tmp_path):
    """The steps one after another, without Ray, into a memory of its own."""
    (tmp_path / "kiln.md").write_text("# The kiln\n\nThe kiln of Sorrel burns peat. Ask sorrel@example.org about it.")
    settings = load("test", overrides=list(inproc.sets), env={}).settings
    step = step_of("sorrel", settings)
    row = step(read({"path": str(tmp_path / "kiln.md"), "source": "kiln.md", "known": ""}, settings.documents))
    step.close()
    with contextlib.closing(Door(inproc.url, admin_key(settings.data_dir, {}))) as door:
        answers = []
        for _ in range(2):
            journal, report = Journal(tmp_path / "j.sqlite", "m", "s"), Report(files=1)
            model = settings.embed.model.id
            writer = Writer(door, "sorrel", journal, report, lambda more: None, encoder=model, max_bytes=10**6)
            writer.knock(settings.embed.output_dim)
            writer.take(row)
            writer.flush()
            journal.close()
            answers.append((report.added, report.duplicates, report.refused, report.masked))
        assert answers == [(1, 0, [], {"EMAIL": 1}), (0, 1, [], {"EMAIL": 1})]
        other = Writer(door, "sorrel", None, Report(files=0), lambda more: None, encoder="other", max_bytes=10**6)
        with pytest.raises(Reject, match="vectors of 'other', this memory has those of"):
            other.knock(settings.embed.output_dim)
        assert "sorrel" in door.get_json("/v1/admin/memory/tenants")
    with contextlib.closing(Door(inproc.url, "wrong")) as wrong, pytest.raises(Reject, match="administrator's key"):
        wrong.get_json("/v1/admin/memory/tenants")


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_nothing_is_missing_or_double(memory, tmp_path):
    folder, data = tmp_path / "papers", tmp_path / "data"
    folder.mkdir()
    data.mkdir()
    (data / "admin-key").write_text(KEY)
    for i in range(60):
        (folder / f"{i:03}.txt").write_text(f"Town {i} has a harbour. Ship number {i * 7} lies in it.")
    (folder / "long.md").write_text("\n\n".join(f"# Part {n}\n\n" + f"Line {n} of the log. " * 40 for n in range(8)))
    (folder / "broken.pdf").write_text("I am no PDF")
    # Small requests, so that there is a middle.
    sets = [f"data_dir={data}", "http.max_admin_body_bytes=240000"]
    options = ["--profile", "test", "--url", memory.url, *(word for item in sets for word in ("--set", item))]

    memory.full = 20
    job = subprocess.Popen([sys.executable, "-m", "jobs.ingest", str(folder), "--json", *options], cwd=ROOT)
    try:
        assert memory.held.wait(WAIT_S), "it handed in nodes until it was held up"
    finally:
        kill(job)
    before = set(memory.nodes)
    journal = Journal(data / "memory" / "ingest.sqlite", f"{memory.url} default", fingerprint(_settings(sets)))
    noted = {source for source, _ in journal.known()}
    journal.close()
    wanted = expected(folder, _settings(sets))
    assert 0 < len(before) < len(wanted), "the middle"
    assert 0 < len(noted) < 61
    memory.full, memory.posts = 10**9, []
    memory.go_on.set()

    command = [sys.executable, "-m", "pipeline.cli", "ingest", str(folder), "--job", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1, "one file was refused"
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert (report["files"], report["unchanged"]) == (62, len(noted))
    assert [Path(bad["path"]).name for bad in report["refused"]] == ["broken.pdf"]
    assert "no PDF header" in report["refused"][0]["error"]
    assert not noted & {source for post in memory.posts for source in post}, "what was noted is not sent again"
    assert memory.nodes.keys() == wanted.keys()
    for node_id, node in wanted.items():
        kept = memory.nodes[node_id]
        assert {name: kept[name] for name in ("text", "source", "position", "metadata")} == {
            name: node[name] for name in ("text", "source", "position", "metadata")
        }
        assert float(np.dot(kept["vector"], node["vector"])) > 0.9999

    (folder / "broken.pdf").unlink()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0
    assert json.loads(done.stdout)["unchanged"] == 61, "no Ray is started for nothing"


def _settings(sets):
    return load("test", overrides=sets, env={}).settings
