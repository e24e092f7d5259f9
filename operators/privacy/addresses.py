"""Addresses of people and of their machines: e-mail and IP.

Every pattern starts with a look-behind on the signs of its first run and takes that run possessively, so a place is
read once and long near-matches cost linear time.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from operators.privacy import Span

LETTERS = r"A-Za-z\u00C0-\u024F\u0370-\u052F"
"""Latin, Greek and Cyrillic. Scripts written without spaces are left out: a word would run into the address."""
EMAIL = re.compile(
    rf"(?<![{LETTERS}0-9._%+'-])(?P<local>[{LETTERS}0-9._%+'-]++)@"
    rf"(?:[{LETTERS}0-9-]{{1,63}}+\.){{1,8}}(?:xn--[a-z0-9-]{{2,59}}+|[{LETTERS}]{{2,24}}+)(?![{LETTERS}0-9-])"
)
IPV4 = re.compile(r"(?<![\w.])(?<!==)(?<![A-Za-z]-)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f]{0,4}:)[0-9a-f:]{3,45}+(?:\.\d{1,3}){0,3}+(?!\w|\.\d)", re.ASCII | re.I)
A_VERSION = re.compile(
    r"(?:\b(?:v|vers?\w{0,6}|wersj\w{1,2}|release|build|firmware|rev\w{0,6}|section|chapter|clause)|§)[.:=]?\s{0,2}\Z",
    re.I,
)
"""What may stand before four numbers with dots that are no address."""
NOBODY = (ipaddress.ip_network("0.0.0.0/8"), ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("224.0.0.0/3"))
"""This host, loopback, multicast, reserved (netmasks): they point at no machine of anybody's."""
SOMEBODY = tuple(map(ipaddress.ip_network, ("2000::/3", "fc00::/7", "fe80::/10", "::ffff:0:0/96", "64:ff9b::/96")))
"""The IPv6 that is given to machines. The rest is unassigned, and looks like ``dead::beef`` in a program."""


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses. ``git@host`` is the address of a repository and nobody's."""
    if "@" in text:
        for match in EMAIL.finditer(text):
            local = match["local"].lstrip("._%+'-")
            if local and local != "git":
                yield match.end("local") - len(local), match.end()


def ips(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses that belong to a machine, but no versions."""
    if "." in text:
        for match in IPV4.finditer(text):
            if _is_v4(match[0]) and not A_VERSION.search(text, max(0, match.start() - 16), match.start()):
                yield match.span()
    if ":" in text:
        for match in IPV6.finditer(text):
            value = match[0] if match[0].endswith("::") else match[0].rstrip(":")
            if value.count(":") == 8:  # eight groups and a port, written without brackets
                value = value.rpartition(":")[0]
            if _is_v6(value):
                yield match.start(), match.start() + len(value)


def _is_v4(value: str) -> bool:
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        return False
    return not any(address in network for network in NOBODY)


def _is_v6(value: str) -> bool:
    try:
        address = ipaddress.IPv6Address(value)
    except ValueError:
        return False
    return any(address in network for network in SOMEBODY)
