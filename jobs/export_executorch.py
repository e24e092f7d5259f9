"""Export what an edge device runs to ExecuTorch programs: the encoder, the router, the attention network.

    python -m jobs.export_executorch --out DIR [--only router]

Each of them (``exporting.parts``):

1 lower     the network in torch becomes a program for XNNPACK
2 compare   the program is loaded and held against the network in torch on random inputs (``export.tolerance``)
3 write     program and manifest, under a name that carries its checksum

and then ``settings.yaml``, with which a service runs them; the command for that is printed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from conf.load import load
from conf.reader import parse
from conf.schema import DATA_DIR, Settings
from jobs.exporting.parts import PARTS, differs
from operators.engines.executorch import files
from operators.engines.executorch.runtime import Program, lower
from operators.errors import RuvError, Stop
from operators.networks import attention
from operators.stores.durable import replace

WHO = "export"
SETTINGS = "settings.yaml"
HEAD = "# Made by: ruvllm export executorch. Name this file in RUVLLM_CONFIG, or put its keys into your own.\n"


def export(settings: Settings, out: Path, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Steps 1 to 3 for each part; yields a report of each. Raises ``Stop`` where one can't be made or differs."""
    import torch

    torch.set_num_threads(1)
    made_with = files.versions()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise Stop(WHO, f"can't make {out}: {e.strerror}", "name another --out") from e
    names = only or [part for part in PARTS if part != "encoder" or settings.export.encoder]
    _agree(settings, names)
    chosen = _read_settings(out / SETTINGS)
    made: dict[str, Path] = {}
    for name in names:
        began, part = time.perf_counter(), PARTS[name](settings)
        random = np.random.default_rng(0)
        data = lower(part.module, tuple(map(torch.from_numpy, part.draw(random))), part.varies)
        manifest = files.Manifest(
            kind=part.kind,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            source=part.source,
            weights=part.weights,
            versions=made_with,
            inputs=part.inputs,
            outputs=part.outputs,
            facts=part.facts,
            difference=differs(part, Program(data, f"{WHO} {name}"), random),
        )
        if not manifest.difference <= settings.export.tolerance:
            got = f"the {name} differs from torch by {manifest.difference:.1e}"
            raise Stop(WHO, got, "report it with the versions of torch and executorch, or raise export.tolerance")
        path = made[name] = files.write(out.absolute(), data, manifest)
        yield {
            "part": name,
            "path": str(path),
            "sha256": manifest.sha256,
            "bytes": manifest.bytes,
            "source": part.source,
            "difference": manifest.difference,
            "served": name != "attention" or bool(settings.attend.checkpoint),
            "seconds": round(time.perf_counter() - began, 1),
        }
    _write_settings(settings, out.absolute(), made, chosen)


def _agree(settings: Settings, names: Sequence[str]) -> None:
    """Raise ``Stop`` for a ranking that was trained on vectors of another encoder than the one exported with it."""
    encoder, path = settings.export.encoder, settings.attend.checkpoint
    if encoder is None or not path or not {"encoder", "attention"} <= set(names):
        return
    trained_on = attention.load(Path(path)).encoder.partition("@")[0]
    if trained_on not in ("", encoder.id):
        got = f"{path} was trained on vectors of {trained_on}, the encoder to export is {encoder.id}"
        again = f"export --only encoder, train anew with RUVLLM_CONFIG={SETTINGS}, then export --only attention"
        raise Stop(WHO, got, f"{again}; or export the router and the attention alone")


def _read_settings(path: Path) -> dict[str, Any]:
    """What an earlier export wrote. Raises ``Stop`` if it can't be gone on with."""
    try:
        found = parse(path.read_text(), str(path)) if path.exists() else {}
    except (OSError, UnicodeDecodeError) as e:
        raise Stop(WHO, f"can't read {path}: {e}", "remove it, or name another --out") from e
    if not isinstance(found, dict | None):
        raise Stop(WHO, f"{path} has no settings", "remove it, or name another --out")
    return found or {}


def _write_settings(settings: Settings, out: Path, made: dict[str, Path], chosen: dict[str, Any]) -> None:
    """The settings that serve what was exported, now or before (``chosen``); an untrained attention network is served
    nowhere.

    What lies in the data directory is named from there, so that the directory can go to another device.
    """

    def named(path: Path) -> str:
        inside = path.is_relative_to(settings.data_dir)
        return f"{DATA_DIR}/{path.relative_to(settings.data_dir)}" if inside else str(path)

    def file(name: str, model: str) -> dict[str, str]:
        sha256 = files.read_manifest(made[name], WHO).sha256
        # The profile may take its model from a package, and a file has one source.
        return {"id": model, "package": "", "file": "", "path": named(made[name]), "sha256": sha256}

    path = out / SETTINGS
    if "encoder" in made and settings.export.encoder:
        chosen["embed"] = {"backend": "executorch", "model": file("encoder", settings.export.encoder.id)}
    if "router" in made:
        chosen["route"] = {"pte": file("router", "router")}
    if "attention" in made and (checkpoint := settings.attend.checkpoint):
        made_from = named(Path(checkpoint).absolute())
        chosen["attend"] = {"checkpoint": made_from, "pte": file("attention", "attention")}
    text = HEAD + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    try:
        replace(path, text.encode())
    except OSError as e:
        raise Stop(WHO, f"can't write {path}: {e.strerror}", "free space there") from e


def main(args: Sequence[str] | None = None) -> None:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(prog="jobs.export_executorch", description="Export to ExecuTorch.")
    parser.add_argument("--out", type=Path, help="folder for programs, manifests and settings.yaml")
    parser.add_argument("--only", action="append", default=[], choices=list(PARTS), help="a part, as often as needed")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE, as often as needed")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each part")
    given = parser.parse_args(args)
    try:
        settings = load(given.profile, overrides=given.overrides).settings
        out = given.out or settings.data_dir / "executorch"
        for row in export(settings, out, given.only):
            said = f"{row['part']:<10} {row['bytes'] / 1e6:8.2f} MB  {row['seconds']:5.1f} s  {row['path']}"
            said += "" if row["served"] else "  (untrained, so not served: set attend.checkpoint)"
            print(json.dumps(row) if given.json else said, flush=True)
        if not given.json:
            sets = [word for item in given.overrides for word in ("--set", item)]
            serve = shlex.join(["ruvllm", "serve", "--profile", settings.profile, *sets])
            print(f"serve them: RUVLLM_CONFIG={shlex.quote(str(out.absolute() / SETTINGS))} {serve}")
    except RuvError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
