"""What a profile says of a tier (``route`` reads name, slot and cost, ``generate`` the rest) and of a model file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from operators.base import Knobs

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
    engine: Literal["llama_server", "llama_cpp"] = "llama_server"
    """Which engine runs it: ``llama_server`` batches continuously, ``llama_cpp`` serves one request at a time."""
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
