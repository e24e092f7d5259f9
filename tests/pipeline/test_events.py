"""What leaves a running service for learning: the interaction after the answer, and the judge's verdict after that."""

import json

import httpx
import psutil
import pytest

from operators.records import Interaction, Verdict, decode
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, WRITEBACKS
from tests.service import Running

pytestmark = pytest.mark.slow
QUESTION = "How tall is the Vell lighthouse?"


def says_something(line):
    """Whether this line of a stream carries text: the engine is at work."""
    return line.startswith("data: {") and bool(json.loads(line[6:])["choices"][0]["delta"].get("content"))


def test_a_completed_turn_is_emitted_whole(inproc):
    answer = inproc.ask(QUESTION, user="emitted")
    event = decode(Interaction, json.dumps(inproc.wait_event(answer["ruvllm"]["interaction_id"])))
    assert event.query == QUESTION
    assert event.answer == answer["choices"][0]["message"]["content"]
    assert event.route.tier == answer["model"]
    assert event.route.features.shape == (128,)
    assert [p.node_id for p in event.context] == [c["node_id"] for c in answer["ruvllm"]["citations"]]
    assert (event.session, event.turn, event.tenant) == ("emitted", 0, "default")
    assert not event.hidden.any()
    second = inproc.ask(QUESTION, user="emitted")["ruvllm"]["interaction_id"]
    following = decode(Interaction, json.dumps(inproc.wait_event(second)))
    assert following.turn == 1
    assert (following.hidden == event.route.hidden).all()


def test_the_judge_rates_it_in_the_background(inproc):
    interaction = inproc.ask(QUESTION)["ruvllm"]["interaction_id"]
    verdict = decode(Verdict, json.dumps(inproc.wait_event(interaction, JUDGEMENTS)))
    assert verdict.status == "judged"
    assert 0 < verdict.score < 1
    assert 0 < verdict.uncertainty <= 1
    assert sum(verdict.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert verdict.judge == "gemma-3-270m/few_shot"


def test_a_user_has_an_answer_remembered_corrects_it_and_takes_it_back(inproc):
    answer = inproc.ask(QUESTION, user="rated")["ruvllm"]
    rated = {"interaction_id": answer["interaction_id"], "session": "rated"}

    def remembered(text):
        nodes = inproc.http.get("/v1/memory/nodes", params={"session": "rated"}).json()["nodes"]
        return [node for node in nodes if text in node["text"]]

    assert inproc.http.post("/v1/feedback", json={**rated, "rating": "up"}).status_code == 202
    inproc.until(lambda: remembered("41"), "answer remembered")
    (node,) = remembered("41")
    assert (node["kind"], node["user"], node["quality"]) == ("interaction", "rated", 1.0)
    assert (node["metadata"]["judge"], node["metadata"]["interaction"]) == ("user", answer["interaction_id"])
    edges = inproc.http.get(f"/v1/memory/nodes/{node['node_id']}").json()["edges"]
    cited = {edge["target_id"] for edge in edges if edge["relation"] == "cites"}
    assert cited == {one["node_id"] for one in answer["citations"]}
    inproc.http.post("/v1/feedback", json={**rated, "score": 0, "correction": "It was raised to 43 metres."})
    inproc.until(lambda: remembered("raised to 43"), "correction remembered")
    assert remembered("raised to 43")[0]["node_id"] == node["node_id"]
    inproc.http.post("/v1/feedback", json={**rated, "rating": "down"})
    inproc.until(lambda: not remembered(""), "answer taken back")
    inproc.http.post("/v1/feedback", json={**rated, "session": "another's", "rating": "up"})
    inproc.wait_event(answer["interaction_id"], WRITEBACKS)
    assert not remembered("")


def test_an_abandoned_stream_is_no_interaction(inproc):
    body = {"model": "135M", "messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 500}
    with inproc.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        interaction = response.headers["x-ruvllm-interaction-id"]
        next(line for line in response.iter_lines() if says_something(line))
    # The same tier answers more tokens than the abandoned stream had left; had that gone on, it would have ended first.
    finished = inproc.ask("Tell a long story.", model="135M", max_tokens=600)["ruvllm"]["interaction_id"]
    inproc.wait_event(finished)
    assert interaction not in inproc.emitted()


def test_kill_9_keeps_what_was_acknowledged_and_the_jobs_go_with_it(tmp_path):
    """Binding inproc; the same for Ray Serve is in test_bindings."""
    service = Running(tmp_path / "data", "binding=inproc", "http.port=0").start()
    service.ingest()
    asked = service.ask(QUESTION)["ruvllm"]["interaction_id"]
    service.wait_event(asked)
    pids = [next(line[job] for line in service.lines if job in line) for job in ("judge", "writeback", "maintain")]
    jobs = [psutil.Process(pid) for pid in pids]
    assert all(job.is_running() for job in jobs)
    body = {"model": "135M", "messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 900}

    def kill_once_it_speaks():
        with service.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            next(line for line in lines if says_something(line))
            service.kill()
            for _ in lines:  # what had come before the kill is still there to read
                pass

    with pytest.raises(httpx.TransportError):
        kill_once_it_speaks()
    assert all(not job.is_running() or job.status() == psutil.STATUS_ZOMBIE for job in jobs)
    service.start()
    try:
        assert asked in service.emitted(INTERACTIONS)
        assert service.ingest()["added"] == 0
        assert "41" in service.ask(QUESTION)["choices"][0]["message"]["content"]
        service.wait_event(asked, JUDGEMENTS)
        assert service.emitted(JUDGEMENTS).count(asked) == 1
    finally:
        assert service.stop() == 0
