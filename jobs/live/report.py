"""What an evaluation of the running service says: figures of every policy on the same fresh questions, and a table.

Utility is what the router itself trades: quality − λ·cost, λ = ``route.cost_weight`` / ``SHARPNESS``, cost a tier's
price by the dearest's. Intervals are 95 % percentiles of a bootstrap over questions (Efron & Tibshirani 1993, ch. 13);
differences are paired: every draw takes the same questions for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from jobs.judging import metrics as judge_metrics
from operators.records import record

ROUNDS = 5000
Array: TypeAlias = npt.NDArray[np.float64]
Report: TypeAlias = dict[str, Any]


@record
class Turns:
    """What a policy did on n questions: ``tier`` its choices by name; ``right``, ``cost``, ``seconds`` float64[n];
    right is 1 or 0, cost in shares of the dearest tier's."""

    tier: tuple[str, ...]
    right: Array
    cost: Array
    seconds: Array

    def utility(self, weight: float) -> Array:
        """quality − ``weight`` · cost, float64[n]."""
        return self.right - weight * self.cost


def fixed_and_oracle(tiers: Mapping[str, Turns], weight: float) -> dict[str, Turns]:
    """``always-NAME`` of every tier, ``best-fixed`` (of these the best on these very questions) and ``oracle``, which
    knows of each question which tier pays."""
    best = max(tiers, key=lambda name: float(tiers[name].utility(weight).mean()))
    utility = np.stack([turns.utility(weight) for turns in tiers.values()])
    choice, rows, each = utility.argmax(axis=0), np.arange(utility.shape[1]), list(tiers.values())
    oracle = Turns(
        tier=tuple(list(tiers)[k] for k in choice),
        right=np.stack([turns.right for turns in each])[choice, rows],
        cost=np.stack([turns.cost for turns in each])[choice, rows],
        seconds=np.stack([turns.seconds for turns in each])[choice, rows],
    )
    return {**{f"always-{name}": turns for name, turns in tiers.items()}, "best-fixed": tiers[best], "oracle": oracle}


