"""``ruvllm router`` on a data directory, and the same over HTTP; a running service follows both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conf.load import load
from operators.errors import Reject, RuvError
from operators.learning import rollout as changes
from operators.learning.rollout import Why
from operators.learning.weights import FILE
from operators.networks.prior import NAME, prior
from operators.records import Rollout, decode
from operators.stores.checkpoints import Registry
from operators.stores.topics import ROUTER_UPDATES
from pipeline.cli import app
from pipeline.host import make_registry
from tests.operators.test_route import flat
from tests.pipeline.memory_http import Http
from tests.service import Running

WHY = Why("learn", 0.0, "a test")
ROUTER = "/v1/admin/router"
PASSED, REFUSED = {"gate": {"passed": True}}, {"gate": {"passed": False, "reasons": ["worse"]}}


class Cli:
    """``ruvllm router`` with some options; what it prints, and what it ends with."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def __call__(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["router", *words, *self.options])
        if isinstance(done.exception, RuvError):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli("--profile", "test", "--set", f"data_dir={tmp_path}")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return make_registry(load("test", overrides=[f"data_dir={tmp_path}"]).settings)


def weights(slot: int) -> bytes:
    return flat(tier_b=np.eye(4)[slot] * 20, confidence_b=[9.0]).to_bytes()


def test_without_any_checkpoint_the_prior_decides(cli: Cli, tmp_path: Path) -> None:
    found = cli.json("list")
    assert [(row["version"], row["part"]) for row in found["versions"]] == [(NAME, "active")]
    assert (found["rollout"]["active"], found["rollout"]["version"]) == (NAME, 0)
    assert f"{NAME} decides" in cli("list")
    with pytest.raises(Reject, match=f"nothing was active before {NAME}"):
        cli("rollback")
    with pytest.raises(Reject, match="no checkpoint 'router-000001'"):
        cli("promote", "router-000001")
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").glob("rollout*"))


def test_promote_go_back_freeze_and_what_is_shown_of_them(cli: Cli, registry: Registry) -> None:
    one = registry.publish({FILE: weights(1)}, parent=NAME, metrics=PASSED, window={"t/0": (1, 5)}, note="first")
    two = registry.publish({FILE: weights(3)}, parent=one, metrics=REFUSED)
    three = registry.publish({FILE: weights(2)})
    now = cli.json("promote", one, "--reason", "looks good")
    assert (now["version"], now["active"], now["by"], now["reason"]) == (1, one, "admin", "looks good")
    assert now["announced"] is True
    for version in (two, three):
        with pytest.raises(Reject, match="did not pass the gate"):
            cli("promote", version)
    with pytest.raises(Reject, match="forced without a reason"):
        cli("promote", two, "--force")
    with pytest.raises(Reject, match="active already"):
        cli("promote", one)
    assert f"{two} decides" in cli("promote", two, "--force", "--reason", "an experiment")
    rows = {row["version"]: row for row in cli.json("list")["versions"]}
    assert list(rows) == [three, two, one, NAME]
    assert [rows[v]["part"] for v in rows] == ["", "active", "before", "before"]
    assert [rows[v]["passed"] for v in rows] == [None, False, True, None]
    text = cli("list")
    assert "refused by the gate" in text
    assert "first" in text
    assert cli.json("freeze", "--reason", "holidays")["frozen"] is True
    assert "frozen" in cli("list")
    assert cli.json("unfreeze")["frozen"] is False
    registry.rollouts.change(lambda now: None if now is None else changes.widen(now, three, 0.25, WHY))
    assert f"{three} in 25% of the sessions" in cli("list")
    ended = cli.json("rollback", "--reason", "no more of it")
    assert (ended["active"], ended["canary"]) == (two, None), "first what is tried"
    assert cli.json("rollback")["active"] == one
    assert cli.json("promote", NAME)["active"] == NAME, "the start needs no gate"
    shown = cli.json("show", one)
    assert (shown["whole"], shown["manifest"]["parent"], shown["manifest"]["window"]) == (
        True,
        NAME,
        {"t/0": [1, 5]},
    )
    assert "offsets 1 to 5" in cli("show", one)
    assert [each.reason for each in registry.rollouts.history()][:2] == ["looks good", "an experiment"]


