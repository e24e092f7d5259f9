"""The vector store on S3-compatible storage: `make test-s3`, against moto's server in a process of its own.

What this shows: reading, writing, removing and rewriting through the S3 API, and that two writers lose nothing, which
needs conditional writes. What it does not show: a real service's latency, its consistency, or its way of failing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from typing import Any

import numpy as np
import pytest

from operators.errors import Retry, Stop
from operators.records import Filter
from operators.stores.lance import LanceStore
from operators.stores.ports import Node, SearchRequest

SERVER = os.environ.get("RUVLLM_TEST_S3", "")
pytestmark = pytest.mark.skipif(not SERVER, reason="make test-s3 installs the server and runs this")
DIM = 8
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def endpoint():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([SERVER, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + DEADLINE_S
        while True:
            try:
                request = urllib.request.Request(f"{url}/ruvllm", method="PUT")
                assert urllib.request.urlopen(request, timeout=5).status == 200
                break
            except OSError:
                assert time.monotonic() < end, "no server"
                assert process.poll() is None, "the server ended"
                threading.Event().wait(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


@pytest.fixture
def make(endpoint, tmp_path):
    prefix, made = uuid.uuid4().hex, []

    def one(bucket: str = "ruvllm", **config: Any) -> LanceStore:
        storage = {
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "aws_region": "us-east-1",
            "aws_endpoint": endpoint,
            "allow_http": "true",
        }
        settings = {"uri": f"s3://{bucket}/{prefix}/vectors", "storage": storage, "refresh_s": 0} | config
        store = LanceStore(tmp_path, DIM, LanceStore.Config(**settings), lambda: 1000.0)
        store.open()
        made.append(store)
        return store

    yield one
    for store in made:
        store.close()
    assert list(tmp_path.iterdir()) == [], "nothing lies on the disk"


def node(name: str, text: str, axis: int, **fields: Any) -> Node:
    vector = np.eye(DIM, dtype=np.float32)[axis]
    return Node(node_id=name, kind="document", text=text, vector=vector, created_at=float(axis), **fields)


ANIMALS = [node("cat", "The cat sleeps on the mat", 0), node("dog", "Dogs run in the park", 1, user="ada")]


def ids(store: LanceStore, text: str = "", axis: int = 0, **fields: Any) -> list[str]:
    vector = np.eye(DIM, dtype=np.float32)[axis]
    request = SearchRequest(tenant="acme", text=text, vector=vector, k=9, **fields)
    return [hit.node_id for hit in store.search(request).hits]


@pytest.mark.parametrize("config", [{}, {"resident_rows": 0, "approximate_rows": 0}], ids=["in memory", "table"])
def test_a_life(make, config):
    store = make(**config)
    assert (store.tenants(), store.count("acme"), ids(store)) == ([], 0, [])
    assert store.upsert("acme", ANIMALS) == 2
    assert store.upsert("acme", ANIMALS) == 0
    assert ids(store, "sleeping cats") == ["cat", "dog"]
    assert ids(store, "dogs", mode="text") == ["dog"]
    assert [name for _, name in store.listed("acme", Filter(users=("ada",)))] == ["dog"]
    again = make(**config)  # another process would see the same
    assert (again.tenants(), again.count("acme"), ids(again, "dogs", 1)) == (["acme"], 2, ["dog", "cat"])
    assert store.remove("acme", ["dog"]) == 1
    assert ids(again, "dogs", 1) == ["cat"]
    store.optimize("acme", purge=True)
    store.replace("acme", [[node("fox", "A fox waits", 2)]])
    assert ids(store, "fox", mode="text") == ["fox"]
    store.drop("acme")
    assert (store.tenants(), make(**config).count("acme")) == ([], 0)


def test_two_writers_lose_nothing(make):
    stores = [make(), make()]
    stores[0].upsert("acme", ANIMALS)
    failures: list[BaseException] = []

    def write(store: LanceStore, who: str) -> None:
        try:
            for i in range(8):
                store.upsert("acme", [node(f"{who}{i}", f"text {who} {i}", i % DIM)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(store, who)) for store, who in zip(stores, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures
    assert make().count("acme") == 2 + 16


def test_a_bucket_that_is_not_there_stops_the_start(make):
    with pytest.raises((Stop, Retry), match="no bucket 'elsewhere'"):
        make("elsewhere")


def test_another_kind_of_place_is_refused():
    with pytest.raises(ValueError, match="uri"):
        LanceStore.Config(uri="gs://bucket/x")
