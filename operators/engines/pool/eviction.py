"""Which loaded model to give up first: the one that is used least and comes back soonest."""

from __future__ import annotations

from collections.abc import Mapping


class GreedyDual:
    """GreedyDual (N. Young, The k-server dual and loose competitiveness for paging, Algorithmica 1994).

    A model that is used gets the worth H = L + c, where c are the seconds it takes to load. The least H goes first,
    and L rises to the H of what went: what isn't used falls behind, the sooner the cheaper it is to load again. With
    equal c this is LRU.

    GreedyDual-Size (P. Cao, S. Irani, Cost-aware WWW proxy caching algorithms, USITS 1997) divides c by the size,
    for caches of many small things. Loading takes time in proportion to the size, so that quotient would be the same
    for all models. Sizes decide here only which ones are spared: those without which there is room enough.
    """

    def __init__(self) -> None:
        self.floor = 0.0
        """L: no model that is used is worth less."""
        self._worth: dict[str, float] = {}

    def used(self, name: str, reload_s: float) -> None:
        """``name`` was used now; loading it again would take ``reload_s`` seconds."""
        self._worth.pop(name, None)  # in again at the end: of equal ones the one not used for longest comes first
        self._worth[name] = self.floor + reload_s

    def evicted(self, name: str) -> None:
        """``name`` had to make room."""
        self.floor = max(self.floor, self._worth.pop(name, self.floor))

    def forget(self, name: str) -> None:
        """``name`` went for another reason, which says nothing about what the others are worth."""
        self._worth.pop(name, None)

    def choose(self, sizes: Mapping[str, int], need: int, *, partly: bool = False) -> list[str]:
        """Which of the idle models (name → bytes) make room for ``need`` bytes, and no more than that takes.

        None if all together are too small, for giving them up would help nobody; with ``partly`` then all of them.
        """
        order = sorted(sizes, key=lambda name: (self._worth.get(name, self.floor), [*self._worth, name].index(name)))
        if need <= 0:
            return []
        if sum(sizes.values()) < need:
            return order if partly else []
        chosen: list[str] = []
        while sum(sizes[name] for name in chosen) < need:
            chosen.append(order[len(chosen)])
        for name in reversed(chosen):
            if sum(sizes[other] for other in chosen if other != name) >= need:
                chosen.remove(name)
        return chosen
