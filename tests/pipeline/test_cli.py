"""The command line as a user meets it: what it prints, in words and as JSON, and what it says when things are wrong."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from tests.service import ROOT, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ruvllm(inproc):
    def run(command, *args, stdin="", ok=True, url=True):
        words = inproc.command(*command.split(), *args)
        done = subprocess.run(
            [*words, "--url", inproc.url] if url else words,
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout if ok else done.stderr + done.stdout

    return run


def test_ask_streams_and_then_tells_how(ruvllm):
    out = ruvllm("ask", "How tall is the Vell lighthouse?", "--temperature", "0", "--explain")
    assert "41" in out.splitlines()[0]
    assert "route" in out
    assert "vell.txt" in out
    assert "similarity" in out


def test_ask_says_how_close_the_memory_came(ruvllm, inproc):
    question = "Which planet has the most moons?"
    found = inproc.http.post("/v1/memory/search", json={"query": question, "k": 100}).json()["hits"]
    best = found[0]
    assert best["score"] < 0.3, "the question must be off every test's topic"
    out = ruvllm("ask", question, "--temperature", "0", "--max-tokens", "4")
    (said,) = re.findall(r"^memory +(.*)$", out, re.MULTILINE)
    assert said == (
        f"nothing was close enough (best: {best['source']}, score {best['score']:.3f}; "
        "attend.min_score of profile test: 0.300)"
    )


def test_a_session_may_have_any_name(ruvllm):
    answer = json.loads(ruvllm("ask", "hi", "--session", "ü → 🙂", "--max-tokens", "2", "--json"))
    assert answer["session"] == "ü → 🙂"


def test_what_no_request_can_carry_is_refused_in_words(ruvllm):
    for args in (("hi", "--temperature", "nan"), ("hi", "--api-key", "ü"), (os.fsdecode(b"a\xff"),)):
        said = ruvllm("ask", *args, ok=False)
        assert said.startswith("error: ")
        assert "Traceback" not in said


def test_ask_as_json(ruvllm):
    answer = json.loads(ruvllm("ask", "-", "--temperature", "0", "--json", stdin="What does the quorl eat?"))
    assert "duckweed" in answer["answer"]
    assert answer["citations"][0]["source"] == "quorl.txt"


def test_search_status_and_models(ruvllm):
    hits = json.loads(ruvllm("search", "who built the town hall", "--json"))["hits"]
    assert hits[0]["source"] == "brask.txt"
    assert "brask.txt" in ruvllm("search", "who built the town hall")
    assert len(json.loads(ruvllm("search", "who built the town hall", "-k", "1", "--json"))["hits"]) == 1
    status = json.loads(ruvllm("status", "--json"))
    assert (status["up"], status["status"]) == (True, "ok")
    rows = {row["tier"]: row for row in json.loads(ruvllm("models list", "--json", url=False))}
    assert rows["135M"]["state"] == rows["270M"]["state"] == "ok"
    assert rows["135M"]["bytes"] > 90e6
    assert rows["(tokenizer)"]["state"] == "ok"


def test_models_list_cuts_nothing_and_exits_with_1_if_one_is_not_whole(ruvllm, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "40")
    missing = str(tmp_path / "a name so long that no table of forty columns could show it.gguf")
    bad = ["--set", "tiers.270M.model.package=", "--set", "tiers.270M.model.file="]
    bad += ["--set", f"tiers.270M.model.path={missing}", "--set", "embed.tokenizer.sha256=00"]
    rows = json.loads(ruvllm("models list", "--json", *bad, ok=False, url=False))
    shown = ruvllm("models list", *bad, ok=False, url=False)
    assert [row["tier"] for row in rows] == ["135M", "270M", "(embed)", "(tokenizer)"]
    for row in rows:
        assert all(row[key] in shown for key in ("tier", "id", "engine", "licence", "path", "state"))
    assert rows[0]["path"].endswith(".gguf")
    assert missing in rows[1]["state"]
    assert "expected 00" in rows[3]["state"]


def test_config_show_names_the_origin_of_every_value(ruvllm):
    shown = json.loads(ruvllm("config show", "--json", "--set", "search.k=3", url=False))
    assert shown["search.k"] == {"value": 3, "origin": "--set search.k=3"}
    assert shown["route.deterministic"]["origin"] == "conf/test.yaml"
    assert shown["search.mode"]["origin"] == "conf/base.yaml"
    assert "search.k" in ruvllm("config show", url=False)


def test_ingest_files_and_folders_once(ruvllm, tmp_path):
    (tmp_path / "a.md").write_text("# The Orrery\n\nThe orrery of Pell has nine arms of brass.\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("The clock of Pell strikes thirteen.")
    (tmp_path / "c.bin").write_bytes(b"\0\1")
    first = json.loads(ruvllm("ingest", str(tmp_path), "--json"))
    assert (first["files"], first["added"], first["refused"]) == (2, 2, [])
    again = json.loads(ruvllm("ingest", str(tmp_path), "--json"))
    assert (again["added"], again["duplicates"]) == (0, 2)
    assert "nine" in ruvllm("search", "how many arms has the orrery")


def test_a_text_larger_than_a_question_may_be_comes_whole(ruvllm, inproc, tmp_path):
    """In parts its headings and places would begin again in each, and every part would be a version of its own."""
    told = "The tally of Ulm says it again. " + "x" * 900  # one token to the encoder, so that a megabyte is soon read
    (tmp_path / "log.md").write_text("# The Log of Ulm\n\n" + "\n\n".join(f"{i} {told}" for i in range(1200)))
    report = json.loads(ruvllm("ingest", str(tmp_path / "log.md"), "--json"))
    assert (report["added"] > 20, report["refused"]) == (True, [])
    asked = {"source": str(tmp_path / "log.md"), "limit": 200}
    nodes = inproc.http.get("/v1/memory/nodes", params=asked).json()["nodes"]
    assert sorted(node["position"] for node in nodes) == list(range(report["added"]))
    assert {node["metadata"]["heading"] for node in nodes} == {"The Log of Ulm"}
    assert len({node["metadata"]["version"] for node in nodes}) == 1


def test_the_job_is_refused_where_the_administrators_key_is_not(ruvllm, tmp_path):
    (tmp_path / "a.txt").write_text("The mill of Pell turns at noon.")
    for elsewhere in (("--api-key", "somebody's"), ("--url", "http://192.0.2.1")):
        said = ruvllm("ingest", str(tmp_path / "a.txt"), "--job", *elsewhere, ok=False, url=False)
        assert "no administrator's key" in said
        assert "RUVLLM_ADMIN_KEY" in said


def test_a_pdf_that_is_none_is_refused_and_the_rest_go_on(ruvllm, tmp_path):
    (tmp_path / "fake.pdf").write_text("I am no PDF")
    (tmp_path / "good.txt").write_text("The ferry to Pell leaves at dawn.")
    said = ruvllm("ingest", str(tmp_path / "fake.pdf"), str(tmp_path / "good.txt"), ok=False)
    assert "fake.pdf" in said
    assert "no PDF header" in said
    assert "2 files: 1 nodes added" in said


def test_a_real_pdf(ruvllm, tmp_path):
    (tmp_path / "note.pdf").write_bytes(pdf("The gate of Wexmoor is painted green."))
    assert json.loads(ruvllm("ingest", str(tmp_path / "note.pdf"), "--json"))["added"] == 1
    assert "painted green" in ruvllm("search", "what colour is the gate of Wexmoor")


def pdf(text):
    """The smallest PDF with one line of text."""
    stream = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1) + table + trailer


def test_a_folder_without_documents(ruvllm, tmp_path):
    assert json.loads(ruvllm("ingest", str(tmp_path), "--json"))["files"] == 0
    assert "nothing to ingest there: no .markdown, .md," in ruvllm("ingest", str(tmp_path))


def test_version_and_help(ruvllm):
    words = [sys.executable, "-m", "pipeline.cli", "--version"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["ruvllm", version("ruvllm")])
    for flag in ("--help", "-h"):
        assert "http.port" in ruvllm("status", flag, url=False)


def test_status_when_the_service_is_down(ruvllm):
    nobody = f"http://127.0.0.1:{free_port()}"
    status = json.loads(ruvllm("status", "--json", "--url", nobody, ok=False, url=False))
    assert (status["up"], status["url"]) == (False, nobody)
    assert "no service listens there" in status["error"]
    assert ruvllm("status", "--url", nobody, ok=False, url=False).startswith("error: ")


def test_addresses_that_are_none_and_those_with_colons(ruvllm):
    for url in ("foo", "http://[::1", ""):
        assert "write it like http://127.0.0.1:8000" in ruvllm("status", "--url", url, ok=False, url=False)
    said = ruvllm("status", "--set", "http.host=::1", ok=False, url=False)
    assert "http://[::1]:0: no service listens there" in said


def test_a_missing_path_an_unknown_key_and_no_service(ruvllm):
    assert "no file or folder" in ruvllm("ingest", "/nowhere/at/all.txt", ok=False)
    assert "did you mean 'search.k'" in ruvllm("config show", "--set", "search.kk=3", ok=False, url=False)
    nobody = f"http://127.0.0.1:{free_port()}"
    said = ruvllm("ask", "hi", "--url", nobody, ok=False, url=False)
    assert "no service listens there" in said
    assert "ruvllm serve" in said
    assert "Traceback" not in said


@pytest.fixture
def alone(tmp_path):
    """``run-stage`` on a data directory that no service holds."""

    def run(stage, stdin, ok=True):
        from tests.service import Running

        words = Running(tmp_path / "alone", "judge_job.enabled=false").command("run-stage", stage)
        done = subprocess.run(words, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return json.loads(done.stdout) if ok else done.stderr

    return run


def test_run_stage_makes_what_the_input_lacks(alone):
    embedded = alone("embed", '{"text": "a lighthouse"}')
    assert len(embedded["vector"]) == 384
    route = alone("route", '{"query": {"text": "How tall is the Vell lighthouse?", "explain": true}}')
    assert route["tier"] in ("135M", "270M")
    assert route["explanation"]


def test_run_stage_says_what_is_wrong_with_its_input(alone):
    assert "no stage" in alone("fly", "{}", ok=False)
    assert "no query" in alone("route", "{}", ok=False)
    assert "query.k" in alone("embed", '{"query": {"text": "x", "k": "many"}}', ok=False)
    assert "no JSON" in alone("embed", "{", ok=False)
    assert "interaction" in alone("judge", "{}", ok=False)
