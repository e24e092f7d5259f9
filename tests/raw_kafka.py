"""A Kafka producer from nothing but sockets: what a program in any language does, without a library of ours or theirs.

Produce, version 3, with one record in a batch of format 2 (https://kafka.apache.org/protocol, "Record Batch").
"""

from __future__ import annotations

import socket
import struct


def produce(address: str, topic: str, partition: int, key: bytes, value: bytes, now_ms: int) -> int:
    """Send one event to the broker at ``address`` and wait for all replicas; returns its offset."""
    batch = _batch(key, value, now_ms)
    partitions = struct.pack(">ii", 1, partition) + struct.pack(">i", len(batch)) + batch
    body = struct.pack(">hhii", -1, -1, 5000, 1) + _string(topic) + partitions  # no transaction, acks=all, 5 s, 1 topic
    request = struct.pack(">hhi", 0, 3, 1) + _string("raw") + body
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 5.0) as wire, wire.makefile("rb") as answers:
        wire.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", answers.read(4))
        answer = answers.read(size)
    begin = 4 + 4 + 2 + len(topic.encode()) + 4
    at, error, offset = struct.unpack_from(">ihq", answer, begin)
    assert (at, error) == (partition, 0), f"partition {at} answers with error {error}"
    return int(offset)


def _batch(key: bytes, value: bytes, now_ms: int) -> bytes:
    record = b"\0" + _varint(0) + _varint(0) + _varint(len(key)) + key + _varint(len(value)) + value + _varint(0)
    record = _varint(len(record)) + record
    rest = struct.pack(">hiqqqhii", 0, 0, now_ms, now_ms, -1, -1, -1, 1) + record  # from the attributes on
    checked = struct.pack(">ibI", -1, 2, _crc32c(rest)) + rest
    return struct.pack(">qi", 0, len(checked)) + checked


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _varint(number: int) -> bytes:
    number = number << 1  # zigzag, of what is not negative
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF
