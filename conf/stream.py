"""The knobs of stream mode: requests from a topic, responses to a topic."""

from __future__ import annotations

from pydantic import Field

from operators.base import Knobs


class StreamJob(Knobs):
    """The process that answers requests from the event log, through the service."""

    enabled: bool = False
    """Whether the job runs beside the service. By hand it is ``python -m jobs.stream``."""
    concurrent: int = Field(4, ge=1, le=256)
    """Most requests that it asks the service at the same time, each of another partition. Fewer than
    ``http.max_concurrent``, so that others come in too."""
    attempts: int = Field(3, ge=1)
    """How often one request may fail in the service, or take longer than ``http.request_timeout_s``, before it is
    answered with the error; else it would hold its partition up for ever. What is only away is waited for."""
    poll_s: float = Field(0.2, gt=0)
    """Seconds between two looks at an empty topic."""
