"""The HTTP API on a real service: answers, streams, errors, and OpenAI's own client."""

import concurrent.futures
import json
import struct
from base64 import b64decode
from importlib.metadata import version

import httpx
import openai
import pytest

QUESTION = "How tall is the Vell lighthouse?"


@pytest.fixture(scope="module")
def client(inproc):
    with openai.OpenAI(base_url=f"{inproc.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(content=QUESTION, **rest):
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 16, "temperature": 0, **rest}


def test_an_answer_is_grounded_and_says_how_it_came_about(inproc):
    answer = inproc.ask(QUESTION)
    assert "41" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    facts = answer["ruvllm"]
    assert [c["source"] for c in facts["citations"]][:1] == ["vell.txt"]
    assert set(facts["timings"]) == {"embed", "search", "expand", "route", "attend", "generate", "first_token"}
    assert all(0 <= seconds < 60 for seconds in facts["timings"].values())
    route = facts["route"]
    assert route["tier"] == answer["model"]
    assert sum(route["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert 0 < route["propensity"] <= 1
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_short_facts_travel_as_headers(inproc):
    answer = inproc.http.post("/v1/chat/completions", json=chat(), headers={"x-session-id": "head"})
    assert answer.headers["x-ruvllm-tier"] == answer.json()["ruvllm"]["route"]["tier"]
    assert answer.headers["x-ruvllm-interaction-id"] == answer.json()["ruvllm"]["interaction_id"]
    assert answer.headers["x-ruvllm-session"] == "head"


def test_openai_client_whole(client):
    answer = client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=16
    )
    assert "41" in answer.choices[0].message.content
    assert answer.ruvllm["citations"]


def test_openai_client_stream_equals_the_whole_answer(client):
    ask = {"model": "270M", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip() == whole.strip()
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-1].ruvllm["route"]["tier"] == "270M"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")


def test_openai_client_is_told_how_likely_every_token_was(client):
    ask = {"model": "135M", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 16}
    choice = client.chat.completions.create(**ask, logprobs=True).choices[0]
    tokens = choice.logprobs.content
    assert all(-20 < one.logprob <= 0 for one in tokens)
    said = b"".join(bytes(one.bytes) for one in tokens).decode()
    assert said.strip().startswith(choice.message.content)  # the token that ended it comes after
    streamed = list(client.chat.completions.create(**ask, logprobs=True, stream=True))
    parts = [c.choices[0].logprobs.content for c in streamed if c.choices and c.choices[0].logprobs]
    assert len(parts) > 1
    assert [one.token for part in parts for one in part] == [one.token for one in tokens]
    assert client.chat.completions.create(**ask).choices[0].logprobs is None


def test_without_include_usage_the_last_chunk_has_the_facts(inproc):
    with inproc.http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert last["ruvllm"]["interaction_id"]
    assert "usage" not in last


@pytest.mark.parametrize("tier", ["135M", "270M"])
def test_a_named_tier_answers(inproc, tier):
    answer = inproc.ask(QUESTION, model=tier)
    assert answer["model"] == tier
    assert answer["ruvllm"]["route"]["reason"] == "caller"


def test_the_caller_overrides_temperature_and_top_p(inproc):
    route = inproc.ask(QUESTION, temperature=0.25, top_p=0.5)["ruvllm"]["route"]
    assert (route["temperature"], route["top_p"]) == (0.25, 0.5)


def test_temperature_zero_repeats_and_a_seed_repeats(inproc):
    def say(**rest):
        return inproc.ask("Tell me something about boats.", model="135M", **rest)["choices"][0]["message"]["content"]

    assert say() == say()
    assert say(temperature=1.0, seed=5) == say(temperature=1.0, seed=5)


def test_stop_strings_end_the_answer_and_are_not_part_of_it(inproc):
    whole = inproc.ask(QUESTION, model="135M")["choices"][0]["message"]["content"]
    word = whole.split()[2]
    cut = inproc.ask(QUESTION, model="135M", stop=[word])["choices"][0]
    assert word not in cut["message"]["content"]
    assert whole.startswith(cut["message"]["content"])
    assert cut["finish_reason"] == "stop"


def test_max_tokens_is_kept(inproc):
    answer = inproc.ask("Count from one to fifty.", model="135M", max_tokens=3)
    assert answer["usage"]["completion_tokens"] <= 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_session_remembers_its_turns(inproc):
    def turn(session):
        answer = inproc.http.post(
            "/v1/route", json=chat(ruvllm={"explain": True}), headers={"x-session-id": session}
        ).json()
        return answer["route"]

    first = turn("fresh")
    inproc.http.post("/v1/chat/completions", json=chat(), headers={"x-session-id": "used"}).raise_for_status()
    assert turn("used")["confidence"] != first["confidence"] or turn("used")["probabilities"] != first["probabilities"]


def test_the_dry_run_explains_and_generates_nothing(inproc):
    answer = inproc.http.post("/v1/route", json=chat(ruvllm={"explain": True})).json()
    assert answer["route"]["explanation"]
    assert {"feature", "value", "effect"} == set(answer["route"]["explanation"][0])
    assert "41 metres" in answer["passages"][0]["text"]
    assert "generate" not in answer["timings"]
    assert answer["hits"] >= 1


def test_embeddings_by_number_and_base64(client, inproc):
    vectors = client.embeddings.create(model="auto", input=["a lighthouse", "a lamp by the sea", "tax law"]).data
    assert [len(v.embedding) for v in vectors] == [384] * 3
    near, far = (sum(a * b for a, b in zip(vectors[0].embedding, v.embedding, strict=True)) for v in vectors[1:])
    assert near > far
    raw = inproc.http.post("/v1/embeddings", json={"input": "a lighthouse", "encoding_format": "base64"}).json()
    numbers = struct.unpack("<384f", b64decode(raw["data"][0]["embedding"]))
    assert numbers == pytest.approx(vectors[0].embedding, abs=1e-5)
    assert raw["usage"]["prompt_tokens"] > 0


def test_models_lists_the_router_and_every_tier(client):
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"auto", "135M", "270M"}
    assert models["135M"].licence == "Apache-2.0"
    assert all(model.available for model in models.values())


