"""The same graph in one process and on Ray Serve, fused and by the stage: same answers, nothing but loopback."""

import ipaddress
import json
import subprocess
import sys

import grpc
import httpx
import openai
import psutil
import pytest

from operators.learning.rollout import Why, activate, present
from operators.learning.weights import FILE
from operators.networks.prior import prior
from operators.stores.checkpoints import Registry
from tests.service import DOCUMENTS, Running, free_port

pytestmark = pytest.mark.slow

QUESTIONS = [
    ("How tall is the Vell lighthouse?", {}),
    ("What does the quorl eat?", {}),
    ("Who founded the town of Harrowmere, and on which day of the week is its market held?", {}),
    ("Write a Python function that adds two numbers.", {}),
    ("How tall is the Vell lighthouse?", {"model": "270M"}),
    ("When was the lamp lit for the first time?", {"model": "135M", "max_tokens": 5}),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Binding ``inproc`` with exactly the same memory; the shared fixture's has what other tests added."""
    service = Running(tmp_path_factory.mktemp("plain") / "data", "binding=inproc", "http.port=0").start()
    service.ingest()
    service.wait_published(len(DOCUMENTS))
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module")
def expected(plain):
    return [comparable(plain.ask(question, **rest)) for question, rest in QUESTIONS]


def comparable(answer):
    """What must not depend on where the stages run."""
    route = answer["ruvllm"]["route"]
    return {
        "text": answer["choices"][0]["message"]["content"],
        "finish": answer["choices"][0]["finish_reason"],
        "usage": {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")},
        "tier": answer["model"],
        "context_tokens": route["context_tokens"],
        "confidence": pytest.approx(route["confidence"], abs=1e-4),
        "citations": [citation["source"] for citation in answer["ruvllm"]["citations"]],
        "degraded": answer["ruvllm"]["degraded"],
    }


def serve(data_dir, plan, *more):
    ports = (f"http.port={free_port()}", f"ray.dashboard_port={free_port()}")
    return Running(data_dir, "binding=serve", f"plan={plan}", *ports, *more).start()


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    service = serve(tmp_path_factory.mktemp("fused") / "data", "fused")
    service.ingest()
    service.wait_published(len(DOCUMENTS))
    yield service
    assert service.stop() == 0


def promoted(service):
    """Weights under a new name act where the router runs; they are the old ones, so answers stay the same."""
    registry, start = Registry(service.data_dir / "checkpoints"), prior()
    version, why = registry.publish({FILE: start.to_bytes()}), Why("admin", 0.0, "a test")
    registry.rollouts.change(lambda now: activate(present(now, registry.name, start.checkpoint), version, why))
    body = {"messages": [{"role": "user", "content": QUESTIONS[0][0]}]}
    service.until(
        lambda: service.http.post("/v1/route", json=body).json()["route"]["checkpoint"] == version, "new weights"
    )


def test_fused_gives_the_same_answers(fused, expected):
    promoted(fused)
    assert [comparable(fused.ask(question, **rest)) for question, rest in QUESTIONS] == expected


def test_everything_listens_on_loopback_or_asks_for_a_token(fused):
    open_to_all, seen = [], set()
    for process in fused.family():
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                seen.add(process.name())
                address = ipaddress.ip_address(connection.laddr.ip)
                if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
                    open_to_all.append((process.name(), connection.laddr.port))
    assert any("haproxy" in name for name in seen), seen  # the observation sees what it must
    # What is left are the replicas' gRPC ports, which Serve binds to every interface (README, "What listens").
    assert all(name.startswith("ray::ServeReplica") for name, _ in open_to_all), open_to_all
    assert open_to_all
    for _, port in open_to_all:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=20)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, refused.value


def test_the_dashboard_asks_for_the_token(fused):
    dashboard = next(line["dashboard"] for line in fused.lines_until("dashboard") if "dashboard" in line)
    token = (fused.data_dir / "ray-token").read_text()
    assert (fused.data_dir / "ray-token").stat().st_mode & 0o777 == 0o600
    with httpx.Client(base_url=dashboard, trust_env=False, timeout=30) as client:
        assert client.get("/api/cluster_status").status_code in (401, 403)
        assert client.get("/api/cluster_status", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_streams_and_errors_pass_through_haproxy(fused):
    with openai.OpenAI(base_url=f"{fused.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": QUESTIONS[0][0]}],
            temperature=0,
            stream=True,
        )
        chunks = list(stream)
        assert "41" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].ruvllm["citations"][0]["source"] == "vell.txt"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hi"}], temperature=-1)


