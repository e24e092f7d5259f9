"""A user looks after the own memory over HTTP; a shared service, so each test has its own sources and tenants."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pipeline.memory_http import ADMIN, NODES, Http, fill

pytestmark = pytest.mark.slow


def add(http: Http, source: str, *texts: str, **fields: Any) -> list[str]:
    """Ids of the nodes of one document a text."""
    documents = [{"text": text, "source": source, **fields} for text in texts]
    return [
        name for each in http("POST", "/v1/documents", {"documents": documents})["documents"] for name in each["nodes"]
    ]


def test_list_read_change_and_delete_as_a_user_would(user: Http) -> None:
    source = "pemble.txt"
    first, second = add(user, source, "The Pemble bridge has seven arches.", "The Pemble bell weighs two tonnes.")
    listing = user("GET", NODES, params={"source": source})
    assert (listing["total"], listing["after"], {n["node_id"] for n in listing["nodes"]}) == (2, "", {first, second})
    seen, after = [], ""
    for _ in range(2):
        one = user("GET", NODES, params={"source": source, "limit": 1, "after": after})
        seen += [n["node_id"] for n in one["nodes"]]
        after = one["after"]
    assert (set(seen), after) == ({first, second}, "")

    node = user("GET", f"{NODES}/{first}")
    assert (node["text"], node["source"], node["history"]) == ("The Pemble bridge has seven arches.", source, [])
    assert all(first in (edge["source_id"], edge["target_id"]) for edge in node["edges"])

    change = {"text": "The Pemble bridge has nine arches.", "quality": 0.5, "metadata": {"by": "me"}}
    changed = user("PATCH", f"{NODES}/{first}", change)
    assert (changed["text"], changed["quality"], changed["metadata"]["by"]) == (*list(change.values())[:2], "me")
    assert changed["history"][0]["changed"] == ["metadata", "quality", "text", "tokens"]
    hits = user("POST", "/v1/memory/search", {"query": "How many arches has the Pemble bridge?", "k": 1})["hits"]
    assert (hits[0]["node_id"], hits[0]["text"]) == (first, change["text"])

    receipt = user("DELETE", f"{NODES}/{first}")
    assert (receipt["node_ids"], receipt["vectors"], receipt["graph_nodes"], receipt["purged"]) == (
        [first],
        1,
        1,
        False,
    )
    assert "arches" not in json.dumps(receipt)
    assert any("event log" in line for line in receipt["remains"])
    assert any("vector store" in line for line in receipt["remains"])
    for method in ("GET", "DELETE"):
        gone = user(method, f"{NODES}/{first}", status=404)
        assert (gone["code"], gone["param"]) == ("no_such_node", "node_id")
    user("PATCH", f"{NODES}/{first}", {"quality": 1}, status=404)
    assert user("GET", NODES, params={"source": source})["total"] == 1
    hits = user("POST", "/v1/memory/search", {"query": "Pemble bridge arches", "k": 50})["hits"]
    assert first not in {hit["node_id"] for hit in hits}
    receipts = user("GET", "/v1/memory/receipts")
    assert [one for one in receipts if first in one["node_ids"]] == [receipt]


def test_a_changed_text_is_masked_like_a_new_one(user: Http) -> None:
    (name,) = add(user, "masked.txt", "The clerk of Pemble is away.")
    changed = user("PATCH", f"{NODES}/{name}", {"text": "Write to clerk@pemble.org about the clerk."})
    assert "clerk@pemble.org" not in changed["text"]
    assert changed["text"].startswith("Write to ")


@pytest.mark.parametrize("field", ["source", "user"])
def test_all_of_a_source_or_a_user_goes_and_no_more(user: Http, field: str) -> None:
    mine = {"source": "mine.txt", "user": "ada lovelace"}
    texts = [f"The {field} of Quillon has {i} rooms." for i in range(3)]
    names = add(user, mine["source"], *texts, user=mine["user"])
    kept = add(user, "theirs.txt", f"The {field} of Quillon is shut.", user="bob")
    receipt = user("POST", "/v1/memory/delete", {field: mine[field], "purge": True})
    assert (set(receipt["node_ids"]), receipt["vectors"], receipt["purged"]) == (set(names), 3, True)
    assert not any("vector store" in line for line in receipt["remains"])
    assert user("GET", NODES, params={field: mine[field]})["total"] == 0
    assert user("GET", f"{NODES}/{kept[0]}")["source"] == "theirs.txt"
    assert user("POST", "/v1/memory/delete", {field: mine[field]})["vectors"] == 0
    assert user("POST", "/v1/memory/delete", {"node_ids": [kept[0], "nope"]})["vectors"] == 1


def test_another_tenant_s_node_looks_like_none(user: Http, admin: Http, tenant: str) -> None:
    fill(admin, tenant, "theirs-1")
    (mine,) = add(user, "own.txt", "The well of Ostrick is dry.")
    for method, body in (("GET", None), ("PATCH", {"quality": 0.1}), ("DELETE", None)):
        theirs = user(method, f"{NODES}/theirs-1", body, status=404)
        nobody = user(method, f"{NODES}/theirs-2", body, status=404)
        assert theirs["message"].replace("theirs-1", "") == nobody["message"].replace("theirs-2", "")
    assert user("POST", "/v1/memory/delete", {"node_ids": ["theirs-1"]})["vectors"] == 0
    assert admin("POST", f"{ADMIN}/check", {"tenant": tenant})["nodes"] == 1
    assert user("GET", NODES, params={"source": "a.md"})["total"] == 0
    user("DELETE", f"{NODES}/{mine}")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "exactly one"),
        ({"source": "a", "user": "b"}, "exactly one"),
        ({"everything": False}, "everything"),
        ({"everything": True, "source": "a"}, "exactly one"),
        ({"node_ids": []}, "node_ids"),
        ({"source": ""}, "source"),
        ({"tenant": "acme", "everything": True}, "tenant"),
    ],
)
def test_what_is_to_go_must_be_said_clearly(user: Http, body: Any, said: str) -> None:
    assert said in user("POST", "/v1/memory/delete", body, status=400)["message"]
    assert user("GET", NODES)["total"] >= 3


@pytest.mark.parametrize(
    "query",
    [{"after": "bad"}, {"after": "nan x"}, {"limit": 0}, {"limit": 1001}, {"kind": "evil"}, {"after": "x" * 301}],
)
def test_a_listing_that_cannot_be_is_refused(user: Http, query: dict[str, Any]) -> None:
    assert next(iter(query)) in user("GET", NODES, params=query, status=400)["message"]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"text": " "},
        {"text": None},
        {"quality": 2},
        {"expires_at": -1},
        {"metadata": {"history": "x"}},
        {"vector": [1]},
    ],
)
def test_a_change_that_cannot_be_is_refused(user: Http, change: dict[str, Any]) -> None:
    (name,) = add(user, "change.txt", "The gate of Ostrick is open.")
    user("PATCH", f"{NODES}/{name}", change, status=400)
    assert user("GET", f"{NODES}/{name}")["history"] == []


def test_a_receipt_names_the_backups_that_still_hold_it(user: Http, admin: Http) -> None:
    (name,) = add(user, "held.txt", "The mill of Ostrick grinds rye.")
    admin("POST", f"{ADMIN}/backups", {"tenant": "default", "name": "before"})
    receipt = user("DELETE", f"{NODES}/{name}")
    admin("POST", f"{ADMIN}/backups", {"tenant": "default", "name": "after"})
    try:
        assert "backup before" in receipt["remains"]
        again = next(one for one in user("GET", "/v1/memory/receipts") if one["receipt_id"] == receipt["receipt_id"])
        assert [line for line in again["remains"] if line.startswith("backup")] == ["backup before"]
    finally:
        for backup in ("before", "after"):
            admin("POST", f"{ADMIN}/backups/delete", {"tenant": "default", "name": backup})
