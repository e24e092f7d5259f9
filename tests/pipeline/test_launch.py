"""Starting under bad conditions: a clear error and a clean end, or service with what is left."""

import dataclasses
import os
import socket
import subprocess

import pytest

from operators.networks import attention
from tests.service import ROOT, Running, free_port

pytestmark = pytest.mark.slow
QUIET = ("binding=inproc", "judge_job.enabled=false")
DAMAGED = ("model.package=", "model.file=", "model.path={path}")


def refuses(data_dir, *sets, env=None):
    service = Running(data_dir, *QUIET, *sets)
    done = subprocess.run(
        service.command("serve"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_a_port_in_use(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refuses(tmp_path / "data", f"http.port={port}")
    assert f"127.0.0.1:{port} is in use" in said
    assert "http.port" in said


def test_the_dashboard_s_port_in_use(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = (f"http.port={free_port()}", f"ray.dashboard_port={port}")
        said = refuses(tmp_path / "data", "binding=serve", *ports)
    assert f"ray.dashboard_port: 127.0.0.1:{port} is in use" in said


def test_a_data_directory_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("here first")
    assert "can't be written" in refuses(tmp_path / "data", "http.port=0")


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        said = refuses(disk / "data", "http.port=0")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert "No space left on device" in said
    assert "free some space" in said


def test_a_ranking_trained_on_another_encoder(tmp_path):
    attention.save(dataclasses.replace(attention.init(384), trained=True, encoder="another"), tmp_path / "r")
    said = refuses(tmp_path / "data", "http.port=0", f"attend.checkpoint={tmp_path / 'r'}")
    assert "weights for vectors of another, vectors of all-MiniLM-L6-v2-int8" in said


def test_an_unknown_setting(tmp_path):
    said = refuses(tmp_path / "data", env={"RUVLLM_SEARCH__KK": "3"})
    assert "RUVLLM_SEARCH__KK" in said
    assert "RUVLLM_SEARCH__K" in said


def test_serve_needs_a_port(tmp_path):
    assert "http.port" in refuses(tmp_path / "data", "http.port=0", "binding=serve")


def test_other_hosts_need_api_keys(tmp_path):
    assert "api_keys" in refuses(tmp_path / "data", "http.host=0.0.0.0", f"http.port={free_port()}")


@pytest.fixture
def damaged(tmp_path):
    """Settings that give a tier a file that isn't what its checksum says."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 4096)
    return lambda tier: [f"tiers.{tier}.{setting.format(path=path)}" for setting in DAMAGED]


def test_corrupt_weights_leave_the_other_tier(tmp_path, damaged):
    service = Running(tmp_path / "data", *QUIET, "http.port=0", *damaged("135M")).start()
    try:
        ready = service.http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["status"] == "degraded"
        assert ready.json()["checks"]["generate:135M"] is False
        assert service.ask("What is a lighthouse for?")["model"] == "270M"
        refused = service.http.post(
            "/v1/chat/completions", json={"model": "135M", "messages": [{"role": "user", "content": "hi"}]}
        )
        print("named tier away:", refused.status_code, refused.text)
        assert refused.status_code == 503
        assert "135M" in refused.json()["error"]["message"]
    finally:
        assert service.stop() == 0


def test_no_usable_weights_at_all_is_a_clear_end(tmp_path, damaged):
    said = refuses(tmp_path / "data", "http.port=0", *damaged("135M"), *damaged("270M"))
    assert "no tier could be loaded" in said
    assert "SHA-256" in said


def test_bad_encoder_weights_end_a_start_on_ray_with_the_reason(tmp_path):
    ports = (f"http.port={free_port()}", f"ray.dashboard_port={free_port()}")
    said = refuses(tmp_path / "data", "binding=serve", *ports, "embed.model.sha256=00")
    assert "SHA-256" in said
    assert "expected 00" in said


def test_a_second_service_on_the_same_data_is_refused(tmp_path):
    service = Running(tmp_path / "data", *QUIET, "http.port=0").start()
    try:
        service.ingest()
        said = refuses(tmp_path / "data", "http.port=0")
        assert f"in use by the service with pid {service.process.pid}" in said
        assert "41" in service.ask("How tall is the Vell lighthouse?")["choices"][0]["message"]["content"]
    finally:
        assert service.stop() == 0
