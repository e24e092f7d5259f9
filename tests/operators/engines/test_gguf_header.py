"""A GGUF header is read or refused with our own error, in bounded time and memory, whatever the file claims."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from operators.engines.files.models import inspect, resolve
from operators.engines.gguf import header as gguf_header
from operators.engines.gguf import reader as gguf_reader
from operators.engines.gguf.header import Header, check, parse
from operators.engines.gguf.memory import estimate
from operators.errors import Stop
from operators.tiers import ModelFile
from tests.operators.engines import tiny_gguf as tiny
from tests.operators.engines import weights

U32, STR, ARR, U64, F32 = 4, 8, 9, 10, 6
MIB = 1 << 20


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def text(value: bytes) -> bytes:
    return u64(len(value)) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def strings(n: int) -> bytes:
    return u32(STR) + u64(n) + text(b"tok") * n


def tensor(name: bytes, offset: int, shape: tuple[int, ...] = (8, 4), kind: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


FACTS = {
    b"general.architecture": entry(b"general.architecture", STR, text(b"llama")),
    b"llama.block_count": entry(b"llama.block_count", U32, u32(2)),
    b"llama.embedding_length": entry(b"llama.embedding_length", U64, u64(8)),
    b"llama.context_length": entry(b"llama.context_length", U32, u32(64)),
    b"llama.attention.head_count": entry(b"llama.attention.head_count", U32, u32(2)),
    b"llama.attention.head_count_kv": entry(b"llama.attention.head_count_kv", ARR, u32(U32) + u64(2) + u32(1) + u32(0)),
    b"tokenizer.ggml.tokens": entry(b"tokenizer.ggml.tokens", ARR, strings(40)),
    b"tokenizer.ggml.scores": entry(b"tokenizer.ggml.scores", ARR, u32(F32) + u64(40) + bytes(160)),
}
TENSORS = (tensor(b"a.weight", 0), tensor(b"b.weight", 128, (32,), 2))


def build(
    *more: bytes,
    facts: dict[bytes, bytes] = {},  # noqa: B006  (read only)
    tensors: tuple[bytes, ...] = TENSORS,
    head: bytes = b"GGUF" + u32(3),
    data: int = 146,
) -> bytes:
    """A sound little file; each argument spoils one part of it. A fact given as b"" is left out."""
    entries = [value for value in (FACTS | facts).values() if value] + list(more)
    header = head + u64(len(tensors)) + u64(len(entries)) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 32 + data)


def read(raw: bytes) -> Header:
    return parse(io.BytesIO(raw), "model m", "m.gguf")


def test_a_sound_file_is_read() -> None:
    found = read(build())
    assert (found.architecture, found.version, found.blocks, found.embedding) == ("llama", 3, 2, 8)
    assert (found.heads, found.heads_kv, found.key_length, found.value_length) == ((2, 2), (1, 0), 4, 4)
    assert (found.vocabulary, found.context, found.file_type, found.conv_cache) == (40, 64, None, 0)
    assert (found.parameters, found.tensors, found.tensor_bytes) == (64, 2, 128 + 18)
    assert found.header_bytes + 146 == len(build())
    assert read(build(head=b"GGUF" + u32(2))).version == 2
    assert read(build(entry(b"general.alignment", U32, u32(64)), data=146 + 32)).header_bytes % 64 == 0


NO_HEADER = [
    (b"", "cut off"),
    (b"GGUF", "cut off"),
    (b"GGML" + bytes(100), "begins with b'GGML'"),
    (build(head=b"GGUF" + struct.pack(">I", 3)), "big-endian"),
    (build(head=b"GGUF" + u32(1)), "version 1"),
    (build(head=b"GGUF" + u32(4)), "version 4"),
    (build(data=145), "cut off"),
    (b"GGUF" + u32(3) + u64(1 << 63) + u64(1) + bytes(64), "claims 9223372036854775808 tensors"),
    (b"GGUF" + u32(3) + u64(16000) + u64(1) + bytes(64), "cut off"),
    (b"GGUF" + u32(3) + u64(1) + u64(2**64 - 1) + bytes(64), "metadata entries"),
]
METADATA = [
    (entry(b"", U32, u32(0)), "empty key"),
    (entry(b"k" * 300, U32, u32(0)), "a key of 300 bytes"),
    (entry(b"llama.block_count", U32, u32(2)), "'llama.block_count' twice"),
    (entry(b"x", 13, u32(0)), "unknown type 13"),
    (entry(b"x", ARR, u32(ARR) + u64(1) + u32(ARR) + u64(1)), "array 'x' of type 9"),
    (entry(b"x", ARR, u32(U64) + u64(1 << 62)), "elements in 'x'"),
    (entry(b"x", ARR, u32(U64) + u64(1 << 20)), "cut off"),
    (entry(b"x", ARR, u32(STR) + u64(1 << 22)), "cut off"),
    (entry(b"x", STR, u64(1 << 40)), "string of 1099511627776 bytes"),
    (entry(b"x", STR, u64(1 << 20)), "cut off"),
    (entry(b"general.alignment", U32, u32(48)), "aligns to 48"),
    (entry(b"general.alignment", U32, u32(0)), "aligns to 0"),
    (entry(b"general.alignment", U64, u64(32)), "alignment as type 10"),
    (entry(b"general.file_type", ARR, u32(U32) + u64(0)), "'general.file_type'"),
    (entry(b"llama.attention.key_length", F32, struct.pack("<f", 4.0)), "whole number"),
    (entry(b"llama.attention.key_length", 5, struct.pack("<i", -4)), "whole number"),
    (entry(b"split.count", 2, struct.pack("<H", 3)), "one of 3 parts"),
    (entry(b"tokenizer.ggml.token_type", ARR, u32(5) + u64(39) + bytes(156)), "39 elements of type 5"),
    (entry(b"tokenizer.ggml.token_type", ARR, u32(0) + u64(40) + bytes(40)), "40 elements of type 0"),
]
CHANGED = [
    (b"general.architecture", b"", "no architecture"),
    (b"general.architecture", entry(b"general.architecture", U32, u32(1)), "architecture as type 4"),
    (b"general.architecture", entry(b"general.architecture", STR, text(b"gpt2")), "'gpt2.block_count'"),
    (b"llama.block_count", entry(b"llama.block_count", U32, u32(0)), "0 layers"),
    (b"llama.block_count", entry(b"llama.block_count", U32, u32(1 << 30)), "layers of width"),
    (b"llama.block_count", entry(b"llama.block_count", U32, u32(3)), "2 numbers as 'llama.attention.head_count_kv'"),
    (b"llama.context_length", b"", "'llama.context_length'"),
    (b"tokenizer.ggml.tokens", entry(b"tokenizer.ggml.tokens", ARR, u32(0) + u64(40) + bytes(40)), "tokens of type 0"),
]
SPOILT = [
    (tensor(b"a.weight", 128), "'a.weight' twice"),
    (tensor(b"n" * 64, 128), "tensor name of 64 bytes"),
    (tensor(b"c", 128, ()), "0 dimensions"),
    (tensor(b"c", 128, (1, 1, 1, 1, 1)), "5 dimensions"),
    (tensor(b"c", 128, (1 << 62, 1 << 62)), "the shape"),
    (tensor(b"c", 128, (0, 4)), "the shape"),
    (tensor(b"c", 128, (33,), 2), "the shape"),
    (tensor(b"c", 128, kind=99), "unknown type 99"),
    (tensor(b"c", 96), "puts tensor b'c' at 96, not at 128"),
    (tensor(b"c", 160), "at 160, not at 128"),
    (tensor(b"c", 128, (1 << 40,)), "cut off"),
]
CRAFTED = [
    *NO_HEADER,
    *((build(more), words) for more, words in METADATA),
    *((build(facts={key: value}), words) for key, value, words in CHANGED),
    *((build(tensors=(TENSORS[0], spoilt)), words) for spoilt, words in SPOILT),
]


@pytest.mark.parametrize(("raw", "words"), CRAFTED, ids=[words for _, words in CRAFTED])
def test_what_is_not_sound_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(Stop, match=r"^model m: m\.gguf ") as caught:
        read(raw)
    assert words in caught.value.got
    assert "download it again" in caught.value.remedy


def test_a_file_that_shrinks_meanwhile_is_refused() -> None:
    class Shrinking(io.BytesIO):
        def read(self, n: int | None = -1, /) -> bytes:
            return b"" if self.tell() else super().read(n)[:100]

    with pytest.raises(Stop, match="shorter while it was read"):
        parse(Shrinking(build()), "m", "m")


def test_strings_are_stepped_over_in_a_small_window() -> None:
    """10 MB of tokens, longer and shorter than the window, cost the window; the entry after them is still found."""
    long = u32(STR) + u64(20_003) + text(b"x" * 500) * 20_000 + text(b"y" * gguf_reader.WINDOW * 2) * 3
    raw = build(entry(b"x", ARR, long), entry(b"llama.attention.key_length", U32, u32(7)))
    file = io.BytesIO(raw)
    tracemalloc.start()
    try:
        assert parse(file, "m", "m").key_length == 7
        assert tracemalloc.get_traced_memory()[1] < 4 * gguf_reader.WINDOW
    finally:
        tracemalloc.stop()


def mutate(raw: bytes, header: int, rng: np.random.Generator) -> bytes:
    """One way to spoil a file, mostly in its header."""
    out, at = bytearray(raw), int(rng.integers(0, header))
    match rng.integers(0, 8):
        case 0:
            for bit in rng.integers(0, 8 * header, rng.integers(1, 9)):
                out[bit // 8] ^= 1 << (bit % 8)
        case 1:
            del out[int(rng.integers(0, len(out))) :]
        case 2:
            out[at : at + 8] = u64(int(rng.choice([1 << 16, 1 << 22, 1 << 32, 1 << 40, 1 << 62, 2**63 - 1])))
        case 3:
            out[at : at + 8] = b"\xff" * 8
        case 4:
            out[at : at + 4] = u32(ARR)
            out[at + 4 : at + 16] = u32(ARR) + u64(2)
        case 5:
            other = int(rng.integers(0, header))
            size = int(rng.integers(1, 64))
            out[at : at + size] = raw[other : other + size]
        case 6:
            del out[at : at + int(rng.integers(1, 64))]
        case _:
            size = int(rng.choice([4, 8]))
            out[at : at + size] = out[at : at + size][::-1]
    return bytes(out)


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    found: ModelFile = tiny.write(gguf, tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return found


@pytest.fixture(params=["crafted", "lfm2"])
def sound(request: pytest.FixtureRequest) -> bytes:
    if request.param == "crafted":
        return build()
    return Path(request.getfixturevalue("lfm2").path).read_bytes()


def test_500_mutated_files_are_read_or_refused(sound: bytes) -> None:
    """Any other exception than ours ends the test; so does memory that a claim in the file could have asked for."""
    rng, header = np.random.default_rng(20261123), read(sound).header_bytes
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for _ in range(500):
            raw = mutate(sound, header, rng)
            file = io.BytesIO(raw)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                found = parse(file, "model m", "m.gguf")
                assert found.header_bytes + found.tensor_bytes <= len(raw)
                assert estimate(found, 2048, 2) > found.tensor_bytes
                outcomes["read"] += 1
            except Stop:
                outcomes["refused"] += 1
            assert tracemalloc.get_traced_memory()[1] - before < MIB
    finally:
        tracemalloc.stop()
    assert min(outcomes.values()) > 50, outcomes


@pytest.mark.parametrize(
    ("model", "parameters", "facts"),
    [
        (weights.SMOLLM2, 134_515_008, ("llama", 30, 576, {9}, {3}, 64, 49_152, 8192, 3)),
        (weights.GEMMA, 268_098_176, ("gemma3", 18, 640, {4}, {1}, 256, 262_144, 32_768, 15)),
    ],
    ids=["smollm2", "gemma"],
)
def test_real_models(model: ModelFile, parameters: int, facts: tuple[Any, ...], tmp_path: Path) -> None:
    path = resolve(model, tmp_path)
    found = check(path, model.id)
    assert found is not None
    assert found.parameters == parameters
    h = found
    read_facts = (h.architecture, h.blocks, h.embedding, {*h.heads}, {*h.heads_kv}, h.key_length, h.vocabulary)
    assert (*read_facts, h.context, h.file_type) == facts
    assert len(found.heads) == found.blocks
    gaps = path.stat().st_size - found.header_bytes - found.tensor_bytes
    assert 0 <= gaps < 32 * found.tensors


def test_the_tiny_lfm2(lfm2: ModelFile, tmp_path: Path) -> None:
    found = check(resolve(lfm2, tmp_path), "m")
    assert found is not None
    assert (found.architecture, found.heads_kv, found.conv_cache) == ("lfm2", tiny.HEADS_KV, tiny.CONV)
    sizes = [int(np.prod(shape)) for shape in tiny.shapes(found.vocabulary).values()]
    assert (found.parameters, found.tensor_bytes, found.tensors) == (sum(sizes), 4 * sum(sizes), len(sizes))


def test_block_sizes_are_those_of_gguf() -> None:
    assert {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == gguf_header.BLOCKS


def test_resolve_refuses_what_is_not_sound_before_an_engine_gets_it(tmp_path: Path) -> None:
    """With any name that begins like a GGUF, or with a GGUF's name; other formats pass."""
    for name, raw, sound in [
        ("weights.bin", build(data=0), False),
        ("weights.gguf", b"no GGUF", False),
        ("weights.onnx", b"no GGUF", True),
        ("good.gguf", build(), True),
    ]:
        path = tmp_path / name
        path.write_bytes(raw)
        state = inspect(ModelFile(id="m", path=str(path), sha256="unchecked"), tmp_path)["state"]
        assert state.startswith(f"{name} " if not sound else "unchecked"), state


