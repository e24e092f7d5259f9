"""Which rows belong together in one order: the turns of a session, the chunks of a document.

A short turn seldom says what it is about; the turns around it do. So a row is scored together with its neighbours, and
those farther away count less: an answer follows its question, so what stands before counts more than what comes after.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

from operators.stores.ports import Node

BEFORE, AFTER, REACH = 0.7, 0.5, 2
"""A neighbour d ≤ REACH places before a row counts BEFORE^d, one after it AFTER^d. Chosen on the tuning halves of
invented conversations and of real monologues; see DECISIONS.md."""

F32 = npt.NDArray[np.float32]


def strand(node: Node) -> tuple[str, str] | None:
    """What the node's position counts in: its session, else one version of a document, else its source."""
    if node.session:
        return "session", node.session
    text = (node.metadata or {}).get("version") or node.source
    return ("source", text) if text else None


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A place for every row, strand after strand with gaps between, so that neighbours stand at fixed distances.

    ``place``: intp[n]; ``size``: how many places there are, empty ones included.
    """

    place: npt.NDArray[np.intp]
    size: int

    def spread(self, values: F32) -> F32:
        """``values`` float32[n] put in their places: float32[size]."""
        placed = np.zeros(self.size, np.float32)
        placed[self.place] = values
        return placed

    def around(self, placed: F32) -> F32:
        """Each place's value plus the weighted values of its neighbours: float32[…, size] like ``placed``."""
        total = placed.copy()
        for distance in range(1, REACH + 1):
            total[..., distance:] += np.float32(BEFORE**distance) * placed[..., :-distance]
            total[..., :-distance] += np.float32(AFTER**distance) * placed[..., distance:]
        return total


class Strands:
    """The order of rows in their strands, kept as links: ``before``, ``after`` int32[n], -1 for none. Needs a lock.

    Rows of one strand with the same position have no order, so they are not neighbours.
    """

    def __init__(self) -> None:
        self._order: dict[tuple[str, str], list[tuple[int, str, int]]] = {}  # strand → (position, node id, row)
        self.before, self.after = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self._layout: Layout | None = None  # made when asked for, and again after a change

    def grow(self, size: int) -> None:
        """Room for ``size`` rows."""
        more = np.full(size - len(self.before), -1, np.int32)
        self.before, self.after = np.concatenate([self.before, more]), np.concatenate([self.after, more])

    def add(self, node: Node, row: int) -> None:
        """Put ``row`` in its place."""
        key, self._layout = strand(node), None
        if key is not None:
            order = self._order.setdefault(key, [])
            insort(order, (node.position, node.node_id, row))
            at = bisect_left(order, (node.position, node.node_id, row))
            self._link(order, at - 1)
            self._link(order, at)

    def remove(self, node: Node, row: int) -> None:
        """Take ``row`` out; its neighbours close ranks."""
        key, self._layout = strand(node), None
        if key is not None:
            order = self._order[key]
            at = bisect_left(order, (node.position, node.node_id, row))
            del order[at]
            self.before[row] = self.after[row] = -1
            if not order:
                del self._order[key]
                return
            self._link(order, at - 1)

    def _link(self, order: list[tuple[int, str, int]], at: int) -> None:
        """Mend the links between the entries ``at`` and ``at + 1``, or of the end that stands there alone."""
        one, two = order[at] if at >= 0 else None, order[at + 1] if at + 1 < len(order) else None
        apart = one is not None and two is not None and one[0] != two[0]
        if one is not None:
            self.after[one[2]] = two[2] if two is not None and apart else -1
        if two is not None:
            self.before[two[2]] = one[2] if one is not None and apart else -1

    def neighbours(self, row: int) -> tuple[int, int]:
        """The rows before and after ``row``, -1 for none."""
        return int(self.before[row]), int(self.after[row])

    def layout(self, n: int) -> Layout:
        """A place for each of the first ``n`` rows, which are all. A few milliseconds after a change, else nothing."""
        if self._layout is None:
            held = np.fromiter((row for order in self._order.values() for _, _, row in order), np.int32)
            alone = np.ones(n, np.bool_)
            alone[held] = False
            rows = np.concatenate([held, np.flatnonzero(alone).astype(np.int32)])
            gaps = REACH * np.cumsum(self.before[rows] < 0)  # before whatever follows nothing
            place = np.empty(n, np.intp)
            place[rows] = np.arange(n) + gaps
            self._layout = Layout(place, n + int(gaps[-1]) + REACH if n else 0)
        return self._layout
