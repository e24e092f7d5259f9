"""The page of all settings, made from the schema, and the table of a loaded profile.

``python -m conf.docs`` writes ``docs/configuration.md``, and the topics' contract (``conf.topics_doc``); tests compare
them with what they are made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from conf import keys, topics_doc
from conf.load import RESERVED, Loaded, profiles
from conf.schema import Settings

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

_HEAD = """\
# Configuration

This page is made from the schema by `python -m conf.docs`; don't edit it.

A setting's value comes from the last of these that names it:

1. the default in the schema (the table's column)
2. `conf/base.yaml`
3. `conf/PROFILE.yaml`; the profiles are {profiles}
4. your own YAML file, named by the variable `RUVLLM_CONFIG`
5. an environment variable: `RUVLLM_SEARCH__K=8` sets `search.k`
6. the command line: `--set search.k=8`

`ruvllm config show` prints every value with the place it came from. `RUVLLM_PROFILE` chooses the profile.
Variables that begin with `RUVLLM_` and are neither a setting nor one of {reserved} are refused, like every unknown key.

Values are YAML 1.2 and their types are strict: `true` is a boolean, `yes` is text, `"3"` is no integer.
In variables and on the command line, settings of type text take the characters as they are, without quotes.
Mappings and lists are set as a whole: `RUVLLM_HTTP__API_KEYS='{{KEY: TENANT}}'`. Secrets are never printed.

`tiers` is a list. A list in a later source replaces it. To change one item, give its number (from 0) or its name:
`--set tiers.0.parallel=1` and `--set tiers.135M.parallel=1`, `RUVLLM_TIERS__135M__PARALLEL=1` (any character that a
variable's name can't hold becomes `_`: `RUVLLM_TIERS__1_2B__PARALLEL`), or in YAML `tiers: {{135M: {{parallel: 1}}}}`.
"""
_COLUMNS = "| Key | Type | Default | Range | Variable | What it is |\n|---|---|---|---|---|---|"


def page(schema: type[BaseModel] = Settings) -> str:
    """The whole page in Markdown."""
    head = _HEAD.format(profiles=_quoted(profiles()), reserved=_quoted(RESERVED))
    own = [keys.Key(name, field) for name, field in schema.model_fields.items() if not _class(field.annotation)]
    parts = [head, "## General\n", _table(own)]
    for name, field in schema.model_fields.items():
        if nested := _class(field.annotation):
            prefix = f"{name}.N." if keys.listed(field.annotation) else f"{name}."
            about = _line(nested.__doc__ or field.description or "")
            parts += [f"\n## {name}\n\n{about}\n", _table(list(keys.keys(nested, prefix)))]
    return "\n".join(parts) + "\n"


def show(loaded: Loaded[Any]) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting, in the schema's order; secrets are hidden."""
    rows = ((".".join(path), keys.text(field, value)) for path, field, value in keys.rows(loaded.settings))
    return [(key, value, loaded.origins[key]) for key, value in rows]


def show_json(loaded: Loaded[Any]) -> str:
    """``show`` as a JSON object: key → {value, origin}."""
    values = {key: {"value": _parsed(value), "origin": origin} for key, value, origin in show(loaded)}
    return json.dumps(values, ensure_ascii=False, indent=2)


def main() -> None:
    """Write the page, and the document of the topics."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    topics_doc.DOCUMENT.write_text(topics_doc.page(), encoding="utf-8")


def _class(annotation: Any) -> type[BaseModel] | None:
    return keys.listed(annotation) or keys.block(annotation)


def _table(settings: list[keys.Key]) -> str:
    cells = (
        (f"`{key.name}`", key.kind, _default(key), key.bounds, f"`{key.env}`", _line(key.field.description or ""))
        for key in settings
    )
    return "\n".join([_COLUMNS, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)])


def _default(key: keys.Key) -> str:
    return key.default if key.field.is_required() else f"`{key.default}`"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _quoted(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _parsed(value: str) -> Any:
    return value if value == keys.HIDDEN else json.loads(value)


if __name__ == "__main__":
    main()
