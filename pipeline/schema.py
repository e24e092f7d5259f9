"""Requests and responses of the HTTP API, as pydantic models; OpenAPI is made from them.

What OpenAI's clients send is either honoured or refused by name: a parameter that is accepted and ignored would lie.
(``metadata`` and names of speakers are taken and not used: they ask for nothing.)
Fields that only have an effect at a value we don't offer (``n`` other than 1) are accepted at their neutral value.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from operators.records import Kind, Mode

Text = Annotated[str, Field(min_length=1, max_length=1_000_000, examples=["What does the spine do?"])]


class In(BaseModel):
    """What is asked: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=False)


class Out(BaseModel):
    """What is answered."""

    model_config = ConfigDict(extra="forbid")


# ------------------------------------------------------------------------------------------------ chat completions


class TextPart(In):
    """One part of a message; only text parts are understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(In):
    """One message. ``developer`` counts as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(max_length=64)] | None = None

    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class FilterIn(In):
    """Which nodes may be found; an absent field means any. Times are Unix seconds, both ends inclusive."""

    kinds: Annotated[list[Kind], Field(max_length=8)] = []
    domains: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=64)] = []
    sources: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=64)] = []
    created_from: float | None = None
    created_to: float | None = None


class Extras(In):
    """What RuvLLM understands beyond OpenAI's parameters (send it with ``extra_body={"ruvllm": {...}}``)."""

    quality_bias: float = Field(0.5, ge=0, le=1, description="1: quality alone counts, 0: cost and latency weigh most")
    explain: bool = Field(False, description="name the features that moved the routing decision")
    k: int | None = Field(None, ge=1, le=100, description="hits to search for")
    mode: Mode | None = Field(None, description="how to search for them; the profile's search.mode if absent")
    filter: FilterIn = FilterIn()


class StreamOptions(In):
    """``include_usage`` adds a last chunk with token counts."""

    include_usage: bool = False


_CHAT_EXAMPLE: dict[str, Any] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "How tall is the Vell lighthouse?"}],
}


class ChatRequest(In):
    """``POST /v1/chat/completions``. ``model`` is ``auto`` (the router decides) or a tier's name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [_CHAT_EXAMPLE]})

    model: Annotated[str, Field(min_length=1, max_length=100)] = "auto"
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="overrides the route")
    top_p: float | None = Field(None, gt=0, le=1, description="overrides the route")
    max_tokens: int | None = Field(None, ge=1, le=100_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=100_000, description="newer name of max_tokens")
    stop: str | Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=8)] | None = None
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    user: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="who asks; also names the session if no header does"
    )
    n: Literal[1] | None = None
    logprobs: bool | None = Field(None, description="say how likely each token of the answer was")
    top_logprobs: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    ruvllm: Extras = Extras()

    @field_validator("stop")
    @classmethod
    def _stop_not_empty(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == "":
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _ends_with_user(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError(f"the last message must be the user's, got {self.messages[-1].role}")
        return self


class RouteInfo(Out):
    """The routing decision."""

    tier: str
    context_tokens: int
    temperature: float
    top_p: float
    confidence: float
    probabilities: dict[str, float]
    propensity: float
    checkpoint: str
    reason: str
    explanation: list[dict[str, Any]] = []


class Citation(Out):
    """A memory node that was in the prompt. ``score`` is what ranked it."""

    node_id: str
    source: str
    score: float


class Ruvllm(Out):
    """What every answer says about itself. ``timings`` are seconds by stage."""

    interaction_id: str
    session: str
    route: RouteInfo
    citations: list[Citation]
    timings: dict[str, float]
    degraded: list[str]


class Usage(Out):
    """Token counts as the engine counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] = {}


class AssistantMessage(Out):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TokenLogprob(Out):
    """A token of the answer and its natural log-probability, before temperature and top-p.

    The one that ended the answer is there too. ``bytes`` is null for half a character.
    """

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[None] = []