LOGGED = {
    "smollm2": (weights.SMOLLM2, 2048, 128, 92.10 + 45.0 + 24.84 + 0.19),
    "smollm2, long": (weights.SMOLLM2, 8192, 256, 92.10 + 180.0 + 83.19 + 0.19),
}
"""Model, context, batch, and MiB of the buffers (weights, KV, compute, output) that llama-cpp-python 0.3.36 logs."""


@pytest.mark.parametrize(("model", "context", "batch", "logged"), LOGGED.values(), ids=LOGGED)
def test_the_estimate_is_what_llama_cpp_logs(
    model: ModelFile, context: int, batch: int, logged: float, tmp_path: Path
) -> None:
    found = check(resolve(model, tmp_path), model.id)
    assert found is not None
    assert 0 <= estimate(found, context, 1, batch_tokens=batch) / MIB - logged < 0.02 * logged


def test_the_estimate_counts_keys_only_where_there_is_attention() -> None:
    found = read(build())  # 2 layers, one of them with one head of 4 + 4
    assert estimate(found, 512, 1, flash=True) - estimate(found, 256, 1, flash=True) == 256 * 8 * 2
    assert estimate(found, 257, 1) == estimate(found, 512, 1)
    assert estimate(found, 256, 3) - estimate(found, 256, 2) == 256 * 8 * 2 + 40 * 4
    conv = read(build(entry(b"llama.shortconv.l_cache", U32, u32(3))))
    assert estimate(conv, 256, 2) - estimate(found, 256, 2) == 2 * (2 * 8 * 4)
    assert estimate(found, 256, 1, kv_bytes=4) - estimate(found, 256, 1) == 256 * 8 * 2
