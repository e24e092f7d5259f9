"""What a real vLLM server says to the requests of the engine, for `recorded_server.py`, and the shape of it."""

from __future__ import annotations

import json
from typing import Any

import httpx

from operators.engines.ports import Generation
from operators.engines.vllm import wire as vllm_wire
from operators.engines.vllm.server import PROBE, VllmServer


def record(client: httpx.Client, engine: VllmServer) -> dict[str, Any]:
    """Its answers to the requests that the tests with the recordings make."""
    name = engine.model
    asked = Generation(prompt=(1, 40, 41), max_tokens=8, temperature=0.0, top_p=1.0, scope="acme", logprobs=True)
    body = vllm_wire.completion(asked, name, "")
    stream = client.post("/v1/completions", json=body).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    a, b = engine.tokenize("a")[0], engine.tokenize("b")[0]
    score = client.post("/v1/completions", json=vllm_wire.scoring([1, 40, 41], [a, b], name, "")).json()
    said = vllm_wire.scores("recorder", score, [a, b])
    models = client.get("/v1/models").json()
    errors = {
        "context": client.post("/v1/completions", json=body | {"prompt": [1] * (engine.context_tokens + 1)}),
        "model": client.post("/v1/completions", json=body | {"model": "other"}),
        "refused": client.post("/v1/completions", json=body | {"temperature": -1.0}),
    }
    return {
        "models": {"data": [{key: one[key] for key in ("id", "object", "max_model_len")} for one in models["data"]]},
        "tokenize": {
            kind: client.post(
                "/tokenize", json={"model": name, "prompt": PROBE, "add_special_tokens": kind == "full"}
            ).json()
            for kind in ("bare", "full")
        },
        "stream": stream,
        "score": score,
        "errors": {
            # What its middleware says to a wrong key; ours has none.
            "key": {"status": 401, "body": '{"error":"Unauthorized"}'},
            **{kind: {"status": answer.status_code, "body": answer.text} for kind, answer in errors.items()},
        },
        "facts": {
            "text": "".join(choice["text"] for choice in choices),
            "logprobs": [one for choice in choices for one in choice["logprobs"]["token_logprobs"]],
            "cached_tokens": 0,
            "a": said[a],
            "b": said[b],
        },
    }


def shape(said: Any) -> Any:
    """Names and types, without what differs from run to run."""
    if isinstance(said, dict):
        return {key: shape(value) for key, value in said.items() if not key.startswith("token_id:")}
    if isinstance(said, list):
        return [shape(said[0])] if said else []
    if isinstance(said, str) and said.startswith("data: "):
        events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        return [shape(events[0]), shape(events[-1])]
    if isinstance(said, str) and said.startswith("{"):
        return shape(json.loads(said))
    return type(said).__name__