def test_a_client_that_goes_away_stops_the_engine_behind_two_hops(fused):
    """Left to run, these streams would keep the tier's two places busy for minutes."""
    body = {
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
        "model": "135M",
        "max_tokens": 1500,
        "temperature": 0,
        "stream": True,
    }
    for _ in range(8):
        with fused.http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(line for line in response.iter_lines() if '"content":"' in line and '"content":""' not in line)
    with httpx.Client(base_url=fused.url, timeout=30, trust_env=False) as quick:
        answer = quick.post("/v1/chat/completions", json={**body, "max_tokens": 4, "stream": False})
        assert answer.status_code == 200
        assert answer.json()["model"] == "135M"
        assert answer.json()["ruvllm"]["degraded"] == []


def test_documents_search_embeddings_and_models(fused, plain):
    assert fused.ingest()["added"] == 0
    for path, body in (
        ("/v1/memory/search", {"query": "who built the town hall", "k": 3}),
        ("/v1/embeddings", {"input": ["a lighthouse"]}),
    ):
        ours, theirs = (service.http.post(path, json=body).json() for service in (fused, plain))
        if "hits" in ours:
            assert [hit["text"] for hit in ours["hits"]][:1] == [hit["text"] for hit in theirs["hits"]][:1]
        else:
            assert ours["data"][0]["embedding"] == pytest.approx(theirs["data"][0]["embedding"], abs=1e-5)
    assert [model["available"] for model in fused.http.get("/v1/models").json()["data"]] == [True] * 3


def test_a_killed_engine_is_covered_by_the_other_tier_and_comes_back(fused):
    def engine():
        """The process that has Gemma's weights."""
        workers = [p for p in fused.family() if "operators.engines.child.worker" in " ".join(p.cmdline())]
        return next(p for p in workers if any("gemma" in file.path for file in p.memory_maps()))

    victim = engine()
    victim.kill()
    covered_and_back(fused)
    assert engine().pid != victim.pid


def covered_and_back(service):
    body = {"messages": [{"role": "user", "content": QUESTIONS[0][0]}], "model": "270M", "max_tokens": 24}
    response = service.http.post("/v1/chat/completions", json=body)
    answer = response.json()
    if response.status_code == 503:  # the gateway had seen it already: who names a tier is told to wait
        assert "tier 270M is unavailable" in answer["error"]["message"]
        assert int(response.headers["retry-after-ms"]) > 0
        assert service.ask(QUESTIONS[0][0])["model"] == "135M"
    elif answer["model"] != "270M":  # else it was back before we asked
        assert answer["model"] == "135M"
        assert "tier:270M→135M" in answer["ruvllm"]["degraded"]
    service.wait_ready()
    # A gateway's picture of the tiers may be older than the answer of /readyz, which asks anew.
    service.until(
        lambda: service.http.post("/v1/chat/completions", json=body).json().get("model") == "270M", "270M again"
    )


# Runs beside the service, as a member of its cluster: closes the encoder inside the living replica.
BREAK = """
import asyncio, sys, ray
from ray import serve
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
async def close():
    await serve.get_deployment_handle("Embed", "ruvllm").call.remote("close")
asyncio.run(close())
"""


def test_a_replica_that_lives_but_can_t_work_is_replaced(fused):
    def embedder():
        (found,) = [p for p in fused.family() if "ServeReplica:ruvllm:Embed" in " ".join([p.name(), *p.cmdline()])]
        return found

    before = embedder()
    (address,) = {w for p in fused.family() for w in p.cmdline() if w.startswith("--gcs-address=")}
    breaking = [sys.executable, "-c", BREAK, address.removeprefix("--gcs-address=")]
    subprocess.run(breaking, env=before.environ(), check=True, timeout=120, stdout=subprocess.DEVNULL)
    # The process is there and answers Serve; only its own check knows.
    refused = fused.http.post("/v1/embeddings", json={"model": "auto", "input": "fish"})
    assert refused.status_code >= 500, refused.text
    assert "embed" in refused.json()["error"]["message"]
    assert before.is_running()
    fused.wait_ready()
    assert embedder().pid != before.pid
    assert fused.ask(QUESTIONS[0][0])["ruvllm"]["degraded"] == []


