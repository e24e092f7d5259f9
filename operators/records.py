"""The records that flow between stages, one frozen class an arrow.

    Query ─embed→ Embedded ─search→ Hits ─expand→ Neighbourhood ─route→ Route ─attend→ Context
          ─generate→ Answer;  Interaction (all of it, completed) ─judge→ Verdict

Durations are seconds, times are Unix seconds (UTC), sizes say bytes or tokens by name. Arrays state dtype and
shape; they are read-only by convention: a stage never writes into what it was given. ``encode``/``decode`` turn any
record into JSON and back and check it on the way in, and ``json_schema`` describes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter, WithJsonSchema
from pydantic_core import from_json

T = TypeVar("T")

SCHEMA_VERSION = 1
HIDDEN = 64
"""Size of the router's hidden state (design §9)."""
FEATURES = 128
"""Number of features the router reads (design §9)."""

Kind = Literal["document", "interaction", "summary"]
Mode = Literal["hybrid", "vector", "text"]
"""How memory is searched: by words and meaning together, or by one of them."""
Relation = Literal["similar", "next_turn", "next_chunk", "cites", "same_source"]
RELATIONS: tuple[Relation, ...] = ("similar", "next_turn", "next_chunk", "cites", "same_source")
"""Edges carry a relation as its index in this tuple (int8)."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, slotted, keyword-only dataclass without ``==`` (arrays have none that is a bool)."""
    made = dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)(cls)
    config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", allow_inf_nan=False)
    made.__pydantic_config__ = config  # type: ignore[attr-defined]
    return made


def _numbers(value: object, dtype: str, length: int | None) -> npt.NDArray[Any]:
    """``value``, nested lists, as an ndarray, of the shape [length] if there is one. Raises ``ValueError``, as pydantic
    wants it, for all that is none."""
    try:
        with np.errstate(over="ignore"):
            made = np.asarray(value, dtype=dtype)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"no array of {dtype}: {error}") from None
    if not np.isfinite(made).all():
        raise ValueError(f"a number that is no finite {dtype}")
    if length is not None and made.shape != (length,):
        raise ValueError(f"shape {list(made.shape)}, not [{length}]")
    return made


def _array(dtype: str, item: str, length: int | None = None) -> Any:
    """An ndarray of ``dtype`` that pydantic reads from nested lists and writes as them; ``length``: its one axis'."""
    size = {} if length is None else {"minItems": length, "maxItems": length}
    return Annotated[
        npt.NDArray[Any],
        PlainValidator(lambda value: _numbers(value, dtype, length)),
        PlainSerializer(lambda value: value.tolist(), when_used="json"),
        WithJsonSchema({"type": "array", "items": {"type": item}, **size}),
    ]


# mypy reads the first branch, pydantic the second; both see an ndarray of the named dtype.
F32 = Annotated[npt.NDArray[np.float32], *_array("float32", "number").__metadata__]
I32 = Annotated[npt.NDArray[np.int32], *_array("int32", "integer").__metadata__]
I8 = Annotated[npt.NDArray[np.int8], *_array("int8", "integer").__metadata__]
Hidden = Annotated[npt.NDArray[np.float32], *_array("float32", "number", HIDDEN).__metadata__]
Features = Annotated[npt.NDArray[np.float32], *_array("float32", "number", FEATURES).__metadata__]

Id = Annotated[str, Field(min_length=1, max_length=200)]
"""A name that outside producers choose, too."""
TENANT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"
"""What names a tenant, as a regular expression: it can be a directory's name."""
Tenant = Annotated[str, Field(pattern=f"^{TENANT}$")]
Share = Annotated[float, Field(ge=0, le=1)]


# ---------------------------------------------------------------------------------------------------- what is asked


@record
class Message:
    """One message of the conversation, as the caller sent it."""

    role: Literal["system", "user", "assistant"]
    content: str


@record
class Sampling:
    """What the caller fixed about the generation; ``None`` leaves it to the route.

    ``max_tokens`` counts completion tokens. ``tier`` is a tier's name. ``logprobs`` asks how likely each token was.
    """

    tier: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False


