"""``ray_cluster.yaml`` is what Ray's own launcher accepts, and gives every node the same environment."""

import re
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[2] / "ray_cluster.yaml"


@pytest.mark.slow
def test_ray_accepts_it():
    from ray.autoscaler._private.commands import _bootstrap_config  # noqa: F401 - the launcher itself imports
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(config)
    assert config["max_workers"] == 2


def test_every_node_gets_the_same_environment_and_a_token():
    config = yaml.safe_load(FILE.read_text())
    nodes = [
        dict(re.findall(r"\b([A-Z_]+)=(\S+)", config[f"{kind}_start_ray_commands"][-1])) for kind in ("head", "worker")
    ]
    assert nodes[0] == nodes[1]
    assert nodes[0]["RAY_AUTH_MODE"] == "token"
