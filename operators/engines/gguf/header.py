"""What a GGUF file says of itself, read with caps before any engine's native parser sees the file.

Nothing is allocated because the file claims it: every count is compared with a cap and with the bytes that are left,
long arrays (a tokenizer's 150 000 strings) are stepped over in a window of 64 KiB. What llama.cpp would abort
the process for, or read past an array's end for, is refused here.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from operators.engines.gguf.reader import Reader
from operators.errors import Stop
from operators.records import record

MAGIC = b"GGUF"
MAX_TENSORS = 1 << 14
MAX_ENTRIES = 1 << 10
MAX_KEY = 256
MAX_ARRAY = 1 << 22
MAX_BLOCKS = 512
"""Layers llama.cpp can hold (its LLAMA_MAX_LAYERS)."""
MAX_NAME = 63
"""Bytes of a tensor's name (GGML_MAX_NAME with its closing zero)."""

STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""``struct`` code of each number type; a bool is read as a byte, for it may hold any."""
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8)},
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 20: (32, 18), 39: (32, 17)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66)},
    **{17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56)},
    **{34: (256, 54), 35: (256, 66), 40: (64, 36), 41: (128, 18)},
}
"""Tensor type → elements in a block, bytes of a block (ggml's type table; missing numbers are types it gave up)."""
FACTS = {
    "block_count",
    "embedding_length",
    "context_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "shortconv.l_cache",
}
PLAIN = {"general.alignment", "general.file_type", "split.count"}
BESIDE_TOKENS = {"tokenizer.ggml.token_type": {4, 5}, "tokenizer.ggml.scores": {6}}
"""Arrays llama.cpp reads by the number of tokens without asking how long they are, and the types it takes them for."""


@record
class Header:
    """Facts of a GGUF file; ``heads`` and ``heads_kv`` have one number a layer, 0 where a layer has no attention."""

    architecture: str
    version: int
    parameters: int
    """Elements of all tensors."""
    blocks: int
    embedding: int
    heads: tuple[int, ...]
    heads_kv: tuple[int, ...]
    key_length: int
    """Elements of one head's key."""
    value_length: int
    conv_cache: int
    """Width of LFM2's short convolutions; 0 for models without."""
    context: int
    """Tokens the model was trained for."""
    vocabulary: int
    file_type: int | None
    """llama.cpp's number of the quantisation (``general.file_type``); the file may leave it out."""
    tensors: int
    tensor_bytes: int
    header_bytes: int
    """Where the weights begin."""


def check(path: Path, who: str) -> Header | None:
    """The header of the file at ``path``; None if it is neither called .gguf nor begins like one.

    Raises ``Stop`` if it can't be read or is not sound.
    """
    try:
        with path.open("rb") as file:
            return check_open(file, who, path.name)
    except OSError as e:
        raise Stop(who, f"can't read {path}: {e}", "make the file readable for this user") from e


def check_open(file: BinaryIO, who: str, name: str) -> Header | None:
    """``check`` of a file that is open, called ``name``. Raises ``Stop``, and ``OSError`` if it can't be read."""
    file.seek(0)
    is_gguf = name.endswith(".gguf") or file.read(4) == MAGIC
    return parse(file, who, name) if is_gguf else None


def parse(file: BinaryIO, who: str, name: str) -> Header:
    """The header of an open file; ``who`` and ``name`` are for the error. Raises ``Stop`` if anything is not sound."""
    read = Reader(file, who, name)
    if (magic := read.take(4)) != MAGIC:
        read.refuse(f"begins with {magic!r}, not with {MAGIC!r}")
    version = read.number("I")
    if version not in (2, 3):
        why = "big-endian" if version & 0xFFFF == 0 and version else f"version {version}"
        read.refuse(f"is a GGUF of {why}; versions 2 and 3, little-endian, can be read")
    tensors = read.count("tensors", MAX_TENSORS, least=24)
    values, arrays = _metadata(read)
    alignment = values.get("general.alignment", (32,))[0]
    if not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        read.refuse(f"aligns to {alignment} bytes, no power of two up to 65536")
    if values.get("split.count", (1,))[0] > 1:
        # The other parts would be found beside it by llama.cpp, and nobody compared their checksums.
        read.refuse(f"is one of {values['split.count'][0]} parts: join them with llama-gguf-split --merge")
    parameters, tensor_bytes, span = _tensors(read, tensors, alignment)
    start = -(-read.at // alignment) * alignment
    if start + span > read.size:
        read.refuse(f"needs {start + span} bytes for its tensors and has {read.size}: it is cut off")
    return _facts(read, values, arrays, (version, parameters, tensors, tensor_bytes, start))


def _metadata(read: Reader) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, int]]]:
    """Whole numbers by key, and (type, length) of the arrays; the architecture is kept as its bytes."""
    values: dict[str, tuple[int, ...]] = {}
    arrays: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    for _ in range(read.count("metadata entries", MAX_ENTRIES, least=13)):
        # llama.cpp aborts the process on an empty key.
        key = read.text("key", MAX_KEY).decode("utf-8", "backslashreplace")
        if not key or key in seen:
            read.refuse(f"has the key {key!r} twice" if key else "has an empty key")
        seen.add(key)
        kind, count = read.number("I"), 1
        if key == "general.alignment" and kind != 4:
            read.refuse(f"gives its alignment as type {kind}, not as u32")  # which llama.cpp asserts
        if key == "general.architecture":
            if kind != STRING:
                read.refuse(f"gives its architecture as type {kind}, not as a string")
            values[key] = tuple(read.text("architecture", 64))
            continue
        if kind == ARRAY:
            kind = read.number("I")
            # Also arrays of arrays: the format knows them, no model has them, llama.cpp refuses them.
            if kind != STRING and kind not in NUMBERS:
                read.refuse(f"has an array {key!r} of type {kind}, neither numbers nor strings")
            size = 8 if kind == STRING else struct.calcsize(NUMBERS[kind])
            count = read.count(f"elements in {key!r}", MAX_ARRAY, least=size)
            arrays[key] = (kind, count)
        if kind == STRING:
            read.skip_strings(count)
        elif kind not in NUMBERS:
            read.refuse(f"has {key!r} of unknown type {kind}")
        elif (key in PLAIN or key.partition(".")[2] in FACTS) and count <= MAX_BLOCKS:
            code = f"<{count}{NUMBERS[kind]}"
            found = struct.unpack(code, read.take(struct.calcsize(code)))
            if not all(isinstance(n, int) and 0 <= n < 1 << 31 for n in found) or (key in PLAIN and count != 1):
                read.refuse(f"gives {found[:4]} as {key!r}, where a whole number is needed")
            values[key] = found
        else:
            read.skip(count * struct.calcsize(NUMBERS[kind]))
    return values, arrays


