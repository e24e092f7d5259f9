"""The topics' contract is what the records say, holds together as AsyncAPI 3.0, and its examples are really taken."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from conf.topics_doc import DOCUMENT, page
from operators import records
from operators.records import FEATURES, HIDDEN, Interaction, Passage, Route, decode, encode
from operators.stores.topics import READERS, ROUTER_UPDATES, TOPICS, dlq, event_headers

DOC: dict[str, Any] = yaml.safe_load(page())
MESSAGES: dict[str, Any] = DOC["components"]["messages"]
REFERENCE = {"type": "object", "properties": {"$ref": {"type": "string"}}, "required": ["$ref"]}
SHAPE = {
    "type": "object",
    "required": ["asyncapi", "info", "channels", "operations", "components"],
    "additionalProperties": False,
    "properties": {
        "asyncapi": {"const": "3.0.0"},
        "info": {"type": "object", "required": ["title", "version"]},
        "defaultContentType": {"type": "string"},
        "servers": {"additionalProperties": {"type": "object", "required": ["host", "protocol"]}},
        "channels": {
            "additionalProperties": {
                "type": "object",
                "required": ["address", "messages", "bindings"],
                "properties": {"messages": {"additionalProperties": REFERENCE, "minProperties": 1}},
            }
        },
        "operations": {
            "additionalProperties": {
                "type": "object",
                "required": ["action", "channel", "messages"],
                "properties": {
                    "action": {"enum": ["send", "receive"]},
                    "channel": REFERENCE,
                    "messages": {"type": "array", "items": REFERENCE, "minItems": 1},
                    "reply": {"type": "object", "properties": {"channel": REFERENCE}},
                },
            }
        },
        "components": {
            "type": "object",
            "properties": {
                "messages": {
                    "additionalProperties": {
                        "type": "object",
                        "required": ["name", "contentType", "headers", "payload", "bindings"],
                    }
                }
            },
        },
    },
}
"""What AsyncAPI 3.0.0 asks of the parts that are used here. The document was also held against its own JSON Schema."""


def resolved(reference: str) -> Any:
    found: Any = DOC
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(part: Any) -> list[str]:
    if isinstance(part, list):
        return [ref for each in part for ref in references(each)]
    if not isinstance(part, dict):
        return []
    own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
    return own + [ref for each in part.values() for ref in references(each)]


def valid(name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOC["components"]}
    jsonschema.Draft7Validator(schema).validate(value)


def test_the_committed_document_is_fresh() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == page(), "run: python -m conf.docs"


def test_it_has_the_shape_of_asyncapi_3() -> None:
    jsonschema.Draft202012Validator(SHAPE).validate(DOC)
    assert len(references(DOC)) > 60
    for reference in references(DOC):
        assert reference.startswith("#/")
        resolved(reference)
    for operation in DOC["operations"].values():
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])
    for schema in DOC["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


def test_every_topic_has_its_channel() -> None:
    channels = {channel["address"]: channel["bindings"]["kafka"] for channel in DOC["channels"].values()}
    assert set(channels) == {name for topic in TOPICS for name in (topic, dlq(topic))}
    for topic, usual in TOPICS.items():
        assert (channels[topic]["partitions"], channels[dlq(topic)]["partitions"]) == (usual, 1)
    compacted = [t for t, binding in channels.items() if "compact" in binding["topicConfiguration"]["cleanup.policy"]]
    assert compacted == [ROUTER_UPDATES]


def test_who_receives_are_the_groups_that_commit() -> None:
    found: dict[str, tuple[str, ...]] = {}
    for operation in DOC["operations"].values():
        if operation["action"] == "receive":
            address = resolved(operation["channel"]["$ref"])["address"]
            found[address] = (*found.get(address, ()), operation["bindings"]["kafka"]["groupId"]["const"])
    assert found == READERS


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("Request", ["event_id", "tenant"]),
        ("Interaction", ["event_id", "tenant", "session", "query", "answer"]),
        ("Feedback", ["event_id", "interaction_id", "tenant", "session", "score"]),
    ],
)
def test_an_outside_producer_need_send_no_more_than_this(name: str, least: list[str]) -> None:
    assert DOC["components"]["schemas"][name]["required"] == least
    (example,) = MESSAGES[name]["examples"]
    valid(name, example["payload"])
    assert decode(getattr(records, name), json.dumps(example["payload"]))
    short = {key: example["payload"][key] for key in least}
    valid(name, short)
    assert decode(getattr(records, name), json.dumps(short))
    for field in least:
        missing = {key: value for key, value in short.items() if key != field}
        with pytest.raises(jsonschema.ValidationError):
            valid(name, missing)


@pytest.mark.parametrize(
    "change",
    [{"tenant": "a/b"}, {"session": ""}, {"score": 1.5}, {"turn": -1}, {"surprise": 1}, {"hidden": [0.0]}],
)
def test_the_schema_refuses_what_the_record_refuses(change: dict[str, Any]) -> None:
    value = {**MESSAGES["Interaction"]["examples"][0]["payload"], **change}
    with pytest.raises(jsonschema.ValidationError):
        valid("Interaction", value)
    with pytest.raises(ValueError, match="validation error"):
        decode(Interaction, json.dumps(value))


def test_a_whole_interaction_as_we_send_it_is_one_of_the_schema() -> None:
    route = Route(
        tier="135M",
        context_tokens=512,
        temperature=0.7,
        top_p=0.9,
        confidence=0.5,
        probabilities={"135M": 1.0},
        propensity=1.0,
        propensities={"tier": 1.0},
        checkpoint="prior",
        reason="router",
        hidden=np.zeros(HIDDEN, np.float32),
        features=np.zeros(FEATURES, np.float32),
    )
    whole = Interaction(
        event_id="e",
        tenant="acme",
        session="s",
        query="q",
        answer="a",
        route=route,
        hidden=route.hidden,
        context=(Passage(text="t"),),
    )
    assert whole.origin == "ruvllm"
    valid("Interaction", json.loads(encode(whole)))
    valid("CloudEvent", event_headers("e", "ruvllm.interactions.v1", "/ruvllm/ingress", 1.0))