@record
class Filter:
    """Which nodes a search may return; empty means any. Times are Unix seconds; both ends are inclusive."""

    kinds: tuple[Kind, ...] = ()
    domains: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    created_from: float | None = None
    created_to: float | None = None

    @property
    def open(self) -> bool:
        """Whether it lets every node pass."""
        return all(getattr(self, field.name) == field.default for field in dataclasses.fields(self))


@record
class Query:
    """A turn: what is asked, by whom. ``text`` is the last user message, ``messages`` the whole conversation with it.

    ``interaction_id`` is a UUIDv7. ``k`` is the number of hits wanted, ``mode`` how they are searched for (``None``:
    the profile's). ``quality_bias`` in [0, 1] trades quality against cost and latency for this request (1: quality
    alone counts). ``user`` is the person that the caller says is asking, empty if it says nothing; what is remembered
    of them can be deleted by it.
    """

    interaction_id: str
    tenant: str
    session: str
    text: str
    messages: tuple[Message, ...]
    user: str = ""
    sampling: Sampling = Sampling()
    filter: Filter = Filter()
    created_at: float
    k: int | None = None
    mode: Mode | None = None
    quality_bias: float = 0.5
    explain: bool = False


@record
class SessionState:
    """What the service remembers of a session. ``hidden``: float32[64], the router's state after the last turn.

    ``turn`` counts completed turns, so it is 0 at the first query. ``last_interaction`` is the id of the last of them,
    ``last_verdict`` what is known of it by now.
    """

    turn: int
    hidden: F32
    last_tier: str | None = None
    last_verdict: float | None = None
    last_interaction: str = ""

    @classmethod
    def new(cls) -> SessionState:
        """The state of a session that has not begun: turn 0, hidden zeros."""
        return cls(turn=0, hidden=np.zeros(HIDDEN, np.float32))


@record
class TierLoad:
    """One tier now: can it serve, how many requests wait or run, and is the session's prefix warm (0…1)."""

    tier: str
    available: bool = True
    queue: int = 0
    warm: float = 0.0


@record
class Load:
    """The system as the router sees it. ``tiers`` lists every tier of the profile, smallest first."""

    tiers: tuple[TierLoad, ...]
    latency_budget_s: float | None = None


# ---------------------------------------------------------------------------------------------------- stage by stage


@record
class Embedded:
    """The query as a vector. ``vector``: float32[dim], L2-normalised. ``tokens`` counts before truncation."""

    vector: F32
    tokens: int
    truncated: bool
    encoder: str


@record
class Hit:
    """One search result. ``score`` in [0, 1] is what ranked it: words and meaning fused, of the node and its neighbours
    in the session or document; ``similarity`` is the node's own cosine, ``text_score`` its own BM25 (0: none).

    ``tokens`` counts the text in the encoder's tokens.
    ``model`` is what answered an interaction (``Node.model``: a tier's name or a model's id), empty for documents.
    """

    node_id: str
    kind: Kind
    text: str
    source: str
    domain: str
    created_at: float
    quality: float
    tokens: int
    score: float
    similarity: float
    text_score: float
    model: str = ""


@record
class Hits:
    """Search results, best first. ``vectors``: float32[len(hits), dim], row i belongs to ``hits[i]``."""

    hits: tuple[Hit, ...]
    vectors: F32
    mode: Mode
    degraded: tuple[str, ...] = ()

    @classmethod
    def none(cls, *degraded: str) -> Hits:
        """Nothing found, with what is away."""
        return cls(hits=(), vectors=np.zeros((0, 0), np.float32), mode="hybrid", degraded=degraded)


