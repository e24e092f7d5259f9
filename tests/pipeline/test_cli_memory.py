"""``ruvllm memory``: a user's commands on a running service, the administrator's with and without one."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conf.load import load
from operators.errors import Reject, RuvError, Stop
from operators.stores.ports import Node
from pipeline.cli import app
from pipeline.host import make_memory
from pipeline.launch import owned
from tests.service import Running, free_port


class Memory:
    """``ruvllm memory`` with some options; what it prints, and what it ends with."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def __call__(self, *words: str, code: int = 0, stdin: str = "") -> str:
        done = CliRunner().invoke(app, ["memory", *words, *self.options], input=stdin)
        if isinstance(done.exception, RuvError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))


# ------------------------------------------------------------------------------------------ without a service


@pytest.fixture
def offline(tmp_path: Path) -> Memory:
    """On a data directory with a memory of two nodes that no service has open."""
    sets = [f"data_dir={tmp_path / 'data'}", f"http.port={free_port()}"]
    settings = load("test", overrides=sets).settings
    settings.data_dir.mkdir()
    memory = make_memory(settings)
    memory.open()
    vectors = np.eye(384, dtype=np.float32)
    memory.add(
        "default",
        [
            Node(
                node_id=f"n{i}",
                kind="document",
                text=f"text {i}",
                vector=vectors[i],
                source="a.md",
                position=i,
                created_at=1.0,
            )
            for i in range(2)
        ],
    )
    memory.close()
    return Memory("--profile", "test", *(word for item in sets for word in ("--set", item)))


def test_without_a_service_the_memory_is_opened_here(offline: Memory, tmp_path: Path) -> None:
    found = offline.json("check")
    assert (found["tenant"], found["nodes"], found["sound"]) == ("default", 2, True)
    assert offline("check") == f"2 nodes, {found['edges']} edges: sound\n"
    assert offline("backups") == "no backups\n"
    kept = offline.json("backup", "one")
    assert (kept["name"], kept["nodes"], kept["encoder"]) == ("one", 2, load("test").settings.embed.model.id)
    assert [one["name"] for one in offline.json("backups")] == ["one"]
    assert offline.json("export", str(tmp_path / "out"))["nodes"] == 2
    assert offline.json("import", str(tmp_path / "out"), "--tenant", "acme")["added"] == 2
    assert offline.json("check", "--tenant", "acme")["nodes"] == 2
    assert offline("import", str(tmp_path / "out"), "--replace") == "2 nodes added, 0 already there\n"
    assert offline.json("maintain") == {"expired": 0, "purged": 0, "nodes": 2}
    assert "2 nodes" in offline("restore", "one", "--yes")
    assert offline("backup", "one", "--remove") == "removed one\n"
    with pytest.raises(Reject, match="no export in"):
        offline("restore", "one", "--yes")


def test_a_memory_that_is_not_sound_ends_with_1_until_it_is_mended(offline: Memory, tmp_path: Path) -> None:
    settings = load("test", overrides=[offline.options[3]]).settings
    memory = make_memory(settings)
    memory.open()
    memory.graph.upsert("default", ["stray"], ["document"], [], 1.0)
    memory.close()
    said = offline("check", code=1)
    assert "not sound" in said
    assert "only_graph 1  e.g. stray" in said
    assert "mended" in offline("check", "--repair")
    assert offline.json("check")["sound"] is True


def test_a_memory_that_a_service_holds_is_not_opened_beside_it(offline: Memory, tmp_path: Path) -> None:
    with owned(tmp_path / "data"), pytest.raises(Stop, match="is in use by the service with pid"):
        offline("check")


def test_where_there_is_no_memory_none_is_made(tmp_path: Path) -> None:
    nobody = Memory("--profile", "test", "--set", f"data_dir={tmp_path / 'no'}")
    with pytest.raises(Stop, match=r"no service listens at .* and there is no memory in"):
        nobody("check")
    assert not (tmp_path / "no").exists()
    with pytest.raises(Stop, match="no service listens there"):
        Memory("--url", f"http://127.0.0.1:{free_port()}")("check")
    with pytest.raises(Stop, match="no service listens there"):
        nobody("list")


