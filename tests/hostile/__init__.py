"""A corpus of hostile, corrupt and merely strange files, built in code. Sources of the ideas are named with the builders.

A case says how to build a file (or a folder) and what opening it must answer: the codes of the errors that are right, or
"clean", "unknown" (read, with names that wtool does not know), or "dangerous" (read, with a name that is called dangerous).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Build = Callable[[Path], Path]


class Case(NamedTuple):
    build: Build
    expect: frozenset[str]


CASES: dict[str, Case] = {}


def add(name: str, build: Build | bytes, *expect: str, file: str = "f.bin") -> None:
    """A case; `build` is the whole content of one file, or a function that puts what it likes into a folder."""
    assert name not in CASES, name
    CASES[name] = Case(_whole(build, file) if isinstance(build, bytes) else build, frozenset(expect))


def case(name: str, *expect: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        add(name, build, *expect)
        return build

    return register


def late(name: str, content: Callable[[], bytes], *expect: str, file: str = "f.bin") -> None:
    """A case whose content is large, so that it is made only when it is wanted."""

    def build(folder: Path) -> Path:
        (folder / file).write_bytes(content())
        return folder / file

    add(name, build, *expect)


def _whole(content: bytes, file: str) -> Build:
    def build(folder: Path) -> Path:
        (folder / file).write_bytes(content)
        return folder / file

    return build


from hostile import (  # noqa: E402, F401
    benign,
    bombs,
    gadgets,
    gguf_files,
    safetensors_files,
    shards,
    strangers,
    tensorflow_files,
    torch_files,
    zips,
)