@record
class Neighbourhood:
    """The subgraph around the hits: n nodes (the hits first, in their order), m edges.

    ``vectors`` float32[n, dim], or [n, 0] where nobody reads them; ``hop`` int32[n], 0 for hits; ``score`` and
    ``similarity`` float32[n] (score is 0 for nodes that were not hits); ``tokens`` int32[n]; edges as indices into the
    nodes: ``edge_from``, ``edge_to`` int32[m], ``edge_relation`` int8[m] (index into RELATIONS), ``edge_weight``
    float32[m]. ``snapshot`` is the version of the CSR snapshot that was read; ``truncated`` says that a cap on nodes or
    edges cut the expansion short. ``mode`` is the search's.
    """

    node_ids: tuple[str, ...]
    kinds: tuple[Kind, ...]
    texts: tuple[str, ...]
    sources: tuple[str, ...]
    vectors: F32
    hop: I32
    score: F32
    similarity: F32
    tokens: I32
    edge_from: I32
    edge_to: I32
    edge_relation: I8
    edge_weight: F32
    snapshot: int
    truncated: bool
    mode: Mode = "hybrid"
    degraded: tuple[str, ...] = ()

    @classmethod
    def none(cls, *degraded: str) -> Neighbourhood:
        """No node, with what is away."""
        reals, integers = np.zeros(0, np.float32), np.zeros(0, np.int32)
        return cls(
            node_ids=(),
            kinds=(),
            texts=(),
            sources=(),
            vectors=np.zeros((0, 0), np.float32),
            hop=integers,
            score=reals,
            similarity=reals,
            tokens=integers,
            edge_from=integers,
            edge_to=integers,
            edge_relation=np.zeros(0, np.int8),
            edge_weight=reals,
            snapshot=0,
            truncated=False,
            degraded=degraded,
        )


@record
class FeatureEffect:
    """How much one named feature moved the decision: ``effect`` is the change of the chosen tier's logit."""

    feature: str
    value: float
    effect: float


@record
class ShadowRoute:
    """What a checkpoint that is only watched would have done: its ``tier`` and its ``confidence``.

    ``propensity`` is the chance that it gives to the tier that was really taken; divided by the route's own, it says
    how much the verdict of this turn tells of the watched checkpoint.
    """

    checkpoint: str
    tier: str
    confidence: float
    propensity: float


@record
class Route:
    """The routing decision. ``propensity`` is the probability with which all drawn parts were drawn together.

    ``probabilities`` maps tier → probability after masking, ``propensities`` maps each drawn part (``"tier"``,
    ``"context_tokens"``) to its own probability. ``confidence`` in [0, 1] is the calibrated probability that the
    verdict will reach the threshold. ``hidden`` float32[64] is the session's next state, ``features`` float32[128] what
    was read. ``reason``: ``router``, ``explored``, ``low_confidence`` (the safe route) or ``caller`` (named the tier).
    ``checkpoint`` names the weights that decided, ``shadow`` is what others, which are only watched, would have done.
    """

    tier: str
    context_tokens: int
    temperature: float
    top_p: float
    confidence: float
    probabilities: dict[str, float]
    propensity: float
    propensities: dict[str, float]
    checkpoint: str
    reason: Literal["router", "explored", "low_confidence", "caller"]
    hidden: Hidden
    features: Features
    explanation: tuple[FeatureEffect, ...] = ()
    shadow: ShadowRoute | None = None


@record
class Passage:
    """A node chosen for the context. ``score`` ranks it; ``attention`` is its mean weight (0 if not attended). A model
    wrote the text of every ``kind`` but ``document``. An outside producer's passage that is no node has no ``node_id``.
    """

    node_id: str = ""
    kind: Kind = "document"
    source: str = ""
    text: str
    tokens: int = 0
    score: float = 0.0
    attention: float = 0.0


@record
class Context:
    """What the engine gets to read, best first. ``tokens`` sums the passages' encoder tokens.

    ``ranking`` says what ordered the passages; ``duplicates`` counts nodes dropped as near-copies; ``summary`` is
    extractive: the sentences of the passages nearest to the query.
    """

    passages: tuple[Passage, ...]
    tokens: int
    ranking: Literal["attention", "similarity", "none"]
    duplicates: int = 0
    summary: str = ""
    degraded: tuple[str, ...] = ()


FinishReason = Literal["stop", "length", "cancelled"]


@record
class TokenLogprob:
    """One token of an answer: its ``text`` (half a character shows as U+FFFD) and natural ``logprob``, of the model's
    own distribution before temperature and top-p."""

    text: str
    logprob: float


@record
class Piece:
    """A part of an answer as the engine yields it. The last one has ``answer`` set, and it alone.

    ``logprobs`` has the tokens sampled since the last piece, if they were asked for.
    """

    text: str
    answer: Answer | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@record
