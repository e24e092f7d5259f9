"""The one schema of all profiles. A stage's block is the stage's own ``Config``; the rest belongs to no stage.

Paths may begin with ``{data_dir}``, which stands for the setting of that name. Durations are seconds (``_s``), sizes
are ``_bytes`` or ``_tokens``. A check that needs several keys raises ``ValueError("problem; remedy")``.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from conf.counterfactual import Counterfactual
from conf.export import Export
from conf.jobs import JudgeJob, MaintainJob, WritebackJob
from conf.learn import Learn
from conf.promotion import Promotion
from conf.replay import Replay
from conf.stream import StreamJob
from conf.train_attention import TrainAttention
from operators.attend import Attend
from operators.base import Knobs
from operators.documents import LONG_BYTES, DocumentsConfig
from operators.embed import Embed
from operators.engines.pool.config import PoolConfig
from operators.errors import Reject
from operators.expand import Expand
from operators.generate import Generate
from operators.judge import Judge
from operators.privacy.masker import Masker
from operators.prompts import TEMPLATES
from operators.quarantine import Quarantine
from operators.route import Router
from operators.search import Search
from operators.stores.events import Events
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.lance import LanceStore
from operators.stores.memory import Memory
from operators.stores.tenants import check_tenant
from operators.tiers import ModelFile, Tier

K = TypeVar("K", bound=Knobs)
DATA_DIR = "{data_dir}"


def _placed(block: K, where: str) -> K:
    changes: dict[str, Any] = {}
    for name in type(block).model_fields:
        value = getattr(block, name)
        if isinstance(value, Knobs) and (new := _placed(value, where)) is not value:
            changes[name] = new
        elif isinstance(value, str | Path) and str(value).startswith(DATA_DIR):
            changes[name] = type(value)(str(value).replace(DATA_DIR, where, 1))
    return block.model_copy(update=changes) if changes else block


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything


class Http(Knobs):
    """The HTTP ingress: where it listens, whom it lets in, how much it takes."""

    host: str = "127.0.0.1"
    """Address to listen on: an IP address or ``localhost``. Other than loopback only with ``api_keys``."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port; 0 takes a free one (binding ``inproc`` only)."""
    max_body_bytes: int = Field(1024 * 1024, ge=1024)
    """Largest request body in bytes; a larger one is refused with 413."""
    max_documents_body_bytes: int = Field(8 * 1024 * 1024, ge=1024)
    """The same for ``POST /v1/documents``: a document comes whole, so that its chunks and masks hang together."""
    max_admin_body_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """The same for the administrator's endpoints, through which jobs write."""
    max_messages: int = Field(100, ge=1, le=256)
    """Most messages of a conversation in one request, 256 at the most."""
    max_text_chars: int = Field(32_000, ge=1)
    """Most characters of all messages of a request together."""
    request_timeout_s: float = Field(120.0, gt=0)
    """Longest time in seconds a request may take, waiting in line and its stream included. Documents may take it once
    for every 256 KiB of text."""
    max_concurrent: int = Field(8, ge=1)
    """Requests worked on at the same time."""
    max_queued: int = Field(32, ge=0)
    """Requests that may wait beyond those; more get 429 with Retry-After."""
    api_keys: dict[SecretStr, str] = Field(default_factory=dict)
    """API key → tenant. Empty: everyone is tenant ``default``, which is allowed on loopback only."""

    def documents_timeout_s(self, size: int) -> float:
        """Longest time in seconds that documents with ``size`` bytes of text may take."""
        return self.request_timeout_s * (1 + size // LONG_BYTES)

    @model_validator(mode="after")
    def _keys_or_loopback(self) -> Http:
        if not self.api_keys and not is_loopback(self.host):
            got = f"anyone who can reach host {self.host} would be let in, for api_keys is empty"
            raise ValueError(f"{got}; set http.api_keys, or http.host to 127.0.0.1")
        if any(not key.get_secret_value() or not tenant for key, tenant in self.api_keys.items()):
            raise ValueError("an API key or its tenant in api_keys is empty; give every key a tenant")
        for tenant in self.api_keys.values():
            try:
                check_tenant("http.api_keys", tenant)
            except Reject as error:
                raise ValueError(f"{error.got}; {error.remedy}") from None
        return self

    def url(self, port: int = 0) -> str:
        """Where it listens; ``port`` if the free one that was taken is known."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port or self.port}"


class RayCluster(Knobs):
    """Ray, for binding ``serve``."""

    address: str = ""
    """Ray cluster to join: empty starts one on this machine, ``auto`` finds the running one."""
    num_cpus: int | None = Field(None, ge=1)
    """Cores Ray may plan with when it starts here; null counts the machine's."""
    object_store_memory_bytes: int = Field(256 * 1024 * 1024, ge=80_000_000)
    """Shared memory of Ray's object store in bytes."""
    dashboard_port: int = Field(8265, ge=0, le=65535)
    """TCP port of Ray's dashboard, on loopback."""
    token_auth: bool = True
    """Whether Ray's own ports ask for a token; without it, whoever reaches them can run code."""
    haproxy: bool = True
    """HAProxy instead of Ray Serve's Python proxy: about seven times the requests a second (Linux only)."""


class Sessions(Knobs):
    """Conversations the service remembers between turns."""

    max_sessions: int = Field(10_000, ge=1)
    """Most sessions; beyond that the one unused longest is forgotten."""
    ttl_s: float = Field(3600.0, gt=0)
    """Seconds without a turn after which a session is forgotten."""
    verdicts_s: float = Field(1.0, ge=0)
    """Seconds between two looks for verdicts, which the router then knows at a session's next turn; 0 never looks."""


class Settings(Knobs):
    """Everything that can be set."""

    profile: Literal["local", "edge", "server", "cluster", "test"]
    """Name of the profile; says which file is read, so it can't be set here."""
    data_dir: Path = Field("~/.ruvllm/{profile}", validate_default=True)
    """Directory of everything that is kept: stores, event log, checkpoints, fetched models."""
    binding: Literal["inproc", "serve"] = "serve"
    """Where the graph runs: in this one process without Ray, or on Ray Serve."""
    plan: Literal["fused", "per_stage"] = "fused"
    """With ``serve``: neighbouring stages share a process, or every stage is its own deployment (for comparison)."""
    generators: Literal["shared", "per_tier"] = "shared"
    """With ``serve``: one deployment has the models of all tiers within one budget of memory, as on one machine, or
    every tier is a deployment of its own, which the cluster places where there is room."""
    http: Http = Http()
    """The HTTP ingress."""
    ray: RayCluster = RayCluster()
    """Ray."""
    sessions: Sessions = Sessions()
    """Sessions."""
    events: Events = Events()
    """The event log."""
    tiers: tuple[Tier, ...]
    """The models, smallest first."""
    embed: Embed.Config
    """Stage ``embed``."""
    search: Search.Config = Search.Config()
    """Stage ``search``."""
    expand: Expand.Config = Expand.Config()
    """Stage ``expand``."""
    route: Router.Config = Router.Config()
    """Stage ``route``."""
    attend: Attend.Config = Attend.Config()
    """Stage ``attend``."""
    generate: Generate.Config = Generate.Config()
    """Stage ``generate``."""
    pool: PoolConfig = PoolConfig()
    """Which tiers' models are loaded."""
    judge: Judge.Config = Judge.Config()
    """Stage ``judge``."""
    judge_job: JudgeJob = JudgeJob()
    """The job that runs ``judge``."""
    counterfactual: Counterfactual = Counterfactual()
    """What the job does while nobody asks."""
    train_attention: TrainAttention = TrainAttention()
    """Training of the ranking in ``attend``."""
    export: Export = Export()
    """Export to ExecuTorch."""
    learn: Learn = Learn()
    """The learner's job."""
    promotion: Promotion = Promotion()
    """How new weights of the router come to decide."""
    replay: Replay = Replay()
    """The job that reads a window of interactions again."""
    maintain: MaintainJob = MaintainJob()
    """The job that maintains the memory."""
    writeback: WritebackJob = WritebackJob()
    """The job that remembers answers."""
    stream: StreamJob = StreamJob()
    """The job that answers requests from the event log."""
    memory: Memory.Config = Memory.Config()
    """The memory: vectors and graph."""
    vectors: LanceStore.Config = LanceStore.Config()
    """The vector store, LanceDB."""
    graph: KuzuGraph.Config = KuzuGraph.Config()
    """The graph store, Kùzu."""
    documents: DocumentsConfig = DocumentsConfig()
    """Reading and cutting of documents."""
    privacy: Masker.Config = Masker.Config()
    """Masking of personal data."""
    quarantine: Quarantine.Config = Quarantine.Config()
    """What is not remembered."""

    @property
    def judge_model(self) -> ModelFile:
        """The weights the judge runs on."""
        return self.judge_job.model or self.tiers[-1].model

    @field_validator("data_dir")
    @classmethod
    def _expand(cls, path: Path, info: ValidationInfo) -> Path:
        named = Path(str(path).replace("{profile}", info.data.get("profile", "")))
        return named.expanduser().absolute()  # workers have another working directory

    @field_validator("*")
    @classmethod
    def _place(cls, value: Any, info: ValidationInfo) -> Any:
        """Put the data directory into paths that begin with ``{data_dir}``."""
        where = str(info.data.get("data_dir", DATA_DIR))
        if isinstance(value, tuple):
            return tuple(_placed(item, where) for item in value)
        return _placed(value, where) if isinstance(value, Knobs) else value

    @field_validator("embed")
    @classmethod
    def _known_length(cls, embed: Embed.Config) -> Embed.Config:
        if embed.output_dim == 0:  # the memory's process has no encoder to ask
            raise ValueError("output_dim is 0, but the memory must know the length of its vectors; set it, e.g. to 384")
        return embed

    @field_validator("judge_job")
    @classmethod
    def _own_partitions(cls, job: JudgeJob, info: ValidationInfo) -> JudgeJob:
        events, own = info.data.get("events"), job.partitions
        if events is not None and own is not None and max(own) >= (there := events.partitions):
            raise ValueError(f"partitions {list(own)}, but events.partitions is {there}: 0 to {there - 1}")
        return job

    @field_validator("tiers")
    @classmethod
    def _distinct_and_ordered(cls, tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
        names, slots = [tier.name for tier in tiers], [tier.slot for tier in tiers]
        if not tiers:
            raise ValueError("there is no tier; give at least one model")
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"two tiers have one name: {', '.join(names)}; names are how requests choose a tier")
        if slots != sorted(set(slots)):
            raise ValueError(f"slots are {slots}; each tier has its own slot, the smallest first")
        for tier in tiers:
            if tier.template not in TEMPLATES:
                raise ValueError(f"template '{tier.template}' of tier {tier.name}; there are {', '.join(TEMPLATES)}")
        return tiers
