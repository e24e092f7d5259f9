"""Fixtures shared by all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads spin, and beside other work they collapse

import pytest

from tests.service import Running


@pytest.fixture(scope="session")
def inproc(tmp_path_factory):
    """One service of binding ``inproc`` with the documents in its memory, shared by the tests that don't break it."""
    service = Running(tmp_path_factory.mktemp("inproc") / "data", "binding=inproc", "http.port=0").start()
    service.ingest()
    service.wait_published(3)
    yield service
    assert service.stop() == 0
