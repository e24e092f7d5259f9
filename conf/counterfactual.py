"""The knobs of idle-time counterfactuals: past questions put to the tiers that did not answer them."""

from __future__ import annotations

from pydantic import Field

from operators.base import Knobs


class Counterfactual(Knobs):
    """What the judge's process does while nobody asks: it has the other tiers answer judged questions, and rates that.

    A turn of which every tier's quality is known teaches the router most, and values a candidate exactly. Of use where
    the judge can be relied on.
    """

    enabled: bool = False
    """Whether it is done."""
    share: float = Field(0.1, gt=0, le=1)
    """Share of the judged turns that are taken, by a hash of the turn."""
    max_age_s: float = Field(86400.0, gt=0)
    """Age in seconds beyond which a verdict is passed over: a sample of the last day, however little time there is."""
    tokens_per_hour: int = Field(20_000, ge=1)
    """Tokens, of prompts and answers, that may be spent in any hour."""
    share_of_time: float = Field(0.1, gt=0, le=1)
    """Largest share of the time in which it works; after each turn it rests accordingly."""
    quiet_s: float = Field(5.0, ge=0)
    """Seconds without any request before the service answers; a request that comes ends it."""
    poll_s: float = Field(5.0, gt=0)
    """Seconds between two looks when there is nothing to do."""