def test_a_restoration_and_a_removal_are_asked_about(offline: Memory) -> None:
    assert "in place of tenant default" in CliRunner().invoke(app, ["memory", "restore", "x"], input="n\n").output
    assert CliRunner().invoke(app, ["memory", "restore", "x"], input="n\n").exit_code == 1
    for words in ((), ("--source", "a", "--user", "b"), ("--everything", "--node", "n0")):
        with pytest.raises(Reject, match="exactly one of"):
            offline("delete", *words)
    with pytest.raises(Reject, match="nothing to change"):
        offline("update", "n0")
    with pytest.raises(Reject, match="no JSON"):
        offline("update", "n0", "--metadata", "{")
    with pytest.raises(Reject, match="tenant"):
        offline("check", "--tenant", "../x")


# ------------------------------------------------------------------------------------------------ with a service


@pytest.fixture(scope="module")
def online(inproc: Running) -> Memory:
    return Memory("--profile", "test", "--set", inproc.sets[0], "--url", inproc.url)


@pytest.fixture
def source(inproc: Running) -> str:
    """A source of two nodes that nobody else has."""
    name = f"{uuid.uuid4().hex[:8]}.txt"
    documents = [{"text": f"The mast of {name} is {i} metres long.", "source": name} for i in (5, 7)]
    inproc.http.post("/v1/documents", json={"documents": documents}).raise_for_status()
    return name


@pytest.mark.slow
def test_list_show_update_and_delete(online: Memory, source: str) -> None:
    page = online.json("list", "--source", source, "--limit", "1")
    assert (len(page["nodes"]), page["total"]) == (1, 2)
    rest = online.json("list", "--source", source, "--after", page["after"])["nodes"]
    assert len(rest) == 1
    said = online("list", "--source", source)
    assert "metres long" in said
    assert "2 of 2" in said
    name = rest[0]["node_id"]
    assert rest[0]["text"] in online("show", name)
    assert online.json("show", name)["source"] == source

    changed = online.json("update", name, "--text", "The mast is [b]broken[/b].", "--metadata", '{"by": "me"}')
    assert (changed["text"], changed["metadata"]["by"]) == ("The mast is [b]broken[/b].", "me")
    assert "[b]broken[/b]" in online("show", name)
    with pytest.raises(Reject, match="no node"):
        online("show", "no/such?node")

    assert "removed" not in online("delete", "--node", name, code=1, stdin="n\n")
    assert online.json("show", name)["node_id"] == name
    said = online("delete", "--node", name, stdin="y\n")
    assert "removed 1 nodes" in said
    assert "left in event log" in said
    receipt = online.json("delete", "--source", source, "--purge", "--yes")
    assert (receipt["vectors"], receipt["purged"]) == (1, True)
    assert online("list", "--source", source) == "0 of 0\n"


@pytest.mark.slow
def test_the_administrator_s_commands_ask_the_service(online: Memory, tmp_path: Path, monkeypatch: Any) -> None:
    tenant = f"t-{uuid.uuid4().hex[:8]}"
    monkeypatch.chdir(tmp_path)
    assert online.json("export", "out")["tenant"] == "default"  # a path of ours, not of the service's directory
    assert online.json("import", "out", "--tenant", tenant)["added"] >= 3
    assert online.json("check", "--tenant", tenant)["sound"] is True
    assert online.json("backup", "one", "--tenant", tenant)["name"] == "one"
    assert "one: " in online("backups", "--tenant", tenant)
    assert "back to one" in online("restore", "one", "--tenant", tenant, "--yes")
    assert online.json("backup", "one", "--remove", "--tenant", tenant) == {"removed": "one"}
    assert set(online.json("maintain", "--tenant", tenant)) == {"expired", "purged", "nodes"}
    assert online.json("check", "--tenant", tenant)["sound"] is True
    monkeypatch.setenv("RUVLLM_ADMIN_KEY", "wrong")
    with pytest.raises(Reject, match="no valid administrator's key"):
        online("check")


@pytest.mark.slow
def test_the_key_of_the_service_here_goes_to_no_other_machine(inproc: Running) -> None:
    from pipeline.administer import admin_key

    key = (inproc.data_dir / "admin-key").read_text()
    assert admin_key(inproc.data_dir, None) == admin_key(inproc.data_dir, inproc.url) == key
    assert admin_key(inproc.data_dir, "http://example.org:8000") is None