class Answer:
    """A finished generation. ``used`` names the nodes that were really in the prompt, in its order.

    ``cached_tokens`` of ``prompt_tokens`` were not computed again. ``first_token_s`` and ``duration_s`` count from the
    moment the engine was asked. ``logprobs`` has every sampled token, the one that ended the answer too, if they were
    asked for.
    """

    text: str
    tier: str
    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    used: tuple[str, ...] = ()
    first_token_s: float = 0.0
    duration_s: float = 0.0
    degraded: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


# ---------------------------------------------------------------------------------------------------- for the topics


@record
class Request:
    """A question on a topic. What is asked are ``messages``, oldest first, and then ``text`` as the user's last one.

    ``event_id`` is the producer's: the same again is the same request, and gets no second answer. ``session`` names the
    conversation, of its own if it is empty; requests of one session are answered in their order if they have one key.
    ``deadline`` (Unix seconds): afterwards it is refused instead of answered; without one it waits as long as it must.
    ``created_at`` is the event's time unless it says otherwise. The other fields are as in ``Query``.
    """

    event_id: Id
    tenant: Tenant
    session: Annotated[str, Field(max_length=200)] = ""
    user: Annotated[str, Field(max_length=200)] = ""
    text: str = ""
    messages: tuple[Message, ...] = ()
    sampling: Sampling = Sampling()
    k: int | None = None
    mode: Mode | None = None
    quality_bias: Share = 0.5
    created_at: float = 0.0
    deadline: float | None = None
    schema_version: int = SCHEMA_VERSION


@record
class Decision:
    """A ``Route`` in short."""

    tier: str
    context_tokens: int
    temperature: float
    top_p: float
    confidence: float
    checkpoint: str
    reason: str


@record
class Citation:
    """A memory node that was in the prompt. ``score`` is what ranked it."""

    node_id: str
    source: str
    score: float


@record
class Refusal:
    """Why a request has no answer. ``kind``: ``Reject`` (the request's fault; ``param`` names the field), ``Retry`` (it
    took too long, several times) or ``Stop`` (a fault of the service). ``remedy``: what its sender can do."""

    kind: Literal["Reject", "Retry", "Stop"]
    message: str
    remedy: str
    param: str = ""


@record
class Response:
    """The answer to a ``Request``, or the ``error`` in its place. ``request_id`` is the request's ``event_id``.

    ``event_id`` and ``interaction_id`` follow from it, so a response that comes twice, with another text perhaps, is
    known by its id: the first counts. ``interaction_id`` is what feedback names. ``tier`` answered, which need not be
    the tier of the ``route``. ``cached_tokens`` of ``prompt_tokens`` were not computed again.
    """

    event_id: str
    request_id: str
    interaction_id: str
    tenant: str
    session: str
    created_at: float
    answer: str = ""
    finish_reason: FinishReason | None = None
    tier: str = ""
    route: Decision | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    citations: tuple[Citation, ...] = ()
    degraded: tuple[str, ...] = ()
    error: Refusal | None = None
    schema_version: int = SCHEMA_VERSION


@record
class Interaction:
    """A completed turn, the record that learning uses; emitted after the user has the answer.

    ``event_id`` is unique per event, so consumers can drop repeats. ``origin`` tells our own turns (``"ruvllm"``) from
    those of outside producers, who name themselves (``"outside"`` if they don't); it is kept with what is remembered.
    They need to send no more than ``event_id``, ``tenant``, ``session``, ``query`` and ``answer``: ``interaction_id``
    is the event's id unless it says otherwise, ``created_at`` the event's time, and without ``route`` no router of
    ours decided. ``score`` is what a user said of the answer: it stands in the judge's place, who is not asked.
    ``hidden`` is the session's state *before* the turn. ``messages`` counts what was sent with the question, itself
    included; 0 where nobody counted.
    """

    event_id: Id
    interaction_id: Annotated[str, Field(max_length=200)] = ""
    tenant: Tenant
    session: Id
    user: Annotated[str, Field(max_length=200)] = ""
    turn: Annotated[int, Field(ge=0, lt=2**31)] = 0
    created_at: float = 0.0
    origin: Annotated[str, Field(max_length=200)] = ""
    query: str
    answer: str
    score: Share | None = None
    messages: Annotated[int, Field(ge=0, lt=2**31)] = 0
    context: tuple[Passage, ...] = ()
    route: Route | None = None
    hidden: Hidden | None = None
    model: str = ""
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[str, float] = dataclasses.field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """What follows from the other fields."""
        object.__setattr__(self, "interaction_id", self.interaction_id or self.event_id)
        object.__setattr__(self, "origin", self.origin or ("outside" if self.route is None else "ruvllm"))


