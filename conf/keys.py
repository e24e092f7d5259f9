"""A schema seen as dotted keys: ``search.k`` is field ``k`` of block ``search``, with its type, range and default.

A list of blocks (``tiers``) has the item's number in its keys; here, where no item is meant, the letter ``N``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, Literal

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from operators.base import Knobs

Path = tuple[str, ...]
PREFIX = "RUVLLM_"
HIDDEN = "****"
_LIMITS = {
    "ge": "≥ {}",
    "gt": "> {}",
    "le": "≤ {}",
    "lt": "< {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
    "pattern": "matching `{}`",
    "multiple_of": "a multiple of {}",
}
_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", SecretStr: "secret"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting of a schema."""

    name: str
    field: FieldInfo

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return variable(self.name)

    @property
    def kind(self) -> str:
        """The type in words."""
        return kind(self.field.annotation)

    @property
    def bounds(self) -> str:
        """The allowed range in words; empty if the type says it all."""
        limits = (
            words.format(found)
            for name, words in _LIMITS.items()
            for part in self.field.metadata
            if (found := getattr(part, name, None)) is not None
        )
        return ", ".join(limits)

    @property
    def allowed(self) -> str:
        """Type and range."""
        return f"{self.kind}, {self.bounds}" if self.bounds else self.kind

    @property
    def default(self) -> str:
        """The default as it would stand in YAML, or ``required``."""
        if self.field.is_required():
            return "required"
        return text(self.field, self.field.get_default(call_default_factory=True, validated_data={}))


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every setting of ``schema``, in its order."""
    for name, field in schema.model_fields.items():
        if nested := block(field.annotation):
            yield from keys(nested, f"{prefix}{name}.")
        elif item := listed(field.annotation):
            yield from keys(item, f"{prefix}{name}.N.")
        else:
            yield Key(prefix + name, field)


def rows(settings: BaseModel, at: Path = ()) -> Iterator[tuple[Path, FieldInfo, object]]:
    """Every setting of an instance: path, field, value."""
    for name, field in type(settings).model_fields.items():
        value, path = getattr(settings, name), (*at, name)
        if isinstance(value, BaseModel):
            yield from rows(value, path)
        elif listed(field.annotation):
            for index, item in enumerate(value):
                yield from rows(item, (*path, str(index)))
        else:
            yield path, field, value


def trace(schema: type[BaseModel], location: Sequence[str | int]) -> tuple[Path, FieldInfo | None]:
    """The longest beginning of ``location`` that is a key, and its field, if it is more than an item's number."""
    at: Path = ()
    field: FieldInfo | None = None
    model: type[BaseModel] | None = schema
    for part in location:
        if field is not None and isinstance(part, int) and (item := listed(field.annotation)):
            at, field, model = (*at, str(part)), None, item
        elif model is not None and part in model.model_fields:
            field = model.model_fields[str(part)]
            at, model = (*at, str(part)), block(field.annotation)
        else:
            break
    return at, field


def block(annotation: Any) -> type[Knobs] | None:
    """The class of a nested block, also of one that may be null."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, Knobs):
            return option
    return None


def listed(annotation: Any) -> type[Knobs] | None:
    """The class of the items of a list of blocks."""
    if typing.get_origin(annotation) in (tuple, list):
        return block(typing.get_args(annotation)[0])
    return None


def nullable(annotation: Any) -> bool:
    """Whether null is a value of this type."""
    return type(None) in _options(annotation)


def secret(annotation: Any) -> bool:
    """Whether values of this type must never be shown."""
    return annotation is SecretStr or any(secret(part) for part in typing.get_args(annotation))


def textual(annotation: Any) -> bool:
    """Whether a value is text, so that a variable's characters are taken as they are."""
    if typing.get_origin(annotation) is Literal:
        return all(isinstance(word, str) for word in typing.get_args(annotation))
    return annotation in (str, SecretStr) or (isinstance(annotation, type) and issubclass(annotation, PurePath))


def text(field: FieldInfo, value: object) -> str:
    """``value`` as it would stand in YAML, with every secret hidden."""
    if secret(field.annotation) and value:
        return HIDDEN
    return json.dumps(value, ensure_ascii=False, default=_plain)


def kind(annotation: Any) -> str:
    """A type in words, e.g. ``integer`` or ``list of text``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind(args[0])
    if origin is Literal:
        return " or ".join(f"`{word}`" for word in args)
    if origin in (tuple, list, set, frozenset):
        one_type = len([part for part in args if part is not Ellipsis]) == 1
        return f"list of {kind(args[0])}" if one_type else "list of " + ", ".join(map(kind, args))
    if origin is dict:
        return f"mapping of {kind(args[0])} to {kind(args[1])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(part) for part in args)
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return "path"
    return _NAMES.get(annotation, "a block" if block(annotation) else str(annotation))


def variable(name: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + name.replace(".", "__").upper()


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like ``name``."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _plain(value: object) -> object:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
