"""``evaluate memory``: what is wrong with the files is said by file and line; a tiny corpus end to end."""

import asyncio
import json
import subprocess
import sys

import pytest

from conf.load import load
from operators.errors import Reject
from operators.evaluation_files import read_corpus, read_queries
from pipeline.cli_evaluate import table
from pipeline.evaluate import LINES, evaluate_memory
from tests.service import ROOT

TALK = [
    ("Ada: Guess where I was last weekend!", "s1"),
    ("Ben: At the Vell lighthouse again?", "s1"),
    ("Ada: Yes, my cousin Elena came along.", "s1"),
    ("Ben: Nice. The weather was awful here.", "s1"),
    ("Ben: I burned the soup yesterday.", "s2"),
    ("Ada: Poor you. Did the smoke alarm go off?", "s2"),
    ("Ben: It did, and the neighbours called the fire brigade.", "s2"),
]
CORPUS = [{"id": f"t{i}", "text": text, "session": session, "extra": 1} for i, (text, session) in enumerate(TALK)]
CORPUS += [
    {"id": f"d{i}", "text": text, "source": "guide.md", "order": i, "time": 1.8e9}
    for i, text in enumerate(["The quorl is a small river fish.", "It eats duckweed and is set free by fishers."])
]
QUERIES = [
    {"id": "q1", "text": "Who went up the Vell lighthouse too?", "gold": ["t1", "t2"]},
    {"id": "q2", "text": "What does the quorl live on?", "gold": ["d1"]},
]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------------------------------------------- bad input


LINE = {"id": "a", "text": "alpha"}


@pytest.mark.parametrize(
    ("rows", "number", "got"),
    [
        ([LINE, "{"], 2, "not JSON"),
        ([LINE, "", "[1]"], 3, "a list, not an object"),
        ([LINE, {"id": "b"}], 2, "no key 'text'"),
        ([{"text": "b"}], 1, "no key 'id'"),
        ([LINE, {"id": 7, "text": "b"}], 2, "id is 7"),
        ([{"id": "a", "text": " "}], 1, "text is ' '"),
        ([LINE, {"id": "b", "text": "b"}, LINE], 3, "id 'a' stands on line 1 too"),
        ([{**LINE, "session": 3}], 1, "session is 3"),
        ([{**LINE, "order": "first"}], 1, "order is 'first'"),
        ([{**LINE, "order": True}], 1, "order is True"),
        ([{**LINE, "order": -1}], 1, "order is -1"),
        ([{**LINE, "time": "now"}], 1, "time is 'now'"),
        (['{"id": "a", "text": "b", "time": NaN}'], 1, "time is nan"),
        (['{"id": "a", "text": "\\ud800"}'], 1, "lone surrogates"),
        ([], 1, "empty"),
        (["", " "], 1, "empty"),
    ],
)
def test_a_bad_corpus_is_refused_by_line(tmp_path, rows, number, got):
    path = write(tmp_path / "corpus.jsonl", rows)
    with pytest.raises(Reject) as error:
        read_corpus(path)
    assert str(path) in error.value.got
    assert f"line {number}:" in error.value.got
    assert got in error.value.got
    assert error.value.remedy


@pytest.mark.parametrize(
    ("rows", "number", "got"),
    [
        ([{"id": "q", "text": "x", "gold": ["a", "zz"]}], 1, "gold id 'zz' is not in the corpus"),
        ([{"id": "q", "text": "x", "gold": [["a"]]}], 1, "is not in the corpus"),
        ([{"id": "q", "text": "x", "gold": []}], 1, "gold is []"),
        ([{"id": "q", "text": "x", "gold": "a"}], 1, "gold is 'a'"),
        ([{"id": "q", "text": "x"}], 1, "gold is None"),
        ([{"id": "q", "text": "x", "gold": ["a"]}] * 2, 2, "id 'q' stands on line 1 too"),
        ([{"id": "q", "gold": ["a"]}], 1, "no key 'text'"),
        ([], 1, "empty"),
    ],
)
def test_bad_queries_are_refused_by_line(tmp_path, rows, number, got):
    corpus = read_corpus(write(tmp_path / "corpus.jsonl", [LINE]))
    path = write(tmp_path / "queries.jsonl", rows)
    with pytest.raises(Reject) as error:
        read_queries(path, corpus)
    assert str(path) in error.value.got
    assert f"line {number}:" in error.value.got
    assert got in error.value.got


