"""Does the learner forget? ``ruvllm evaluate continual`` measures it, on data that need nothing else.

    python -m jobs.evaluate_continual [--seeds 5] [--json report.json] [--quick]

1 digits    ten tasks of permuted digits in turn (``continual.digits``), with the production buffer and EWC
2 peer      the same data and weights with Avalanche's plugins, if ``make peers`` has fetched them (``continual.peer``)
3 routing   a stream of routed turns that changes, with the production network (``continual.routing``)

Every figure is the mean over seeds with its 95 % interval (Student's t); differences are paired by seed. λ was chosen
for each line, ours and the peer's, on two other seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jobs.continual import digits, routing
from jobs.continual import peer as continual_peer
from jobs.process import one_thread
from operators.errors import Reject, RuvError

WHO = "evaluate continual"
FULL = (digits.Protocol(), 10_000)
"""How long the digits and the stream are."""
QUICK = (digits.Protocol(tasks=3, passes=2), 200)
Report: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[str], None]


def evaluate(seeds: int, quick: bool, say: Say) -> Report:
    """All three steps. ``quick`` shows that it runs; its figures mean nothing. Raises ``Reject`` for a failing peer."""
    protocol, updates = QUICK if quick else FULL
    numbers = list(range(seeds))
    with one_thread():
        report: Report = {"seeds": seeds, "quick": quick, "digits": _digits(protocol, numbers, say)}
        report["digits"]["peer"] = _peer(protocol, numbers, report["digits"]["lines"])
        report["routing"] = _routing(updates, numbers, say)
    return report


def _digits(protocol: digits.Protocol, seeds: list[int], say: Say) -> Report:
    lines: Report = {}
    for name, line in digits.LINES.items():
        found = []
        for seed in seeds:
            say(f"digits, {name}, seed {seed}")
            found.append(digits.metrics(digits.run(line, digits.data(protocol, seed), protocol, seed)))
        lines[name] = _over_seeds(found)
    settings = {name: dataclasses.asdict(line) for name, line in digits.LINES.items()}
    added = {"beside replay": _paired(lines["online EWC + replay 200"], lines["replay 200"])}
    return {
        "protocol": dataclasses.asdict(protocol),
        "settings": settings,
        "lines": lines,
        "ewc_minus_none": added | {"alone": _paired(lines["online EWC"], lines["fine-tune"])},
    }


def _peer(protocol: digits.Protocol, seeds: list[int], ours: Report) -> Report:
    """Step 2: Avalanche's lines and ours less theirs, or why there are none."""
    words = [sys.executable, "-W", "ignore", continual_peer.__file__]
    probe = subprocess.run([*words, "--probe"], capture_output=True, text=True, check=False)  # noqa: S603 - our own file
    if probe.returncode:
        return {"missing": f"not measured: {probe.stderr.strip().splitlines()[-1]}; make peers fetches it"}
    lines = {name: dataclasses.asdict(line) for name, line in digits.PEER_LINES.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in seeds:
            np.savez(folder / f"{seed}.npz", allow_pickle=False, **digits.data(protocol, seed))
        asked = {"protocol": dataclasses.asdict(protocol), "lines": lines, "seeds": seeds}
        (folder / "protocol.json").write_text(json.dumps(asked))
        done = subprocess.run([*words, str(folder)], capture_output=True, text=True, check=False)  # noqa: S603 - our own file
        if done.returncode:
            raise Reject(WHO, f"the peer failed: {done.stderr.strip()[-500:]}", "mend its environment, or leave it out")
        found = json.loads((folder / "accuracies.json").read_text())
    theirs = {name: _over_seeds([digits.metrics(np.array(a)) for a in found[name]]) for name in lines}
    return {
        "version": probe.stdout.strip(),
        "settings": lines,
        "lines": theirs,
        "ours_minus_peer": {name: _paired(ours[name], theirs[name]) for name in theirs if name in ours},
    }


def _routing(updates: int, seeds: list[int], say: Say) -> Report:
    ways: Report = {}
    for name, way in routing.WAYS.items():
        found = []
        for seed in seeds:
            say(f"routing, {name}, seed {seed}")
            found.append(routing.run(way, updates, seed))
        ways[name] = _over_seeds(found)
    return {
        "updates": updates,
        "settings": {name: dataclasses.asdict(way) for name, way in routing.WAYS.items()},
        "ways": ways,
        "ewc_minus_none": {
            "beside replay": _paired(ways["EWC + replay"], ways["replay"]),
            "alone": _paired(ways["EWC"], ways["fine-tune"]),
        },
    }


def _over_seeds(found: Sequence[dict[str, float]]) -> Report:
    return {name: interval([one[name] for one in found]) for name in found[0]}


def _paired(ours: Report, theirs: Report) -> Report:
    return {
        name: interval([a - b for a, b in zip(ours[name]["seeds"], theirs[name]["seeds"], strict=True)])
        for name in ours
        if name in theirs
    }


def interval(values: Sequence[float]) -> Report:
    """Mean, half the width of its 95 % interval (Student's t; None for one value), and the values."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scikit-learn brings it

    n, half = len(values), None
    if n > 1:
        half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
    return {"mean": float(np.mean(values)), "half": half, "seeds": list(values)}


def table(report: Report) -> str:
    """The report as lines of text."""
    parts = [f"Permuted digits, {report['digits']['protocol']['tasks']} tasks, {report['seeds']} seeds"]
    parts += _rows(report["digits"]["lines"], "{:.3f}")
    parts += ["", "What EWC adds, paired", *_rows(report["digits"]["ewc_minus_none"], "{:+.3f}")]
    peer = report["digits"]["peer"]
    if "missing" in peer:
        parts += ["", f"Avalanche: {peer['missing']}"]
    else:
        parts += [
            "",
            f"{peer['version']}: its plugins on the same data and first weights",
            *_rows(peer["lines"], "{:.3f}"),
        ]
        parts += ["", "Ours less Avalanche's, paired", *_rows(peer["ours_minus_peer"], "{:+.3f}")]
    stream = report["routing"]
    parts += [
        "",
        f"Routing a stream that changes, {stream['updates']} updates: utility in points of 100, shares in percent",
    ]
    parts += _rows(stream["ways"], "{:.2f}")
    parts += ["", "What EWC adds, paired (less regret and a smaller drop are better)"]
    parts += _rows(stream["ewc_minus_none"], "{:+.2f}")
    if report["quick"]:
        parts += ["", "--quick: far too short to mean anything."]
    return "\n".join(parts)


def _rows(lines: Report, form: str) -> list[str]:
    names = list(next(iter(lines.values())))
    rows = [" " * 26 + "".join(f"{name:>18}" for name in names)]
    for line, row in lines.items():
        cells = []
        for name in names:
            cell = row.get(name)
            shown = "" if cell is None else form.format(cell["mean"])
            cells.append(shown + (f" ± {cell['half']:.3f}" if cell and cell["half"] is not None else ""))
        rows.append(f"{line:<26}" + "".join(f"{cell:>18}" for cell in cells))
    return rows


def main(args: Sequence[str] | None = None) -> None:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="jobs.evaluate_continual", description="Does the learner forget?")
    parser.add_argument("--seeds", type=int, default=5, help="runs of everything, each from another seed")
    parser.add_argument("--json", metavar="OUT", help="write the report there, too; - prints it instead of the tables")
    parser.add_argument("--quick", action="store_true", help="a minute's trial that shows it works")
    given = parser.parse_args(args)
    try:
        if given.seeds < 1:
            raise Reject(WHO, f"{given.seeds} seeds", "give at least 1")
        out = Path(given.json) if given.json not in (None, "-") else None
        if out is not None and not out.parent.is_dir():
            raise Reject(WHO, f"no folder {out.parent} for the report", "make it, or name another --json")
        report = evaluate(given.seeds, given.quick, lambda text: print(text, file=sys.stderr))
        text = json.dumps(report, indent=2)
        if out is not None:
            try:
                out.write_text(text + "\n")
            except OSError as error:
                raise Reject(WHO, f"can't write {out}: {error.strerror}", "name another --json") from error
    except RuvError as error:
        sys.exit(str(error))
    print(text if given.json == "-" else table(report))


if __name__ == "__main__":
    main()
