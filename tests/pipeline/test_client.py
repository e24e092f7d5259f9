"""The command line's client against what it may meet at an address: another program, a proxy, a memory that is far."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conf.load import load
from operators.errors import Reject, Retry, Stop
from pipeline.client import Client

PAGE = b"<html><body><h1>It works</h1></body></html>"


@pytest.fixture
def meet():
    """A client of a server that answers every request with the same status and body."""
    with contextlib.ExitStack() as stack:

        def start(status, body):
            class Handler(BaseHTTPRequestHandler):
                def answer(self):
                    self.rfile.read(int(self.headers.get("content-length", 0)))
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                do_GET = do_POST = answer

                def log_message(self, *args):
                    pass

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            client = Client(f"http://127.0.0.1:{server.server_address[1]}")
            stack.callback(client.close)
            return client

        yield start


@pytest.mark.parametrize("body", [PAGE, b"{}", b"[]", b'"ok"'])
def test_what_is_no_ruvllm_is_said_so(meet, body):
    client = meet(200, body)
    health = client.health()
    assert health["up"] is False
    assert "not RuvLLM" in health["error"]
    with pytest.raises(Stop, match="not RuvLLM"):
        list(client.stream({"messages": []}))
    if body == PAGE:
        with pytest.raises(Stop, match="not RuvLLM"):
            client.post("/v1/memory/search", {"query": "x"})


@pytest.mark.parametrize(("status", "kind"), [(404, Reject), (502, Stop), (503, Retry)])
@pytest.mark.parametrize(("body", "words"), [(PAGE, "It works"), (b"", "")])
def test_a_page_of_another_server_leaves_its_words_and_where_it_came_from(meet, status, kind, body, words):
    client = meet(status, body)
    with pytest.raises(kind) as raised:
        client.post("/v1/memory/search", {"query": "x"})
    said = str(raised.value)
    assert words in said
    assert "<" not in said
    assert f"see that RuvLLM listens at {client.url}" in said
    assert str(status) in client.health()["error"]


def test_not_ready_is_not_down(meet):
    health = meet(503, json.dumps({"status": "away", "checks": {"embed": False}, "version": "1"}).encode()).health()
    assert (health["up"], health["status"]) == (True, "away")


def hits(*scores):
    found = [
        {"node_id": f"node{i}", "source": f"{i}.txt" if i else "", "similarity": 0.9 - i / 10, "score": score}
        for i, score in enumerate(scores)
    ]
    return json.dumps({"hits": found, "degraded": []}).encode()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            200,
            hits(0.1, 0.21, 0.2),
            "nothing was close enough (best: 1.txt, score 0.210; attend.min_score of profile test: 0.300)",
        ),
        (
            200,
            hits(0.25),
            "nothing was close enough (best: node0, score 0.250; attend.min_score of profile test: 0.300)",
        ),
        (200, hits(0.1, 0.41), "nothing used (best: 1.txt, score 0.410)"),
        (200, hits(), "nothing used"),
        (429, b"{}", "nothing used"),
    ],
)
def test_why_no_passage_was_used(meet, status, body, said):
    assert meet(status, body).unused("x", load("test").settings) == said


def test_the_gate_named_is_the_one_that_is_set(meet):
    settings = load("test", overrides=["attend.min_score=0.45"]).settings
    assert "0.450" in meet(200, hits(0.41)).unused("x", settings)
    settings = load("test", overrides=["attend.min_similarity=0.98", "search.mode=text"]).settings
    said = "nothing was close enough (best: node0, similarity 0.900; attend.min_similarity of profile test: 0.980)"
    assert meet(200, hits(0.41, 0.2)).unused("x", settings) == said


def test_the_services_own_words_come_with_one_remedy(meet):
    client = meet(503, json.dumps({"error": {"message": "route: no tier; wait, or name no tier"}}).encode())
    with pytest.raises(Retry) as raised:
        client.post("/v1/memory/search", {"query": "x"})
    assert str(raised.value) == "service (503): route: no tier; wait, or name no tier"
