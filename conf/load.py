"""The settings of a profile, and where each value came from.

    schema default < conf/base.yaml < conf/PROFILE.yaml < the user's file < RUVLLM_A__B=… < --set a.b=…

The user's file is named by ``RUVLLM_CONFIG``. In a variable's name two underscores stand for the dot. Values of
variables and of ``--set`` are YAML, except where the setting is text: there the characters are taken as they are. Types
are strict (``"3"`` is no integer, ``1`` is no boolean), and a key nobody knows is an error in every source.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from conf import keys
from conf.layers import SET, Layers, Raw, Unknown
from conf.reader import parse
from conf.schema import Settings
from operators.errors import Stop

S = TypeVar("S", bound=BaseModel)

HERE = Path(__file__).parent
DEFAULT_PROFILE = "local"
RESERVED = ("RUVLLM_PROFILE", "RUVLLM_CONFIG", "RUVLLM_ADMIN_KEY", "RUVLLM_TEST_*")
"""Variables that are no settings: the profile, the user's file, the administrator's key, and what the tests need."""


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[S]):
    """``origins`` maps every dotted key of ``settings`` to its source; list items have numbers (``tiers.0.name``)."""

    settings: S
    origins: dict[str, str]


def load(
    profile: str | None = None,
    *,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Loaded[Settings]:
    """The settings of ``profile`` (else of ``RUVLLM_PROFILE``, else of ``local``).

    Args:
        overrides: what the command line's ``--set`` options say, ``a.b=value`` each.
        env: the environment; ``os.environ`` if not given.
        file: the user's file, instead of the one that ``RUVLLM_CONFIG`` names.

    Raises:
        Stop: anything unknown, missing, mistyped or out of range; it says where it stands and what would be right.
    """
    return load_schema(Settings, HERE, profile, overrides=overrides, env=os.environ if env is None else env, file=file)


def load_schema(
    schema: type[S],
    folder: Path,
    profile: str | None,
    *,
    overrides: Sequence[str],
    env: Mapping[str, str],
    file: Path | None,
) -> Loaded[S]:
    """``load`` for any schema with a ``profile`` field, from the YAML files in ``folder``."""
    profile = profile or env.get("RUVLLM_PROFILE") or DEFAULT_PROFILE
    if profile not in (known := profiles(folder)):
        near = keys.nearest(profile, known)
        raise Stop("profile", f"unknown profile '{profile}'", f"did you mean '{near}'? (there are {', '.join(known)})")
    layers = Layers(schema)
    for name in ("base", profile):
        _put_file(layers, folder / f"{name}.yaml", f"{folder.name}/{name}.yaml")
    if layers.values.get("profile") != profile:
        raise Stop(
            f"{folder.name}/{profile}.yaml", f"it is not profile '{profile}'", f"write 'profile: {profile}' in it"
        )
    if file is not None or env.get("RUVLLM_CONFIG"):
        own = file or Path(env["RUVLLM_CONFIG"])
        _put_file(layers, own, str(own))
    _put_env(layers, env)
    _put_overrides(layers, overrides)
    if layers.values["profile"] != profile:
        got = f"it says profile {layers.values['profile']!r}, but '{profile}' is being loaded"
        raise Stop(layers.origin(("profile",)), got, "choose the profile with --profile or RUVLLM_PROFILE")
    try:
        settings = schema.model_validate_json(json.dumps(layers.values, default=str), strict=True)
    except ValidationError as error:
        raise _explained(schema, layers, error) from None
    origins = {".".join(path): layers.origins.get(path, "default") for path, _, _ in keys.rows(settings)}
    return Loaded(settings, origins)


def profiles(folder: Path = HERE) -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "base")


def _put_file(layers: Layers, path: Path, shown: str) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise Stop(shown, f"can't be read: {why}", "correct RUVLLM_CONFIG, or the file") from None
    try:
        layers.put((), parse(text, shown), shown)
    except Unknown as error:
        raise Stop(shown, f"unknown key '{error.given}'", f"did you mean '{error.near}'?") from None


def _put_env(layers: Layers, env: Mapping[str, str]) -> None:
    ours = (name for name in env if name.startswith(keys.PREFIX))
    for name in sorted(ours, key=lambda name: (name.count("__"), name)):  # a whole block first, then keys inside it
        if any(re.fullmatch(pattern.replace("*", ".*"), name) for pattern in RESERVED):
            continue
        try:
            layers.put(name.removeprefix(keys.PREFIX).lower().split("__"), Raw(env[name]), name)
        except Unknown as error:
            remedy = f"did you mean {keys.variable(error.near)}? (no settings, but known: {', '.join(RESERVED)})"
            raise Stop("environment", f"unknown variable {name}", remedy) from None


def _put_overrides(layers: Layers, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            shown = re.match(r"[\w.]*", override)
            raise Stop(
                SET, f"no '=' after '{shown[0] if shown else ''}'", f"write {SET} key=value, e.g. {SET} search.k=8"
            )
        try:
            layers.put(key.strip().split("."), Raw(value), SET)
        except Unknown as error:
            raise Stop(SET, f"unknown key '{error.given}'", f"did you mean '{error.near}'?") from None


def _explained(schema: type[BaseModel], layers: Layers, error: ValidationError) -> Stop:
    """The first problem in our words (a secret's value left out), and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path, field = keys.trace(schema, first["loc"])
    key, origin = ".".join(path) or "the whole", layers.origin(path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] in ("value_error", "assertion_error"):
        got, _, remedy = str(first["ctx"]["error"]).partition("; ")
        sources = ", ".join(dict.fromkeys(from_ for at, from_ in layers.origins.items() if at[: len(path)] == path))
        return Stop(key, f"{got}{more}", f"{remedy or 'change one of its keys'} (it comes from {sources or origin})")
    if field is None or keys.block(field.annotation):
        return Stop(origin, f"{key}: {first['msg'].lower()}{more}", "see docs/configuration.md for its keys")
    allowed = keys.Key(key, field).allowed
    if first["type"] == "missing":
        return Stop(origin, f"{key} is missing{more}", f"set it: {allowed}")
    return Stop(origin, f"{key} is {_shown(field.annotation, first['input'])}{more}", f"it must be {allowed}")


def _shown(annotation: Any, value: object) -> str:
    return keys.HIDDEN if keys.secret(annotation) else json.dumps(value, ensure_ascii=False, default=str)