def test_files_that_are_no_text_or_not_there_are_refused(tmp_path):
    (tmp_path / "latin").write_bytes(b'{"id": "a", "text": "\xe4"}')
    with pytest.raises(Reject, match="line 1: not UTF-8"):
        read_corpus(tmp_path / "latin")
    with pytest.raises(Reject, match="can't be read"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(Reject, match="can't be read"):
        read_corpus(tmp_path)


def test_without_an_order_lines_follow_one_another_in_their_session(tmp_path):
    rows = [
        {"id": "a", "text": "x", "session": "s"},
        {"id": "b", "text": "x", "session": "t"},
        {"id": "c", "text": "x", "session": "s", "order": 7},
        {"id": "d", "text": "x", "session": "s"},
        {"id": "e", "text": "x", "source": "s"},
    ]
    lines = read_corpus(write(tmp_path / "corpus.jsonl", rows))
    assert [line.order for line in lines] == [0, 0, 7, 8, 0]


# ---------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    return write(root / "corpus.jsonl", CORPUS), write(root / "queries.jsonl", QUERIES), root


@pytest.mark.slow
def test_a_tiny_corpus_end_to_end(files):
    corpus, queries, root = files
    settings = load("test", overrides=[f"data_dir={root / 'mine'}", "search.k=3"], env={}).settings
    told = []
    report = asyncio.run(evaluate_memory(corpus, queries, settings, lambda done, total: told.append((done, total))))
    results = report["results"]
    assert set(results) == {*LINES, "default"}
    assert report["default"] == "attended"
    assert results["default"] == results["attended"]
    assert {"lines": 9, "queries": 2, "sessions": 2, "sources": 1, "nodes": 9}.items() <= report["corpus"].items()
    assert report["settings"]["search"]["k"] == 3
    assert told[-1] == (11, 11)
    for line, row in results.items():
        assert row["ms_p50"] > 0, line
        assert 0 <= row["recall@5"] <= row["recall@10"] <= row["recall@20"] <= row["recall@50"] <= 1, line
    assert results["hybrid"]["recall@50"] == results["hybrid"]["recall@10"] == 1  # nine nodes, all of them ranked
    assert results["bm25"]["recall@50"] == 0.25  # t2 and d1 share no word with their questions
    assert results["bm25+expansion"]["recall@50"] == 1  # but follow a line that does
    assert results["attended"]["recall@50"] > results["bm25"]["recall@50"]
    tokens = report["corpus"]["tokens"]
    assert results["hybrid"]["context_tokens"] == pytest.approx(tokens)  # all nine are among the first ten
    assert not (root / "mine" / "memory").exists()
    text = table(report)
    assert "attended *" in text
    assert all(line in text for line in LINES)


@pytest.mark.slow
def test_the_command_writes_the_report_and_refuses_what_it_cannot_use(files):
    corpus, queries, root = files
    command = [sys.executable, "-m", "pipeline.cli", "evaluate", "memory", "--profile", "test"]
    command += ["--set", f"data_dir={root / 'data'}", "--set", "search.mode=text", "--corpus", str(corpus)]

    def run(*args):
        return subprocess.run([*command, *args], cwd=ROOT, capture_output=True, text=True, timeout=120)

    done = run("--queries", str(queries), "--json", "--out", str(root / "report.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((root / "report.json").read_text())
    hits = {line: row["recall@5"] for line, row in report["results"].items()}
    assert hits["attended"] == hits["bm25+expansion"]  # in the profile's mode, which is text here
    done = run("--queries", str(write(root / "bad.jsonl", [{"id": "q", "text": "x", "gold": ["nope"]}])))
    assert done.returncode == 1
    assert "bad.jsonl: line 1: gold id 'nope' is not in the corpus" in done.stderr
    done = run("--queries", str(queries), "--out", str(root / "none" / "report.json"))
    assert done.returncode == 1
    assert "no folder" in done.stderr