def _tensors(read: Reader, count: int, alignment: int) -> tuple[int, int, int]:
    """Elements, bytes, and bytes with the gaps between them. Each tensor starts where the last ended: none overlap."""
    parameters = total = end = 0
    names: set[bytes] = set()
    for _ in range(count):
        name = read.text("tensor name", MAX_NAME)
        if name in names:
            read.refuse(f"has the tensor {name!r} twice")
        names.add(name)
        dimensions = read.number("I")
        if not 1 <= dimensions <= 4:
            read.refuse(f"gives tensor {name!r} {dimensions} dimensions, not 1 to 4")
        shape = struct.unpack(f"<{dimensions}Q", read.take(8 * dimensions))
        kind, offset = read.number("I"), read.number("Q")
        if kind not in BLOCKS:
            read.refuse(f"has tensor {name!r} of unknown type {kind}")
        elements = 1
        for n in shape:
            elements *= n
        block, size = BLOCKS[kind]
        if not 0 < elements < 1 << 62 or shape[0] % block:
            read.refuse(f"gives tensor {name!r} of type {kind} the shape {shape}")
        start = -(-end // alignment) * alignment
        if offset != start:
            read.refuse(f"puts tensor {name!r} at {offset}, not at {start} where the one before it ends")
        end = start + elements // block * size
        parameters, total = parameters + elements, total + elements // block * size
    return parameters, total, end


def _facts(
    read: Reader,
    values: dict[str, tuple[int, ...]],
    arrays: dict[str, tuple[int, int]],
    sizes: tuple[int, int, int, int, int],
) -> Header:
    name = bytes(values.get("general.architecture", ())).decode("ascii", "replace")
    if not name:
        read.refuse("names no architecture")

    def fact(key: str, default: int | None = None) -> int:
        found = values.get(f"{name}.{key}", () if default is None else (default,))
        if len(found) != 1:
            read.refuse(f"gives {len(found)} numbers as '{name}.{key}', not one")
        return found[0]

    def layers(key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        found = values.get(f"{name}.{key}", default)
        if len(found) not in (1, blocks):
            read.refuse(f"gives {len(found)} numbers as '{name}.{key}' for {blocks} layers")
        return found * blocks if len(found) == 1 else found

    tokens = arrays.get("tokenizer.ggml.tokens", (STRING, 0))
    if tokens[0] != STRING:
        read.refuse(f"has tokens of type {tokens[0]}, not strings")
    for key, kinds in BESIDE_TOKENS.items():
        if key in arrays and (arrays[key][0] not in kinds or arrays[key][1] < tokens[1]):
            read.refuse(f"has {arrays[key][1]} elements of type {arrays[key][0]} in {key!r} for {tokens[1]} tokens")
    blocks, embedding = fact("block_count"), fact("embedding_length")
    if not 1 <= blocks <= MAX_BLOCKS or not embedding:
        read.refuse(f"has {blocks} layers of width {embedding}")
    heads = layers("attention.head_count", (0,))
    width = embedding // max(heads) if max(heads) else 0  # llama.cpp's default
    version, parameters, tensors, tensor_bytes, start = sizes
    return Header(
        architecture=name,
        version=version,
        parameters=parameters,
        blocks=blocks,
        embedding=embedding,
        heads=heads,
        heads_kv=layers("attention.head_count_kv", heads),
        key_length=fact("attention.key_length", width),
        value_length=fact("attention.value_length", width),
        conv_cache=fact("shortconv.l_cache", 0),
        context=fact("context_length"),
        vocabulary=tokens[1] or fact("vocab_size"),
        file_type=values.get("general.file_type", (None,))[0],
        tensors=tensors,
        tensor_bytes=tensor_bytes,
        header_bytes=start,
    )
