"""The replay buffer: a fair sample of everything ever offered, kept apart by stratum (for example "domain/tier").

Within a stratum this is a reservoir (Algorithm R, Vitter 1985): of the ``seen`` rows ever offered each is kept with
the same probability. Strata share ``capacity`` so that **the largest gives way**: once the whole is full, a stratum
that has lost nothing yet grows by one as the largest loses one of its rows at random, until both are equally large.
So a rare stratum keeps everything, and strata that would fill the buffer get equal shares (max-min fair). A uniform
sample stays one when a random row is taken from it, and sizes depend on how often each stratum came, never on which
rows. Once every stratum of a full buffer has a single row, new strata are not kept.

Deletion makes room. A stratum that has lost rows takes a new one into that room with the probability ``size / seen``
with which its others were kept, so all stay equally likely (as in Gemulla et al. 2008, where every deletion is known to
have been offered; here ``seen`` shrinks in proportion, as one can't tell how many of the deleted had been offered).

Chance comes from Philox (Salmon et al. 2011), a counter whose place is part of the state: what is resumed goes on
exactly as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from operators.errors import Skip, Stop

Array: TypeAlias = npt.NDArray[Any]
Schema: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Column → (dtype name, shape of one row's value), e.g. ``{"id": ("int64", ()), "x": ("float32", (128,))}``."""

WHO = "replay buffer"
FORMAT = 1
"""Version of ``state()``."""


