"""Git LFS pointers: the few lines of text that stand in a repository for a large file.

Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

LONGEST = 1024  # bytes of a pointer, by the specification
_POINTER = re.compile(
    rb"version https://(?:git-lfs\.github\.com/spec|hawser\.github\.com/spec)/v1\r?\n(?:ext-[^\n]*\n)*"
    rb"oid sha256:([0-9a-f]{64})\r?\nsize ([0-9]{1,19})\r?\n?"
)


class Pointer(NamedTuple):
    """`oid` is the SHA-256 of the file, `size` its bytes."""

    oid: str
    size: int


def parse_pointer(data: bytes) -> Pointer | None:
    """The pointer that these bytes are; None if they are something else."""
    found = _POINTER.fullmatch(data) if len(data) <= LONGEST else None
    return None if found is None else Pointer(found[1].decode(), int(found[2]))


def local_object(pointer: Pointer, folder: str) -> str | None:
    """Where the file lies in LFS's store (`.git/lfs`; "" is none), if it has been fetched whole."""
    path = os.path.join(folder, "objects", pointer.oid[:2], pointer.oid[2:4], pointer.oid)
    try:
        return path if folder and os.path.getsize(path) == pointer.size else None
    except OSError:
        return None
