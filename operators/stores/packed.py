"""A list of nodes that takes little memory: each is one string of bytes, made a node again when it is looked at.

A ``Node`` costs about a kilobyte of Python objects, which the garbage collector walks through; a string of bytes costs
its own length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import orjson

from operators.records import F32
from operators.stores.ports import Node

_FIELDS = tuple(field.name for field in dataclasses.fields(Node) if field.name != "vector")


class PackedNodes(Sequence[Node]):
    """``vector`` gives the vector of a row: float32[dim]; they are kept elsewhere."""

    def __init__(self, vector: Callable[[int], F32]) -> None:
        self._rows: list[bytes] = []
        self._vector = vector

    def append(self, node: Node) -> None:
        """Add ``node`` as the next row."""
        packed = orjson.dumps([getattr(node, name) for name in _FIELDS])
        self._rows.append(bytes(memoryview(packed)))  # a copy: orjson's own sits in a kilobyte

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> Node: ...
    @overload
    def __getitem__(self, row: slice) -> list[Node]: ...
    def __getitem__(self, row: int | slice) -> Node | list[Node]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        values = orjson.loads(self._rows[row])
        return Node(vector=self._vector(row), **dict(zip(_FIELDS, values, strict=True)))


class Chosen(Sequence[Node]):
    """Some ``rows`` (int[m]) of ``nodes``, unpacked only when they are looked at, and once."""

    def __init__(self, nodes: Sequence[Node], rows: Sequence[int]) -> None:
        self._nodes, self._rows = nodes, rows
        self._seen: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Node]:
        return (self[at] for at in range(len(self)))

    @overload
    def __getitem__(self, at: int) -> Node: ...
    @overload
    def __getitem__(self, at: slice) -> list[Node]: ...
    def __getitem__(self, at: int | slice) -> Node | list[Node]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if at not in self._seen:
            self._seen[at] = self._nodes[self._rows[at]]
        return self._seen[at]
