"""YAML as everyone expects it: plain values as in YAML 1.2, no key twice, and errors that name the line.

PyYAML reads YAML 1.1, where ``no`` is false, ``1e-3`` is text, ``12:30`` is 750 and ``010`` is 8. Here only ``true``
and ``false`` are booleans, and numbers are finite and decimal without leading zeros (YAML 1.2.2, section 10.3).
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from operators.errors import Stop


class _Core(yaml.SafeLoader):
    """SafeLoader with the plain values of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (declared so by the parent)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Keys are text as it is written (an API key ``12e5`` stays that), and none stands twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.parser.ParserError(None, None, "a key that is no text", key.start_mark)
            if key.value in seen:
                raise yaml.parser.ParserError(None, None, "the same key stands twice", key.start_mark)
            key.tag = "tag:yaml.org,2002:str"
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
}
for _name, (_pattern, _first) in _PLAIN.items():
    _Core.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def parse(source: str, where: str) -> Any:
    """The value of the YAML text ``source``; what can't be read raises ``Stop`` that names ``where`` and the line.

    The text itself is not repeated in the error: it may hold a secret.
    """
    try:
        return yaml.load(source, _Core)  # noqa: S506  (_Core is a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "an unknown line"
        problem = error.problem or ""
        if not isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError) or "tag handle" in problem:
            problem = "an alias or a tag that does not exist"  # PyYAML's words repeat it
        raise Stop(where, f"no valid YAML at {place}: {problem}", "correct the syntax there; quote odd text") from None
    except yaml.YAMLError:
        raise Stop(where, "no valid YAML: a character that may not stand there", "save it as UTF-8 text") from None
    except (ValueError, TypeError, LookupError, AttributeError):  # PyYAML's constructors, e.g. of ``!!int x``
        raise Stop(where, "no valid YAML: a value that is not what its tag says", "leave the tag out") from None
