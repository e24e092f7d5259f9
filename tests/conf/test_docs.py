"""The page of settings is the schema's, and the table of a loaded profile tells the truth."""

from __future__ import annotations

import json

from conf import keys
from conf.docs import PAGE, page, show, show_json
from conf.load import load
from conf.schema import Settings

FRESH = page()
ROWS = {line.split("`")[1]: line for line in FRESH.splitlines() if line.startswith("| `")}


def test_the_committed_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == FRESH, "run: python -m conf.docs"


def test_every_key_has_one_row() -> None:
    assert list(ROWS) == sorted(ROWS, key=list(ROWS).index)
    assert set(ROWS) == {key.name for key in keys.keys(Settings)}
    assert sum(line.startswith("| `") for line in FRESH.splitlines()) == len(ROWS)


def test_a_row_says_type_default_range_and_variable() -> None:
    assert ROWS["http.port"].startswith(
        "| `http.port` | integer | `8000` | ≥ 0, ≤ 65535 | `RUVLLM_HTTP__PORT` | TCP port;"
    )
    assert ROWS["http.api_keys"].startswith(
        "| `http.api_keys` | mapping of secret to text | `{}` |  | `RUVLLM_HTTP__API_KEYS` |"
    )
    assert ROWS["binding"].startswith('| `binding` | `inproc` or `serve` | `"serve"` |  | `RUVLLM_BINDING` |')
    assert ROWS["ray.num_cpus"].startswith("| `ray.num_cpus` | integer or null | `null` | ≥ 1 |")
    assert ROWS["tiers.N.slot"].startswith(
        "| `tiers.N.slot` | integer | required | ≥ 0, < 4 | `RUVLLM_TIERS__N__SLOT` |"
    )
    assert ROWS["data_dir"].startswith('| `data_dir` | path | `"~/.ruvllm/{profile}"` |')


def test_the_page_is_a_table_of_six_columns() -> None:
    for row in ROWS.values():
        assert row.replace("\\|", "").count("|") == 7, row


def test_the_page_does_not_depend_on_the_machine() -> None:
    assert "/home/" not in FRESH
    assert str(PAGE.parent.parent) not in FRESH


def test_show_lists_every_setting_with_its_origin() -> None:
    loaded = load("local", overrides=["search.k=3"], env={"RUVLLM_HTTP__API_KEYS": "{s3cret: acme}"})
    shown = {key: (value, origin) for key, value, origin in show(loaded)}
    assert shown["search.k"] == ("3", "--set search.k=3")
    assert shown["tiers.1.name"] == ('"270M"', "conf/local.yaml")
    assert shown["http.port"] == ("8000", "conf/base.yaml")
    assert shown["http.api_keys"] == ("****", "RUVLLM_HTTP__API_KEYS")
    assert list(shown) == list(loaded.origins)


def test_show_json_has_values_with_their_types() -> None:
    loaded = load("test", env={"RUVLLM_HTTP__API_KEYS": "{s3cret: acme}"})
    shown = json.loads(show_json(loaded))
    assert shown["route.deterministic"] == {"value": True, "origin": "conf/test.yaml"}
    assert shown["http.port"] == {"value": 0, "origin": "conf/test.yaml"}
    assert shown["data_dir"] == {"value": str(loaded.settings.data_dir), "origin": "default"}
    assert shown["http.api_keys"]["value"] == "****"
    assert "s3cret" not in show_json(loaded)
