"""Who calls the shared service: its user, its administrator, and a tenant that nobody else has."""

from __future__ import annotations

import uuid

import pytest

from tests.pipeline.memory_http import Http
from tests.service import Running


@pytest.fixture(scope="session")
def user(inproc: Running) -> Http:
    return Http(inproc.http)


@pytest.fixture(scope="session")
def admin(inproc: Running) -> Http:
    return Http(inproc.http, (inproc.data_dir / "admin-key").read_text())


@pytest.fixture
def tenant() -> str:
    """A tenant that nobody else has."""
    return f"t-{uuid.uuid4().hex[:8]}"
