"""The API against its own description: no 500, no undocumented answer, whatever the request (schemathesis)."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

pytestmark = pytest.mark.slow
OPERATIONS = [
    "POST /v1/chat/completions",
    "POST /v1/route",
    "POST /v1/embeddings",
    "GET /v1/models",
    "POST /v1/documents",
    "POST /v1/feedback",
    "POST /v1/memory/search",
    "GET /v1/memory/nodes",
    "GET /v1/memory/nodes/{node_id}",
    "PATCH /v1/memory/nodes/{node_id}",
    "DELETE /v1/memory/nodes/{node_id}",
    "POST /v1/memory/delete",
    "GET /v1/memory/receipts",
    "GET /v1/admin/memory/tenants",
    "POST /v1/admin/memory/nodes",
    "POST /v1/admin/memory/remember",
    "POST /v1/admin/memory/withdraw",
    "POST /v1/admin/memory/maintain",
    "POST /v1/admin/memory/check",
    "POST /v1/admin/memory/export",
    "POST /v1/admin/memory/import",
    "GET /v1/admin/memory/backups",
    "POST /v1/admin/memory/backups",
    "POST /v1/admin/memory/backups/restore",
    "POST /v1/admin/memory/backups/delete",
    "GET /v1/admin/models",
    "POST /v1/admin/models/{tier}/load",
    "POST /v1/admin/models/{tier}/unload",
    "GET /v1/admin/router",
    "GET /v1/admin/router/{version}",
    "GET /v1/admin/router/{version}/diff/{other}",
    "POST /v1/admin/router/promote",
    "POST /v1/admin/router/rollback",
    "POST /v1/admin/router/freeze",
    "POST /v1/admin/answer",
    "POST /v1/admin/counterfactual",
    "GET /",
    "GET /healthz",
    "GET /metrics",
    "GET /readyz",
]


@pytest.fixture(scope="module")
def operations(inproc):
    schema = schemathesis.openapi.from_url(f"{inproc.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


@pytest.fixture(scope="module")
def admin_key(inproc):
    return (inproc.data_dir / "admin-key").read_text()


def test_every_operation_is_fuzzed(operations):
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, GenerationMode.POSITIVE) for name in OPERATIONS]
    + [
        (name, GenerationMode.NEGATIVE)
        for name in OPERATIONS
        if name.startswith("POST") and name != "POST /v1/admin/memory/nodes"  # Arrow: its schema knows no bad body
    ],
)
def test_answers_are_as_described(operations, admin_key, name, mode):
    @given(case=operations[name].as_strategy(generation_mode=mode))
    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def run(case):
        # Valid requests really generate: keep them short. Everything else goes out as it was made.
        if isinstance(case.body, dict):
            for key in ("max_tokens", "max_completion_tokens"):
                if isinstance(case.body.get(key), int) and case.body[key] > 4:
                    case.body[key] = 4
        if isinstance(case.body, dict) and case.body.get("everything") is True:
            # Other tests need what is there.
            case.body = {**case.body, "everything": False} if mode is GenerationMode.NEGATIVE else {"user": "none"}
        if "/admin/" in name and not name.endswith(("export", "import")):  # those write wherever they are told
            case.headers = {**(case.headers or {}), "authorization": f"Bearer {admin_key}"}
        # A valid request may still be refused for what a schema can't say (the last message is the user's), and 413 is
        # a refusal too, so what must be accepted and refused is said here.
        answer = case.call_and_validate(
            timeout=120, excluded_checks=[positive_data_acceptance, negative_data_rejection]
        )
        assert mode is GenerationMode.POSITIVE or 400 <= answer.status_code < 500

    run()


def test_examples_in_the_description_work(inproc):
    paths = inproc.http.get("/openapi.json").json()
    schemas = paths["components"]["schemas"]
    tried = 0
    for path, methods in paths["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = body.get("$ref", "").rsplit("/", 1)[-1]
            for example in schemas.get(name, {}).get("examples", []):
                answer = inproc.http.request(method, path, json=example)
                assert answer.status_code == 200, (path, answer.text)
                tried += 1
    assert tried >= 5


def test_examples_of_answers_are_what_is_answered(inproc):
    paths = inproc.http.get("/openapi.json").json()
    schemas = paths["components"]["schemas"]
    tried = []
    for path, methods in paths["paths"].items():
        body = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {}).get("application/json", {})
        name = body.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
        for example in schemas.get(name, {}).get("examples", []):
            assert inproc.http.get(path).json() == example
            tried.append(path)
    assert tried == ["/"]