def test_search_finds_and_filters(inproc):
    def found(**rest):
        answer = inproc.http.post("/v1/memory/search", json={"query": "who built the town hall", **rest})
        assert answer.status_code == 200, answer.text
        return answer.json()["hits"]

    assert found()[0]["source"] == "brask.txt"
    assert {hit["source"] for hit in found(filter={"sources": ["vell.txt"]})} == {"vell.txt"}
    assert found(filter={"kinds": ["interaction"]}) == []
    assert len(found(k=1)) == 1
    assert found(filter={"created_to": 1.0}) == []


def test_a_request_may_choose_how_memory_is_searched(inproc):
    def found(mode):
        body = {"query": "who built the town hall", "k": 50, "mode": mode}
        return inproc.http.post("/v1/memory/search", json=body).json()["hits"]

    assert all(hit["score"] == pytest.approx(max(hit["similarity"], 0)) for hit in found("vector"))
    assert all(hit["text_score"] > 0 for hit in found("text"))
    assert found("hybrid") == found(None)
    assert len(found("text")) < len(found("hybrid"))
    refused = inproc.http.post("/v1/memory/search", json={"query": "x", "mode": "fuzzy"})
    assert refused.status_code == 400
    assert "mode: Input should be 'hybrid', 'vector' or 'text', got 'fuzzy'" in refused.json()["error"]["message"]
    asked = {"messages": [{"role": "user", "content": "who built the town hall"}]}
    hits = {
        mode: inproc.http.post("/v1/route", json={**asked, "ruvllm": {"mode": mode}}).json()["hits"]
        for mode in ("hybrid", "text")
    }
    assert 0 < hits["text"] < hits["hybrid"]


def test_documents_twice_add_nothing(inproc):
    again = inproc.ingest()
    assert again["added"] == 0
    assert again["duplicates"] == sum(len(document["nodes"]) for document in again["documents"]) > 0


def test_a_document_is_findable_when_the_answer_arrives(inproc):
    for i in range(5):
        word = f"zubrix{i}"
        inproc.http.post(
            "/v1/documents", json={"documents": [{"text": f"The {word} is kept in room {i}.", "source": f"z{i}"}]}
        ).raise_for_status()
        hits = inproc.http.post("/v1/memory/search", json={"query": f"where is the {word}", "k": 1}).json()["hits"]
        assert hits[0]["source"] == f"z{i}"


def test_the_root_says_what_listens_and_where_to_go(inproc):
    answer = inproc.http.get("/").json()
    assert (answer["service"], answer["version"]) == ("RuvLLM", version("ruvllm"))
    assert {"/docs", "/v1/models", "/readyz"} <= set(answer["paths"])
    assert [inproc.http.get(path).status_code for path in answer["paths"]] == [200] * len(answer["paths"])


def test_health(inproc):
    assert inproc.http.get("/healthz").json()["status"] == "ok"
    ready = inproc.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"]["events"] is True


def test_many_at_once_all_answer(inproc):
    questions = ["How tall is the Vell lighthouse?", "What does the quorl eat?", "Who founded Harrowmere?"] * 3
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda q: inproc.ask(q, model="135M")["choices"][0]["message"]["content"], questions))
    assert answers[:3] == answers[3:6] == answers[6:9]


def test_a_client_that_goes_away_stops_the_engine(inproc):
    """Two tiers run at most two requests each: abandoned streams that still ran would block these."""
    for _ in range(8):
        body = chat("Tell me a very long story.", model="135M", max_tokens=1500, stream=True)
        with inproc.http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(line for line in response.iter_lines() if '"content":"' in line and '"content":""' not in line)
    with httpx.Client(base_url=inproc.url, timeout=30, trust_env=False) as quick:
        assert quick.post("/v1/chat/completions", json=chat(model="135M", max_tokens=4)).status_code == 200
