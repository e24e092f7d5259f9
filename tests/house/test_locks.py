"""The locks are installed without their dependencies being looked for, so they have to hold all of them."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"torch", "setuptools"}
"""Installed by the Makefile itself."""


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", ["base", "dev"])
def test_a_lock_holds_all_that_its_packages_need(lock):
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    held = {plain(line.split("==")[0]) for line in lines if re.match(r"[A-Za-z0-9_.-]+==", line)} | ELSEWHERE
    missing = []
    for name in sorted(held):
        try:
            needed = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        here = (one for one in needed if not one.marker or one.marker.evaluate({"extra": ""}))
        missing += [f"{name} needs {one.name}" for one in here if plain(one.name) not in held]
    assert not missing
