"""``ruvllm topics``: the topics of the profile's event log."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from conf.load import load
from conf.schema import Settings
from operators.stores.topics import READERS, ROUTER_UPDATES, TOPICS, create_topics, dlq
from pipeline.options import AsJson, Profile, Sets

topics_app = typer.Typer(help="The topics of the event log.", no_args_is_help=True)


@topics_app.command()
def create(profile: Profile = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """Create every topic and its dead letters' with the profile's partitions and retention; may be repeated.

    On Kafka, topics that exist get the profile's retention. Another number of partitions is refused.
    """
    from operators.stores.kafka import KafkaLog
    from operators.stores.make import open_log

    settings = load(profile, overrides=set_ or []).settings
    with contextlib.closing(open_log(settings.events)) as log:
        create_topics(log, settings.events.partitions)
        made = log.topics()
        if isinstance(log, KafkaLog):
            for topic in _ours():
                log.apply_settings(topic)
    rows = [{"topic": topic, "partitions": made[topic], "keeps": _keeps(settings, topic)} for topic in _ours()]
    if as_json:
        return _json(rows)
    for row in rows:
        _out(f"{row['topic']:<34}  {row['partitions']:>3} partitions  keeps {row['keeps']}")


@topics_app.command("list")
def list_topics(
    group: Annotated[
        list[str] | None, typer.Option(help="a group to show besides the system's own; may be repeated")
    ] = None,
    profile: Profile = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """The topics there are: each partition's end, how far each group of readers is, and what waits for it."""
    from operators.stores.kafka import KafkaLog
    from operators.stores.make import open_log

    settings = load(profile, overrides=set_ or []).settings
    kafka = settings.events.kind == "kafka"  # opened by itself it creates nothing
    rows: list[dict[str, Any]] = []
    with contextlib.closing(KafkaLog(settings.events.kafka) if kafka else open_log(settings.events)) as log:
        log.open()
        for topic, partitions in log.topics().items():
            if topic not in _ours():
                continue
            ends = [log.end(topic, p) for p in range(partitions)]
            row: dict[str, Any] = {"topic": topic, "partitions": partitions, "ends": ends, "groups": {}}
            for name in (*READERS.get(topic, ()), *(group or ())):
                offsets = [log.committed(name, topic, p) for p in range(partitions)]
                if name in READERS.get(topic, ()) or any(offsets):
                    row["groups"][name] = {"offsets": offsets, "lag": sum(ends) - sum(offsets)}
            rows.append(row)
    if as_json:
        return _json(rows)
    for row in rows:
        _out(f"[bold]{escape(row['topic'])}[/bold]  {sum(row['ends'])} events in {row['partitions']} partitions")
        for name, at in row["groups"].items():
            _out(f"  {escape(name)}: {at['lag']} wait")
    if not rows:
        _out("no topics; ruvllm topics create makes them")


def _ours() -> list[str]:
    return [name for topic in TOPICS for name in (topic, dlq(topic))]


def _keeps(settings: Settings, topic: str) -> str:
    return "the last of each key" if topic == ROUTER_UPDATES else f"{settings.events.retention_days:g} days"


def _out(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text)


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
