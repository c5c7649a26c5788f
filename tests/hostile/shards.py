"""Indexes that lead out of their folder, shards that are no files, and the links of a cache that must be followed.

Ideas: transformers #46097, #47176, #46392, accelerate #4070 (names joined unchecked); pipes and devices that hang a reader.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from hostile import add, case
from hostile.safetensors_files import st

INDEX = "model.safetensors.index.json"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shard(key: str) -> bytes:
    return st({key: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))


def whole(folder: Path, places: Any = None, **more: Any) -> Path:
    (folder / A).write_bytes(shard("a"))
    (folder / B).write_bytes(shard("b"))
    table = {"metadata": {"total_size": 16}, "weight_map": {"a": A, "b": B} if places is None else places, **more}
    (folder / INDEX).write_text(json.dumps(table))
    return folder


def index(name: str, places: Any, *expect: str) -> None:
    add(f"index {name}", lambda folder: whole(folder, places), *expect)


index("true", None, "clean")
for name in (
    "../evil.safetensors", "/etc/passwd", "../../../../etc/passwd", "sub/x.safetensors", "..\\evil", "C:evil", "", ".", "..",
    "a\0b", "//etc/passwd", "./" + A, "file:///etc/passwd",
):  # fmt: skip
    index(f"names {name!r}", {"a": A, "b": name}, "unsafe")
index("names a folder's shard by a dot", {"a": A, "b": B + "/."}, "unsafe")
index("of numbers", {"a": 1}, "corrupt")
index("is a list", ["a"], "corrupt")
index("of nothing", {}, "corrupt")
index("is null", {"a": None}, "corrupt")
index("shard missing", {"a": A, "b": "model-00003-of-00002.safetensors"}, "missing-shard")
index("tensor missing", {"a": A, "b": B, "c": B}, "missing-tensor")
index("tensor elsewhere", {"a": B, "b": A}, "foreign-shard", "misplaced-tensor")
index("name of 5,000 letters", {"a": A, "b": "x" * 5_000}, "missing-shard", "unreadable", "unsafe")
index("100,000 shards", {f"k{n}": f"s{n}.safetensors" for n in range(100_000)}, "missing-shard")
index("itself as a shard", {"a": A, "b": INDEX}, "unknown-format", "unsafe", "foreign-shard", "corrupt")


def raw(name: str, text: bytes, *expect: str) -> None:
    def build(folder: Path) -> Path:
        whole(folder)
        (folder / INDEX).write_bytes(text)
        return folder

    add(f"index {name}", build, *expect)


raw("not JSON", b"{", "corrupt")
raw("not UTF-8", b'{"weight_map": "\xff"}', "corrupt")
raw("key twice", b'{"weight_map": {"a": "%s", "a": "%s"}}' % (A.encode(), B.encode()), "unsafe")
raw("map twice", b'{"weight_map": {}, "weight_map": {"a": "%s"}}' % A.encode(), "unsafe")
raw("deep", b'{"weight_map":' + b"[" * 50_000, "limit", "corrupt")
raw(
    "total size of 1e400",
    b'{"metadata":{"total_size":1e400},"weight_map":{"a":"%s","b":"%s"}}' % (A.encode(), B.encode()),
    "corrupt",
)
raw("brackets", b'{"weight_map":[' + b"[]," * 1_000_000 + b"[]]}", "limit", "corrupt")


@case("index of a gigabyte", "limit")
def _(folder: Path) -> Path:
    whole(folder)
    os.truncate(folder / INDEX, 1 << 30)
    return folder


@case("index that total_size makes false", "clean")
def _(folder: Path) -> Path:
    return whole(folder, metadata={"total_size": -5})


@case("duplicate tensor", "duplicate-tensor")
def _(folder: Path) -> Path:
    whole(folder)
    (folder / B).write_bytes(shard("a"))
    return folder


@case("shard is a pipe", "unreadable")
def _(folder: Path) -> Path:
    whole(folder)
    (folder / B).unlink()
    os.mkfifo(folder / B)
    return folder


@case("shard is a socket", "unreadable")
def _(folder: Path) -> Path:
    whole(folder)
    (folder / B).unlink()
    here = os.getcwd()
    os.chdir(folder)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind(B)
    finally:
        os.chdir(here)
    return folder


def linked(name: str, target: str, *expect: str) -> None:
    def build(folder: Path) -> Path:
        whole(folder)
        (folder / B).unlink()
        (folder / B).symlink_to(target)
        return folder

    add(f"shard links to {name}", build, *expect)


linked("/dev/zero", "/dev/zero", "unreadable")
linked("/dev/urandom", "/dev/urandom", "unreadable")
linked("/etc/passwd", "/etc/passwd", "unknown-format", "corrupt", "truncated")
linked("nothing", "/nowhere/at/all", "missing-shard")
linked("itself", B, "missing-shard", "unreadable")
linked("its folder", ".", "unreadable", "unknown-format")
linked("the other shard", A, "duplicate-tensor", "foreign-shard")


@case("shard is a folder", "unreadable", "unknown-format")
def _(folder: Path) -> Path:
    whole(folder)
    (folder / B).unlink()
    (folder / B).mkdir()
    return folder


@case("shard is empty", "unknown-format", "truncated")
def _(folder: Path) -> Path:
    whole(folder)
    (folder / B).write_bytes(b"")
    return folder


@case("shard is a pointer of Git LFS", "unknown-format")
def _(folder: Path) -> Path:
    whole(folder)
    (folder / B).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"a" * 64))
    return folder


@case("shard of another format", "foreign-shard", "unknown-format")
def _(folder: Path) -> Path:
    from hostile_torch import archive, pickled, tensor

    whole(folder)
    (folder / B).write_bytes(archive(pickled({"b": tensor()})))
    return folder


@case("torch shard with a dangerous name", "dangerous")
def _(folder: Path) -> Path:
    from hostile_torch import archive, pickled, tensor

    first, second = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    (folder / first).write_bytes(archive(pickled({"a": tensor()})))
    (folder / second).write_bytes(archive(pickled({"b": tensor(), "x": b"cos\nsystem\nN\x85R"})))
    table = {"metadata": {}, "weight_map": {"a": first, "b": second}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(table))
    return folder


@case("numbered shards of an absurd total", "missing-shard")
def _(folder: Path) -> Path:
    (folder / f"model-00001-of-{'9' * 200}.safetensors").write_bytes(shard("a"))
    (folder / f"model-00002-of-{'9' * 200}.safetensors").write_bytes(shard("b"))
    return folder


@case("cache with links to blobs", "clean")
def _(folder: Path) -> Path:
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    whole(blobs)
    for number, name in enumerate((A, B, INDEX)):
        (blobs / name).rename(blobs / f"{number:064x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


@case("one file of a cache", "clean")
def _(folder: Path) -> Path:
    (folder / "blobs").mkdir()
    (folder / "blobs" / "abc").write_bytes(shard("a"))
    (folder / "model.safetensors").symlink_to("blobs/abc")
    return folder / "model.safetensors"
