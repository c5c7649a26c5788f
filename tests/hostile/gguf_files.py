"""GGUF files with a fault each. What ggml refuses is in ggml/src/gguf.cpp, as are the overflows that it once had."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hostile import add, late

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def text(value: bytes) -> bytes:
    return U64.pack(len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + U32.pack(kind) + value


def tensor(name: bytes, sizes: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + U32.pack(len(sizes)) + b"".join(map(U64.pack, sizes)) + U32.pack(kind) + U64.pack(offset)


def gguf(
    *infos: bytes,
    keys: Sequence[bytes] = (),
    data: bytes = bytes(64),
    version: int = 3,
    tensors: int | None = None,
    count: int | None = None,
) -> bytes:
    counts = U64.pack(len(infos) if tensors is None else tensors) + U64.pack(len(keys) if count is None else count)
    front = b"GGUF" + U32.pack(version) + counts + b"".join((*keys, *infos))
    return front + bytes(-len(front) % 32) + data


W = tensor(b"w", [4])
add("gguf true", gguf(W), "clean")
add("gguf magic alone", b"GGUF", "truncated")
add("gguf counts beyond all", b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 1 << 62), "truncated")
add("gguf of version 1", gguf(W, version=1), "unsupported")
add("gguf of version 4", gguf(W, version=4), "unsupported")
add("gguf for the other byte order", b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "unsupported")
add("gguf with more tensors than it has", gguf(W, tensors=1 << 60), "truncated")
add("gguf with more keys than it has", gguf(W, count=9), "truncated", "corrupt", "limit")
add("gguf with keys of all the bytes", gguf(W, count=1 << 60), "truncated")
late("gguf with a million keys", lambda: gguf(count=1 << 20, data=bytes(16 << 20)), "limit")
late("gguf with a million tensors", lambda: gguf(tensors=1 << 20, data=bytes(32 << 20)), "limit")
add("gguf key twice", gguf(W, keys=[key(b"a", 0, b"1"), key(b"a", 0, b"2")]), "unsafe")
add("gguf key of 2^63 bytes", gguf(W, keys=[U64.pack(1 << 63) + b"aaaaa"]), "truncated")
late("gguf key of a million bytes", lambda: gguf(W, keys=[key(b"a" * 1_000_000, 0, b"1")]), "limit")
add("gguf key that is no text", gguf(W, keys=[key(b"\xff", 0, b"1")]), "corrupt")
add("gguf value of no type", gguf(W, keys=[key(b"a", 13, bytes(8))]), "corrupt")
add("gguf text of 2^63 bytes", gguf(W, keys=[key(b"a", 8, U64.pack(1 << 63))]), "truncated")
add("gguf text that ends behind the file", gguf(W, keys=[key(b"a", 8, U64.pack(200))]), "truncated")
add("gguf array of 2^61 numbers", gguf(W, keys=[key(b"a", 9, U32.pack(10) + U64.pack(1 << 61))]), "truncated")
add("gguf array of 2^61 texts", gguf(W, keys=[key(b"a", 9, U32.pack(8) + U64.pack(1 << 61))]), "truncated")
add("gguf array of no type", gguf(W, keys=[key(b"a", 9, U32.pack(99) + U64.pack(1) + bytes(8))]), "corrupt")
add("gguf array of 2^61 arrays", gguf(W, keys=[key(b"a", 9, U32.pack(9) + U64.pack(1 << 61))]), "truncated")
add("gguf array in arrays", gguf(W, keys=[key(b"a", 9, (U32.pack(9) + U64.pack(1)) * 5 + U32.pack(0) + U64.pack(0))]), "clean")
add("gguf array in too many arrays", gguf(W, keys=[key(b"a", 9, (U32.pack(9) + U64.pack(1)) * 5000)]), "limit")
late(
    "gguf with a million empty arrays",
    lambda: gguf(W, keys=[key(b"a", 9, U32.pack(9) + U64.pack(1 << 20) + (U32.pack(0) + U64.pack(0)) * (1 << 20))]),
    "limit",
)
late(
    "gguf with two million empty texts",
    lambda: gguf(W, keys=[key(b"a", 9, U32.pack(8) + U64.pack(1 << 21) + bytes(8 << 21))]),
    "clean",
)
late(
    "gguf with 120 MB of keys",
    lambda: gguf(W, keys=[key(b"a", 9, U32.pack(0) + U64.pack(120 << 20) + bytes(120 << 20))]),
    "limit",
)
add("gguf alignment 0", gguf(W, keys=[key(b"general.alignment", 4, U32.pack(0))]), "corrupt")
add("gguf alignment 48", gguf(W, keys=[key(b"general.alignment", 4, U32.pack(48))]), "corrupt")
add("gguf alignment of 2^31", gguf(W, keys=[key(b"general.alignment", 4, U32.pack(1 << 31))]), "truncated")
add("gguf alignment that is text", gguf(W, keys=[key(b"general.alignment", 8, text(b"32"))]), "corrupt")
add("gguf tensor twice", gguf(W, tensor(b"w", [4], offset=32)), "unsafe")
add("gguf tensor that is no text", gguf(tensor(b"\xff\xfe", [4])), "corrupt")
add("gguf tensor of five axes", gguf(tensor(b"w", [1] * 5)), "corrupt")
add("gguf tensor of 2^32 axes", gguf(text(b"w") + b"\xff" * 4 + bytes(40)), "corrupt")
add("gguf tensor of 2^64 values", gguf(tensor(b"w", [1 << 32, 1 << 32])), "corrupt")
add("gguf tensor of 2^64 values and none", gguf(tensor(b"w", [1 << 63, 1 << 63, 0])), "corrupt")
add("gguf tensor of 2^62 values", gguf(tensor(b"w", [1 << 62], kind=24)), "truncated")
add("gguf tensor of no type", gguf(tensor(b"w", [4], kind=1000)), "unsupported")
add("gguf tensor of a type that is gone", gguf(tensor(b"w", [32], kind=4)), "unsupported")
add("gguf tensor of a type while computing", gguf(tensor(b"w", [32], kind=9)), "unsupported")
add("gguf blocks that are not whole", gguf(tensor(b"w", [33], kind=2)), "corrupt")
add("gguf blocks across rows", gguf(tensor(b"w", [16, 2], kind=2)), "corrupt")
add("gguf block of no axes", gguf(tensor(b"w", [], kind=2)), "corrupt")
add("gguf offset that is not aligned", gguf(tensor(b"w", [4], offset=16)), "corrupt")
add("gguf offset behind the file", gguf(tensor(b"w", [4], offset=1 << 20)), "truncated")
add("gguf offset of 2^64", gguf(tensor(b"w", [4], offset=(1 << 64) - 32)), "truncated")
add("gguf tensors that overlap", gguf(tensor(b"w", [16]), tensor(b"v", [4], offset=32)), "corrupt")
add("gguf tensors at one place", gguf(tensor(b"w", [4]), tensor(b"v", [4])), "corrupt")
add("gguf tensors in any order", gguf(tensor(b"w", [4], offset=32), tensor(b"v", [4])), "clean")
add("gguf without a tensor", gguf(), "clean")
add("gguf without its data", gguf(W, data=b""), "truncated")
PART = key(b"split.count", 2, struct.pack("<H", 3))
add("gguf part of an odd name", gguf(W, keys=[PART]), "unsupported", file="a.gguf")
add(
    "gguf part without the others",
    gguf(W, keys=[PART, key(b"split.no", 2, b"\0\0")]),
    "missing-shard",
    file="a-00001-of-00003.gguf",
)
add(
    "gguf part with another number",
    gguf(W, keys=[PART, key(b"split.no", 2, b"\1\0")]),
    "corrupt",
    file="a-00001-of-00003.gguf",
)
