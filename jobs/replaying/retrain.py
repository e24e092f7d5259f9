"""Train a router from scratch on an archive, and hand it in as a candidate as the learner does.

The sessions that the learner holds out are held out here, too, and the gate measures on them: what may decide is the
promoter's to say. Nothing of it depends on time or chance: one archive, with one release and its
settings, gives the same weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib.metadata import version
from typing import Any

from conf.schema import Settings
from jobs.process import one_thread
from jobs.promote import Promoter
from jobs.replaying.archive import Archive, write_json
from jobs.replaying.turns import costs_of, logits_of, turns
from jobs.replaying.window import WHO
from operators.errors import Reject
from operators.learning.gate import GateResult, gate
from operators.learning.holdout import Holdout
from operators.learning.weights import FILE, weights
from operators.networks.acting import starting
from operators.networks.fastgrnn import Snapshot
from operators.networks.features import LAYOUT
from operators.records import encode
from operators.stores import durable
from operators.stores.checkpoints import Registry
from operators.stores.make import open_log

REPLAY = "replay"
"""Under this name a checkpoint's metrics say which replay it comes from."""


def retrain(archive: Archive, settings: Settings, *, rejudged: bool, publish: bool) -> dict[str, Any]:
    """Train, measure and, with ``publish``, hand in; returns the report.

    Raises ``Reject`` if too few turns are held out to measure with, ``Stop`` if there are too few to train on.
    """
    from operators.learning.fit import fit

    columns, counts = turns(archive, settings, rejudged=rejudged)
    holdout = Holdout(settings.learn.holdout)
    held = holdout.held(columns)
    holdout.add({name: value[held] for name, value in columns.items()})
    sets = holdout.sets(settings.promotion.gate.min_turns)
    if not any(one.name == "rolling" for one in sets):
        got = f"{int(held.sum())} of {len(held)} turns are held out, {settings.promotion.gate.min_turns} are needed"
        raise Reject(WHO, got, "take a longer window, or lower promotion.gate.min_turns")
    start = starting(settings.route.checkpoint, tied=settings.route.tied)
    costs = costs_of(settings)
    with one_thread():
        fresh = {name: value[~held] for name, value in columns.items()}
        seed = settings.replay.seed
        candidate = fit(fresh, start, "candidate", logits_of(costs, settings), settings.replay.fit, seed)
    data = candidate.to_bytes()
    registry = Registry(settings.data_dir / "checkpoints")
    now = registry.rollouts.current()
    parent = now.active if now else start.checkpoint
    result = gate(candidate, weights(registry, parent, start), sets, costs, settings.route, settings.promotion.gate)
    digest = hashlib.sha256(data).hexdigest()
    about = {
        "archive": archive.complete().digest,
        "release": version("ruvllm"),
        "features": LAYOUT,
        "rejudged": rejudged,
        "seed": seed,
        "turns": int((~held).sum()),
        "held_out": int(held.sum()),
        "judges": counts.judges,
        "fit": settings.replay.fit.model_dump(mode="json"),
        "weights": digest,
    }
    name = _handed_in(archive, settings, registry, start, parent, data, result, about) if publish else ""
    report = {**about, "interactions": _plain(counts), "gate": json.loads(encode(result)), "version": name}
    with durable.door(archive.path):
        durable.replace(archive.path / f"retrained-{digest[:12]}.safetensors", data)
    write_json(archive.path / f"retrained-{digest[:12]}.json", report)
    return report


def _handed_in(
    archive: Archive,
    settings: Settings,
    registry: Registry,
    start: Snapshot,
    parent: str,
    data: bytes,
    result: GateResult,
    about: dict[str, Any],
) -> str:
    """The version under which the candidate is in the registry. One that is there already is not handed in again."""
    for known in reversed(registry.versions()):
        if registry.manifest(known).metrics.get(REPLAY) == about:
            return known
    with contextlib.closing(open_log(settings.events)) as log:
        promoter = Promoter(registry, log, start.checkpoint, settings.promotion)
        return promoter.publish(
            {FILE: data}, result, parent=parent, window=archive.complete().ranges, metrics={REPLAY: about},
            note=f"replay of {about['turns']} turns",
        )  # fmt: skip


def _plain(counts: Any) -> dict[str, Any]:
    return {name: getattr(counts, name) for name in counts.__slots__}
