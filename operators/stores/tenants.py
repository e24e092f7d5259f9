"""What every store checks of a tenant's name and of a node before it writes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from operators.errors import Reject
from operators.records import F32, TENANT
from operators.stores.ports import Node

_TENANT = re.compile(TENANT)


def check_tenant(who: str, tenant: str) -> str:
    """``tenant`` if it can be a directory's name and an id's prefix; else ``Reject``."""
    if not _TENANT.fullmatch(tenant):
        raise Reject(
            who,
            f"tenant {tenant!r}",
            "use 1 to 64 letters, digits, '.', '_' or '-', no dot first",
            param="tenant",
            code="bad_tenant",
        )
    return tenant


def check_vector(who: str, vector: F32, dim: int, whose: str) -> None:
    """Raise ``Reject`` unless ``vector`` is float32[dim], finite and not all zeros."""
    if vector.shape != (dim,):
        got = f"the vector of {whose} has shape {vector.shape}, the memory holds vectors of {dim}"
        raise Reject(
            who, got, f"use the encoder that this memory was made with (dimension {dim})", code="bad_dimension"
        )
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise Reject(
            who, f"the vector of {whose} has length {length}", "give an L2-normalised vector", code="bad_vector"
        )


def check_nodes(who: str, nodes: Sequence[Node], dim: int) -> list[Node]:
    """``nodes`` with repeated ids dropped (the last one stays); ``Reject`` for one that can't be stored."""
    for node in nodes:
        check_vector(who, node.vector, dim, f"node {node.node_id!r}")
        if not node.node_id:
            raise Reject(who, f"a node without id, text {node.text[:40]!r}", "give every node an id", code="bad_node")
        for field in (node.node_id, node.text, node.domain, node.source, node.session, node.model):
            try:
                field.encode()
            except UnicodeEncodeError as e:
                got = f"node {node.node_id!r}: {field[e.start : e.end]!r} is not a character"
                raise Reject(who, got, "remove lone surrogates", code="bad_node") from e
    return list({node.node_id: node for node in nodes}.values())