def interval(values: Array, seed: int = 0) -> Report:
    """Mean of ``values`` float64[n] and its interval."""
    random, n = np.random.default_rng(seed), len(values)
    means = np.concatenate([values[random.integers(n, size=(500, n))].mean(axis=1) for _ in range(ROUNDS // 500)])
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def policies(turns: Mapping[str, Turns], names: Sequence[str], weight: float) -> Report:
    """Policy → its figures. ``names``: the tiers."""
    made = {}
    for policy, did in turns.items():
        made[policy] = {
            "quality": interval(did.right),
            "cost": interval(did.cost),
            "utility": interval(did.utility(weight)),
            "seconds": interval(did.seconds),
            "shares": {name: float(np.mean([tier == name for tier in did.tier])) for name in names},
        }
    return made


def differences(turns: Mapping[str, Turns], pairs: Sequence[tuple[str, str]], weight: float) -> Report:
    """``A - B`` → the paired differences of the two."""
    made = {}
    for a, b in pairs:
        one, other = turns[a], turns[b]
        made[f"{a} - {b}"] = {
            "utility": interval(one.utility(weight) - other.utility(weight)),
            "quality": interval(one.right - other.right),
            "cost": interval(one.cost - other.cost),
        }
    return made


def auc(scores: Array, truth: npt.NDArray[np.bool_]) -> float | None:
    """Chance that a right answer has the better score than a wrong one, ties half; ``None`` if there is but one sort.

    The area under the ROC curve (Hanley & McNeil 1982). Both [n].
    """
    area = judge_metrics.auc(scores, truth.astype(np.float64))
    return None if np.isnan(area) else area


def verdicts(scores: Array, truth: npt.NDArray[np.bool_], tiers: Sequence[str], good: float) -> Report:
    """How far the judge's ``scores`` tell right answers from wrong ones: float64[n], NaN where it gave none.

    ``agreement``: share of answers of which "at least ``good``" says what the truth says. ``tiers`` who answered.
    """
    judged = np.isfinite(scores)
    scores, truth, who = scores[judged], truth[judged], np.array(tiers)[judged]
    made: Report = {"judged": int(judged.sum()), "unjudged": int((~judged).sum())}
    if not len(scores):
        return made
    random, n = np.random.default_rng(0), len(scores)
    drawn = [random.integers(n, size=n) for _ in range(1000)]
    areas = [found for rows in drawn if (found := auc(scores[rows], truth[rows])) is not None]
    bounds = np.quantile(areas, (0.025, 0.975)) if areas else (None, None)
    made["auc"] = {"mean": auc(scores, truth), "low": _number(bounds[0]), "high": _number(bounds[1])}
    made["agreement"] = interval(((scores >= good) == truth).astype(np.float64))
    made["by_tier"] = {
        name: {
            "answers": int((who == name).sum()),
            "mean_score": float(scores[who == name].mean()),
            "right": float(truth[who == name].mean()),
            "auc": auc(scores[who == name], truth[who == name]),
        }
        for name in dict.fromkeys(tiers)
        if (who == name).any()
    }
    return made


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def outcomes(kinds: Sequence[str], tiers: Mapping[str, Turns], routed: Mapping[str, Turns]) -> Report:
    """Kind of question (and ``all``) → how often each tier is right, both ends of the tiers, and where routers went.

    ``only_small``, ``only_large``: right is the smallest or the largest tier alone; ``routed``: router → share that it
    gave to the largest.
    """
    small, large = next(iter(tiers.values())).right > 0, list(tiers.values())[-1].right > 0
    last = list(tiers)[-1]
    made = {}
    for kind in ("all", *dict.fromkeys(kinds)):
        rows = np.array([kind in ("all", one) for one in kinds])
        made[kind] = {
            "questions": int(rows.sum()),
            **{name: float(turns.right[rows].mean()) for name, turns in tiers.items()},
            "both": float((small & large)[rows].mean()),
            "only_small": float((small & ~large)[rows].mean()),
            "only_large": float((large & ~small)[rows].mean()),
            "neither": float((~small & ~large)[rows].mean()),
            "to_large": {
                name: float(np.mean([tier == last for tier, row in zip(turns.tier, rows, strict=True) if row]))
                for name, turns in routed.items()
            },
        }
    return made


def table(report: Report) -> str:
    """The report as lines of text."""
    names = report["tiers"]
    lines = [f"{'':<14}{'quality':>22}{'cost':>8}{'utility':>24}{'seconds':>9}  " + "  ".join(names)]
    for policy, row in report["policies"].items():
        shares = "  ".join(f"{row['shares'][name]:>{len(name)}.2f}" for name in names)
        cost, seconds = row["cost"]["mean"], row["seconds"]["mean"]
        quality, utility = _span(row["quality"]), _span(row["utility"], "+")
        lines.append(f"{policy:<14}{quality:>22}{cost:>8.3f}{utility:>24}{seconds:>9.2f}  {shares}")
    lines.append("")
    for pair, row in report["differences"].items():
        told = ", ".join(f"{figure} {_span(row[figure], '+')}" for figure in row)
        lines.append(f"{pair:<22}{told}")
    lines += [
        "",
        f"{'kind':<14}{'n':>4}" + "".join(f"{f'{n} right':>12}" for n in names) + f"{'neither':>9}  to {names[-1]}",
    ]
    for kind, row in report["outcomes"].items():
        went = ", ".join(f"{name} {share:.2f}" for name, share in row["to_large"].items())
        each = "".join(f"{row[name]:>12.2f}" for name in names)
        lines.append(f"{kind:<14}{row['questions']:>4}{each}{row['neither']:>9.2f}  {went}")
    lines.append("")
    found = report["verdicts"]
    if area := found.get("auc"):
        told = "" if area["mean"] is None else f"AUC {_span(area)}, "
        by = ", ".join(f"{n} {row['mean_score']:.3f} ({row['right']:.2f} right)" for n, row in found["by_tier"].items())
        lines.append(f"verdicts against truth: {told}agreement {_span(found['agreement'])}; mean score {by}")
    for version, row in report["first"].items():
        shares = ", ".join(f"{name} {row['shares'][name]:.2f}" for name in names)
        lines.append(f"while it learned, {version}: utility {_span(row['utility'], '+')}, {shares}")
    for one in report["candidates"]:
        first, *more = one["reasons"] or ["passed the gate"]
        lines.append(
            f"{one['version']}: {one['judgements']} judgements, {first}{f', and {len(more)} more' * bool(more)}"
        )
    lines += report["notes"]
    return "\n".join(lines)


def _span(figure: Report, sign: str = "") -> str:
    mean, low, high = (f"{figure[name]:{sign}.3f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
