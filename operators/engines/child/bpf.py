"""The filter of system calls of an engine's process: what it refuses, and the program for the kernel's BPF machine.

libseccomp knows all this, but its Python package (pyseccomp) needs the system's libseccomp.so.2, which is not
everywhere; a list of numbers and five kinds of instruction need nothing.

Everything not named here is allowed, so this is weaker than a list of what is allowed; that one would have to follow
every libc, Python and llama.cpp. What kernels have learnt since these lists were written is refused as a whole.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from typing import NamedTuple

# Name, number on x86_64, number on aarch64 (- where it has none), from Linux's headers asm/unistd_64.h (x86) and
# asm-generic/unistd.h (aarch64).
NETWORK = "socket 41 198, connect 42 203, bind 49 200, listen 50 201"
PROGRAMS = "execve 59 221, execveat 322 281, fork 57 -, vfork 58 -"
PROCESSES = """
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, kcmp 312 272,
    process_mrelease 448 448, pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424, tkill 200 130,
    setpriority 141 140, ioprio_set 251 30, sched_setscheduler 144 119,
    sched_setparam 142 118, sched_setattr 314 274, move_pages 279 239, migrate_pages 256 238, setpgid 109 154,
    setsid 112 157"""
KERNEL = """
    bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426,
    io_uring_register 427 427, init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104,
    kexec_file_load 320 294, reboot 169 142, syslog 103 116, acct 163 89, swapon 167 224, swapoff 168 225,
    quotactl 179 60, quotactl_fd 443 443, iopl 172 -, ioperm 173 -, modify_ldt 154 -, personality 135 92,
    settimeofday 164 170, clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266, sethostname 170 161,
    setdomainname 171 162, vhangup 153 58, add_key 248 217, request_key 249 218, keyctl 250 219,
    lookup_dcookie 212 18, nfsservctl 180 42, memfd_create 319 279, memfd_secret 447 447"""
NAMESPACES = """
    mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, setns 308 268, unshare 272 97, open_tree 428 428,
    move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442,
    open_by_handle_at 304 265, name_to_handle_at 303 264, fanotify_init 300 262, fanotify_mark 301 263,
    inotify_add_watch 254 27"""
USERS = """
    setuid 105 146, setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147, setresgid 119 149,
    setfsuid 122 151, setfsgid 123 152, setgroups 116 159, capset 126 91"""
SHARED = """
    shmget 29 194, shmat 30 196, shmctl 31 195, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187,
    semget 64 190, semop 65 193, semtimedop 220 192, semctl 66 191, mq_open 240 180, mq_unlink 241 181"""
# Landlock has no say in these, so they are refused under the writable folder as well.
ATTRIBUTES = """
    chmod 90 -, fchmod 91 52, fchmodat 268 53, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54,
    setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16,
    utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88"""
WRITING = """
    creat 85 -, truncate 76 45, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -,
    renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, mknod 133 -,
    mknodat 259 33"""
# Their arguments lie in memory, where a filter can't look. Told that they don't exist, libc takes the older ones.
UNREADABLE = "clone3 435 435, openat2 437 437"
CONDITIONAL = """
    clone 56 220, kill 62 129, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, prlimit64 302 261,
    sched_setaffinity 203 122, socketpair 53 199, ioctl 16 29, open 2 -, openat 257 56"""
OURS = "seccomp 317 277"
NEWEST = 450
"""The last number these lists were written for (Linux 5.17; numbers above 423 are the same everywhere)."""

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH words (linux/audit.h)."""
X32 = 0x40000000
"""Bit of the numbers of x86_64's 32-bit twin, whose calls would slip past a comparison."""

