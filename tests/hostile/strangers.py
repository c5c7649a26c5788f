"""What is no checkpoint: pipes, devices, pages, pointers, other formats."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

from hostile import add, case, late

UNKNOWN = "unknown-format"
add("empty file", b"", UNKNOWN)
add("one byte", b"x", UNKNOWN)
add("pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"a" * 64), UNKNOWN)
add(
    "pointer of Git LFS called safetensors",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n",
    UNKNOWN,
    file="m.safetensors",
)
add("page", b"<!DOCTYPE html><html><body>404</body></html>", UNKNOWN)
add("message of an error", b'{"error": "Repository not found"}', UNKNOWN)
add("text", b"hello\nworld\n", UNKNOWN)
add("text with terminal codes", b"\x1b]0;pwned\x07\x1b[2J" * 20, UNKNOWN)
add("zeros", bytes(10_000), UNKNOWN)
late("noise", lambda: bytes((n * n * 31 + n // 7) % 256 for n in range(50_000)), UNKNOWN)
add("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100), UNKNOWN)
add("plain pickle", pickle.dumps({"a": 1}), UNKNOWN)
add("plain pickle that would run", b"\x80\x04cos\nsystem\n(X\x02\0\0\0ididtR.", UNKNOWN)
add("old pickle that would run", b"cos\nsystem\n(S'id'\ntR.", UNKNOWN)
add(
    "numpy array of objects",
    b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    + b" " * 50
    + b"\n\x80\x02cos\nsystem\nN\x85R.",
    UNKNOWN,
)
add("numpy header of code", b"\x93NUMPY\x01\0v\0__import__('os').system('id')" + b" " * 90, UNKNOWN)
add("gzip", b"\x1f\x8b" + bytes(100), UNKNOWN)
add("script with a checkpoint's suffix", b"#!/bin/sh\nrm -rf /\n", UNKNOWN, file="model.pt")
add("ELF", b"\x7fELF" + bytes(200), UNKNOWN)


@case("pipe", "unreadable")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "f.pt")
    return folder / "f.pt"


@case("device that never ends", "unreadable")
def _(folder: Path) -> Path:
    (folder / "f.pt").symlink_to("/dev/zero")
    return folder / "f.pt"


@case("loop of links", "unreadable", "not-found")
def _(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


@case("loop of folders", UNKNOWN)
def _(folder: Path) -> Path:
    (folder / "sub").mkdir()
    (folder / "sub" / "again").symlink_to("..")
    return folder


@case("folder for a file", "unreadable", UNKNOWN)
def _(folder: Path) -> Path:
    (folder / "model.safetensors").mkdir()
    return folder


@case("nothing there", "not-found")
def _(folder: Path) -> Path:
    return folder / "nowhere.pt"


@case("name of 5,000 letters", "not-found", "unreadable")
def _(folder: Path) -> Path:
    return folder / ("x" * 5_000)


@case("name with a line break", UNKNOWN)
def _(folder: Path) -> Path:
    (folder / "a\nb.pt").write_bytes(b"")
    return folder / "a\nb.pt"


@case("file of a terabyte of nothing", UNKNOWN)
def _(folder: Path) -> Path:
    (folder / "f.pt").write_bytes(b"")
    os.truncate(folder / "f.pt", 1 << 40)
    return folder / "f.pt"
