"""The kit every stage must pass; it finds the stages by itself and feeds them a real query's records."""

import dataclasses
import importlib
import pickle

import numpy as np
import pytest

import operators
from conf.load import load
from operators import FLOW
from operators.base import FLOWING, Knobs, Operator
from operators.generate import GenerateInput
from operators.ingest import Document
from operators.records import Load, Message, Query, SessionState, TierLoad, decode, encode
from pipeline.graph import ANSWER_PATH, STAGES, assemble
from pipeline.host import Host
from tests.service import DOCUMENTS

QUERY = Query(
    interaction_id="0190b3c6-0000-7000-8000-000000000000",
    tenant="default",
    session="kit",
    text="How tall is the Vell lighthouse?",
    messages=(Message(role="user", content="How tall is the Vell lighthouse?"),),
    created_at=1.8e9,
    explain=True,
)


def found():
    return list(_found())


def _found():
    for name in FLOW:
        module = importlib.import_module(f"operators.{name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Operator) and value.__module__ == module.__name__:
                yield value


def test_every_stage_of_the_flow_is_one_class_and_in_the_graph():
    assert [stage.name for stage in found()] == list(operators.FLOW)
    assert found() == list(STAGES.values())


@pytest.mark.parametrize("stage", found(), ids=lambda stage: stage.name)
def test_it_reads_and_writes_known_records(stage):
    assert stage.writes() in FLOWING
    assert stage.reads()
    assert set(stage.reads()) <= FLOWING


@pytest.mark.parametrize("stage", found(), ids=lambda stage: stage.name)
def test_its_config_is_its_own_frozen_and_described(stage):
    config = stage.Config
    assert issubclass(config, Knobs)
    assert config is not Operator.Config
    assert config.model_config["frozen"]
    assert config.model_config["extra"] == "forbid"
    for name, field in config.model_fields.items():
        assert field.description, f"{stage.name}.{name} has no description"


@pytest.mark.parametrize("record", sorted(FLOWING, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_records_are_frozen_and_described(record):
    assert record.__doc__
    assert record.__dataclass_params__.frozen
    assert not record.__dataclass_params__.eq


@pytest.fixture(scope="module")
async def trail(tmp_path_factory):
    """A real query's records, from a host with the whole answer path and something to remember."""
    settings = load("test", overrides=[f"data_dir={tmp_path_factory.mktemp('kit')}"], env={}).settings
    host = Host(ANSWER_PATH, settings)
    await host.start()
    try:
        documents = [Document(**document) for document in DOCUMENTS]
        for nodes in (await host.nodes("default", documents)).nodes:
            await host.add("default", nodes)
        load_ = Load(tiers=tuple(TierLoad(tier=tier.name) for tier in settings.tiers))
        step = await host.prepare((QUERY, SessionState.new(), load_))
        records = {type(item): item for item in (QUERY, SessionState.new(), load_, *step.written)}
        yield host, records
    finally:
        await host.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ANSWER_PATH if name != "generate"])
async def test_a_stage_leaves_its_input_alone_repeats_itself_and_travels(trail, name):
    host, records = trail
    item = assemble(STAGES[name], records)
    before = frozen(item)
    first, second = await host.call(name, item), await host.call(name, item)
    assert frozen(item) == before
    assert close(first, second)
    assert type(first) is STAGES[name].writes()
    assert close(decode(type(first), encode(first)), first)
    assert close(pickle.loads(pickle.dumps(first)), first)
    pickle.loads(pickle.dumps(item))


@pytest.mark.slow
async def test_generate_streams_what_it_answers(trail):
    host, records = trail
    item = assemble(STAGES["generate"], records)
    assert isinstance(item, GenerateInput)
    before = frozen(item)
    pieces = [piece async for piece in host.stream(item)]
    assert frozen(item) == before
    assert [piece.answer is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert "".join(piece.text for piece in pieces) == pieces[-1].answer.text


def frozen(bundle):
    parts = [bundle] if type(bundle) in FLOWING else [getattr(bundle, f.name) for f in dataclasses.fields(bundle)]
    return [encode(part) for part in parts]


def close(a, b):
    """Equal, floats and arrays within rounding."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(close(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and np.allclose(a, b, atol=1e-6)
    if isinstance(a, float):
        return a == pytest.approx(b, abs=1e-6)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b
