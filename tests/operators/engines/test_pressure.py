"""What is left of the memory: trees of files as kernels show them, and this process's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from operators.engines.pool.pressure import room
from operators.errors import Stop

ROOT = Path(__file__).parents[3]
MEMINFO = "MemTotal:       1000 kB\nMemFree:          100 kB\nMemAvailable:    600 kB\nHugePages_Total:       0\n"
LIMITS = "Limit                Soft Limit      Hard Limit      Units\nMax address space    {}      {}      bytes\n"
V1_NONE = 9223372036854771712


def tree(root: Path, **files: str) -> Path:
    """A machine of 1000 KiB, 600 left. ``files`` stand in ``proc/self``."""
    files = {"cgroup": "0::/\n", "limits": LIMITS.format("unlimited", "unlimited")} | files
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    for name, text in files.items():
        (root / "proc/self" / name).write_text(text)
    return root


def group(root: Path, path: str, **facts: object) -> None:
    """A cgroup's files; ``memory_max`` is ``memory.max``."""
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in facts.items():
        (folder / name.replace("memory_", "memory.", 1)).write_text(f"{value}\n")


def in_group(root: Path, line: str, *, version: int) -> Path:
    tree(root, cgroup=f"12:pids:/x\n{line}\n")
    if version == 2:
        group(root, "")
        (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    return root


def facts(root: Path) -> tuple[int, int, str]:
    found = room(root)
    return found.total_bytes, found.free_bytes, found.limit.replace(f"{root}", "")


def test_a_machine_without_limits(tmp_path: Path) -> None:
    assert facts(tree(tmp_path)) == (1_024_000, 614_400, "machine")


def test_a_group_of_version_2_counts_what_can_be_dropped_as_free(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/", version=2)
    stat = "anon 300000\nfile 90000\ninactive_file 50000\nactive_file 40000"
    group(tmp_path, "", memory_max=500_000, memory_high="max", memory_current=400_000, memory_stat=stat)
    assert facts(tmp_path) == (500_000, 150_000, "cgroup /sys/fs/cgroup")


def test_the_lower_limit_counts_also_of_the_groups_around(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/pod/box", version=2)
    group(
        tmp_path, "pod", memory_max=400_000, memory_high=350_000, memory_current=300_000, memory_stat="inactive_file 0"
    )
    group(tmp_path, "pod/box", memory_max="max", memory_high="max", memory_current=100, memory_stat="inactive_file 0")
    assert facts(tmp_path) == (350_000, 50_000, "cgroup /sys/fs/cgroup/pod")
    group(tmp_path, "pod/box", memory_max=120_000, memory_current=119_000)
    assert facts(tmp_path) == (120_000, 1_000, "cgroup /sys/fs/cgroup/pod/box")


@pytest.mark.parametrize("path", ["/host/path/of/the/container", "/../other"])
def test_a_group_that_is_not_mounted_here_is_the_mounts_root(tmp_path: Path, path: str) -> None:
    in_group(tmp_path, f"0::{path}", version=2)
    group(tmp_path, "", memory_max=200_000, memory_current=50_000, memory_stat="inactive_file 10000")
    assert facts(tmp_path)[:2] == (200_000, 160_000)


def test_version_1(tmp_path: Path) -> None:
    in_group(tmp_path, "4:cpu,memory:/a\n0::/", version=1)
    values = {"memory_usage_in_bytes": 90_000, "memory_stat": "inactive_file 1\ntotal_inactive_file 20000"}
    group(tmp_path, "memory/a", memory_limit_in_bytes=V1_NONE, **values)
    assert facts(tmp_path)[2] == "machine"
    group(tmp_path, "memory/a", memory_limit_in_bytes=100_000)
    assert facts(tmp_path) == (100_000, 30_000, "cgroup /sys/fs/cgroup/memory/a")


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/", version=2)
    group(tmp_path, "", memory_max=100, memory_current=200, memory_stat="inactive_file 0")
    assert facts(tmp_path)[:2] == (100, 0)


def test_a_limit_above_what_the_machine_has_left_is_none(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/", version=2)
    group(tmp_path, "", memory_max=10**9, memory_current=0, memory_stat="inactive_file 0")
    assert facts(tmp_path) == (1_024_000, 614_400, "machine")


def test_the_address_space(tmp_path: Path) -> None:
    tree(tmp_path, limits=LIMITS.format(500_000, "unlimited"), statm="100 90 1 1 0 1 0")
    used = 100 * os.sysconf("SC_PAGE_SIZE")
    assert facts(tmp_path) == (500_000, 500_000 - used, "RLIMIT_AS")


def test_where_nothing_tells_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="tells how much there is"):
        room(tmp_path)


def test_this_machine() -> None:
    found = room()
    assert 0 < found.free_bytes < found.total_bytes


def test_a_process_with_a_limit_sees_what_it_takes() -> None:
    code = (
        "import json, mmap, resource\n"
        "from operators.engines.pool.pressure import room\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "before = room()\n"
        "taken = mmap.mmap(-1, 100 << 20)\n"
        "print(json.dumps([before.limit, before.total_bytes, before.free_bytes - room().free_bytes]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    limit, total, taken = json.loads(done.stdout)
    assert (limit, total) == ("RLIMIT_AS", 1 << 30)
    assert abs(taken - (100 << 20)) < 4 << 20
