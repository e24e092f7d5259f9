"""Frames between a model's process and ours: length, kind, number of the call, and a body of JSON.

JSON and not pickle: whoever took over the engine's process through a bad model file must not get into ours as well.
"""

from __future__ import annotations

import json
import struct
from asyncio import IncompleteReadError, StreamReader
from enum import IntEnum
from socket import socket
from typing import Any, NamedTuple

from operators.errors import Reject, Retry, RuvError, Skip, Stop

HEAD = struct.Struct(">IBI")
MAX_BODY = 64 << 20
_ERRORS: dict[str, type[RuvError]] = {cls.__name__: cls for cls in (Retry, Reject, Skip, Stop)}


class Kind(IntEnum):
    """What a frame is. The first seven go to the child, the others come from it."""

    GENERATE = 1
    SCORE = 2
    CHECK = 3
    CANCEL = 4
    CLOSE = 5
    WORD = 6
    ENCODE = 7
    HELLO = 8
    PIECE = 9
    RESULT = 10
    ERROR = 11


class Frame(NamedTuple):
    """One frame, read."""

    kind: Kind
    call: int
    body: bytes


def pack(kind: Kind, call: int, body: bytes = b"") -> bytes:
    """The bytes of a frame."""
    return HEAD.pack(len(body), kind, call) + body


def _head(data: bytes) -> tuple[int, Kind, int]:
    length, kind, call = HEAD.unpack(data)
    if length > MAX_BODY:
        raise ValueError(f"a frame of {length} bytes")
    return length, Kind(kind), call


async def read(reader: StreamReader) -> Frame | None:
    """The next frame; ``None`` when the other side is gone. Raises ``ValueError`` for what is no frame."""
    try:
        length, kind, call = _head(await reader.readexactly(HEAD.size))
        return Frame(kind, call, await reader.readexactly(length))
    except (IncompleteReadError, ConnectionError):
        return None


def read_now(sock: socket) -> Frame | None:
    """The same, blocking. Raises ``TimeoutError`` when the socket has a timeout."""
    head = _exactly(sock, HEAD.size)
    if head is None:
        return None
    length, kind, call = _head(head)
    body = _exactly(sock, length)
    return None if body is None else Frame(kind, call, body)


def _exactly(sock: socket, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        try:
            part = sock.recv(length - len(data))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)


def dump(value: Any) -> bytes:
    """JSON, in ASCII: text with lone surrogates, which UTF-8 can't carry, arrives as it was."""
    return json.dumps(value).encode()


def dump_error(error: Exception, who: str) -> bytes:
    """An error's class and fields; what is none of ours becomes a ``Retry`` of ``who``."""
    if not isinstance(error, RuvError):
        error = Retry(who, f"{type(error).__name__}: {error}", "try again")
    return dump([type(error).__name__, *error.args])


def load_error(body: bytes) -> RuvError:
    """The error of a frame. Raises ``ValueError`` for what is none."""
    try:
        name, *fields = json.loads(body)
        return _ERRORS[name](*fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"no error: {body[:200]!r}") from error
