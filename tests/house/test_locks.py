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


def pins(lock):
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line) for line in lines)
    return {plain(pin[1]): pin[2] for pin in found if pin}


@pytest.mark.parametrize(("lock", "beside"), [("base", ()), ("dev", ()), ("executorch", ("dev",))])
def test_a_lock_holds_all_that_its_packages_need(lock, beside):
    held = {name for one in (lock, *beside) for name in pins(one)} | ELSEWHERE
    missing = []
    for name in sorted(held):
        try:
            needed = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        here = (one for one in needed if not one.marker or one.marker.evaluate({"extra": ""}))
        missing += [f"{name} needs {one.name}" for one in here if plain(one.name) not in held]
    assert not missing


@pytest.mark.parametrize("lock", ["s3", "peers", "vllm"])
def test_a_lock_holds_what_was_asked_for(lock):
    lines = (ROOT / "requirements" / f"{lock}.in").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith(("-", "#"))]
    assert asked
    for one in asked:
        assert str(one.specifier) == f"=={pins(lock).get(plain(one.name))}"


def test_what_stands_behind_the_environment_fits_it():
    """The peers of the benchmarks use the environment's packages where it has them: in the versions they ask for."""
    ours, theirs = pins("bench"), pins("peers")
    assert {name: version for name, version in theirs.items() if ours.get(name, version) != version} == {}
    assert {"usearch", "qdrant-client"} <= theirs.keys()
