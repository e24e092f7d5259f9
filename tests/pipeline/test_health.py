"""What a part says of itself when it can't work any more."""

import httpx
import pytest

from conf.load import load
from operators.errors import RuvError
from pipeline.host import Host
from pipeline.ingress import create_app
from pipeline.service import Service


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embed", "search", "generate"])
async def test_a_part_that_ended_says_so(tmp_path, name):
    settings = load("test", overrides=[f"data_dir={tmp_path}"], env={}).settings
    host = Host((name,), settings, tiers=("135M",))
    await host.start()
    part = "generate:135M" if name == "generate" else name
    try:
        await host.check()
        assert await host.checks() == {part: True}, "of what is here, and of nothing else"
        await host._stages[0].close()
        with pytest.raises(RuvError):
            await host.check()
        assert (await host.checks())[part] is False
    finally:
        await host.close()


class Works:
    """A backend, and an emitter, that has nothing to complain of."""

    async def checks(self):
        return {"search": True, "generate:135M": True}

    async def models(self):
        return ()

    async def manage(self, call, *args):
        pytest.fail("nobody asked")

    def healthy(self):
        return True


@pytest.mark.parametrize(("least", "status"), [(0, "ok"), (1 << 62, "degraded")])
async def test_a_disk_that_is_nearly_full_is_said_and_answers_still_come(tmp_path, least, status):
    sets = [f"data_dir={tmp_path}", f"maintain.min_free_bytes={least}"]
    settings = load("test", overrides=sets, env={}).settings
    app = create_app(Service(settings, Works(), Works()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, status)
    assert ready.json()["checks"] == {"search": True, "generate:135M": True, "events": True, "disk": status == "ok"}