def test_without_its_memory_it_answers_without_context_and_says_so(fused):
    (memory,) = [p for p in fused.family() if "ServeReplica:ruvllm:Memory" in " ".join([p.name(), *p.cmdline()])]
    assert "41" in fused.ask(QUESTIONS[0][0])["choices"][0]["message"]["content"]
    memory.suspend()
    try:
        answer = fused.ask(QUESTIONS[0][0])
    finally:
        memory.resume()
    assert answer["ruvllm"]["degraded"] == ["memory"]
    assert answer["ruvllm"]["citations"] == []
    assert "41" not in answer["choices"][0]["message"]["content"]
    fused.wait_ready()
    again = fused.ask(QUESTIONS[0][0])
    assert again["ruvllm"]["degraded"] == []
    assert "41" in again["choices"][0]["message"]["content"]


def test_kill_9_during_a_stream_loses_nothing_acknowledged(fused):
    """Last of the fused tests: it kills the service and starts it again on the same data."""
    before = fused.ask(QUESTIONS[0][0])["ruvllm"]["interaction_id"]
    fused.wait_event(before)
    added = fused.http.post(
        "/v1/documents", json={"documents": [{"text": "The mirkle sings at noon.", "source": "mirkle.txt"}]}
    ).json()
    assert added["added"] == 1
    body = {
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "model": "135M",
        "max_tokens": 1000,
        "stream": True,
    }

    def kill_once_it_speaks():
        with fused.http.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    fused.kill()

    with pytest.raises(httpx.TransportError):
        kill_once_it_speaks()
    fused.start()
    assert before in fused.emitted()
    hits = fused.http.post("/v1/memory/search", json={"query": "what does the mirkle do", "k": 1}).json()["hits"]
    assert hits[0]["source"] == "mirkle.txt"
    assert fused.ingest()["added"] == 0
    assert "41" in fused.ask(QUESTIONS[0][0])["choices"][0]["message"]["content"]


def sessions_find_their_replica(service):
    """Two replicas: a second turn that went to the other one would find nothing of the first."""
    for i in range(6):
        begin = [
            {
                "role": "system",
                "content": f"Your name is Ishmael the {i}th, and you talk about ships, whales and the sea.",
            },
            {"role": "user", "content": "Name a few fish that live in the sea, and say what colour they are."},
        ]
        asked = {"model": "135M", "max_tokens": 8, "temperature": 0, "user": f"sticky-{i}"}
        first = service.http.post("/v1/chat/completions", json={**asked, "messages": begin}).json()
        said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
        turns = [*begin, said, {"role": "user", "content": "And why?"}]
        second = service.http.post("/v1/chat/completions", json={**asked, "messages": turns}).json()
        known = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert known > 0.7 * first["usage"]["prompt_tokens"], f"session {i}"


def test_one_deployment_a_stage_gives_the_same_answers(tmp_path, expected):
    two = ("tiers.135M.min_replicas=2", "tiers.135M.max_replicas=2")
    service = serve(tmp_path / "data", "per_stage", "generators=per_tier", *two)
    try:
        assert service.ingest()["added"] == len(DOCUMENTS)
        service.wait_published(len(DOCUMENTS))
        assert [comparable(service.ask(question, **rest)) for question, rest in QUESTIONS] == expected
        checks = service.http.get("/readyz").json()["checks"]
        assert {"embed", "search", "expand", "route", "attend"} <= set(checks)
        sessions_find_their_replica(service)
        (victim,) = [p for p in service.family() if "Generator-270M" in p.name() + " ".join(p.cmdline())]
        victim.kill()
        covered_and_back(service)
        promoted(service)
    finally:
        assert service.stop() == 0
    assert [line for line in service.strays if "A worker died or was killed" not in line] == []
