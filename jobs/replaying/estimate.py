"""What checkpoints would have been worth on an archive's turns, beside what was logged (``learning.estimates``).

A checkpoint's policy is taken as it draws with all tiers up and at the neutral ``quality_bias``, from the session's
state as it was logged. Turns that were drawn by a caller, or without a propensity, tell nothing and are left out.

What a router learned from would flatter it. So if one of the checkpoints learned from this window, only those sessions
count that every learner holds out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from conf.schema import Settings
from jobs.replaying.archive import Archive, write_json
from jobs.replaying.turns import costs_of, turns
from jobs.replaying.window import WHO, Ranges
from operators.errors import Reject
from operators.learning.estimates import Bootstrap, believe, logged, worth
from operators.learning.holdout import Holdout, as_set
from operators.learning.offpolicy import check, forward, policy
from operators.learning.weights import weights
from operators.networks.acting import starting
from operators.networks.features import LAYOUT
from operators.records import encode
from operators.stores.checkpoints import Registry


def estimate(archive: Archive, settings: Settings, versions: Sequence[str], *, rejudged: bool) -> dict[str, Any]:
    """The report on ``versions``; without any on the start, and what is active, watched and tried.

    Raises ``Reject`` if the archive has no turn to tell from, ``Stop`` for a version that is not there.
    """
    config, costs = settings.replay, costs_of(settings)
    columns, counts = turns(archive, settings, rejudged=rejudged)
    if not len(columns["id"]):
        got = f"none of {counts.interactions} interactions was routed and judged"
        raise Reject(WHO, got, "take a longer window, and let the judge rate them")
    registry = Registry(settings.data_dir / "checkpoints")
    start = starting(settings.route.checkpoint, tied=settings.route.tied)
    versions = versions or _acting(registry, start.checkpoint)
    held_out = any(_learned_from(registry, name, archive.complete().ranges) for name in versions)
    if held_out:
        held = Holdout(settings.learn.holdout).held(columns)
        columns = {name: value[held] for name, value in columns.items()}
        if not held.any():
            got = f"a checkpoint learned from this window, and none of its {len(held)} turns was held out"
            raise Reject(WHO, got, "take a longer window, or one after its training")
    one = as_set("archive", columns)
    prices = costs / np.nanmax(costs)
    check(one, prices)
    draws = Bootstrap(one.session, config.confidence, config.rounds, config.seed)
    believed = believe(one, config.folds, config.seed)
    taken = prices[one.tier]
    report: dict[str, Any] = {
        "archive": archive.complete().digest,
        "release": version("ruvllm"),
        "features": LAYOUT,
        "rejudged": rejudged,
        "turns": len(one.tier),
        "held_out_only": held_out,
        "sessions": len(np.unique(one.session)),
        "whole_turns": int(np.isfinite(one.quality)[:, np.isfinite(costs)].all(axis=1).sum()),
        "judges": counts.judges,
        "interactions": {name: getattr(counts, name) for name in counts.__slots__ if name != "judges"},
        "settings": config.model_dump(mode="json", include={"clip", "folds", "rounds", "confidence", "seed"}),
        "route": settings.route.model_dump(mode="json"),
        "logged": {"quality": _json(draws.mean(logged(one))), "cost": float(taken.mean())},
        "checkpoints": {},
    }
    for name in versions:
        snapshot = weights(registry, name, start)
        chances = policy(snapshot, forward(snapshot, one), prices, settings.route)
        cost = float((chances @ np.nan_to_num(prices)).mean())
        report["checkpoints"][name] = {**_json(worth(chances, one, believed, config.clip, draws)), "cost": cost}
    named = hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:12]
    write_json(archive.path / f"estimate-{named}.json", report)
    return report


def _learned_from(registry: Registry, name: str, ranges: Ranges) -> bool:
    """Whether checkpoint ``name`` learned from judgements within ``ranges``."""
    if name not in registry.versions():
        return False  # the start; another that is not there is refused when its weights are read
    window = registry.manifest(name).window
    pairs = ((window[each], ranges[each]) for each in window.keys() & ranges.keys())
    return any(max(a[0], b[0]) < min(a[1], b[1]) for a, b in pairs)


def _acting(registry: Registry, start: str) -> list[str]:
    now = registry.rollouts.current()
    return list(dict.fromkeys([start, *filter(None, (now.active, now.canary, now.shadow) if now else ())]))


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    names = ("ips", "snips", "dr", "gain")
    width = max(map(len, ("logged", *report["checkpoints"]))) + 2
    heads = ("IPS", "SNIPS", "DR", "DR − logged")
    lines = [" " * width + "".join(f"{head:>25}" for head in heads) + f"{'cost':>8}{'turns':>9}{'clipped':>9}"]
    said = report["logged"]
    cells = f"{_words(said['quality']):>75}{'':>25}{said['cost']:>8.3f}{report['turns']:>9}"
    lines.append(f"{'logged':<{width}}{cells}")
    for name, row in report["checkpoints"].items():
        cells = "".join(f"{_words(row[name]):>25}" for name in names)
        cells += f"{row['cost']:>8.3f}{row['effective_turns']:>9.0f}{row['clipped']:>9.1%}"
        lines.append(f"{name:<{width}}{cells}")
    sure = report["settings"]["confidence"]
    lines.append(
        f"\nmean verdicts with {sure:.0%} intervals over {report['sessions']} sessions; cost in shares of the dearest "
        f"tier's; turns: how many the weights are worth, of {report['turns']} ({report['whole_turns']} known whole)"
    )
    if report["held_out_only"]:
        lines.append("only sessions that were held out: a checkpoint learned from the others")
    return "\n".join(lines)


def _words(one: dict[str, float | None]) -> str:
    mean, low, high = (math.nan if one[name] is None else one[name] for name in ("mean", "low", "high"))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _json(value: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(value))
    return found
