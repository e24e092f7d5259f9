"""The masker as a profile sets it: which kinds, for which countries, and whether documents too."""

from __future__ import annotations

from collections import Counter

from pydantic import Field, field_validator

from operators.base import Knobs
from operators.privacy.mask import KINDS, REGIONS, Kind, mask

FAILED = "[MASKING FAILED]"
"""Stands for a text that could not be masked: the raw one is never kept."""


class Masker:
    """``mask`` with the settings of a profile. Its ``found`` counts what was masked, by kind; use one for one job."""

    class Config(Knobs):
        """Which personal values are masked before a text is remembered or written to the event log."""

        kinds: tuple[Kind, ...] = KINDS
        """Kinds of values that are masked; an empty list masks nothing."""
        regions: tuple[str, ...] = Field(default=REGIONS, max_length=32)
        """Countries (ISO 3166, e.g. ``US``) whose phone numbers are known without their country code; each costs time
        for every number. Empty knows only numbers with a country code."""
        documents: bool = True
        """Whether documents are masked before they are remembered. Questions and answers always are, by ``kinds``."""

        @field_validator("regions")
        @classmethod
        def _known(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
            if not set(regions) <= set(REGIONS):  # asked only then: the library takes its time to load
                from phonenumbers import SUPPORTED_REGIONS

                if unknown := sorted(set(regions) - set(SUPPORTED_REGIONS)):
                    raise ValueError(f"no countries {', '.join(unknown)}; use two capitals of ISO 3166, e.g. DE")
            return regions

    def __init__(self, config: Config) -> None:
        self.config = config
        self.found: Counter[str] = Counter()

    def __call__(self, text: str) -> str:
        """``text`` masked; equal values get equal placeholders within this text only."""
        masked = mask(text, self.config.regions, self.config.kinds)
        self.found.update(one.kind for one in masked.found)
        return masked.text
