"""What a profile says of a tier (``route`` reads name, slot and cost, ``generate`` the rest) and of a model file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from operators.base import Knobs
from operators.engines.vllm.config import VllmConfig

SLOTS = ("350M", "700M", "1.2B", "2.6B")
"""The router has four tier outputs, named after the seed's tiers; a profile's tier takes one by its ``slot``."""


class ModelFile(Knobs):
    """A model file: from an installed package or from a path, always with its checksum."""

    id: str
    """Name of the model in answers, metrics and errors."""
    package: str = ""
    """Import name of the Python package that carries the file; empty if ``path`` is given."""
    file: str = ""
    """File inside the package; ``assemble()`` calls the package's function of that name, which returns the path."""
    path: str = ""
    """Path of the file, instead of a package."""
    url: str = ""
    """Where ``ruvllm models pull`` fetches the file from to ``path``: https, or http from this machine itself."""
    sha256: str
    """Checksum the file must have before any parser reads it, in hex; ``unchecked`` turns the check off, loudly."""
    licence: str = ""
    """Licence of the weights, shown by ``ruvllm models list``."""


class Tier(Knobs):
    """One model size that the router can choose."""

    name: str
    """The tier's name, also accepted as ``model`` in requests."""
    slot: int = Field(ge=0, lt=len(SLOTS))
    """Which of the router's four tier outputs stands for it, 0 the smallest."""
    model: ModelFile
    """The weights."""
    tokenizer: ModelFile | None = None
    """The ``tokenizer.json`` of a ``.pte``; a GGUF carries its own."""
    engine: Literal["llama_server", "llama_cpp", "executorch", "vllm"] = "llama_server"
    """Which engine runs it: ``llama_server`` and ``vllm`` (see ``vllm``) batch continuously, ``llama_cpp`` and
    ``executorch`` (a ``.pte``) serve one request at a time."""
    vllm: VllmConfig | None = None
    """How vLLM is reached; required with engine ``vllm``."""
    template: str
    """Prompt layout in ``operators/prompts.py``; at these sizes it decides most of the quality."""
    context_tokens: int = Field(2048, ge=256)
    """Context window of one request, prompt and completion together, in tokens."""
    threads: int = Field(0, ge=0)
    """Threads for this engine; 0 takes what the machine can spare (cores − 1, at least 1), and ``llama_server`` all
    cores while it reads a prompt."""
    parallel: int = Field(2, ge=1)
    """Requests that run at the same time in this engine."""
    cost: float = Field(1.0, gt=0)
    """Cost of one token relative to the other tiers, for the router's cost term."""
    preload: bool = True
    """Whether the model is loaded at the start, as far as there is room, and again when it dies; else the first request
    for it loads it."""
    pin: bool = False
    """Whether the model is loaded before all others and never makes room for them."""
    min_replicas: int = Field(1, ge=0)
    """With ``generators: per_tier``: engines of this tier at the least; 0 starts the first one when it is asked for."""
    max_replicas: int = Field(1, ge=1)
    """With ``generators: per_tier``: engines of this tier at the most. Ray Serve adds one when more requests run than
    the present ones take at a time; the turns of a session go to the same one."""

    @model_validator(mode="after")
    def _whole(self) -> Tier:
        if (self.engine == "vllm") != (self.vllm is not None):
            raise ValueError(f"engine {self.engine} and vllm: {self.vllm}; an engine vllm has that block, no other has")
        if (self.engine == "executorch") != (self.tokenizer is not None):
            raise ValueError(f"engine {self.engine} and tokenizer: {self.tokenizer}; only an engine executorch has one")
        return self
