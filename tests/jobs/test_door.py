"""The jobs' way into the service: what they are told to do about each answer, and whose key they bring."""

import httpx
import pyarrow as pa
import pytest

from jobs.door import Door, admin_key, from_ipc
from operators.errors import Reject, Retry, Stop

KEY = "k" * 40


def error(message):
    return {"error": {"message": message, "type": "x", "param": "tenant", "code": None}}


@pytest.mark.parametrize(
    ("status", "headers", "raised", "words"),
    [
        (429, {"retry-after": "3"}, Retry, "full"),
        (503, {}, Retry, "full"),
        (413, {}, Reject, "full"),
        (500, {}, Stop, "full"),
        (302, {}, Stop, "not RuvLLM"),
    ],
)
def test_the_door_says_what_to_do(status, headers, raised, words):
    answer = httpx.Response(status, headers=headers, **({} if status == 302 else {"json": error("full; wait")}))
    door = Door("http://x", KEY, transport=httpx.MockTransport(lambda request: answer))
    with pytest.raises(raised, match=words) as caught:
        door.post_json("/v1/x", {})
    if raised is Retry:
        assert caught.value.retry_after_s == float(headers.get("retry-after", 1))
        assert caught.value.status == status
    door.close()


def test_the_door_without_a_service_and_with_what_no_json_can_say():
    door = Door("http://127.0.0.1:9", KEY)
    with pytest.raises(Retry, match="no service listens there"):
        door.get_json("/healthz")
    with pytest.raises(Reject, match="can't be sent"):
        door.post_json("/v1/x", {"score": float("nan")})
    door.close()
    with pytest.raises(Reject, match="ASCII"):
        Door("http://x", "ü")


def test_the_key_of_the_environment_wins(tmp_path):
    with pytest.raises(Stop, match="can't be read"):
        admin_key(tmp_path, {})
    (tmp_path / "admin-key").write_text("file\n")
    assert admin_key(tmp_path, {}) == "file"
    assert admin_key(tmp_path, {"RUVLLM_ADMIN_KEY": "env"}) == "env"


def test_what_it_sends():
    asked = []

    def answer(request):
        asked.append(request)
        return httpx.Response(200, json={"ok": True})

    door = Door("http://x/", KEY, transport=httpx.MockTransport(answer))
    table = pa.table({"id": ["a", "b"]})
    assert door.post_arrow("/v1/nodes", table, {"tenant": "ä & b"}) == {"ok": True}
    assert door.get_json("/v1/tenants", {"k": "3"}) == {"ok": True}
    assert door.post_json("/v1/x", {"text": "ü"}) == {"ok": True}
    door.close()
    assert {request.headers["authorization"] for request in asked} == {f"Bearer {KEY}"}
    assert asked[0].headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert asked[0].url.params["tenant"] == "ä & b"
    assert from_ipc(asked[0].content).equals(table)
    assert str(asked[1].url) == "http://x/v1/tenants?k=3"
    assert asked[2].content == '{"text": "ü"}'.encode()
