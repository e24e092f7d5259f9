"""The administrator's endpoints over HTTP: who gets in, what comes in, backups, exports; each test has its tenant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.pipeline.memory_http import ADMIN, Http, arrow, fill, to_nodes
from tests.service import Running

pytestmark = pytest.mark.slow
ADMINS = [
    ("GET", "/tenants", {}),
    ("POST", "/nodes?tenant=acme&encoder=e", {}),
    ("POST", "/remember", {"tenant": "acme", "items": []}),
    ("POST", "/withdraw", {"tenant": "acme", "interaction_ids": ["x"]}),
    ("POST", "/maintain", {"tenant": "acme"}),
    ("POST", "/check", {"tenant": "acme"}),
    ("POST", "/export", {"tenant": "acme", "directory": "/x"}),
    ("POST", "/import", {"tenant": "acme", "directory": "/x"}),
    ("GET", "/backups?tenant=acme", {}),
    ("POST", "/backups", {"tenant": "acme", "name": "x"}),
    ("POST", "/backups/restore", {"tenant": "acme", "name": "x"}),
    ("POST", "/backups/delete", {"tenant": "acme", "name": "x"}),
]


@pytest.mark.parametrize(("method", "path", "body"), ADMINS)
@pytest.mark.parametrize("key", ["", "Bearer", "Bearer k-user", "Bearer \xe4", "Basic x"])
def test_the_administrator_s_door_takes_no_other_key(
    inproc: Running, method: str, path: str, body: Any, key: str
) -> None:
    headers = {"authorization": key.encode("latin-1")} if key else {}
    answer = inproc.http.request(method, ADMIN + path, json=body, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_admin_key"


def test_nodes_come_in_as_arrow_once(admin: Http, tenant: str) -> None:
    fill(admin, tenant, "n1", "n2")
    again = admin("POST", to_nodes(tenant), content=arrow("n1", "n2", "n3"))
    assert (again["added"], again["duplicates"]) == (1, 2)
    assert tenant in admin("GET", f"{ADMIN}/tenants")


def test_vectors_of_another_encoder_are_refused(admin: Http, tenant: str) -> None:
    error = admin("POST", f"{ADMIN}/nodes?tenant={tenant}&encoder=other", content=arrow("n1"), status=400)
    assert (error["param"], error["code"]) == ("encoder", "bad_encoder")
    assert tenant not in admin("GET", f"{ADMIN}/tenants")


def column(name: str, values: Any) -> Any:
    table = pa.ipc.open_stream(arrow("n1")).read_all()
    return table.set_column(table.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no arrow at all",
        arrow("n1")[:-300],
        arrow("n1")[:200] + b"\xff" * 100 + arrow("n1")[300:],
        arrow(table=pa.table({"id": ["n1"]})),
        arrow(table=column("kind", pa.array(["evil"]))),
        arrow(table=column("text", pa.array([None], pa.string()))),
        arrow(table=column("created_at", pa.array([float("nan")]))),
        arrow(table=column("metadata", pa.array(["{"]))),
        arrow(table=column("vector", pa.array([[1.0]], pa.list_(pa.float32(), 1)))),
        arrow(table=column("vector", pa.array([[0.0] * 384], pa.list_(pa.float32(), 384)))),
    ],
    ids=["empty", "text", "cut", "bits", "columns", "kind", "text null", "nan", "metadata", "dimension", "zeros"],
)
def test_what_is_no_arrow_or_no_node_is_refused(admin: Http, tenant: str, content: bytes) -> None:
    admin("POST", to_nodes(tenant), content=content, status=400)
    assert tenant not in admin("GET", f"{ADMIN}/tenants")


def test_documents_and_the_administrator_have_limits_of_their_own(user: Http, admin: Http, tenant: str) -> None:
    two_mib = b" " * (2 << 20)
    user("POST", "/v1/documents", content=two_mib, status=400)
    said = user("POST", "/v1/documents", content=b" " * ((8 << 20) + 1), status=413)["message"]
    assert "http.max_documents_body_bytes" in said
    assert "http.max_body_bytes" in user("POST", "/v1/memory/delete", content=two_mib, status=413)["message"]
    admin("POST", to_nodes(tenant), content=two_mib, status=400)
    admin("POST", to_nodes(tenant), content=b" " * ((64 << 20) + 1), status=413)


@pytest.mark.parametrize("name", ["../x", "..", ".x", "a/b", "/etc", "a b", "a\0"])
def test_names_that_lead_elsewhere_are_refused(admin: Http, tenant: str, name: str) -> None:
    for path in ("/backups", "/backups/restore", "/backups/delete"):
        admin("POST", ADMIN + path, {"tenant": tenant, "name": name}, status=400)
        admin("POST", ADMIN + path, {"tenant": name, "name": "x"}, status=400)
    for path in ("/check", "/maintain"):
        admin("POST", ADMIN + path, {"tenant": name}, status=400)
    for path in ("/export", "/import"):
        admin("POST", ADMIN + path, {"tenant": name, "directory": "/nowhere/x"}, status=400)
        refused = admin("POST", ADMIN + path, {"tenant": tenant, "directory": name.lstrip("/")}, status=400)
        assert refused["param"] == "directory"
    admin("GET", f"{ADMIN}/backups", params={"tenant": name}, status=400)


def test_check_backup_restore_export_and_import(admin: Http, tenant: str, tmp_path: Path) -> None:
    fill(admin, tenant, "n1", "n2")
    assert admin("POST", f"{ADMIN}/check", {"tenant": tenant})["sound"] is True
    kept = admin("POST", f"{ADMIN}/backups", {"tenant": tenant, "name": "one"})
    assert (kept["name"], kept["tenant"], kept["nodes"], kept["dim"]) == ("one", tenant, 2, 384)
    fill(admin, tenant, "n3")
    assert [one["name"] for one in admin("GET", f"{ADMIN}/backups?tenant={tenant}")] == ["one"]
    admin("POST", f"{ADMIN}/backups", {"tenant": tenant, "name": "one"}, status=400)

    out = tmp_path / "out"
    assert admin("POST", f"{ADMIN}/export", {"tenant": tenant, "directory": str(out)})["nodes"] == 3
    admin("POST", f"{ADMIN}/export", {"tenant": tenant, "directory": str(out)}, status=400)
    admin("POST", f"{ADMIN}/backups/restore", {"tenant": tenant, "name": "one"})
    assert admin("POST", f"{ADMIN}/check", {"tenant": tenant})["nodes"] == 2
    into = {"tenant": f"{tenant}-2", "directory": str(out)}
    assert admin("POST", f"{ADMIN}/import", into)["added"] == 3
    assert admin("POST", f"{ADMIN}/import", into) == {"added": 0, "duplicates": 3, "edges": 0}
    assert admin("POST", f"{ADMIN}/import", {**into, "replace": True})["added"] == 3

    (out / "nodes.parquet").write_bytes(b"x")
    assert "damaged" in admin("POST", f"{ADMIN}/import", into, status=400)["message"]
    admin("POST", f"{ADMIN}/import", {**into, "directory": str(tmp_path / "no")}, status=404)
    admin("POST", f"{ADMIN}/import", {**into, "directory": "/etc/passwd"}, status=404)
    admin("POST", f"{ADMIN}/export", {"tenant": "nobody", "directory": str(tmp_path / "new")}, status=404)
    admin("POST", f"{ADMIN}/backups/restore", {"tenant": tenant, "name": "two"}, status=404)
    assert admin("POST", f"{ADMIN}/backups/delete", {"tenant": tenant, "name": "one"}) == {"removed": "one"}
    assert admin("GET", f"{ADMIN}/backups?tenant={tenant}") == []
    assert admin("POST", f"{ADMIN}/maintain", {"tenant": tenant}) == {"expired": 0, "purged": 0, "nodes": 2}
