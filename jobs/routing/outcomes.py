"""The file that ``ruvllm evaluate router`` reads: prompts, and how every tier did on each of them.

Parquet with the columns ``id``, ``domain``, ``prompt`` (text), and for each of two to four tiers ``NAME_quality`` in
[0, 1] and ``NAME_cost`` ≥ 0 in any one unit. Of two tiers, ``weak_correct`` and ``strong_correct`` (true or false) will
do: an answer of the weak tier then costs 0, one of the strong tier 1.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from operators.errors import Reject
from operators.networks.features import TIERS
from operators.records import record

WHO = "evaluate router"
TEXTS = ("id", "domain", "prompt")
LEAST = 80
"""Fewer rows can't be trained on and told apart."""
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@record
class Outcomes:
    """``tiers`` from the cheapest to the dearest by mean cost; ``quality`` and ``cost`` float64[n, tiers]."""

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    prompts: tuple[str, ...]
    tiers: tuple[str, ...]
    quality: Array
    cost: Array

    @property
    def slots(self) -> list[int]:
        """The router's slot of each tier: in order from 0, and the dearest always has the last."""
        return [*range(len(self.tiers) - 1), TIERS - 1]


def read(path: Path, least: int = LEAST, like: Outcomes | None = None) -> Outcomes:
    """The outcomes in ``path``. Raises ``Reject`` for what can't be used, or has other tiers than ``like``."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _reject(path, f"can't be read as Parquet: {error}", "give a Parquet file") from error
    if lacking := [name for name in TEXTS if name not in table.column_names]:
        raise _reject(path, f"no column {lacking[0]!r}", f"give the text columns {', '.join(TEXTS)}")
    if table.num_rows < least:
        raise _reject(path, f"{table.num_rows} rows", f"give at least {least}")
    ids, domains, prompts = (_texts(path, table, name) for name in TEXTS)
    often, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise _reject(path, f"the id {often!r} is there {count} times", "give every row an id of its own")
    tiers = _tiers(path, table.column_names)
    if like is not None and set(tiers) != set(like.tiers):
        got = f"unknown tiers: {sorted(tiers)}, and the router learns from {sorted(like.tiers)}"
        raise _reject(path, got, "give a test file of the same tiers")
    correct = "weak_correct" in table.column_names
    quality = np.stack([_numbers(path, table, f"{t}_correct" if correct else f"{t}_quality") for t in tiers], axis=1)
    if correct:
        cost = np.broadcast_to(np.array([0.0, 1.0]), quality.shape).copy()
    else:
        cost = np.stack([_numbers(path, table, f"{t}_cost", np.inf) for t in tiers], axis=1)
    mean = cost.mean(axis=0)
    order = np.argsort(mean, kind="stable") if like is None else np.array([tiers.index(t) for t in like.tiers])
    if not mean[order[-1]] > mean[order[0]]:
        got = f"the mean cost of {tiers[order[-1]]} is not above that of {tiers[order[0]]}"
        raise _reject(path, got, "give tiers that differ in cost")
    return Outcomes(
        ids=ids,
        domains=domains,
        prompts=prompts,
        tiers=tuple(tiers[i] for i in order),
        quality=quality[:, order],
        cost=cost[:, order],
    )


def split(units: tuple[str, ...], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and rows to test on, each shuffled: whole units, drawn by the seed, until ``fraction`` of the
    rows is reached as nearly as units allow. At 1 all are to learn from.

    A unit is what may not stand on both sides: a prompt that is there twice, or a domain.
    """
    random = np.random.default_rng(seed)
    _, unit = np.unique(np.array(units, object), return_inverse=True)
    sizes = np.bincount(unit)
    order = random.permutation(len(sizes))
    reached = np.concatenate(([0], np.cumsum(sizes[order])))
    taken = int(np.abs(reached - fraction * len(units)).argmin())
    learned = np.isin(unit, order[:taken])
    shuffled = random.permutation(len(units))
    return shuffled[learned[shuffled]], shuffled[~learned[shuffled]]


def _tiers(path: Path, columns: list[str]) -> list[str]:
    """Names of the tiers, in the order of their columns; weak and strong in theirs."""
    qualities = [name.removesuffix("_quality") for name in columns if name.endswith("_quality")]
    costs = [name.removesuffix("_cost") for name in columns if name.endswith("_cost")]
    correct = [name.removesuffix("_correct") for name in columns if name.endswith("_correct")]
    wanted = "give TIER_quality and TIER_cost of every tier, or weak_correct and strong_correct"
    if odd := set(correct) - {"weak", "strong"}:
        raise _reject(path, f"unknown tier {min(odd)!r} in {min(odd)}_correct", wanted)
    if correct and (qualities or costs):
        raise _reject(path, "both …_correct and …_quality or …_cost", wanted)
    for name in sorted({"weak", "strong"} - set(correct)) if correct else []:
        raise _reject(path, f"no column '{name}_correct'", wanted)
    if correct:
        return ["weak", "strong"]
    if odd := set(qualities) ^ set(costs):
        there, lacks = ("quality", "cost") if min(odd) in qualities else ("cost", "quality")
        raise _reject(path, f"no column '{min(odd)}_{lacks}' beside '{min(odd)}_{there}'", wanted)
    if not 2 <= len(qualities) <= TIERS:
        raise _reject(path, f"{len(qualities)} tiers", f"{wanted}; 2 to {TIERS} tiers")
    return qualities


def _texts(path: Path, table: pyarrow.Table, name: str) -> tuple[str, ...]:
    column = table[name]
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        raise _reject(path, f"column {name!r} holds {column.type}", "give text")
    found: list[str | None] = column.to_pylist()
    for row, text in enumerate(found):
        if not text:
            raise _reject(path, f"column {name!r} is empty in row {row}", "give every row its text")
    return tuple(text for text in found if text is not None)


def _numbers(path: Path, table: pyarrow.Table, name: str, most: float = 1.0) -> Array:
    column = table[name]
    kind = column.type
    if not (pyarrow.types.is_boolean(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)):
        raise _reject(path, f"column {name!r} holds {kind}", "give numbers")
    found: Array = np.array([np.nan if v is None else float(v) for v in column.to_pylist()], np.float64)
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0.0) & (found <= most)))
    if len(wrong):
        value = "nothing (null or NaN)" if np.isnan(found[wrong[0]]) else f"{found[wrong[0]]:g}"
        remedy = "give numbers in [0, 1]" if most == 1.0 else "give finite numbers, 0 or above"
        raise _reject(path, f"column {name!r} has {value} in row {wrong[0]}", remedy)
    return found


def _reject(path: Path, got: str, remedy: str) -> Reject:
    return Reject(WHO, f"{path}: {got}", remedy)