ALLOW, KILL, REFUSE, ABSENT = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
"""What a program returns (linux/seccomp.h)."""
LOAD, EQUAL, AT_LEAST, ABOVE, AND, RETURN = 0x20, 0x15, 0x35, 0x25, 0x54, 0x06
"""Instructions (linux/bpf_common.h): the accumulator is loaded, compared with a constant, masked; or the end."""
NUMBER, ARCH, ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; an argument is 8 bytes, of which the kernel reads the low 4 in all calls below."""

CLONE_THREAD, TIOCSTI, SOCKET_TYPE, WORD = 0x10000, 0x5412, 0xF, 0xFFFFFFFF


class Op(NamedTuple):
    """One instruction: ``jt`` and ``jf`` are how many to skip when a comparison holds or not."""

    code: int
    jt: int
    jf: int
    k: int


class Check(NamedTuple):
    """A condition on an argument, ``argument & mask == value``, or, if not ``equal``, ``!=``."""

    argument: int
    mask: int
    value: int
    equal: bool = True


def numbers(names: str, machine: str) -> dict[str, int]:
    """Numbers by name, of the calls that ``machine`` has."""
    at = list(MACHINES).index(machine)
    found = re.findall(r"(\w+) (\d+|-) (\d+|-)", names)
    return {name: int(both[at]) for name, *both in found if both[at] != "-"}


def conditions(*, pid: int, write: bool, listen: bool) -> dict[str, tuple[Check, ...]]:
    """The calls that are allowed only if all their checks hold."""
    ours = (Check(0, WORD, pid),)
    stream = Check(1, SOCKET_TYPE, socket.SOCK_STREAM)
    reading = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
    return {
        "clone": (Check(0, CLONE_THREAD, CLONE_THREAD),),  # a thread, not a process
        **dict.fromkeys(("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"), ours),  # abort() signals itself
        **dict.fromkeys(("prlimit64", "sched_setaffinity"), (Check(0, WORD, 0),)),  # 0 is whoever calls
        "socketpair": (stream,),  # from a pair of datagram sockets, one could send to any path
        "ioctl": (Check(1, WORD, TIOCSTI, equal=False),),  # typing into the terminal that started us
        **({} if write else {"open": (Check(1, reading, 0),), "openat": (Check(2, reading, 0),)}),
        **({"socket": (Check(0, WORD, socket.AF_UNIX), stream), "bind": (), "listen": ()} if listen else {}),
    }


def program(machine: str, *, pid: int, write: bool, listen: bool) -> list[Op]:
    """The filter for the process ``pid``.

    ``write`` leaves making, changing and removing files to Landlock; ``listen`` lets the process listen on Unix
    sockets, but not connect to any.
    """
    refused = [
        NETWORK,
        PROGRAMS,
        PROCESSES,
        KERNEL,
        NAMESPACES,
        USERS,
        SHARED,
        ATTRIBUTES,
        *([] if write else [WRITING]),
    ]
    conditional = conditions(pid=pid, write=write, listen=listen)
    known = numbers(CONDITIONAL, machine) | numbers(NETWORK, machine)
    return [
        *(Op(LOAD, 0, 0, ARCH), Op(EQUAL, 1, 0, MACHINES[machine]), Op(RETURN, 0, 0, KILL)),
        Op(LOAD, 0, 0, NUMBER),
        *((Op(AT_LEAST, 0, 1, X32), Op(RETURN, 0, 0, KILL)) if machine == "x86_64" else ()),
        *(Op(ABOVE, 0, 1, NEWEST), Op(RETURN, 0, 0, ABSENT)),
        *(op for name in conditional if name in known for op in _if(known[name], conditional[name])),
        *(op for number in numbers(UNREADABLE, machine).values() for op in _answer(number, ABSENT)),
        *(op for names in refused for number in numbers(names, machine).values() for op in _answer(number, REFUSE)),
        Op(RETURN, 0, 0, ALLOW),
    ]


def _answer(number: int, value: int) -> list[Op]:
    return [Op(EQUAL, 0, 1, number), Op(RETURN, 0, 0, value)]


def _if(number: int, checks: tuple[Check, ...]) -> list[Op]:
    """The end for ``number`` either way: the accumulator doesn't hold the number any more."""
    ops: list[Op] = []
    for argument, mask, value, equal in checks:
        ops += [
            Op(LOAD, 0, 0, ARGUMENTS + 8 * argument),
            Op(AND, 0, 0, mask),
            Op(EQUAL, int(equal), int(not equal), value),
            Op(RETURN, 0, 0, REFUSE),
        ]
    return [Op(EQUAL, 0, len(ops) + 1, number), *ops, Op(RETURN, 0, 0, ALLOW)]


def pack(ops: list[Op]) -> bytes:
    """``struct sock_filter`` after ``struct sock_filter``."""
    return b"".join(struct.pack("=HBBI", *op) for op in ops)
