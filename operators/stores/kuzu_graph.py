"""The durable graph in Kùzu (or its fork Ladybug).

One file for all tenants; a node's id there is ``<tenant>/<node id>``, and as no tenant's name holds a slash, tenants
can never meet. Reads are rare: the hot path reads the snapshot. Rows go in by COPY: a MERGE or MATCH of single rows
scans the node table, seconds for a thousand edges.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from operators.errors import Skip
from operators.records import RELATIONS, Kind, Relation
from operators.stores.kuzu_file import KuzuFile
from operators.stores.ports import Edge
from operators.stores.tenants import check_tenant

FEW = 1000
"""Up to this many ids are looked up by list; for more it is faster to read all of the tenant."""
_SCHEMA = (
    "CREATE NODE TABLE IF NOT EXISTS Node(id STRING PRIMARY KEY, tenant STRING, kind STRING, created_at DOUBLE)",
    "CREATE REL TABLE IF NOT EXISTS Edge(FROM Node TO Node, rel INT8, weight DOUBLE, created_at DOUBLE, "
    "valid_from DOUBLE, valid_to DOUBLE, source STRING)",
    "CREATE NODE TABLE IF NOT EXISTS Gone(id STRING PRIMARY KEY, tenant STRING, at DOUBLE)",
)


class KuzuGraph:
    """``GraphStore`` on Kùzu. Any thread may call it."""

    class Config(KuzuFile.Config):
        """The knobs of the graph store."""

    def __init__(self, path: Path, config: Config | None = None) -> None:
        self._file = KuzuFile(path, config or self.Config(), _SCHEMA)

    def open(self) -> None:
        """Open or create. Raises ``Stop`` when another process owns it or the file can't be used."""
        self._file.open()

    def upsert(
        self, tenant: str, node_ids: Sequence[str], kinds: Sequence[Kind], edges: Sequence[Edge], created_at: float
    ) -> None:
        """Write nodes and edges in one transaction; edges whose ends are unknown raise ``Skip`` and write nothing.

        ``created_at`` (Unix seconds) is that of the nodes. What is there already stays, but for an edge's weight.
        """
        kind_of = dict(zip((_key(tenant, node_id) for node_id in node_ids), kinds, strict=True))
        edge_of = {_edge_key(tenant, edge): edge for edge in edges}
        with self._file.door(), self._file.transaction():
            ends = {key for s, t, _ in edge_of for key in (s, t)}
            known = self._known(tenant, ends | kind_of.keys())
            lost = sorted(ends - known - kind_of.keys())
            if lost:
                got = f"{len(lost)} ends of edges are no nodes of tenant {tenant!r}, e.g. {lost[0]!r}"
                raise Skip("graph", got, "write the nodes first")
            self._copy_nodes(tenant, [(key, kind, created_at) for key, kind in kind_of.items() if key not in known])
            for some in _slices(sorted(kind_of)):  # written on purpose: no longer gone
                self._file.run("MATCH (g:Gone) WHERE g.id IN $keys DELETE g", keys=some)
            weights = self._weights(tenant, {s for s, _, _ in edge_of} & known)
            self._copy_edges({key: edge for key, edge in edge_of.items() if key not in weights})
            changed = {k: e.weight for k, e in edge_of.items() if weights.get(k, e.weight) != e.weight}
            if changed:
                self._file.run(
                    "UNWIND $rows AS r MATCH (a:Node {id: r.s})-[e:Edge]->(b:Node {id: r.t}) WHERE e.rel = r.rel "
                    "SET e.weight = r.weight",
                    rows=[{"s": s, "t": t, "rel": rel, "weight": float(w)} for (s, t, rel), w in changed.items()],
                )

    def remove(self, tenant: str, node_ids: Sequence[str], *, gone_at: float | None = None) -> tuple[int, int]:
        """Remove nodes and their edges in one transaction; returns how many of each. With ``gone_at`` (Unix seconds)
        the ids are remembered as ``gone``, whether they were there or not."""
        keys = sorted({_key(tenant, node_id) for node_id in node_ids})
        with self._file.door(), self._file.transaction():
            before = self._count(tenant)
            for some in _slices(keys):
                self._file.run("MATCH (a:Node) WHERE a.id IN $keys DETACH DELETE a", keys=some)
            if gone_at is not None:
                self._remember_gone(tenant, keys, gone_at)
            after = self._count(tenant)
        return before[0] - after[0], before[1] - after[1]

    def gone(self, tenant: str, node_ids: Sequence[str]) -> dict[str, float]:
        """Which of ``node_ids`` were removed for good and must not come back by themselves, and when (Unix seconds)."""
        keys, cut = sorted({_key(tenant, node_id) for node_id in node_ids}), len(_key(tenant, ""))
        with self._file.door():
            return {key[cut:]: at for some in _slices(keys) for key, at in self._gone(some)}

    def all_gone(self, tenant: str) -> list[str]:
        """Every id that was removed for good, sorted."""
        cut = len(_key(tenant, ""))
        with self._file.door():
            rows = self._file.run("MATCH (g:Gone) WHERE g.tenant = $tenant RETURN g.id", tenant=tenant)
        return sorted(key[cut:] for (key,) in rows)

    def replace(
        self,
        tenant: str,
        nodes: Sequence[tuple[str, Kind, float]],
        edges: Sequence[Edge],
        gone: Mapping[str, float] | None = None,
    ) -> None:
        """Make ``nodes`` (id, kind, created_at), ``edges`` and ``gone`` (id → when) all that the tenant has, in one
        transaction."""
        check_tenant("graph", tenant)
        with self._file.door(), self._file.transaction():
            self._file.run("MATCH (a:Node) WHERE a.tenant = $tenant DETACH DELETE a", tenant=tenant)
            self._file.run("MATCH (g:Gone) WHERE g.tenant = $tenant DELETE g", tenant=tenant)
            self._copy_nodes(tenant, [(_key(tenant, node_id), kind, at) for node_id, kind, at in nodes])
            known = {node_id for node_id, _, _ in nodes}
            lost = [edge for edge in edges if not {edge.source_id, edge.target_id} <= known]
            if lost:
                raise Skip("graph", f"{len(lost)} edges without their nodes", "give the nodes too")
            self._copy_edges({_edge_key(tenant, edge): edge for edge in edges})
            self._copy_gone(tenant, {_key(tenant, node_id): at for node_id, at in (gone or {}).items()})

    def node_ids(self, tenant: str) -> set[str]:
        """Every node's id."""
        cut = len(_key(tenant, ""))
        with self._file.door():
            return {key[cut:] for (key,) in self._file.run("MATCH (a:Node) WHERE a.tenant = $t RETURN a.id", t=tenant)}

    def edges_at(self, tenant: str, node_ids: Sequence[str]) -> list[Edge]:
        """Every live edge that starts or ends at one of ``node_ids``."""
        keys, cut = sorted({_key(tenant, node_id) for node_id in node_ids}), len(_key(tenant, ""))
        found: dict[tuple[str, str, int], Edge] = {}
        with self._file.door():
            for end, some in itertools.product("ab", _slices(keys)):
                rows = self._file.run(
                    f"MATCH (a:Node)-[e:Edge]->(b:Node) WHERE {end}.id IN $keys AND e.valid_to = 0.0 "
                    "RETURN a.id, b.id, e.rel, e.weight, e.created_at",
                    keys=some,
                )
                for s, t, rel, weight, at in rows:
                    found[s, t, rel] = Edge(
                        source_id=s[cut:], target_id=t[cut:], relation=RELATIONS[rel], weight=weight, created_at=at
                    )
        return list(found.values())

    def cut(self, tenant: str, node_id: str, relation: Relation) -> int:
        """Remove the node's edges of one relation, both ways; returns how many."""
        key, rel = _key(tenant, node_id), RELATIONS.index(relation)
        with self._file.door(), self._file.transaction():
            before = self._count(tenant)[1]
            for pattern in ("(a:Node)-[e:Edge]->(:Node)", "(a:Node)<-[e:Edge]-(:Node)"):
                self._file.run(f"MATCH {pattern} WHERE a.id = $key AND e.rel = $rel DELETE e", key=key, rel=rel)
            return before - self._count(tenant)[1]

    def edges(self, tenant: str) -> Iterable[tuple[str, str, int, float]]:
        """Every live edge as (source_id, target_id, relation index, weight)."""
        cut = len(_key(tenant, ""))
        with self._file.door():
            rows = self._file.run(
                "MATCH (a:Node)-[e:Edge]->(b:Node) WHERE a.tenant = $tenant AND e.valid_to = 0.0 "
                "RETURN a.id, b.id, e.rel, e.weight",
                tenant=tenant,
            )
        return [(s[cut:], t[cut:], relation, weight) for s, t, relation, weight in rows]

    def expand(self, tenant: str, node_ids: Sequence[str], hops: int) -> set[str]:
        """Known nodes among ``node_ids`` and all within ``hops`` of them, both ways. The slow, exact reference."""
        cut, keys = len(_key(tenant, "")), sorted({_key(tenant, node_id) for node_id in node_ids})
        path = f"-[e:Edge*0..{int(hops)} (r, n | WHERE r.valid_to = 0.0)]-(b:Node)" if hops else ""
        with self._file.door():
            rows = self._file.run(
                f"MATCH (a:Node){path} WHERE a.id IN $keys RETURN DISTINCT {'b' if hops else 'a'}.id", keys=keys
            )
        return {key[cut:] for (key,) in rows}

    def count(self, tenant: str) -> tuple[int, int]:
        """(nodes, edges)."""
        check_tenant("graph", tenant)
        with self._file.door():
            return self._count(tenant)

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file."""
        with self._file.door():
            self._file.run("CHECKPOINT")

    def close(self) -> None:
        """Checkpoint and release the file; safe to call twice."""
        self._file.close()

    # ------------------------------------------------------------------------------------------------ statements

    def _count(self, tenant: str) -> tuple[int, int]:
        nodes = self._file.run("MATCH (a:Node) WHERE a.tenant = $tenant RETURN count(*)", tenant=tenant)
        edges = self._file.run(
            "MATCH (a:Node)-[e:Edge]->(b:Node) WHERE a.tenant = $tenant AND e.valid_to = 0.0 RETURN count(*)",
            tenant=tenant,
        )
        return int(nodes[0][0]), int(edges[0][0])

    def _gone(self, keys: Sequence[str]) -> list[tuple[str, float]]:
        rows = self._file.run("MATCH (g:Gone) WHERE g.id IN $keys RETURN g.id, g.at", keys=list(keys))
        return [(key, at) for key, at in rows]

    def _remember_gone(self, tenant: str, keys: Sequence[str], at: float) -> None:
        for some in _slices(keys):
            self._file.run("MATCH (g:Gone) WHERE g.id IN $keys SET g.at = $at", keys=some, at=float(at))
        new = sorted(set(keys) - {key for some in _slices(keys) for key, _ in self._gone(some)})
        self._copy_gone(tenant, dict.fromkeys(new, at))

    def _copy_gone(self, tenant: str, at_of: Mapping[str, float]) -> None:
        import pyarrow as pa

        if at_of:
            ids, at = sorted(at_of), [float(at_of[key]) for key in sorted(at_of)]
            rows = pa.table({"id": ids, "tenant": [tenant] * len(ids), "at": at})
            self._file.run("COPY Gone FROM $rows", rows=rows)

    def _known(self, tenant: str, keys: set[str]) -> set[str]:
        if not keys:
            return set()
        if len(keys) <= FEW:
            rows = self._file.run("MATCH (a:Node) WHERE a.id IN $keys RETURN a.id", keys=sorted(keys))
        else:
            rows = self._file.run("MATCH (a:Node) WHERE a.tenant = $tenant RETURN a.id", tenant=tenant)
        return {key for (key,) in rows} & keys

    def _weights(self, tenant: str, sources: set[str]) -> dict[tuple[str, str, int], float]:
        """The stored edges that start at ``sources``, with their weights."""
        if not sources:
            return {}
        where, parameters = ("a.id IN $keys", {"keys": sorted(sources)})
        if len(sources) > FEW:
            where, parameters = ("a.tenant = $tenant", {"tenant": tenant})  # type: ignore[dict-item]
        rows = self._file.run(
            f"MATCH (a:Node)-[e:Edge]->(b:Node) WHERE {where} RETURN a.id, b.id, e.rel, e.weight", **parameters
        )
        return {(s, t, relation): weight for s, t, relation, weight in rows}

    def _copy_nodes(self, tenant: str, nodes: Sequence[tuple[str, Kind, float]]) -> None:
        import pyarrow as pa

        if nodes:
            columns = {name: [node[i] for node in nodes] for i, name in enumerate(("id", "kind", "created_at"))}
            table = pa.table({"id": columns["id"], "tenant": [tenant] * len(nodes), "kind": columns["kind"]})
            self._file.run("COPY Node FROM $rows", rows=table.append_column("created_at", [columns["created_at"]]))

    def _copy_edges(self, edge_of: dict[tuple[str, str, int], Edge]) -> None:
        import pyarrow as pa

        if not edge_of:
            return
        edges, created = list(edge_of.values()), [float(edge.created_at) for edge in edge_of.values()]
        table = pa.table(
            {
                "from": [key[0] for key in edge_of],
                "to": [key[1] for key in edge_of],
                "rel": pa.array([key[2] for key in edge_of], pa.int8()),
                "weight": [float(edge.weight) for edge in edges],
                "created_at": created,
                "valid_from": created,
                "valid_to": [0.0] * len(edges),
                "source": [""] * len(edges),
            }
        )
        self._file.run("COPY Edge FROM $rows", rows=table)


def _key(tenant: str, node_id: str) -> str:
    return f"{check_tenant('graph', tenant)}/{node_id}"


def _edge_key(tenant: str, edge: Edge) -> tuple[str, str, int]:
    return _key(tenant, edge.source_id), _key(tenant, edge.target_id), RELATIONS.index(edge.relation)


def _slices(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """``keys`` in parts that a statement takes well."""
    return (keys[begin : begin + FEW] for begin in range(0, len(keys), FEW))
