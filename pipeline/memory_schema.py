"""Requests and responses of the endpoints that look after the memory; ``schema`` has the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from operators.records import Kind
from pipeline.schema import In, Out, Text

Id = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(max_length=1000)]
Strings = Annotated[dict[str, Annotated[str, Field(max_length=2000)]], Field(max_length=32)]


class NodeOut(Out):
    """One node. ``history``: its changes, oldest first. Times are Unix seconds, ``expires_at`` 0 means never.

    ``metadata`` of a remembered answer says where it comes from (``interaction``, ``tier``, ``checkpoint``, ``judge``);
    ``count`` is how many equal answers it stands for, ``last_seen`` when the last came.
    """

    node_id: str
    kind: Kind
    text: str
    domain: str
    source: str
    session: str
    user: str
    position: int
    tokens: int
    created_at: float
    quality: float
    model: str
    expires_at: float
    metadata: dict[str, str]
    history: list[dict[str, Any]]


class EdgeOut(Out):
    """One edge, both ends by node id."""

    source_id: str
    target_id: str
    relation: str
    weight: float
    created_at: float


class NodeWithEdges(NodeOut):
    """One node and the edges that start or end there."""

    edges: list[EdgeOut]


class NodesOut(Out):
    """Nodes, newest first. ``after`` asks for the next page; empty on the last."""

    nodes: list[NodeOut]
    total: int
    after: str


class NodeChange(In):
    """``PATCH /v1/memory/nodes/{node_id}``: what is given is changed. A changed text is masked and embedded anew."""

    text: Text | None = None
    domain: Name | None = None
    source: Name | None = None
    quality: float | None = Field(None, ge=0, le=1)
    expires_at: float | None = Field(None, ge=0, description="Unix seconds; 0 means never")
    metadata: Strings | None = None

    @model_validator(mode="after")
    def _something(self) -> NodeChange:
        if all(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("nothing to change; give a field")
        return self


class Removal(In):
    """``POST /v1/memory/delete``: exactly one of the fields says what goes."""

    node_ids: Annotated[list[Id], Field(min_length=1, max_length=10_000)] | None = None
    source: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    session: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    user: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    everything: Literal[True] | None = None
    purge: bool = Field(False, description="also remove the old versions of the store's files at once; slower")

    @model_validator(mode="after")
    def _one(self) -> Removal:
        ways = (self.node_ids, self.source, self.session, self.user, self.everything)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("give exactly one of node_ids, source, session, user, everything")
        return self


class ReceiptOut(Out):
    """What a removal did: ids asked for, how many rows, graph nodes and edges went, and what ``remains`` where."""

    receipt_id: str
    tenant: str
    reason: str
    asked_at: float
    done_at: float
    node_ids: list[str]
    whole_tenant: bool
    vectors: int
    graph_nodes: int
    graph_edges: int
    snapshot: int
    purged: bool
    remains: list[str]


class RememberItem(In):
    """One judged answer to remember, as the write-back job found it good. ``cites``: nodes it was made from.

    ``partition`` and ``offset`` name the event, so that one that comes twice counts once.
    """

    interaction_id: Id
    session: Annotated[str, Field(max_length=200)]
    user: Annotated[str, Field(max_length=200)] = ""
    turn: Annotated[int, Field(ge=0, lt=2**31)]
    text: Text
    quality: float = Field(ge=0, le=1)
    model: Name
    created_at: float
    rated_at: float
    domain: Name = ""
    cites: Annotated[tuple[Id, ...], Field(max_length=64)] = ()
    metadata: Strings | None = None
    partition: Annotated[str, Field(min_length=1, max_length=300)]
    offset: Annotated[int, Field(ge=0)]


class RememberRequest(In):
    """``POST /v1/admin/memory/remember``: items of one tenant, in the order of their events."""

    tenant: Id
    items: Annotated[list[RememberItem], Field(min_length=1, max_length=256)]


class RememberedOut(Out):
    """What became of one item; ``partner`` is the node that a duplicate strengthened."""

    interaction_id: str
    node_id: str
    outcome: str
    partner: str
    similarity: float
    jaccard: float


class RememberResponse(Out):
    """One result an item, in order. Durable and findable when this arrives."""

    results: list[RememberedOut]


class Withdrawal(In):
    """``POST /v1/admin/memory/withdraw``: interactions whose user said that the answer was bad."""

    tenant: Id
    interaction_ids: Annotated[list[Id], Field(min_length=1, max_length=256)]


class AddedOut(Out):
    """New nodes, nodes that were there, new edges."""

    added: int
    duplicates: int
    edges: int = 0


class TenantIn(In):
    """Whose memory."""

    tenant: Id


class CheckIn(TenantIn):
    """``POST /v1/admin/memory/check``."""

    repair: bool = False


class ConsistencyOut(Out):
    """What the comparison of the stores found; ``sound``: nothing wrong."""

    tenant: str
    nodes: int
    edges: int
    only_vectors: int
    only_graph: int
    repeated: int
    returned: int
    snapshot_stale: bool
    repaired: bool
    examples: dict[str, list[str]]
    sound: bool


class ExportIn(TenantIn):
    """``POST /v1/admin/memory/export``: to a new directory on the service's machine."""

    directory: Annotated[str, Field(min_length=1, max_length=4000)]


class ImportIn(ExportIn):
    """``POST /v1/admin/memory/import``: add an export to what is there, or put it in its place (``replace``)."""

    replace: bool = False


class BackupIn(TenantIn):
    """A backup by name."""

    name: Annotated[str, Field(min_length=1, max_length=64)]


class ManifestOut(Out):
    """What an export or a backup holds."""

    name: str = ""
    tenant: str
    created_at: float
    encoder: str
    dim: int
    nodes: int
    edges: int
    gone: int


class FeedbackIn(In):
    """``POST /v1/feedback``: what a user says of an answer, by ``rating`` or by ``score``."""

    interaction_id: Id = Field(description="`ruvllm.interaction_id` of the answer")
    session: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="`ruvllm.session` of the answer, if the header x-session-id does not name it"
    )
    rating: Literal["up", "down"] | None = None
    score: float | None = Field(None, ge=0, le=1, description="1 is good")
    correction: Annotated[str, Field(max_length=32_000)] = Field(
        "", description="the answer that would have been right"
    )

    @model_validator(mode="after")
    def _one(self) -> FeedbackIn:
        if (self.rating is None) == (self.score is None):
            raise ValueError("give either rating or score")
        return self


class FeedbackOut(Out):
    """The feedback was taken; it takes effect within seconds. The same one again changes nothing."""

    event_id: str