def key(text: str) -> int:
    """An id as the int64 that columns hold: 8 bytes of BLAKE2b. Among 10⁷ ids two are equal with probability 3·10⁻⁶."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


class _Stratum:
    """Places in the columns, in order of arrival except that a removed one is replaced by the last."""

    __slots__ = ("places", "seen")

    def __init__(self, places: list[int], seen: int) -> None:
        self.places = places
        self.seen = seen

    def pop(self, at: int) -> int:
        """Take out the place at ``at``."""
        place, last = self.places[at], self.places.pop()
        if at < len(self.places):
            self.places[at] = last
        return place


class Reservoir:
    """At most ``capacity`` rows of ``schema``, which must have the column ``id``: int64 scalars made by ``key``.

    Memory grows with what is kept. Not for use by several threads. A row offered twice counts twice: the caller drops
    repeats. Raises ``Stop`` for a schema or a capacity that can't be.
    """

    def __init__(self, schema: Schema, *, capacity: int = 100_000, seed: int = 0) -> None:
        if schema.get("id") != ("int64", ()):
            raise Stop(WHO, f"a schema whose id is {schema.get('id')}", 'give the column "id": ("int64", ())')
        if capacity < 1:
            raise Stop(WHO, f"a capacity of {capacity} rows", "give at least 1")
        self.schema = dict(schema)
        self.capacity = capacity
        self._columns = {name: np.empty((0, *shape), dtype) for name, (dtype, shape) in schema.items()}
        self._strata: dict[str, _Stratum] = {}
        self._free: list[int] = []
        self._kept = 0
        self._philox = np.random.Philox(seed)
        self._random = np.random.Generator(self._philox)

    def __len__(self) -> int:
        return self._kept

    @property
    def sizes(self) -> dict[str, int]:
        """Rows kept, by stratum, in the order in which strata came."""
        return {name: len(stratum.places) for name, stratum in self._strata.items()}

    @property
    def seen(self) -> dict[str, int]:
        """Rows offered, by stratum, less those deleted since (estimated where the stratum had lost rows)."""
        return {name: stratum.seen for name, stratum in self._strata.items()}

    def add(self, stratum: str, row: Mapping[str, Any]) -> bool:
        """Offer a row: each column's value of the schema's shape. Returns whether it is kept (for now).

        Raises ``Stop`` if columns or shapes differ from the schema, ``Skip`` if a number is not finite.
        """
        return self.add_many([stratum], {name: np.asarray(value)[None] for name, value in row.items()}) == 1

    def add_many(self, strata: Sequence[str], rows: Mapping[str, Array]) -> int:
        """Offer rows in order: columns of shape [n, …]. Returns how many were taken; all are checked first."""
        values = self._checked(len(strata), rows)
        taken = 0
        for i, name in enumerate(strata):
            place = self._place(self._strata.setdefault(name, _Stratum([], 0)))
            if not self._strata[name].places:
                del self._strata[name]  # more strata than rows
            if place is not None:
                taken += 1
                for column, value in values.items():
                    self._columns[column][place] = value[i]
        return taken

    def sample(self, n: int, random: np.random.Generator, *, balanced: bool = True) -> dict[str, Array]:
        """``n`` rows drawn with replacement, as columns [n, …], copies.

        ``balanced`` gives every stratum the same share (what is left over goes to strata drawn at random); else every
        row is equally likely. The buffer's own chance is not touched. Raises ``Stop`` if the buffer is empty.
        """
        strata = [stratum.places for stratum in self._strata.values()]
        if not strata:
            raise Stop(WHO, f"{n} rows asked of an empty buffer", "offer rows first, or ask its length")
        if balanced:
            counts = np.full(len(strata), n // len(strata))
            counts[random.permutation(len(strata))[: n % len(strata)]] += 1
        else:
            sizes = np.array([len(places) for places in strata])
            counts = random.multinomial(n, sizes / sizes.sum())
        drawn = [
            places[i]
            for places, count in zip(strata, counts, strict=True)
            for i in random.integers(len(places), size=count)
        ]
        return {name: column[drawn] for name, column in self._columns.items()}

    def forget(self, values: Iterable[int], column: str = "id") -> int:
        """Delete the rows whose integer ``column`` is among ``values``, e.g. ids, or a tenant's key. Returns how many.

        Their bytes are overwritten. A stratum left empty is forgotten with all its counts.
        """
        if self.schema.get(column) != ("int64", ()):
            raise Stop(WHO, f"no int64 column {column} to delete by", f"name one of {sorted(self.schema)}")
        gone = np.isin(self._columns[column], np.fromiter(values, np.int64))
        before_all = self._kept
        for name, stratum in list(self._strata.items()):
            before = len(stratum.places)
            freed = [place for place in stratum.places if gone[place]]
            if not freed:
                continue
            stratum.places = [place for place in stratum.places if not gone[place]]
            stratum.seen = round(stratum.seen * len(stratum.places) / before)
            if not stratum.places:
                del self._strata[name]
            for values_of in self._columns.values():
                values_of[freed] = 0
            self._free += freed
            self._kept -= len(freed)
        return before_all - self._kept

    def state(self) -> dict[str, Array]:
        """All of it as arrays of numbers: ``rows/COLUMN`` ordered by stratum, ``about`` (JSON as uint8), ``chance``."""
        order = [place for stratum in self._strata.values() for place in stratum.places]
        chance: Any = self._philox.state
        about = {
            "format": FORMAT,
            "capacity": self.capacity,
            "schema": {name: [dtype, list(shape)] for name, (dtype, shape) in self.schema.items()},
            "strata": [[name, len(s.places), s.seen] for name, s in self._strata.items()],
        }
        words = (chance["state"]["counter"], chance["state"]["key"], chance["buffer"])
        rest = [chance["buffer_pos"], chance["has_uint32"], chance["uinteger"]]
        return {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8).copy(),
            "chance": np.concatenate([*words, np.array(rest, np.uint64)]),
            **{f"rows/{name}": column[order] for name, column in self._columns.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array], schema: Schema, *, capacity: int = 100_000) -> Reservoir:
        """The buffer as it was. Raises ``Stop`` if ``state`` is of another schema, capacity or version, or damaged."""
        remedy = "use the schema and capacity it was made with, or start an empty buffer"
        made = cls(schema, capacity=capacity)
        if odd := sorted(state.keys() ^ made.state().keys()):
            raise Stop(WHO, f"a state that lacks or adds {odd}", remedy)
        try:
            about, expected = (json.loads(part["about"].tobytes()) for part in (state, made.state()))
            for name in ("format", "capacity", "schema"):
                if about[name] != expected[name]:
                    raise Stop(WHO, f"a state with {name} {about[name]}, expected {expected[name]}", remedy)
            strata = [(str(name), int(size), int(seen)) for name, size, seen in about["strata"]]
            total = sum(size for _, size, _ in strata)
            made._columns = made._checked(total, {name: np.array(state[f"rows/{name}"]) for name in schema})
            chance = np.asarray(state["chance"]).astype(np.uint64, casting="safe")
        except (KeyError, ValueError, TypeError, Skip) as error:
            raise Stop(WHO, f"a state that can't be read ({type(error).__name__}: {error})", remedy) from error
        whole = total <= capacity and len({name for name, _, _ in strata}) == len(strata)
        whole &= all(0 < size <= seen for _, size, seen in strata)
        if not whole or chance.shape != (13,) or (chance[10:] > (4, 1, 2**32 - 1)).any():
            raise Stop(WHO, "a state whose numbers can't be", remedy)
        for name, size, seen in strata:
            made._strata[name] = _Stratum(list(range(made._kept, made._kept + size)), seen)
            made._kept += size
        buffer_pos, has_uint32, uinteger = (int(word) for word in chance[10:])
        made._philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": chance[:4], "key": chance[4:6]},
            "buffer": chance[6:10],
            "buffer_pos": buffer_pos,
            "has_uint32": has_uint32,
            "uinteger": uinteger,
        }
        return made

    def _place(self, stratum: _Stratum) -> int | None:
        """Where the row that is offered goes, or None if it is not taken. Keeps the promise at the top of this file."""
        size, lost_none = len(stratum.places), len(stratum.places) == stratum.seen
        stratum.seen += 1
        if lost_none and self._kept == self.capacity:
            largest = max(self._strata.values(), key=lambda s: len(s.places))
            if len(largest.places) > size + 1:
                self._free.append(largest.pop(int(self._random.integers(len(largest.places)))))
                self._kept -= 1
        if self._kept < self.capacity:
            if not lost_none and self._random.integers(stratum.seen - 1) >= size:
                return None
            stratum.places.append(self._new_place())
            self._kept += 1
            return stratum.places[-1]
        at = int(self._random.integers(stratum.seen))
        return stratum.places[at] if at < size else None

    def _new_place(self) -> int:
        """A place no row has; columns double as they fill."""
        if not self._free:
            have = len(self._columns["id"])
            more = min(max(2 * have, 64), self.capacity)
            for name, column in self._columns.items():
                self._columns[name] = np.concatenate([column, np.zeros((more - have, *column.shape[1:]), column.dtype)])
            self._free = list(range(more - 1, have - 1, -1))
        return self._free.pop()

    def _checked(self, n: int, rows: Mapping[str, Array]) -> dict[str, Array]:
        """The columns in the schema's dtypes."""
        if odd := sorted(rows.keys() ^ self.schema.keys()):
            raise Stop(WHO, f"a row that lacks or adds columns {odd}", f"give exactly {sorted(self.schema)}")
        values = {}
        for name, (dtype, shape) in self.schema.items():
            value = np.asarray(rows[name])
            if value.shape != (n, *shape) or not np.can_cast(value.dtype, dtype, "same_kind"):
                got = f"{name} is {value.dtype}{list(value.shape)}, expected {dtype}{[n, *shape]}"
                raise Stop(WHO, got, "give what the schema says")
            values[name] = value.astype(dtype, copy=False)
            if np.issubdtype(values[name].dtype, np.inexact) and not np.isfinite(values[name]).all():
                raise Skip(WHO, f"{name} has NaN or infinite values", "leave the row out")
        return values