def test_the_difference_of_two(cli: Cli, registry: Registry) -> None:
    a, b = registry.publish({FILE: weights(1)}, metrics=PASSED), registry.publish({FILE: weights(3)})
    found = cli.json("diff", a, b)
    moved = {name: row for name, row in found["parameters"].items() if row["change"]}
    assert moved == {"tier_b": {"change": pytest.approx(20 * 2**0.5), "relative": pytest.approx(2**0.5)}}
    assert found["metrics"] == {a: PASSED, b: {}}
    assert found["exemplars"] == {a: 0, b: 0}
    assert "141.42%" in cli("diff", a, b)
    assert cli.json("diff", NAME, a)["parameters"]["w"]["relative"] == 1.0
    with pytest.raises(Reject, match="no checkpoint 'router-000009'"):
        cli("diff", a, "router-000009")


def test_what_is_damaged_is_shown_and_never_promoted(cli: Cli, registry: Registry) -> None:
    version = registry.publish({FILE: weights(1)}, metrics=PASSED)
    path = registry.root / version / FILE
    path.write_bytes(path.read_bytes()[:-1])
    assert cli.json("show", version, code=1)["whole"] is False
    assert "damaged" in cli("show", version, code=1)
    with pytest.raises(RuvError, match="is damaged"):
        cli("promote", version)
    (registry.root / version / "manifest.json").write_bytes(b"{}")
    assert "damaged" in cli("list")
    assert registry.rollouts.current() is None


# ------------------------------------------------------------------------------------------ a running service


@pytest.mark.slow
def test_a_running_service_follows_the_http_door_and_the_command_line(inproc: Running, admin: Http) -> None:
    registry = Registry(inproc.data_dir / "checkpoints")
    here = Cli("--profile", "test", "--set", f"data_dir={inproc.data_dir}")
    start = decided(inproc)
    assert start == prior().checkpoint
    new = registry.publish({FILE: weights(0)}, parent=start, metrics=PASSED)
    admin("POST", f"{ROUTER}/promote", {"version": "router-009999"}, status=404)
    admin("POST", f"{ROUTER}/promote", {"version": new, "force": True}, status=400)
    try:
        assert admin("POST", f"{ROUTER}/promote", {"version": new})["active"] == new
        inproc.until(lambda: decided(inproc) == new, "new weights")
        listed = admin("GET", ROUTER)
        assert (listed["rollout"]["active"], listed["versions"][0]["part"]) == (new, "active")
        assert admin("GET", f"{ROUTER}/{new}")["whole"] is True
        assert admin("GET", f"{ROUTER}/{new}/diff/{start}")["parameters"]["w"]["change"] > 0
        assert admin("POST", f"{ROUTER}/freeze", {"frozen": True, "reason": "r"})["frozen"] is True
        answer = inproc.ask("How tall is the Vell lighthouse?", user="followed")["ruvllm"]
        event = inproc.wait_event(answer["interaction_id"])
        assert event["route"]["checkpoint"] == new, "every decision names its checkpoint"
    finally:
        here("rollback", "--reason", "the test is over")
        here("unfreeze")
    inproc.until(lambda: decided(inproc) == start, "the old weights")
    updates = [decode(Rollout, json.dumps(event)) for event in inproc.events(ROUTER_UPDATES)]
    assert [each.event_id for each in updates] == [each.event_id for each in registry.rollouts.history()]


def decided(service: Running) -> str:
    """The checkpoint that decides now."""
    answer = service.http.post("/v1/route", json={"messages": [{"role": "user", "content": "How tall is it?"}]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["route"]["checkpoint"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "/router-000001", None),
        ("GET", "/a/diff/b", None),
        ("POST", "/promote", {"version": "router-000001"}),
        ("POST", "/rollback", {}),
        ("POST", "/freeze", {}),
    ],
)
@pytest.mark.parametrize("key", ["", "Bearer", "Bearer k-user"])
def test_the_door_takes_no_other_key(inproc: Running, method: str, path: str, body: Any, key: str) -> None:
    answer = inproc.http.request(method, ROUTER + path, json=body, headers={"authorization": key} if key else {})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_admin_key"
