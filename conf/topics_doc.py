"""The contract of the topics as an AsyncAPI 3.0 document, made from the record types and the table of topics.

``python -m conf.docs`` writes ``docs/asyncapi.yaml``; a test compares it with the records.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from operators.records import (
    Feedback,
    Interaction,
    Request,
    Response,
    Rollout,
    Verdict,
    Writeback,
    json_schema,
    record,
)
from operators.stores import topics as at
from operators.stores.events import Events

DOCUMENT = Path(__file__).parent.parent / "docs" / "asyncapi.yaml"
BINDING = "0.5.0"
"""Version of AsyncAPI's Kafka bindings."""

_ABOUT = """\
Values are JSON, one record an event, in UTF-8; unknown fields are refused, and so are numbers that are not finite. A
field that is not required may be left out. What can't be read becomes a dead letter: its bytes and headers go to the
topic's `.dlq`, with the reason in headers, and the partition goes on.

Delivery is at least once: readers drop repeats by `event_id`. Events of one key keep their order. The key is
`TENANT|SESSION`, hashed as librdkafka does (CRC-32 modulo the partitions, `partitioner=consistent`).

Whoever may write to these topics is trusted: the tenant is what the event says, and no API key is asked for. Keep the
topics to those who may, by the broker's ACLs. Texts of outside producers are judged and logged as they come; personal
data is masked before they are remembered.

Every topic's name begins with the prefix `events.kafka.prefix`, empty unless set. `ruvllm topics create` makes them.
"""


@record
class _Topic:
    """A topic: what its events are, who ``sends`` and ``receives`` them (a name of an operation → what it does), and an
    example of the least that an outside producer sends."""

    name: str
    record: type[Any]
    about: str
    key: str = "`TENANT|SESSION`"
    sends: dict[str, str]
    receives: dict[str, str]
    least: dict[str, Any] | None = None


_TURN = {"event_id": "helpdesk-4711", "tenant": "acme", "session": "ticket-12"}
_TOPICS = (
    _Topic(
        name=at.REQUESTS,
        record=Request,
        about="Questions to answer, from outside producers; read while stream mode runs.",
        sends={},
        receives={"stream": "Answer requests through the service; needs `stream.enabled`, or `python -m jobs.stream`."},
        least={**_TURN, "text": "How tall is the Vell lighthouse?"},
    ),
    _Topic(
        name=at.RESPONSES,
        record=Response,
        about="The answer to each request, or why it has none.",
        sends={"respond": "One response a request; the header `src.offset` has the request's place."},
        receives={},
    ),
    _Topic(
        name=at.INTERACTIONS,
        record=Interaction,
        about="Completed turns, ours and those of outside producers: judged, learned from and remembered.",
        sends={"emit": "Each turn of the service, after its user has the answer; personal data is masked."},
        receives={"judge": "Rate interactions; one that has a `score` is not rated again."},
        least={**_TURN, "origin": "helpdesk", "query": "Where is gate 7?", "answer": "Behind hall B.", "score": 0.9},
    ),
    _Topic(
        name=at.FEEDBACK,
        record=Feedback,
        about="What users say of answers; `interaction_id` names the answer, in the session that it was given in.",
        sends={"emitFeedback": "Feedback that came over HTTP; personal data is masked."},
        receives={"feedback": "Make a verdict of it, which outranks the model's."},
        least={**_TURN, "event_id": "helpdesk-4712", "interaction_id": "helpdesk-4711", "score": 1.0},
    ),
    _Topic(
        name=at.JUDGEMENTS,
        record=Verdict,
        about="Verdicts on interactions; the headers `src.partition` and `src.offset` have the interaction's place.",
        sends={"rate": "The judge's verdict on each interaction, and the users' own."},
        receives={"writeback": "Remember what was judged good.", "learn": "Train the router."},
    ),
    _Topic(
        name=at.WRITEBACKS,
        record=Writeback,
        about="What became of each judged interaction in the memory.",
        sends={"settle": "The outcome for each verdict."},
        receives={},
    ),
    _Topic(
        name=at.ROUTER_UPDATES,
        record=Rollout,
        about="Which of the router's checkpoints act; the newest event of a router is its state.",
        key="the router's name",
        sends={"publish": "Each promotion and rollback."},
        receives={},
    ),
)

_TEXT = {"type": "string"}
_CLOUD_EVENT: dict[str, Any] = {
    "type": "object",
    "description": "CloudEvents 1.0 in Kafka's binary mode. Our own events have all of them but `traceparent`; outside "
    "producers may leave them out. Headers that are not named here are kept in dead letters.",
    "properties": {
        "ce_id": {**_TEXT, "description": "the value's `event_id`"},
        "ce_type": {**_TEXT, "description": "the topic"},
        "ce_source": {**_TEXT, "description": "who sent it, e.g. `/ruvllm/judge`"},
        "ce_specversion": {"const": "1.0"},
        "ce_time": {**_TEXT, "format": "date-time"},
        "content-type": {"const": "application/json"},
        "traceparent": {**_TEXT, "description": "W3C trace context; handed on to the events that follow"},
        "src.topic": {**_TEXT, "description": "topic of the event that this one follows from"},
        "src.partition": {**_TEXT, "description": "its partition", "pattern": "^[0-9]+$"},
        "src.offset": {**_TEXT, "description": "its offset", "pattern": "^[0-9]+$"},
    },
}
_WHY: dict[str, Any] = {
    "type": "object",
    "description": "Besides the original's headers. `src.*` names the original's place.",
    "properties": {
        "error.class": {"enum": ["Skip", "Reject"], "description": "`Skip`: can't be read; `Reject`: was refused"},
        "error.message": {**_TEXT, "maxLength": 500},
        "src.topic": _TEXT,
        "src.partition": {**_TEXT, "pattern": "^[0-9]+$"},
        "src.offset": {**_TEXT, "pattern": "^[0-9]+$"},
        "attempt": {**_TEXT, "description": "how often it was tried", "pattern": "^[0-9]+$"},
        "src.bytes": {**_TEXT, "description": "only if the original was too large to repeat: the size of its value"},
    },
    "required": ["error.class", "error.message", "src.topic", "src.partition", "src.offset", "attempt"],
}


