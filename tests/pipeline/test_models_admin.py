"""The administrator loads and unloads models of a running service; whoever asks for one that is away gets it back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pipeline.memory_http import Http
from tests.service import Running

MODELS = "/v1/admin/models"
QUESTION = "How tall is the Vell lighthouse?"


def row(rows: list[dict[str, Any]], tier: str) -> dict[str, Any]:
    (found,) = [one for one in rows if one["tier"] == tier]
    return found


@pytest.mark.slow
def test_a_tier_that_was_unloaded_is_loaded_by_the_next_question(inproc: Running, admin: Http) -> None:
    before = row(admin("GET", MODELS), "270M")
    assert (before["state"], before["model"], before["engine"]) == ("ready", "gemma-3-270m", "llama_server")
    assert 250_000_000 < before["bytes"] < 1_500_000_000
    assert 0.5 < before["bytes"] / before["estimate"] < 1.5
    away = row(admin("POST", f"{MODELS}/270M/unload"), "270M")
    assert (away["state"], away["bytes"]) == ("absent", 0)
    answer = inproc.ask(QUESTION, model="270M")
    assert (answer["model"], answer["ruvllm"]["degraded"]) == ("270M", [])
    after = row(admin("GET", MODELS), "270M")
    assert (after["state"], after["loads"]) == ("ready", before["loads"] + 1)
    assert after["last_used"] > before["last_used"]


@pytest.mark.slow
def test_the_metrics_and_the_readiness_tell_of_the_models(inproc: Running, admin: Http) -> None:
    lines = inproc.http.get("/metrics").text.splitlines()
    assert "ruvllm_models_loaded 2" in lines
    for one in admin("GET", MODELS):
        assert f'ruvllm_model_loads_total{{tier="{one["tier"]}"}} {one["loads"]}' in lines
    ready = inproc.http.get("/readyz").json()
    held = [
        f"engine of tier {one['tier']} is not held in by {why}"
        for one in admin("GET", MODELS)
        for why in one["unguarded"]
    ]
    assert ready["notes"] == held


@pytest.mark.slow
def test_loading_what_is_loaded_changes_nothing(admin: Http) -> None:
    before = admin("GET", MODELS)
    assert [one["loads"] for one in admin("POST", f"{MODELS}/135M/load")] == [one["loads"] for one in before]


@pytest.mark.slow
@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize("name", ["700M", "auto", "..%2f..%2fetc%2fpasswd", "%00"])
def test_only_tiers_of_the_profile_have_models(admin: Http, action: str, name: str) -> None:
    error = admin("POST", f"{MODELS}/{name}/{action}", status=404)
    assert "use one of: 135M, 270M" in error["message"] or "no such path" in error["message"]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", "/135M/load", "/135M/unload"])
@pytest.mark.parametrize("key", ["", "Bearer", "Bearer k-user"])
def test_the_door_takes_no_other_key(inproc: Running, path: str, key: str) -> None:
    method = "POST" if path else "GET"
    answer = inproc.http.request(method, MODELS + path, headers={"authorization": key} if key else {})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_admin_key"
