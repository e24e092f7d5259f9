"""What a part says of itself when it can't work any more."""

import pytest

from conf.load import load
from operators.errors import RuvError
from pipeline.host import Host


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embed", "search", "generate"])
async def test_a_part_that_ended_says_so(tmp_path, name):
    settings = load("test", overrides=[f"data_dir={tmp_path}"], env={}).settings
    host = Host((name,), settings, tiers=("135M",))
    await host.start()
    part = "generate:135M" if name == "generate" else name
    try:
        await host.check()
        assert (await host.checks())[part] is True
        await host._stages[0].close()
        with pytest.raises(RuvError):
            await host.check()
        assert (await host.checks())[part] is False
    finally:
        await host.close()
