"""From a version's name to the weights that it names."""

from __future__ import annotations

import dataclasses

from operators.networks.fastgrnn import Snapshot
from operators.stores.checkpoints import Registry

FILE = "router.safetensors"
"""The file of a checkpoint that has the router's weights, as ``Snapshot.to_bytes`` writes them."""


def weights(registry: Registry, version: str, start: Snapshot) -> Snapshot:
    """The weights of ``version``, named after it whatever their file says.

    A name that is none of the registry's is that of the router's own start, then or now: ``start``. (The prior of a new
    release has another name, and is what it goes back to.) Raises ``Stop`` if there is no such version, or it is
    damaged, or no router of this release.
    """
    if version == start.checkpoint or not registry.numbered(version):
        return start
    snapshot = Snapshot.from_bytes(registry.read(version, FILE), version)
    return dataclasses.replace(snapshot, checkpoint=version)