@record
class Verdict:
    """The judge's score of an interaction in [0, 1]; ``None`` with status ``unjudged`` when it could not be rated.

    ``uncertainty`` in [0, 1] is the entropy of the rating over its five values, divided by ln 5. ``probabilities`` maps
    ratings "1"…"5" to their probability. ``by``: a user's own verdict outranks a model's, and may
    come with the answer that would have been right (``correction``). ``replaces`` is the event id of the verdict on the
    same turn that this one takes the place of. ``others`` maps tiers that did not answer to what the same judge gave
    the answers they would have given, in [0, 1].
    """

    event_id: str
    interaction_id: str
    tenant: str
    session: str
    created_at: float
    status: Literal["judged", "unjudged"]
    score: float | None
    uncertainty: float | None
    probabilities: dict[str, float] = dataclasses.field(default_factory=dict)
    judge: str
    by: Literal["model", "user"] = "model"
    correction: str = ""
    reason: str = ""
    replaces: str = ""
    others: dict[str, Share] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@record
class Feedback:
    """What a user says of an answer: ``score`` in [0, 1], 1 for good; ``correction``: what would have been right."""

    event_id: Id
    interaction_id: Id
    tenant: Tenant
    session: Id
    created_at: float = 0.0
    score: float
    correction: Annotated[str, Field(max_length=32_000)] = ""
    schema_version: int = SCHEMA_VERSION


Outcome = Literal["written", "duplicate", "below_threshold", "unjudged", "quarantined", "withdrawn", "gone", "failed"]
"""What became of a judged interaction: remembered; said what ``partner`` says; not good enough; without a verdict;
suspicious; taken back by its user; removed before and kept away; refused by the memory."""


@record
class Writeback:
    """What the write-back job did with a verdict. ``partner`` is the node a duplicate strengthened, ``similarity`` its
    cosine and ``jaccard`` its share of three-word shingles; ``reason`` says why in words.
    """

    event_id: str
    interaction_id: str
    tenant: str
    session: str
    created_at: float
    outcome: Outcome
    node_id: str = ""
    partner: str = ""
    similarity: float = 0.0
    jaccard: float = 0.0
    reason: str = ""
    schema_version: int = SCHEMA_VERSION


@record
class Rollout:
    """Which checkpoints of a router act from now on. ``version`` counts the changes, from 1.

    ``active`` decides. ``shadow`` decides nothing, but what it would have done is recorded. ``canary`` decides in a
    ``share`` of the sessions, in [0, 1]. ``before`` are those that were active earlier, the last one first: what a
    rollback goes back to. While ``frozen``, nothing is promoted by itself. ``by``: ``learn``, ``alarm`` or ``admin``.
    """

    event_id: str
    router: str
    version: int
    active: str
    shadow: str | None = None
    canary: str | None = None
    share: float = 0.0
    before: tuple[str, ...] = ()
    frozen: bool = False
    reason: str
    by: Literal["learn", "alarm", "admin"]
    created_at: float
    schema_version: int = SCHEMA_VERSION


# ---------------------------------------------------------------------------------------------------- JSON


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    """Building one takes milliseconds, so each is built once."""
    return _adapters.get(cls) or _adapters.setdefault(cls, TypeAdapter(cls))


def encode(value: object) -> bytes:
    """``value`` (a record) as JSON; arrays become nested lists."""
    return _adapter(type(value)).dump_json(value)


def decode(cls: type[T], data: bytes | str) -> T:
    """A ``cls`` from JSON. Raises pydantic's ``ValidationError`` that names every bad field."""
    value: T = _adapter(cls).validate_json(data)
    return value


def version_of(data: bytes) -> int:
    """The ``schema_version`` that JSON names, ours if it names none or is none."""
    with contextlib.suppress(ValueError):
        found = from_json(data)
        if isinstance(found, dict) and type(found.get("schema_version")) is int:
            return int(found["schema_version"])
    return SCHEMA_VERSION


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """JSON Schema (2020-12) of ``cls`` as ``encode`` writes it."""
    return _adapter(cls).json_schema()
