"""What the pool tells of its tiers; nothing here changes anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from operators.engines.pool.loader import Loader
from operators.engines.pool.places import Place, TierStatus
from operators.errors import Stop


class View:
    """Over the places of all tiers, smallest first."""

    def __init__(self, places: Mapping[str, Place], loader: Loader, clock: Callable[[], float]) -> None:
        self._places, self._loader, self._clock = places, loader, clock

    def status(self) -> tuple[TierStatus, ...]:
        """Every tier as it is now, smallest first."""
        return tuple(place.status(self._loader.misfit(place)) for place in self._places.values())

    def available(self) -> dict[str, bool]:
        """Tier → can it serve: it is loaded, or could be: it fits the budget and is not left alone after a failure."""
        return {name: self._available(place) for name, place in self._places.items()}

    def _available(self, place: Place) -> bool:
        left_alone = place.state == "failed" and self._clock() < place.retry_at
        unloading = place.state == "draining" and place.job is None
        if left_alone or unloading or self._loader.closed:
            return False
        return place.loaded is not None or (place.estimate is not None and self._loader.misfit(place) is None)

    def loaded(self) -> tuple[str, ...]:
        """The tiers that serve without being loaded first, smallest first."""
        return tuple(name for name, place in self._places.items() if place.state == "ready")

    def queues(self) -> dict[str, int]:
        """Tier → requests waiting or running."""
        return {name: place.waiting + self._queue(place) for name, place in self._places.items()}

    def _queue(self, place: Place) -> int:
        return place.loaded.engine.queue() if place.loaded is not None and not place.loaded.asleep else 0

    def bytes(self) -> tuple[int, int]:
        """Bytes of all that is loaded or being loaded, and the budget."""
        return self._loader.held(), self._loader.budget_bytes

    def fallback(self, name: str) -> tuple[str, ...]:
        """Which tiers to try when ``name`` fails or is overloaded: loaded ones, first the smaller from the nearest on,
        then the larger. Where none is loaded, those that could be, in the same order."""
        slot = self._known(name).tier.slot
        others = [place for place in self._places.values() if place.name != name]
        usable = [p for p in others if p.state == "ready"] or [p for p in others if self._available(p)]
        usable.sort(key=lambda place: (place.tier.slot > slot, abs(place.tier.slot - slot)))
        return tuple(place.name for place in usable)

    def _known(self, name: str) -> Place:
        if name not in self._places:
            raise Stop("pool", f"tier {name!r}", f"ask for one of this process's tiers {list(self._places)}")
        return self._places[name]
