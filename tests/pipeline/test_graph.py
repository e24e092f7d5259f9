"""The graph is checked when it is built, and chains run stages with exactly the records they read."""

import numpy as np
import pytest

from operators import FLOW
from operators.base import Operator
from operators.errors import Stop
from operators.records import Embedded, Hits, Load, Query, Route, SessionState, record
from pipeline.graph import ANSWER_PATH, PLANS, STAGES, Chain, assemble, check, needs, plan


def test_the_real_graph_is_sound_and_in_flow_order():
    check()
    assert tuple(STAGES) == FLOW


def test_a_stage_that_reads_what_nobody_wrote_is_named():
    @record
    class Early:
        query: Query
        route: Route

    class Search(Operator[Early, Hits]):
        name = "search"

        async def run(self, batch):
            return []

    with pytest.raises(Stop, match=r"graph: search: reads Route, which no earlier stage writes"):
        check({**STAGES, "search": Search})


def test_a_record_has_one_writer():
    class Search(Operator[Embedded, Embedded]):
        name = "search"

        async def run(self, batch):
            return []

    with pytest.raises(Stop, match="writes Embedded again"):
        check({**STAGES, "search": Search})


def test_stages_out_of_order_are_refused():
    with pytest.raises(Stop, match="in this order"):
        check(dict(reversed(STAGES.items())))


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_covers_the_answer_path(name):
    assert tuple(stage for chain in plan(name) for stage in chain) == ANSWER_PATH


def test_a_chain_is_sent_only_what_it_reads():
    sent = {part.__name__ for part in needs(("search", "expand"))}
    assert sent == {"Query", "Embedded"}
    assert "Hits" not in {part.__name__ for part in needs(("embed",))}


class Half(Operator[Query, Embedded]):
    name = "embed"
    max_batch = 4

    def __init__(self):
        super().__init__()
        self.batches = []

    async def run(self, batch):
        self.batches.append(len(batch))
        return [
            Embedded(vector=np.full(2, len(q.text), np.float32), tokens=1, truncated=False, encoder="x") for q in batch
        ]


@record
class Both:
    query: Query
    embedded: Embedded


class Count(Operator[Both, Hits]):
    name = "search"

    async def run(self, batch):
        return [Hits(hits=(), vectors=item.embedded.vector[None, :0], mode="text") for item in batch]


def query(text="abc"):
    return Query(interaction_id="i", tenant="t", session="s", text=text, messages=(), created_at=0.0)


async def test_a_chain_hands_each_stage_its_bundle_and_times_it():
    chain = Chain([Half(), Count()])
    step = await chain.prepare((query(), SessionState.new(), Load(tiers=())))
    assert [type(item).__name__ for item in step.written] == ["Embedded", "Hits"]
    assert set(step.timings) == {"embed", "search"}
    assert all(seconds >= 0 for seconds in step.timings.values())


def test_bundles_are_filled_by_type_not_by_position():
    trail = {Embedded: "e", Query: "q"}
    bundle = assemble(Count, trail)
    assert (bundle.query, bundle.embedded) == ("q", "e")


async def test_a_stage_that_loses_a_record_is_caught():
    class Loses(Half):
        async def run(self, batch):
            return []

    with pytest.raises(Stop, match="0 outputs for 1 inputs"):
        await Chain([Loses()]).prepare((query(),))