class Logprobs(Out):
    """How likely the answer was, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(Out):
    """The one choice of a completion."""

    index: int = 0
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None


class ChatCompletion(Out):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    ruvllm: Ruvllm


# ------------------------------------------------------------------------------------------------ the other endpoints


class RouteRequest(ChatRequest):
    """``POST /v1/route``: like a chat request, but nothing is generated."""


class RouteResponse(Out):
    """The decision that a chat request would meet now, and what it would read."""

    route: RouteInfo
    passages: list[dict[str, Any]]
    hits: int
    nodes: int
    ranking: str
    timings: dict[str, float]
    degraded: list[str]


class EmbeddingsRequest(In):
    """``POST /v1/embeddings``. ``dimensions`` must be the encoder's own, if it is given."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"model": "auto", "input": ["a lighthouse", "a harbour"]}]}
    )

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    model: Annotated[str, Field(min_length=1, max_length=100)] = "auto"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: Annotated[str, Field(max_length=200)] | None = None


class Embedding(Out):
    """One vector: numbers, or little-endian float32 in base64 if that was asked for."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsResponse(Out):
    """Vectors in the order of the input. ``truncated`` lists inputs that were longer than the encoder reads."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: dict[str, int]
    truncated: list[int]


class DocumentIn(In):
    """One document. ``id`` names it; without one its source does, else its text."""

    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    text: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(max_length=1000)] = ""
    domain: Annotated[str, Field(max_length=200, description="what it is about, in one word of yours")] = ""
    user: Annotated[str, Field(max_length=200, description="whose it is; what is theirs can be deleted by it")] = ""
    ttl_s: float | None = Field(None, gt=0, description="seconds until it expires; never if absent")
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=2000)]], Field(max_length=32)] = {}


class DocumentsRequest(In):
    """``POST /v1/documents``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"documents": [{"text": "The Vell lighthouse is 41 metres tall.", "source": "vell.txt"}]}]
        },
    )

    documents: Annotated[list[DocumentIn], Field(min_length=1, max_length=256)]


class DocumentOut(Out):
    """What became of one document: its nodes, and how many of them were already there."""

    id: str
    source: str
    nodes: list[str]
    added: int
    duplicates: int


class DocumentsResponse(Out):
    """The documents are durable and findable when this arrives. ``edges`` counts new edges of the graph, ``masked`` the
    personal values that were masked, by kind."""

    documents: list[DocumentOut]
    added: int
    duplicates: int
    edges: int
    masked: dict[str, int] = {}


class SearchRequestIn(In):
    """``POST /v1/memory/search``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"query": "How tall is it?", "k": 3}]})

    query: Annotated[str, Field(min_length=1, max_length=20_000)]
    k: int = Field(10, ge=1, le=100)
    mode: Mode | None = Field(None, description="how to search; the profile's search.mode if absent")
    filter: FilterIn = FilterIn()


class SearchHit(Out):
    """One node found. ``score`` is fused, ``similarity`` the cosine, ``text_score`` BM25."""

    node_id: str
    kind: str
    text: str
    source: str
    domain: str
    created_at: float
    score: float
    similarity: float
    text_score: float


class SearchResponse(Out):
    """Hits, best first."""

    hits: list[SearchHit]
    degraded: list[str]


class Model(Out):
    """One tier, or the router (``auto``)."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    available: bool
    licence: str = ""


class Models(Out):
    """What ``model`` may name."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(Out):
    """``checks`` names every part and whether it works, ``notes`` what does not keep it from working."""

    status: Literal["ok", "degraded", "away"]
    checks: dict[str, bool]
    notes: list[str] = []
    version: str


ROOT: dict[str, Any] = {
    "service": "RuvLLM",
    "version": version("ruvllm"),
    "paths": {
        "/docs": "every endpoint, to try in a browser",
        "/v1/models": "what 'model' may name",
        "/readyz": "whether every part works",
    },
}
"""What ``GET /`` answers."""


class Root(Out):
    """What listens here, and ``paths`` to try first."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [ROOT]})

    service: str
    version: str
    paths: dict[str, str]


class ErrorDetail(Out):
    """OpenAI's error shape."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Out):
    """Every error looks like this."""

    error: ErrorDetail
