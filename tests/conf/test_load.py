"""The loader on a toy schema: precedence, origins, and every way to get a setting wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, SecretStr, model_validator

from conf.docs import show, show_json
from conf.load import Loaded, load_schema
from conf.reader import parse
from operators.base import Knobs
from operators.errors import Stop

SECRET = "s3cret-0815"


class Model(Knobs):
    path: str = ""
    size_bytes: int = Field(1, ge=1)


class Tier(Knobs):
    name: str
    parallel: int = Field(2, ge=1, le=8)
    model: Model = Model()


class Search(Knobs):
    k: int = Field(16, ge=1, le=100)
    mode: Literal["hybrid", "off"] = "hybrid"
    decay: float = Field(0.5, gt=0, lt=1)
    fast: bool = False
    label: str = "plain"
    words: tuple[str, ...] = ()


class Http(Knobs):
    port: int = 8000
    api_keys: dict[SecretStr, str] = Field(default_factory=dict)
    token: SecretStr = SecretStr("")

    @model_validator(mode="after")
    def _even(self) -> Http:
        if self.port % 2:
            raise ValueError(f"port {self.port} is odd; take an even one")
        return self


class Toy(Knobs):
    profile: str
    search: Search = Search()
    http: Http = Http()
    tiers: tuple[Tier, ...] = ()
    judge: Model | None = None


BASE = "search:\n  k: 10\n  decay: 0.25\n"
SMALL = "profile: small\nsearch:\n  k: 11\ntiers:\n  - name: 135M\n  - name: 1.2B\n    parallel: 4\n"

Toys = Callable[..., Loaded[Toy]]


@pytest.fixture
def toy(tmp_path: Path) -> Toys:
    """Load the toy schema with sources given as text."""
    folder = tmp_path / "conf"
    folder.mkdir()

    def load(
        *overrides: str,
        env: dict[str, str] | None = None,
        base: str = BASE,
        small: str = SMALL,
        own: str | None = None,
        profile: str = "small",
    ) -> Loaded[Toy]:
        (folder / "base.yaml").write_text(base)
        (folder / "small.yaml").write_text(small)
        (folder / "large.yaml").write_text("profile: large\n")
        file = None
        if own is not None:
            file = tmp_path / "own.yaml"
            file.write_text(own)
        return load_schema(Toy, folder, profile, overrides=overrides, env=env or {}, file=file)

    return load


def stopped(load: Callable[[], Any]) -> Stop:
    with pytest.raises(Stop) as caught:
        load()
    assert SECRET not in str(caught.value)
    return caught.value


# ----------------------------------------------------------------------------------------------- who wins


def test_each_source_wins_over_those_before_it(toy: Toys, tmp_path: Path) -> None:
    own, env = "search: {k: 12}", {"RUVLLM_SEARCH__K": "13"}
    assert toy(base="", small="profile: small").settings.search.k == 16
    steps = [
        (toy(small="profile: small"), 10, "conf/base.yaml"),
        (toy(), 11, "conf/small.yaml"),
        (toy(own=own), 12, str(tmp_path / "own.yaml")),
        (toy(own=own, env=env), 13, "RUVLLM_SEARCH__K"),
        (toy("search.k=14", own=own, env=env), 14, "--set search.k=14"),
        (toy("search.k=14", "search.k=15", own=own, env=env), 15, "--set search.k=15"),
    ]
    for loaded, value, origin in steps:
        assert (loaded.settings.search.k, loaded.origins["search.k"]) == (value, origin)


def test_a_source_replaces_single_values_and_not_the_block(toy: Toys) -> None:
    loaded = toy(env={"RUVLLM_SEARCH": "{fast: true, k: 3}", "RUVLLM_SEARCH__K": "4"})
    assert loaded.settings.search == Search(k=4, decay=0.25, fast=True)
    assert loaded.origins["search.decay"] == "conf/base.yaml"
    assert loaded.origins["search.fast"] == "RUVLLM_SEARCH"
    assert loaded.origins["search.k"] == "RUVLLM_SEARCH__K"  # a key inside wins over the block that holds it
    assert loaded.origins["search.label"] == "default"


def test_origins_name_every_setting(toy: Toys) -> None:
    loaded = toy()
    assert set(loaded.origins) == {
        *("profile", "http.port", "http.api_keys", "http.token", "judge"),
        *(f"search.{name}" for name in Search.model_fields),
        *(f"tiers.{n}.{name}" for n in (0, 1) for name in ("name", "parallel", "model.path", "model.size_bytes")),
    }


def test_own_file_is_found_through_the_environment(toy: Toys, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("search:\n  k: 77\n")
    loaded = toy(env={"RUVLLM_CONFIG": str(tmp_path / "mine.yaml")})
    assert (loaded.settings.search.k, loaded.origins["search.k"]) == (77, str(tmp_path / "mine.yaml"))


def test_profile_comes_from_the_argument_then_the_environment(toy: Toys) -> None:
    assert toy(env={"RUVLLM_PROFILE": "small"}, profile="large").settings.profile == "large"
    assert toy(env={"RUVLLM_PROFILE": "large"}, profile="").settings.profile == "large"


def test_text_takes_the_characters_as_they_are(toy: Toys) -> None:
    for raw in ("off", "12", "#1", "", "a: b", "null"):
        assert toy(f"search.label={raw}").settings.search.label == raw
        assert toy(env={"RUVLLM_SEARCH__LABEL": raw}).settings.search.label == raw
    assert toy("search.mode=off").settings.search.mode == "off"
    assert toy("http.token=12").settings.http.token.get_secret_value() == "12"


@settings(deadline=None)
@given(k=st.integers(1, 100), decay=st.floats(0.001, 0.999), fast=st.booleans(), words=st.lists(st.sampled_from("abc")))
def test_what_show_prints_can_be_set_again(
    tmp_path_factory: Any, k: int, decay: float, fast: bool, words: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("again")
    (folder / "base.yaml").write_text("")
    (folder / "small.yaml").write_text("profile: small")

    def load(overrides: list[str]) -> Loaded[Toy]:
        return load_schema(Toy, folder, "small", overrides=overrides, env={}, file=None)

    first = load(
        [f"search.k={k}", f"search.decay={decay}", f"search.fast={str(fast).lower()}", f"search.words={words}"]
    )
    assert (first.settings.search.k, first.settings.search.decay) == (k, decay)
    again = [f"{key}={value}" for key, value, _ in show(first) if key in ("search.k", "search.decay", "search.fast")]
    assert load([*again, f"search.words={words}"]).settings == first.settings


# ----------------------------------------------------------------------------------------------- lists of blocks


@pytest.mark.parametrize("key", ["tiers.1.parallel", "tiers.1.2B.parallel", "tiers.1_2b.parallel"])
def test_an_item_is_reached_by_number_or_name(toy: Toys, key: str) -> None:
    loaded = toy(f"{key}=7")
    assert [tier.parallel for tier in loaded.settings.tiers] == [2, 7]
    assert loaded.origins["tiers.1.parallel"] == "--set tiers.1.parallel=7"
    assert loaded.origins["tiers.1.name"] == "conf/small.yaml"


def test_an_item_is_reached_from_the_environment_and_from_yaml(toy: Toys) -> None:
    for name in ("RUVLLM_TIERS__135M__MODEL__PATH", "RUVLLM_TIERS__0__MODEL__PATH"):
        assert toy(env={name: "/m.gguf"}).settings.tiers[0].model.path == "/m.gguf"
    assert toy(env={"RUVLLM_TIERS__1_2B__PARALLEL": "3"}).settings.tiers[1].parallel == 3
    loaded = toy(own="tiers: {135M: {parallel: 1}, 1: {model: {size_bytes: 5}}}")
    assert (loaded.settings.tiers[0].parallel, loaded.settings.tiers[1].model.size_bytes) == (1, 5)
    assert loaded.settings.tiers[1].parallel == 4


def test_a_list_replaces_the_list(toy: Toys) -> None:
    loaded = toy("tiers.0.parallel=3", own="tiers: [{name: other}]")
    assert loaded.settings.tiers == (Tier(name="other", parallel=3),)
    assert toy("tiers=[]").settings.tiers == ()


def test_a_block_that_may_be_null_goes_and_comes_back(toy: Toys) -> None:
    assert toy().settings.judge is None
    there = toy("judge.path=x")
    assert there.settings.judge == Model(path="x")
    gone = toy("judge=null", own="judge: {path: x}")
    assert (gone.settings.judge, gone.origins["judge"]) == (None, "--set judge=null")
    assert toy("judge=null", "judge.size_bytes=4", own="judge: {path: x}").settings.judge == Model(size_bytes=4)


# ----------------------------------------------------------------------------------------------- what is refused


def test_unknown_keys_name_their_source_and_the_nearest(toy: Toys, tmp_path: Path) -> None:
    error = stopped(lambda: toy(base="serch: {k: 1}"))
    assert (error.who, error.got, error.remedy) == ("conf/base.yaml", "unknown key 'serch'", "did you mean 'search'?")
    error = stopped(lambda: toy(small=SMALL + "    paralel: 3\n"))
    assert (error.who, error.got) == ("conf/small.yaml", "unknown key 'tiers.1.paralel'")
    assert error.remedy == "did you mean 'tiers.1.parallel'?"
    error = stopped(lambda: toy(own="search: {ka: 1}"))
    assert (error.who, error.remedy) == (str(tmp_path / "own.yaml"), "did you mean 'search.k'?")
    error = stopped(lambda: toy("serch.mode=off"))
    assert (error.who, error.got, error.remedy) == ("--set", "unknown key 'serch'", "did you mean 'search.mode'?")
    error = stopped(lambda: toy("search.k.deep=1"))
    assert (error.got, error.remedy) == ("unknown key 'search.k.deep'", "did you mean 'search.k'?")
    error = stopped(lambda: toy("tiers.136M.parallel=1"))
    assert error.got == "unknown key 'tiers.136M'"
    error = stopped(lambda: toy("tiers.2.parallel=1"))
    assert error.got == "unknown key 'tiers.2'"


def test_unknown_variables_are_refused_and_reserved_ones_are_not(toy: Toys) -> None:
    error = stopped(lambda: toy(env={"RUVLLM_SERCH__K": "3"}))
    assert error.got == "unknown variable RUVLLM_SERCH__K"
    assert error.remedy.startswith("did you mean RUVLLM_SEARCH__K? ")
    assert "RUVLLM_PROFILE, RUVLLM_CONFIG, RUVLLM_ADMIN_KEY, RUVLLM_TEST_*" in error.remedy
    for name in ("RUVLLM_", "RUVLLM_SEARCH____K", "RUVLLM_SEARCH_K", "RUVLLM_PROFILES", "RUVLLM_TEST"):
        assert f"unknown variable {name}" == stopped(lambda: toy(env={name: "3"})).got  # noqa: B023
    assert (
        toy(env={"RUVLLM_TEST_PORT": "x", "RUVLLM_PROFILE": "small", "ruvllm_x": "", "OTHER": "1"}).settings.profile
        == "small"
    )


@pytest.mark.parametrize(
    ("override", "got", "remedy"),
    [
        ("search.k=0", "search.k is 0", "it must be integer, ≥ 1, ≤ 100"),
        ("search.k=101", "search.k is 101", "it must be integer, ≥ 1, ≤ 100"),
        ("search.k=2.0", "search.k is 2.0", "it must be integer, ≥ 1, ≤ 100"),
        ("search.k='3'", 'search.k is "3"', "it must be integer, ≥ 1, ≤ 100"),
        ("search.k=true", "search.k is true", "it must be integer, ≥ 1, ≤ 100"),
        ("search.k=", "search.k is null", "it must be integer, ≥ 1, ≤ 100"),
        ("search.decay=1", "search.decay is 1", "it must be number, > 0, < 1"),
        ("search.decay=.nan", 'search.decay is ".nan"', "it must be number, > 0, < 1"),
        ("search.fast=yes", 'search.fast is "yes"', "it must be true or false"),
        ("search.fast=1", "search.fast is 1", "it must be true or false"),
        ("search.mode=Hybrid", 'search.mode is "Hybrid"', "it must be `hybrid` or `off`"),
        ("search.words=[1]", "search.words is 1", "it must be list of text"),
        ("tiers.1.2B.parallel=9", "tiers.1.parallel is 9", "it must be integer, ≥ 1, ≤ 8"),
    ],
)
def test_wrong_types_and_ranges_name_key_value_range_and_origin(
    toy: Toys, override: str, got: str, remedy: str
) -> None:
    error = stopped(lambda: toy(override))
    assert (error.got, error.remedy) == (got, remedy)
    key, value = got.split(" is ")
    assert error.who.startswith(f"--set {key}=")
    if "words" not in override:
        assert error.who.endswith(value)


def test_wrong_values_in_files_and_variables_name_them(toy: Toys) -> None:
    assert stopped(lambda: toy(base="search: {k: 0}", small="profile: small")).who == "conf/base.yaml"
    assert stopped(lambda: toy(env={"RUVLLM_SEARCH__K": "0"})).who == "RUVLLM_SEARCH__K"
    error = stopped(lambda: toy("search.k=0", "search.decay=5"))
    assert error.got == "search.k is 0 (and 1 more)"


def test_a_missing_key_is_named(toy: Toys) -> None:
    error = stopped(lambda: toy(own="tiers: [{parallel: 1}]"))
    assert (error.got, error.remedy) == ("tiers.0.name is missing", "set it: text")
    assert error.who.endswith("own.yaml")


def test_a_check_of_several_keys_says_where_they_come_from(toy: Toys) -> None:
    error = stopped(lambda: toy("http.port=81"))
    assert (error.who, error.got) == ("http", "port 81 is odd")
    assert error.remedy == "take an even one (it comes from --set http.port=81)"


def test_blocks_and_lists_must_be_such(toy: Toys) -> None:
    assert stopped(lambda: toy("search=3")).got == "search is a single value or a list, not keys with values"
    assert stopped(lambda: toy("search=3")).remedy == "its keys are k, mode, decay, fast, label, words"
    assert stopped(lambda: toy(own="- a")).got == "the whole is a single value or a list, not keys with values"
    assert stopped(lambda: toy("tiers=3")).got == "tiers is a single value, not a list"
    assert stopped(lambda: toy("tiers=[3]")).got == "tiers.0 is a single value or a list, not keys with values"
    assert toy(own="search:\n").settings.search.k == 11  # a block with nothing in it says nothing


def test_profiles_are_chosen_not_set(toy: Toys) -> None:
    error = stopped(lambda: toy(profile="smal"))
    assert error.got == "unknown profile 'smal'"
    assert error.remedy == "did you mean 'small'? (there are large, small)"
    assert stopped(lambda: toy(small="profile: large")).who == "conf/small.yaml"
    assert stopped(lambda: toy(small="search: {k: 1}")).remedy == "write 'profile: small' in it"
    assert stopped(lambda: toy("profile=large")).who == '--set profile="large"'
    assert stopped(lambda: toy(own="profile: large")).got == "it says profile 'large', but 'small' is being loaded"


def test_files_that_cannot_be_read(toy: Toys, tmp_path: Path) -> None:
    gone = tmp_path / "gone.yaml"
    error = stopped(lambda: toy(env={"RUVLLM_CONFIG": str(gone)}))
    assert (error.who, error.got) == (str(gone), "can't be read: No such file or directory")
    gone.write_bytes(b"search: {label: \xff}")
    assert stopped(lambda: toy(env={"RUVLLM_CONFIG": str(gone)})).got == "can't be read: no UTF-8 text"


def test_an_override_without_a_value(toy: Toys) -> None:
    error = stopped(lambda: toy("search.k:3"))
    assert (error.who, error.got) == ("--set", "no '=' after 'search.k'")


# ----------------------------------------------------------------------------------------------- secrets


def test_secrets_are_never_shown(toy: Toys) -> None:
    sources: list[dict[str, Any]] = [
        {"env": {"RUVLLM_HTTP__API_KEYS": f"{{{SECRET}: acme}}", "RUVLLM_HTTP__TOKEN": SECRET}},
        {"own": f"http: {{api_keys: {{{SECRET}: acme}}, token: {SECRET}}}"},
    ]
    for source in sources:
        loaded = toy(**source)
        assert loaded.settings.http.api_keys[SecretStr(SECRET)] == "acme"
        assert SECRET not in f"{show(loaded)}{show_json(loaded)}{loaded.origins}{loaded}"
        assert ("http.token", "****") in [(key, value) for key, value, _ in show(loaded)]
    loaded = toy(f"http={{port: 80, api_keys: {{{SECRET}: acme}}}}")
    assert loaded.origins["http.api_keys"] == "--set http.api_keys=****"
    assert loaded.origins["http.port"] == "--set http.port=80"
    assert SECRET not in f"{show(loaded)}{loaded.origins}"


@pytest.mark.parametrize(
    "override",
    [
        f"http.api_keys={{{SECRET}: 5}}",
        f"http.api_keys={SECRET}",
        f"http.api_keys.{SECRET}=acme",
        f"http.api_keys={{{SECRET}: acme",
        f"http.api_keys={{*{SECRET}: acme}}",
        f"http.api_keys={{a: !{SECRET}}}",
        f"http.api_keys={{a: !{SECRET}!b x}}",
        f"http.api_keys={{{SECRET}: a, {SECRET}: b}}",
        f"http={SECRET}",
    ],
)
def test_errors_do_not_repeat_secrets(toy: Toys, override: str) -> None:
    key, _, value = override.partition("=")
    stopped(lambda: toy(override))
    stopped(
        lambda: toy(env={"RUVLLM_HTTP__API_KEYS" if "keys" in key else "RUVLLM_HTTP": value if "=" in override else ""})
    )


def test_a_wrong_mapping_of_secrets_says_what_it_should_be(toy: Toys) -> None:
    error = stopped(lambda: toy(f"http.api_keys={{{SECRET}: 5}}"))
    assert (error.got, error.remedy) == ("http.api_keys is ****", "it must be mapping of secret to text")


# ----------------------------------------------------------------------------------------------- YAML


def test_syntax_errors_name_the_line(toy: Toys) -> None:
    error = stopped(lambda: toy(own="search:\n  k: 1\n\tmode: off\n"))
    assert error.who.endswith("own.yaml")
    assert error.got.startswith("no valid YAML at line 3, column 1: found character '\\t'")
    error = stopped(lambda: toy(own="search: {k: 1\n"))
    assert "at line 2" in error.got
    error = stopped(lambda: toy("search.k=[1"))
    assert (error.who, error.got[:22]) == ("--set", "no valid YAML at line 1"[:22])


def test_a_key_that_stands_twice_is_refused(toy: Toys) -> None:
    error = stopped(lambda: toy(own="search:\n  k: 1\n  mode: off\n  k: 2\n"))
    assert error.got == "no valid YAML at line 4, column 3: the same key stands twice"


@pytest.mark.parametrize(
    ("source", "value"),
    [
        *(
            ("no", "no"),
            ("off", "off"),
            ("yes", "yes"),
            ("12:30", "12:30"),
            ("2024-01-01", "2024-01-01"),
            ("1_000", "1_000"),
        ),
        *(
            ("1e-3", 0.001),
            ("0.5", 0.5),
            (".5", 0.5),
            ("-3", -3),
            ("true", True),
            ("~", None),
            ("", None),
            ("010", "010"),
        ),
    ],
)
def test_plain_values_are_read_as_yaml_1_2(source: str, value: object) -> None:
    read = parse(f"a: {source}", "here")["a"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    "source", ["!!int x", "!!int ''", "!!bool x", "!!timestamp x", "? [a]\n: 1", "!!binary ä", "\x00", "a\n---\nb"]
)
def test_odd_values_stop_in_our_words(source: str) -> None:
    assert stopped(lambda: parse(source, "here")).got.startswith("no valid YAML")


def test_keys_are_text_as_written() -> None:
    assert list(parse("{12e5: a, 010: b, true: c, 7: d, null: e}", "here")) == ["12e5", "010", "true", "7", "null"]


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_our_words(source: str) -> None:
    try:
        parse(source, "here")
        words = None
    except Stop as stop:
        words = (stop.who, stop.got[:13])
    assert words in (None, ("here", "no valid YAML"))
