"""The zip that torch writes, as bytes at places: nothing here reads or writes a file.

torch's writer (caffe2/serialize/inline_container.cc over miniz) stores every entry uncompressed, pads each local header with
an extra field "FB" so that the data begin at a multiple of 64, leaves sums and sizes to a data descriptor behind the data, and
always adds the zip64 end records. Readers that compute places instead of reading headers (`torch.load` onto the meta device,
`config.load.calculate_storage_offsets`) rely on exactly these sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import pack
from typing import NamedTuple

ALIGNMENT = 64
_MAX32 = 0xFFFFFFFF
_MAX16 = 0xFFFF
_UTF8, _DESCRIPTOR = 0x800, 0x8


class Entry(NamedTuple):
    """`at` is the place of the local header."""

    name: bytes
    at: int
    size: int
    crc: int


def header(name: bytes, at: int, size: int) -> bytes:
    """The local header of an entry of `size` bytes, so long that what follows is aligned."""
    large = b""
    if size >= _MAX32:
        large += pack("<QQ", size, 0)  # the stored size is left to the descriptor, as in miniz
    if at >= _MAX32:
        large += pack("<Q", at)
    if large:
        large = pack("<HH", 1, len(large)) + large
    pad = -(at + 30 + len(name) + len(large) + 4) % ALIGNMENT
    extra = large + pack("<2sH", b"FB", pad) + b"Z" * pad
    return pack("<4sHHHHHIIIHH", b"PK\3\4", 0, _flags(size), 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra


def descriptor(entry: Entry) -> bytes:
    """What follows the data of an entry."""
    nbytes = descriptor_size(entry.at, entry.size)
    return pack("<4sIQQ" if nbytes == 24 else "<4sIII", b"PK\7\10", entry.crc, entry.size, entry.size) if nbytes else b""


def descriptor_size(at: int, size: int) -> int:
    if not size:
        return 0
    return 24 if size >= _MAX32 or at >= _MAX32 else 16


def directory(entries: Iterable[Entry], at: int) -> bytes:
    """The central directory at `at`, to the end of the file."""
    rows = []
    for name, place, size, crc in entries:
        extra = b""
        if size >= _MAX32:
            extra += pack("<QQ", size, size)
        if place >= _MAX32:
            extra += pack("<Q", place)
        if extra:
            extra = pack("<HH", 1, len(extra)) + extra
        length, offset = min(size, _MAX32), min(place, _MAX32)
        sizes = (crc, length, length, len(name), len(extra), 0, 0, 0, 0, offset)
        rows.append(pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 0, 0, _flags(size), 0, 0, 0, *sizes) + name + extra)
    body = b"".join(rows)
    count, end = len(rows), at + len(body)
    few = min(count, _MAX16)
    return (
        body
        + pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, len(body), at)
        + pack("<4sIQI", b"PK\6\7", 0, end, 1)
        + pack("<4sHHHHIIH", b"PK\5\6", 0, 0, few, few, min(len(body), _MAX32), min(at, _MAX32), 0)
    )


def directory_size(names: Iterable[tuple[bytes, int, int]]) -> int:
    """Bytes of the directory of entries given as (name, place, size)."""
    total = 56 + 20 + 22
    for name, place, size in names:
        large = 16 * (size >= _MAX32) + 8 * (place >= _MAX32)
        total += 46 + len(name) + large + 4 * bool(large)
    return total


def _flags(size: int) -> int:
    return _UTF8 | _DESCRIPTOR if size else _UTF8
