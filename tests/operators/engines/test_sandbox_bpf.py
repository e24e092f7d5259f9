"""The filter of system calls, run by an interpreter of its language, for both machines."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from operators.engines.child import bpf as sandbox_bpf
from operators.engines.child.bpf import MACHINES


def run(ops: list[sandbox_bpf.Op], machine: int, number: int, *arguments: int) -> int:
    """What the program returns for a call; fails when it leaves the program or reads what isn't there."""
    data = {0: number, 4: machine} | {16 + 8 * i: arguments[i] & 0xFFFFFFFF for i in range(len(arguments))}
    at = accumulator = 0
    while True:
        code, jt, jf, k = ops[at]
        at += 1
        if code == sandbox_bpf.LOAD:
            accumulator = data[k]
        elif code == sandbox_bpf.AND:
            accumulator &= k
        elif code == sandbox_bpf.EQUAL:
            at += jt if accumulator == k else jf
        elif code == sandbox_bpf.AT_LEAST:
            at += jt if accumulator >= k else jf
        elif code == sandbox_bpf.ABOVE:
            at += jt if accumulator > k else jf
        else:
            assert code == sandbox_bpf.RETURN
            return k


PID = 4321
ALL = " ".join(value for name, value in vars(sandbox_bpf).items() if name.isupper() and isinstance(value, str))
ALLOW, REFUSE, ABSENT = sandbox_bpf.ALLOW, sandbox_bpf.REFUSE, sandbox_bpf.ABSENT
STREAM, DATAGRAM, CLOEXEC = 1, 2, 0o2000000
CALLS: list[tuple[int | None, int | None, tuple[int, ...], int]] = [
    # x86_64, aarch64, arguments, answer: read, write, mmap, futex, exit_group
    *((0, 63, (), ALLOW), (1, 64, (), ALLOW), (9, 222, (), ALLOW), (202, 98, (), ALLOW), (231, 94, (), ALLOW)),
    *((288, 242, (), ALLOW), (45, 207, (), ALLOW), (157, 167, (), ALLOW), (317, 277, (), ALLOW)),  # accept4, recvfrom
    *((41, 198, (2, STREAM), REFUSE), (41, 198, (1, STREAM), REFUSE), (42, 203, (3,), REFUSE)),
    *((49, 200, (3,), REFUSE), (50, 201, (3,), REFUSE)),
    *((53, 199, (1, STREAM | CLOEXEC), ALLOW), (53, 199, (1, DATAGRAM), REFUSE)),
    *((59, 221, (), REFUSE), (322, 281, (), REFUSE), (57, None, (), REFUSE), (58, None, (), REFUSE)),
    *((56, 220, (0x3D0F00,), ALLOW), (56, 220, (0x4111,), REFUSE), (56, 220, (0x11,), REFUSE)),  # a thread; vfork, fork
    *((435, 435, (), ABSENT), (437, 437, (), ABSENT), (451, 451, (), ABSENT), (0x3FFFFFFF, 0xFFFFFFFF, (), ABSENT)),
    *((62, 129, (PID, 9), ALLOW), (62, 129, (1, 9), REFUSE), (62, 129, (-PID, 9), REFUSE), (62, 129, (0, 9), REFUSE)),
    *((234, 131, (PID, PID + 1, 6), ALLOW), (234, 131, (PID + 1, PID, 6), REFUSE), (200, 130, (PID, 9), REFUSE)),
    *((302, 261, (0, 7), ALLOW), (302, 261, (1, 7), REFUSE), (203, 122, (0, 8), ALLOW), (203, 122, (1, 8), REFUSE)),
    *((16, 29, (0, 0x5401), ALLOW), (16, 29, (0, 0x5412), REFUSE)),  # TCGETS, TIOCSTI
    *((101, 117, (), REFUSE), (310, 270, (), REFUSE), (425, 425, (), REFUSE), (321, 280, (), REFUSE)),
    *((165, 40, (), REFUSE), (272, 97, (), REFUSE), (308, 268, (), REFUSE), (304, 265, (), REFUSE)),
    *((250, 219, (), REFUSE), (298, 241, (), REFUSE), (323, 282, (), REFUSE), (175, 105, (), REFUSE)),
    *((90, 53, (), REFUSE), (280, 88, (), REFUSE)),  # chmod, utimensat
    *((257, 56, (-100, 1, os.O_RDONLY | CLOEXEC), ALLOW), (2, None, (1, os.O_RDONLY), ALLOW)),
]
WRITING: list[tuple[int | None, int | None, tuple[int, ...], int]] = [
    *((257, 56, (-100, 1, flags), REFUSE) for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC)),
    *((2, None, (1, os.O_WRONLY), REFUSE), (85, None, (), REFUSE), (76, 45, (), REFUSE)),
    *((83, 34, (), REFUSE), (87, 35, (), REFUSE), (316, 276, (), REFUSE), (88, 36, (), REFUSE), (86, 37, (), REFUSE)),
]
LISTENING: list[tuple[int | None, int | None, tuple[int, ...], int]] = [
    *((41, 198, (1, STREAM | CLOEXEC), ALLOW), (41, 198, (2, STREAM), REFUSE), (41, 198, (1, DATAGRAM), REFUSE)),
    *((49, 200, (3,), ALLOW), (50, 201, (3,), ALLOW), (42, 203, (3,), REFUSE)),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("listen", [False, True])
def test_the_filter_answers(machine: str, write: bool, listen: bool) -> None:
    ops = sandbox_bpf.program(machine, pid=PID, write=write, listen=listen)
    at, word = list(MACHINES).index(machine), MACHINES[machine]
    special = {call[:3] for call in LISTENING} if listen else set()
    calls = [call for call in CALLS if call[0] not in (41, 49, 50) or not special]
    calls += [(*call[:3], ALLOW if write else call[3]) for call in WRITING] + (LISTENING if listen else [])
    for call in calls:
        if call[at] is not None:
            assert run(ops, word, call[at], *call[2]) == call[3], call


@pytest.mark.parametrize("machine", MACHINES)
def test_another_machines_calls_end_the_process(machine: str) -> None:
    ops = sandbox_bpf.program(machine, pid=PID, write=False, listen=False)
    i386, arm = 0x40000003, 0x40000028
    others = [word for name, word in MACHINES.items() if name != machine]
    for word in (i386, arm, *others):
        assert run(ops, word, 0) == sandbox_bpf.KILL
    if machine == "x86_64":
        for number in (sandbox_bpf.X32, sandbox_bpf.X32 + 41, sandbox_bpf.X32 + 520):
            assert run(ops, MACHINES[machine], number) == sandbox_bpf.KILL


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("listen", [False, True])
def test_every_jump_stays_in_the_program_and_every_path_ends(machine: str, listen: bool) -> None:
    ops = sandbox_bpf.program(machine, pid=PID, write=False, listen=listen)
    assert len(ops) <= 4096
    assert len(sandbox_bpf.pack(ops)) == 8 * len(ops)
    for at, op in enumerate(ops):
        assert 0 <= op.jt < 256
        assert 0 <= op.jf < 256
        if op.code != sandbox_bpf.RETURN:
            assert at + 1 + max(op.jt, op.jf) < len(ops)
    known = {op.k for op in ops if op.code == sandbox_bpf.RETURN}
    assert known == {ALLOW, REFUSE, ABSENT, sandbox_bpf.KILL}


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_headers(machine: str) -> None:
    found = [Path(header) for header in HEADERS[machine] if Path(header).exists()]
    if not found:
        pytest.skip("Linux's headers are not installed")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", found[0].read_text())
    header = {name: int(number) for name, number in defined}
    ours = sandbox_bpf.numbers(ALL, machine)
    assert len(ours) > 100
    assert ours == {name: header[name] for name in ours}
    # Where a table says that a machine lacks a call, its header does as well.
    assert not (set(re.findall(r"(\w+) [\d-]+ [\d-]+", ALL)) - set(ours)) & set(header)


def test_no_call_is_listed_twice() -> None:
    names = re.findall(r"(\w+) [\d-]+ [\d-]+", ALL)
    assert len(names) == len(set(names))
