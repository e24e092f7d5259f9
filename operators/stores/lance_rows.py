"""Nodes as rows of LanceDB's table ``nodes``, and filters as its SQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from operators.errors import Reject
from operators.records import Filter, Kind
from operators.stores.ports import Node

_SCALARS: dict[str, type] = {
    "kind": str,
    "text": str,
    "domain": str,
    "source": str,
    "session": str,
    "user": str,
    "position": int,
    "tokens": int,
    "created_at": float,
    "quality": float,
    "model": str,
    "expires_at": float,
    "metadata": str,
}
COLUMNS = ["id", "vector", *_SCALARS]


def schema(dim: int) -> Any:
    """Arrow schema of the table for vectors float32[dim]."""
    import pyarrow as pa

    types = {str: pa.string(), float: pa.float64(), int: pa.int32()}
    fields = [(name, types[kind]) for name, kind in _SCALARS.items()]
    return pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), dim)), *fields])


def table(nodes: Sequence[Node], dim: int) -> Any:
    """``nodes`` as an arrow table."""
    import pyarrow as pa

    flat = np.concatenate([node.vector for node in nodes]).astype(np.float32)
    columns: dict[str, Any] = {
        "id": [node.node_id for node in nodes],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), dim),
    }
    for name in _SCALARS:
        columns[name] = [getattr(node, name) for node in nodes]
    columns["metadata"] = [json.dumps(node.metadata or {}, sort_keys=True) for node in nodes]
    return pa.table(columns, schema=schema(dim))


def nodes(rows: Any) -> list[Node]:
    """Nodes from an arrow table or batch with the columns of the table; their vectors are views of one array."""
    columns: dict[str, list[Any]] = {name: rows[name].to_pylist() for name in ("id", *_SCALARS)}
    vectors = _matrix(rows["vector"])
    made = []
    for i, (node_id, vector) in enumerate(zip(columns["id"], vectors, strict=True)):
        scalars = {name: columns[name][i] for name in _SCALARS}
        scalars["metadata"] = json.loads(scalars["metadata"]) or None
        made.append(Node(node_id=node_id, vector=vector, **scalars))
    return made


def checked(rows: Any) -> list[Node]:
    """Nodes from an arrow table or batch that somebody else made. Raises ``ValueError`` for what is no node."""
    made = nodes(rows.select(COLUMNS))
    for node in made:
        for name, kind in _SCALARS.items():
            if name != "metadata" and not isinstance(getattr(node, name), kind):
                raise ValueError(f"{name} of node {node.node_id!r} is {getattr(node, name)!r}")
        if not isinstance(node.node_id, str) or node.kind not in get_args(Kind):
            raise ValueError(f"node {node.node_id!r} of kind {node.kind!r}")
        if not np.isfinite([node.created_at, node.expires_at, node.quality]).all():
            raise ValueError(f"a time or the quality of node {node.node_id!r} is no number")
        if node.metadata is not None and not (
            isinstance(node.metadata, dict) and all(isinstance(value, str) for value in node.metadata.values())
        ):
            raise ValueError(f"metadata of node {node.node_id!r} is {node.metadata!r}")
    return made


def _matrix(column: Any) -> npt.NDArray[np.float32]:
    whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    flat: npt.NDArray[np.float32] = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(whole), whole.type.list_size)


def sql(where: Filter, now: float, expired: bool | None = False) -> str:
    """``where`` as SQL, of rows that are expired, or not, or either (``None``)."""
    over = f"(expires_at <> 0 AND expires_at <= {_number(now)})"
    parts = ["true" if expired is None else over if expired else f"NOT {over}"]
    for column, values in (
        ("kind", where.kinds),
        ("domain", where.domains),
        ("source", where.sources),
        ("session", where.sessions),
        ("user", where.users),
    ):
        if values:
            parts.append(one_of(column, values))
    if where.created_from is not None:
        parts.append(f"created_at >= {_number(where.created_from)}")
    if where.created_to is not None:
        parts.append(f"created_at <= {_number(where.created_to)}")
    return " AND ".join(parts)


def one_of(column: str, values: Sequence[str]) -> str:
    """``column IN (values)`` with the values quoted."""
    # Standard SQL: a quote is the only character that means something inside quotes, and it is doubled.
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def _number(value: float) -> str:
    if not np.isfinite(value):
        raise Reject("memory", f"time {value} in a filter", "give Unix seconds", param="filter")
    return f"CAST({value!r} AS DOUBLE)"
