"""``ruvllm topics`` on a file and on a broker (``tests/broker.py`` says which, and what it does not show)."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conf.load import load
from operators.stores.kafka import KafkaLog
from operators.stores.ports import EventLog
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import FEEDBACK, INTERACTIONS, ROUTER_UPDATES, TOPICS, dlq
from pipeline.cli import app
from tests.broker import broker, config


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with broker() as at:
        yield at


@pytest.fixture(params=["sqlite", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], EventLog]:
    """How the command line names the log, and the log."""
    sets = [f"data_dir={tmp_path}", "events.partitions=2"]
    log: EventLog = SqliteLog(tmp_path / "events.sqlite")
    if request.param == "kafka":
        settings = config(request.getfixturevalue("address"), prefix=f"cli-{uuid.uuid4().hex}.")
        servers = json.dumps(settings.bootstrap_servers)
        sets += ["events.kind=kafka", f"events.kafka.bootstrap_servers={servers}"]
        sets += [f"events.kafka.prefix={settings.prefix}"]
        log = KafkaLog(settings)
    return [word for item in sets for word in ("--set", item)], log


def said(*words: str) -> Any:
    done = CliRunner().invoke(app, ["topics", *words, "--profile", "test", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_create_makes_every_topic_and_may_be_repeated(place: tuple[list[str], EventLog]) -> None:
    sets, log = place
    made = said("create", *sets)
    assert said("create", *sets) == made
    rows = {row["topic"]: row for row in made}
    assert set(rows) == set(TOPICS) | {dlq(topic) for topic in TOPICS}
    assert rows[INTERACTIONS] == {"topic": INTERACTIONS, "partitions": 2, "keeps": "30 days"}
    assert rows[ROUTER_UPDATES]["keeps"] == "the last of each key"
    with contextlib.closing(log):
        log.open()
        assert log.topics() == {topic: row["partitions"] for topic, row in rows.items()}


def test_list_shows_ends_offsets_and_lag(place: tuple[list[str], EventLog]) -> None:
    sets, log = place
    said("create", *sets)
    with contextlib.closing(log):
        log.open()
        places = [log.append(INTERACTIONS, f"acme|{i}", b"") for i in range(6)]
        ends = [log.end(INTERACTIONS, p) for p in range(2)]
        log.commit("judge", INTERACTIONS, places[0][0], 1)
        log.commit("mine", INTERACTIONS, places[0][0], 2)
        log.create_topic("not-ours", 1)
    rows = {row["topic"]: row for row in said("list", "--group", "mine", *sets)}
    assert "not-ours" not in rows
    assert rows[INTERACTIONS]["ends"] == ends
    offsets = [0, 0]
    offsets[places[0][0]] = 1
    assert rows[INTERACTIONS]["groups"]["judge"] == {"offsets": offsets, "lag": 5}
    assert rows[INTERACTIONS]["groups"]["mine"]["lag"] == 4
    assert rows[FEEDBACK]["groups"] == {"feedback": {"offsets": [0, 0], "lag": 0}}


@pytest.mark.parametrize(("profile", "copies"), [("server", 1), ("cluster", 3)])
def test_the_large_profiles_keep_events_on_kafka(profile: str, copies: int) -> None:
    events = load(profile, overrides=["http.host=127.0.0.1"]).settings.events
    assert (events.kind, events.kafka.replication_factor) == ("kafka", copies)
    assert load("local").settings.events.kind == "sqlite"


def test_list_on_an_empty_cluster_creates_nothing(address: str) -> None:
    settings = config(address)
    sets = ["events.kind=kafka", f"events.kafka.bootstrap_servers={json.dumps(settings.bootstrap_servers)}"]
    sets += [f"events.kafka.prefix={settings.prefix}"]
    assert said("list", *(word for item in sets for word in ("--set", item))) == []
    with contextlib.closing(KafkaLog(settings)) as log:
        log.open()
        assert log.topics() == {}
