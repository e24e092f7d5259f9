"""What is wrong with a body that its model refused, in the words of whoever wrote it: fields, nearest names, values."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

LOOKED_AT, TOLD = 50, 5
"""Errors of one request that are looked at and told; a body has room for thousands."""
Path = tuple[str, ...]


def describe(errors: Sequence[Any], body: type[BaseModel]) -> tuple[str, str | None]:
    """What is wrong with a request that should have been a ``body``, and the name of the first field that is."""
    if errors[0]["type"] == "json_invalid":
        return f"body: no JSON, {errors[0]['ctx']['error']} at character {errors[0]['loc'][-1]}", None
    if errors[0]["loc"] == ("body",) and errors[0]["type"] == "model_attributes_type":
        return "body: no JSON object; send one, with the header 'content-type: application/json'", None
    found = [(*_walk(error["loc"], body), error) for error in errors[:LOOKED_AT]]
    # A value with errors inside was refused by the union's other branches too; those say nothing about it.
    inside = {path[:end] for path, _, _ in found for end in range(len(path))}
    told = [each for each in found if each[0] not in inside]
    rest = len(told[TOLD:]) + len(errors[LOOKED_AT:])
    shown = [_words(path, model, body, error) for path, model, error in told[:TOLD]]
    return "; ".join(shown) + (f" (and {rest} more)" if rest else ""), ".".join(told[0][0]) or None


def _walk(location: Sequence[str | int], model: type[BaseModel]) -> tuple[Path, type[BaseModel]]:
    """The path to a field as the caller wrote it, and the model that has the field, or should."""
    path: Path = ()
    owner, branch = model, False
    for part in location[1:]:  # the first says where: body, header
        if branch:  # pydantic's name for one of a union's types
            branch = False
            continue
        path, owner = (*path, str(part)), model
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(_models(field.annotation), model)
            options = [option for option in get_args(field.annotation) if option is not types.NoneType]
            branch = get_origin(field.annotation) in (Union, types.UnionType) and len(options) > 1
    return path, owner


def _words(path: Path, model: type[BaseModel], body: type[BaseModel], error: Mapping[str, Any]) -> str:
    where = ".".join(path) or "body"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown field ({_instead(path, model, body)})"
    message, value = error["msg"].removeprefix("Value error, "), error.get("input")
    if not isinstance(value, str | int | float | bool) and value is not None:
        return f"{where}: {message}"
    text = repr(value)
    return f"{where}: {message}, got {text if len(text) <= 80 else text[:77] + '...'}"


def _instead(path: Path, model: type[BaseModel], body: type[BaseModel]) -> str:
    """What the caller may have meant by a field that ``model`` doesn't have."""
    fields, name = list(model.model_fields), path[-1][:100]  # may be as long as a body; comparing takes time
    near = [at for at in _paths(body) if at.rpartition(".")[2] == name]  # the right name in the wrong place
    near += [".".join((*path[:-1], at)) for at in difflib.get_close_matches(name, fields, n=1, cutoff=0.7)]
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(fields)}"


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of ``model`` and below; N stands for the number of a list's item."""
    for name, field in model.model_fields.items():
        yield prefix + name
        listed = "N." if "list[" in str(field.annotation) else ""
        for part in _models(field.annotation):
            yield from _paths(part, f"{prefix}{name}.{listed}")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that values of this type may be or contain."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