def document() -> dict[str, Any]:
    """The whole document."""
    events = Events()
    schemas: dict[str, Any] = {"CloudEvent": _CLOUD_EVENT, "Why": _WHY}
    messages: dict[str, Any] = {"DeadLetter": _dead_letter()}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic in _TOPICS:
        name = topic.record.__name__
        schemas |= _schemas(topic.record)
        messages[name] = _message(topic)
        channel, letters = _channel(topic.name), _channel(at.dlq(topic.name))
        channels[channel] = _described(topic.name, topic.about, name, events)
        about = f"What could not be used of `{topic.name}`."
        channels[letters] = _described(at.dlq(topic.name), about, "DeadLetter", events)
        for operation, what in topic.sends.items():
            operations[operation] = _operation("send", channel, name, what)
        for operation, what in topic.receives.items():
            operations[operation] = _operation("receive", channel, name, what)
            operations[operation]["bindings"] = {"kafka": {"groupId": {"const": operation}, "bindingVersion": BINDING}}
            operations[f"{operation}DeadLetter"] = _operation("send", letters, "DeadLetter", about)
    operations["stream"]["reply"] = {
        "channel": {"$ref": f"#/channels/{_channel(at.RESPONSES)}"},
        "messages": [{"$ref": f"#/channels/{_channel(at.RESPONSES)}/messages/Response"}],
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "RuvLLM's topics",
            "version": version("ruvllm"),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{broker}",
                "protocol": "kafka",
                "description": "The cluster of `events.kafka`. With `events.kind: sqlite` there is none: the same "
                "topics are in a file.",
                "variables": {"broker": {"default": events.kafka.bootstrap_servers[0]}},
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def page() -> str:
    """The document in YAML."""
    head = "# Made from the records by `python -m conf.docs`; don't edit it.\n"
    return head + yaml.dump(document(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)


class _Plain(yaml.SafeDumper):
    """Without anchors: they are no part of what AsyncAPI's tools read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        """Several lines as such."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Plain.add_representer(str, _Plain.represent_str)


def _channel(topic: str) -> str:
    """``ruvllm.router-updates.v1.dlq`` → ``router-updates-dlq``."""
    return topic.removeprefix("ruvllm.").replace(".v1", "").replace(".", "-")


def _described(address: str, about: str, message: str, events: Events) -> dict[str, Any]:
    compacted = address == at.ROUTER_UPDATES
    kept: dict[str, Any] = {"cleanup.policy": ["compact"]}
    if not compacted:
        kept = {"cleanup.policy": ["delete"], "retention.ms": int(events.retention_days * 86_400_000)}
    kafka = {
        "topic": address,
        "partitions": events.partitions if at.TOPICS.get(address, 1) > 1 else 1,
        "topicConfiguration": kept,
        "bindingVersion": BINDING,
    }
    return {
        "address": address,
        "description": about,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "bindings": {"kafka": kafka},
    }


def _message(topic: _Topic) -> dict[str, Any]:
    name = topic.record.__name__
    made: dict[str, Any] = {
        "name": name,
        "title": name,
        "summary": topic.about,
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/CloudEvent"},
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": _keyed(topic.key),
    }
    if topic.least:
        made["examples"] = [{"name": "least", "summary": "What an outside producer sends", "payload": topic.least}]
    return made


def _dead_letter() -> dict[str, Any]:
    return {
        "name": "DeadLetter",
        "title": "Dead letter",
        "summary": "The bytes of an event that could not be used, and why.",
        "contentType": "application/octet-stream",
        "headers": {"$ref": "#/components/schemas/Why"},
        "payload": {"description": "The original value, byte for byte."},
        "bindings": _keyed("the original's"),
    }


def _keyed(key: str) -> dict[str, Any]:
    return {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": BINDING}}


def _operation(action: str, channel: str, message: str, what: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": what,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
    }


def _schemas(cls: type[Any]) -> dict[str, Any]:
    """The JSON Schema of ``cls`` and of the records in it, by name."""
    made = _placed(json_schema(cls))
    return {**made.pop("$defs", {}), cls.__name__: made}


def _placed(schema: Any) -> Any:
    """``schema`` with its references into the document."""
    if isinstance(schema, list):
        return [_placed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema.replace("#/$defs/", "#/components/schemas/").replace("``", "`") if type(schema) is str else schema
    return {key: _placed(value) for key, value in schema.items()}
