"""Tenants never meet: random operations by several of them, held against a model that keeps them apart by construction.

Every tenant uses the same node ids, sources, words and vectors, so that whatever leaks would be found. The texts alone
differ: each names its owner. A short run by default; ``make soak`` runs 100,000 operations (RUVLLM_TEST_SOAK).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from operators.errors import Reject
from operators.records import RELATIONS, Filter
from operators.stores import backups, portable, removal
from operators.stores.consistency import check
from operators.stores.edges import EdgeMaker
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.lance import LanceStore
from operators.stores.lifecycle import update
from operators.stores.memory import Memory
from operators.stores.ports import Edge, Node, SearchRequest
from operators.stores.removal import Receipt
from pipeline.management import CALLS

DIM = 4
TENANTS = ("acme", "acme-2", "ACME")
"""Names that a prefix match or a comparison without case would confuse."""
WORDS = ("harbour", "lamp", "winter", "copper")
STEPS = 50
EXAMPLES = max(6, int(os.environ.get("RUVLLM_TEST_SOAK", "0")) // STEPS)

tenants = st.sampled_from(TENANTS)
numbers = st.integers(0, 11)
rarely = st.sampled_from([False] * 4 + [True])


def vector(direction: int) -> Any:
    made = np.full(DIM, 0.1, np.float32)
    made[direction % DIM] = 1.0
    return made / np.linalg.norm(made)


def node(tenant: str, number: int, version: int) -> Node:
    """Another version is another node with the same place in the same source."""
    return Node(
        node_id=f"n{number}v{version}",
        kind="document" if number % 3 else "interaction",
        text=f"{WORDS[number % len(WORDS)]} {number} {version} of {tenant}",
        vector=vector(number + version),
        source=f"s{number % 2}",
        session=f"s{number % 2}" if number % 3 == 0 else "",
        user=f"u{number % 4}",
        position=number,
        tokens=5,
        created_at=1.0 + number,
        metadata={"owner": tenant},
    )


class Tenants(RuleBasedStateMachine):
    """The memory on its real stores, and beside it one dictionary a tenant."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.model: dict[str, dict[str, Node]] = {tenant: {} for tenant in TENANTS}
        self.gone: dict[str, set[str]] = {tenant: set() for tenant in TENANTS}
        self.kept: dict[tuple[str, str], tuple[dict[str, Node], set[str]]] = {}  # (tenant, backup) → model, gone
        self.memory = self.build()

    def build(self) -> Memory:
        made = Memory(
            Memory.Config(edges=EdgeMaker.Config(similar_threshold=0.5, similar_top=3), publish_every_s=0),
            LanceStore(self.root / "vectors", DIM),
            KuzuGraph(self.root / "g.db", KuzuGraph.Config(buffer_pool_bytes=64 << 20, max_bytes=1 << 30)),
            self.root / "snapshots",
        )
        made.open()
        return made

    @rule(tenant=tenants, which=st.lists(numbers, min_size=1, max_size=4), version=st.integers(0, 2))
    def add(self, tenant: str, which: list[int], version: int) -> None:
        nodes = [node(tenant, number, version) for number in which]
        added = self.memory.add(tenant, nodes)
        assert set(added.new) == {n.node_id for n in nodes} - self.model[tenant].keys()
        for each in nodes:
            if each.node_id not in self.model[tenant]:
                self.model[tenant][each.node_id] = each
                self.gone[tenant].discard(each.node_id)
        assert self.memory.vectors.count(tenant) == self.memory.graph.count(tenant)[0] == len(self.model[tenant])

    @rule(tenant=tenants, pair=st.tuples(numbers, numbers), relation=st.sampled_from(RELATIONS))
    def join(self, tenant: str, pair: tuple[int, int], relation: Any) -> None:
        start, end = (f"n{number}v0" for number in pair)
        if {start, end} <= self.model[tenant].keys():
            edge = Edge(source_id=start, target_id=end, relation=relation, weight=0.5, created_at=1.0)
            self.memory.add(tenant, [], [edge])

    @rule(
        tenant=tenants,
        word=st.sampled_from([*WORDS, *TENANTS]),
        direction=numbers,
        mode=st.sampled_from(["hybrid", "vector", "text"]),
        where=st.sampled_from(
            [Filter(), Filter(kinds=("interaction",)), Filter(sources=("s1",)), Filter(sources=("s0' OR '1'='1",))]
        ),
    )
    def search(self, tenant: str, word: str, direction: int, mode: Any, where: Filter) -> None:
        request = SearchRequest(tenant=tenant, text=word, vector=vector(direction), k=100, mode=mode, filter=where)
        hits = self.memory.search(request).hits
        for hit in hits:
            own = self.model[tenant][hit.node_id]
            assert hit.text == own.text
            assert not where.kinds or own.kind in where.kinds
            assert not where.sources or own.source in where.sources
        if mode == "vector" and where == Filter():
            assert {hit.node_id for hit in hits} == self.model[tenant].keys()

    @rule(tenant=tenants, which=st.lists(numbers, min_size=1, max_size=3), version=st.integers(0, 2))
    def expand(self, tenant: str, which: list[int], version: int) -> None:
        seeds = [f"n{number}v{version}" for number in which]
        if self.model[tenant]:
            self.memory.publish(tenant)  # on a loaded machine the last addition may still wait for its turn
        around = self.memory.expand(tenant, seeds, hops=2, max_nodes=100, max_edges=1000, decay=0.7)
        assert set(around.node_ids[: around.seeds]) == self.model[tenant].keys() & set(seeds)
        assert list(around.texts) == [self.model[tenant][node_id].text for node_id in around.node_ids]

    @rule(tenant=st.sampled_from(["../acme", "acme/", "", ".acme", "acme\0", "a" * 65, "acme' OR '1'='1"]))
    def names_that_are_none(self, tenant: str) -> None:
        request = SearchRequest(tenant=tenant, text="lamp", vector=vector(0), k=5)
        for attempt in (
            lambda: self.memory.search(request),
            lambda: self.memory.add(tenant, [node("acme", 1, 0)]),
            lambda: self.memory.expand(tenant, ["n1v0"], hops=1, max_nodes=5, max_edges=5, decay=0.5),
        ):
            with pytest.raises(Reject):
                attempt()

    @rule(tenant=tenants)
    def optimize(self, tenant: str) -> None:
        self.memory.optimize(tenant)

    @rule(tenant=tenants, which=st.lists(numbers, min_size=1, max_size=3), version=st.integers(0, 2), purge=rarely)
    def remove(self, tenant: str, which: list[int], version: int, purge: bool) -> None:
        ids = [f"n{number}v{version}" for number in which]
        receipt = removal.remove(self.memory, tenant, ids, "x", purge=purge)
        self.removed(tenant, receipt, set(ids))
        self.gone[tenant] |= set(ids)  # those too that were not there

    @rule(tenant=tenants, field=st.sampled_from(["source", "session", "user"]), value=st.integers(0, 3))
    def remove_where(self, tenant: str, field: str, value: int) -> None:
        name = f"{'u' if field == 'user' else 's'}{value}"
        receipt = CALLS["remove_where"](self.memory, tenant, Filter(**{f"{field}s": (name,)}), "x", False)
        ids = {node_id for node_id, n in self.model[tenant].items() if getattr(n, field) == name}
        assert set(receipt.node_ids) == ids
        self.removed(tenant, receipt, ids)

    @rule(tenant=tenants)
    def drop(self, tenant: str) -> None:
        self.removed(tenant, removal.drop(self.memory, tenant, "x"), set(self.model[tenant]))
        assert tenant not in self.memory.vectors.tenants()

    def removed(self, tenant: str, receipt: Receipt, ids: set[str]) -> None:
        there = self.model[tenant].keys() & ids
        assert receipt.vectors == receipt.graph_nodes == len(there)
        assert receipt.tenant == tenant
        self.gone[tenant] |= there
        for node_id in there:
            del self.model[tenant][node_id]

    @rule(tenant=tenants, number=numbers, version=st.integers(0, 2), direction=numbers)
    def change(self, tenant: str, number: int, version: int, direction: int) -> None:
        node_id, text = f"n{number}v{version}", f"{WORDS[direction % len(WORDS)]} changed by {tenant}"
        if node_id not in self.model[tenant]:
            with pytest.raises(Reject, match="no node"):
                update(self.memory, tenant, node_id, {"quality": 0.5})
            return
        update(self.memory, tenant, node_id, {"text": text, "tokens": 3}, vector(direction))
        own = self.model[tenant][node_id]
        self.model[tenant][node_id] = dataclasses.replace(own, text=text, vector=vector(direction))

    @rule(tenant=tenants, name=st.sampled_from(["a", "b"]))
    def back_up(self, tenant: str, name: str) -> None:
        if (tenant, name) in self.kept:
            backups.remove(self.memory, tenant, name)
            del self.kept[tenant, name]
        elif self.model[tenant]:
            backups.take(self.memory, tenant, name, "encoder")
            self.kept[tenant, name] = dict(self.model[tenant]), set(self.gone[tenant])
        listed = {one.name for one in backups.listed(self.memory, tenant)}
        assert listed == {name for owner, name in self.kept if owner == tenant}

    @rule(tenant=tenants, name=st.sampled_from(["a", "b"]))
    def restore(self, tenant: str, name: str) -> None:
        if (tenant, name) not in self.kept:
            with pytest.raises(Reject, match="no export"):
                backups.restore(self.memory, tenant, name, "encoder")
            return
        backups.restore(self.memory, tenant, name, "encoder")
        own, gone = self.kept[tenant, name]
        self.model[tenant], self.gone[tenant] = dict(own), set(gone)

    @rule(tenant=tenants, owner=tenants, name=st.sampled_from(["a", "b"]))
    def take_over(self, tenant: str, owner: str, name: str) -> None:
        """What one tenant backed up is imported by another, on purpose."""
        if (owner, name) in self.kept:
            portable.add_all(self.memory, tenant, self.root / "backups" / owner / name, "encoder")
            for node_id, each in self.kept[owner, name][0].items():
                self.model[tenant].setdefault(node_id, each)
                self.gone[tenant].discard(node_id)

    @rule()
    def restart(self) -> None:
        self.memory.close()
        self.memory = self.build()

    def teardown(self) -> None:
        for tenant, own in self.model.items():
            stored = {n.node_id: n.text for batch in self.memory.vectors.scan(tenant) for n in batch}
            assert stored == {node_id: n.text for node_id, n in own.items()}
            for start, end, _, _ in self.memory.graph.edges(tenant):
                assert {start, end} <= own.keys()
            assert self.memory.graph.all_gone(tenant) == sorted(self.gone[tenant])
            assert check(self.memory, tenant).sound
        self.memory.close()
        shutil.rmtree(self.root)


@pytest.mark.slow
@pytest.mark.timeout(0 if "RUVLLM_TEST_SOAK" in os.environ else 300)
def test_no_tenant_ever_sees_another() -> None:
    run_state_machine_as_test(
        Tenants,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize="RUVLLM_TEST_SOAK" not in os.environ,
        ),
    )
