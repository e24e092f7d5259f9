"""Values and where they came from, laid over each other source by source, before anything checks their types.

A later source replaces single values, never a whole block. A list of blocks (``tiers``) is replaced by a list; a
mapping or a longer key reaches into it, by number or by the item's name: ``tiers.0.parallel``, ``tiers.135M.parallel``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from conf import keys
from conf.keys import Path
from conf.reader import parse
from operators.base import Knobs
from operators.errors import Stop

SET = "--set"


class Unknown(LookupError):
    """A key that no field has. ``given``: the key up to its unknown part; ``near``: the known key most like it."""

    def __init__(self, given: str, near: str) -> None:
        super().__init__(given, near)
        self.given = given
        self.near = near


class Raw(str):
    """A value as characters, from the environment or the command line: read as YAML unless its field is text."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A value and its source: a file's name, a variable's name, or ``--set``."""

    value: Any
    origin: str

    def read(self) -> Any:
        """The value; characters are read as YAML."""
        return parse(self.value, self.origin) if isinstance(self.value, Raw) else self.value


class Layers:
    """``values`` is what the sources said so far, as nested dicts and lists; ``origins`` says who said it last."""

    def __init__(self, schema: type[BaseModel]) -> None:
        self.schema = schema
        self.values: dict[str, Any] = {}
        self.origins: dict[Path, str] = {}

    def put(self, path: Sequence[str], value: object, origin: str) -> None:
        """Lay ``value`` over what stands at ``path``. Raises ``Unknown``, or ``Stop`` for what no block can be."""
        self._block(self.schema, self.values, (), list(path), Given(value, origin))

    def origin(self, path: Path) -> str:
        """Who set ``path`` or something in it; failing that, something beside it."""
        for end in range(len(path), 0, -1):
            for at, origin in self.origins.items():
                if at[:end] == path[:end]:
                    return origin
        return "default"

    def _block(self, model: type[BaseModel], node: dict[str, Any], at: Path, path: list[str], given: Given) -> None:
        if path:
            self._field(model, node, (*at, path[0]), path[1:], given)
            return
        values = given.read()
        if not isinstance(values, dict | None):
            got = f"{'.'.join(at) or 'the whole'} is a single value or a list, not keys with values"
            raise Stop(given.origin, got, f"its keys are {', '.join(model.model_fields)}")
        for key, value in (values or {}).items():
            self._field(model, node, (*at, str(key)), [], Given(value, given.origin))

    def _field(self, model: type[BaseModel], node: dict[str, Any], at: Path, path: list[str], given: Given) -> None:
        field = model.model_fields.get(at[-1])
        if field is None:
            raise self._unknown(at, path, model.model_fields)
        if item := keys.listed(field.annotation):
            self._list(item, node, at, path, given)
        elif nested := keys.block(field.annotation):
            self._nested(nested, field, node, at, path, given)
        elif not path:
            self._leaf(field, node, at, given)
        elif keys.secret(field.annotation):  # what was given below it may be the secret, so it isn't repeated
            key = ".".join(at)
            raise Stop(key, "it has no keys below it", f"set all of it at once, e.g. {SET} '{key}={{KEY: VALUE}}'")
        else:
            raise self._unknown((*at, path[0]), [], ())

    def _leaf(self, field: FieldInfo, node: dict[str, Any], at: Path, given: Given) -> None:
        as_it_is = isinstance(given.value, Raw) and keys.textual(field.annotation)
        value = node[at[-1]] = str(given.value) if as_it_is else given.read()
        shown = f"{SET} {'.'.join(at)}={keys.text(field, value)}"
        self.origins[at] = shown if given.origin == SET else given.origin

    def _nested(
        self, model: type[Knobs], field: FieldInfo, node: dict[str, Any], at: Path, path: list[str], given: Given
    ) -> None:
        if not path and keys.nullable(field.annotation) and given.read() is None:
            self._forget(at)
            self._leaf(field, node, at, given)
            return
        if node.get(at[-1]) is None:
            node[at[-1]] = {}
            self._forget(at)
        self._block(model, node[at[-1]], at, path, given)

    def _list(self, item: type[Knobs], node: dict[str, Any], at: Path, path: list[str], given: Given) -> None:
        if path:
            items = node.get(at[-1], [])
            index, path = self._index(items, path, at)
            self._block(item, items[index], (*at, str(index)), path, given)
            return
        values = given.read()
        if isinstance(values, dict):
            for key, value in values.items():
                self._list(item, node, at, [str(key)], Given(value, given.origin))
        elif isinstance(values, list):
            self._forget(at)
            node[at[-1]] = [{} for _ in values]
            for index, value in enumerate(values):
                self._block(item, node[at[-1]][index], (*at, str(index)), [], Given(value, given.origin))
        else:
            raise Stop(given.origin, f"{'.'.join(at)} is a single value, not a list", "give a list, or an item's keys")

    def _index(self, items: list[dict[str, Any]], path: list[str], at: Path) -> tuple[int, list[str]]:
        """Which item the path means, and what is left of the path; a name may hold dots (``1.2B``)."""
        names = [str(item.get("name", index)) for index, item in enumerate(items)]
        folded = [_fold(name) for name in names]
        for length in range(len(path), 0, -1):
            given = _fold(".".join(path[:length]))
            if given in folded:
                return folded.index(given), path[length:]
        if path[0].isdecimal() and int(path[0]) < len(items):
            return int(path[0]), path[1:]
        raise self._unknown((*at, path[0]), path[1:], names)

    def _unknown(self, given: Path, rest: Sequence[str], siblings: Iterable[str]) -> Unknown:
        known = [key.name for key in keys.keys(self.schema)]
        known += [".".join((*given[:-1], sibling)) for sibling in siblings]
        return Unknown(".".join(given), keys.nearest(".".join((*given, *rest)), known))

    def _forget(self, at: Path) -> None:
        self.origins = {path: origin for path, origin in self.origins.items() if path[: len(at)] != at}


def _fold(name: str) -> str:
    """A name as it can stand in an environment variable: ``1.2B`` → ``1_2b``."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())
