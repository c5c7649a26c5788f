"""What pickling.py is given and gives back, and which plain values it can write."""

from __future__ import annotations

from struct import Struct
from typing import Any, NamedTuple

from wtool.dtypes import DType
from wtool.tensor import Shape

ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))
_LONGEST = 255  # bytes of an integer; torch's restricted unpickler knows no LONG4
_U16, _I32 = Struct("<H").pack, Struct("<i").pack


class Stored(NamedTuple):
    """A tensor in C order that is all of its storage. `storage` is any name, the same for tied tensors."""

    storage: str
    dtype: DType
    shape: Shape


class StoredSparse(NamedTuple):
    """One of torch's sparse tensors, of a layout such as "torch.sparse_csr"; of COO, whether it is `coalesced`, if known."""

    layout: str
    parts: tuple[Stored, ...]
    shape: Shape
    coalesced: bool | None = None


class Pickled(NamedTuple):
    """A pickle; the storages it names "0", "1", ... in the order in which a reader meets them; and the keys it holds."""

    data: bytes
    storages: tuple[str, ...]
    keys: frozenset[str]


def integer(value: int) -> bytes:
    """The opcode of an integer that is `plain`."""
    if 0 <= value < 256:
        return b"K%c" % value
    if 0 <= value < 65536:
        return b"M" + _U16(value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + _I32(value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if value < 0 and len(data) > 1 and data[-1] == 0xFF and data[-2] & 0x80:
        data = data[:-1]
    return b"\x8a%c" % len(data) + data


def plain(value: Any) -> bool:
    """Whether a value has no parts and can be written as itself."""
    if type(value) is int:
        return value.bit_length() < 8 * _LONGEST
    return type(value) in ATOMS


def hashable(key: Any) -> bool:
    """Whether a value may be a key of a dict: plain, or a tuple of such."""
    if type(key) is not tuple:
        return plain(key)
    return all(plain(part) for part in key)
