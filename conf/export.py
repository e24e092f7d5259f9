"""The knobs of exporting, ``jobs.export_executorch``."""

from __future__ import annotations

from pydantic import Field

from operators.base import Knobs
from operators.tiers import ModelFile


class Export(Knobs):
    """What ``ruvllm export executorch`` makes programs from, beside the weights that the profile serves."""

    encoder: ModelFile | None = None
    """The encoder's weights in full precision: safetensors of a BERT whose tokenizer is ``embed.tokenizer``; null
    exports none."""
    heads: int = Field(12, ge=1)
    """Attention heads of each of its layers, which its weights do not tell."""
    tolerance: float = Field(1e-4, gt=0)
    """Largest difference between a number that a program gives and torch's; with a larger one nothing is exported."""
