"""Headers of safetensors that lie. Rows: the library's own tests (tensor.rs, attacks/), its audit, fuzzers' reports."""

from __future__ import annotations

import json
import struct

from hostile import add, late


def st(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(**lie: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **lie}}


D = bytes(8)


def row(name: str, content: bytes, *expect: str) -> None:
    add(f"safetensors {name}", content, *expect, file="m.safetensors")


row("true", st(one(), D), "clean")
row("one byte missing", st(one(), D[1:]), "truncated")
row("one byte more", st(one(), D + b"x"), "corrupt")
row("header longer than the file", st(one(), D, 10_000), "truncated")
row("header of 100,000,001 bytes", st(one(), D, 100_000_001), "limit", "truncated")
row("header of 2^63", st(one(), D, 1 << 63), "limit", "truncated", "unknown-format")
row("header of 2^64 - 1", st(one(), D, (1 << 64) - 1), "limit", "truncated", "unknown-format")
row("header of 0 bytes", struct.pack("<Q", 0), "unknown-format", "corrupt", "truncated")
row("header of 1 byte", st(b"{"), "corrupt")
row("only a length", struct.pack("<Q", 64), "truncated", "unknown-format")
row("not JSON", st(b'{"w": nonsense}', D), "corrupt")
row("not UTF-8", st(b'{"\xff": 1}', D), "corrupt")
row("array", st(b"[1, 2]", D), "corrupt", "unknown-format")
row("white space before", st(b" " + json.dumps(one()).encode(), D), "corrupt", "unknown-format", "clean")
row("polyglot with a zip", st(one(), D + b"PK\5\6" + bytes(18)), "corrupt")
row(
    "key twice",
    st(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"ab"),
    "unsafe",
)
row("field twice", st(b'{"w":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"a"), "unsafe")
row(
    "metadata twice",
    st(b'{"__metadata__":{},"__metadata__":{"a":"b"},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a"),
    "unsafe",
)
row("metadata key twice", st(b'{"__metadata__":{"a":"1","a":"2"}}'), "unsafe")
row("hole", st(one(data_offsets=[8, 16]), bytes(16)), "corrupt")
row("overlap", st({**one(), "x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)), "corrupt")
row("same place twice", st({**one(), "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, D), "corrupt")
row("offsets backwards", st(one(data_offsets=[8, 0]), D), "corrupt")
row("offsets below 0", st(one(data_offsets=[-8, 0]), D), "corrupt")
row("offsets of 2^64", st(one(data_offsets=[0, 1 << 64]), D), "corrupt")
row("offsets of 2^63", st(one(data_offsets=[1 << 63, (1 << 63) + 8]), D), "corrupt")
row("offsets as text", st(one(data_offsets=["0", "8"]), D), "corrupt")
row("offsets as floats", st(one(data_offsets=[0.0, 8.0]), D), "corrupt")
row("offsets as one", st(one(data_offsets=[0]), D), "corrupt")
row("offsets as three", st(one(data_offsets=[0, 8, 8]), D), "corrupt")
row("offsets as true", st(one(data_offsets=[False, 8]), D), "corrupt")
row("shape overflows", st(one(shape=[1 << 32, 1 << 32, 1 << 32]), D), "corrupt")
row("shape overflows before a 0", st(one(shape=[1 << 63, 4, 0], data_offsets=[0, 0])), "corrupt")
row("shape below 0", st(one(shape=[-2]), D), "corrupt")
row("shape of floats", st(one(shape=[2.0]), D), "corrupt")
row("shape of text", st(one(shape=["2"]), D), "corrupt")
row("shape is null", st(one(shape=None), D), "corrupt")
row("shape too large", st(one(shape=[3]), D), "corrupt")
row("size in bits overflows", st(one(dtype="F64", shape=[1 << 61], data_offsets=[0, 8]), D), "corrupt")
row("unknown dtype", st(one(dtype="F33"), D), "corrupt")
row("dtype in small letters", st(one(dtype="f32"), D), "corrupt")
row("dtype is a number", st(one(dtype=7), D), "corrupt")
row("dtype is a list", st(one(dtype=["F32"]), D), "corrupt")
row("half bytes", st(one(dtype="F4", shape=[3], data_offsets=[0, 1]), b"a"), "corrupt")
row("entry is null", st({"w": None}), "corrupt")
row("entry is an array", st({"w": ["F32", [2], [0, 8]]}, D), "corrupt")
row("entry without a dtype", st({"w": {"shape": [2], "data_offsets": [0, 8]}}, D), "corrupt")
row("metadata of numbers", st({"__metadata__": {"a": 1}, **one()}, D), "corrupt")
row("metadata is an array", st({"__metadata__": [], **one()}, D), "corrupt")
row("surrogate", st(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a"), "corrupt")
row("key of control characters", st({"\x1b[2J\n\u202e": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"a"), "clean")
row("NaN", st(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', D), "corrupt")
row(
    "number of 10,000 digits", st(b'{"w":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}', D), "corrupt"
)
row("number of 1e999", st(b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}', D), "corrupt")
row("brackets 100,000 deep", st(b'{"w":' + b"[" * 100_000), "limit", "corrupt")
row("an alias of itself", st({"__metadata__": {"w": "w"}, **one()}, D), "clean")
row("an alias of nothing", st({"__metadata__": {"x": "y"}, **one()}, D), "clean")
row("no tensors", st({}), "clean")
row("null bytes behind the JSON", st(json.dumps(one()).encode() + b"\0\0\0", D), "corrupt")
late(
    "safetensors rank of a million",
    lambda: st(one(shape=[1] * 1_000_000 + [2]), D),
    "clean",
    "limit",
    "corrupt",
    file="m.safetensors",
)
late(
    "safetensors brackets by the million",
    lambda: st(b'{"w":[' + b"[]," * 2_000_000 + b"[]]}"),
    "limit",
    "corrupt",
    file="m.safetensors",
)
late(
    "safetensors objects by the million",
    lambda: st(b'{"w":[' + b"{}," * 2_000_000 + b"{}]}"),
    "limit",
    "corrupt",
    file="m.safetensors",
)
late(
    "safetensors 60,000 empty tensors",
    lambda: st({f"k{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}),
    "clean",
    file="m.safetensors",
)
late(
    "safetensors keys that share a start",
    lambda: st({"a" * 500 + str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}),
    "clean",
    file="m.safetensors",
)
late(
    "safetensors a million aliases",
    lambda: st({"__metadata__": {f"a{n}": "w" for n in range(300_000)}, **one()}, D),
    "clean",
    "limit",
    file="m.safetensors",
)
