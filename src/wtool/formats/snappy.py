"""Decompression of raw Snappy blocks.

Layout: https://github.com/google/snappy/blob/main/format_description.txt. TensorFlow's V1 checkpoints compress their tables
with it; it is read here so that no dependency is needed for what is rare and small.
"""

from __future__ import annotations

from wtool.errors import CorruptError, LimitError

# A copy makes at most 64 bytes of 2: what is declared beyond that is a lie, told before anything is allocated.
_RATIO = 32


def decompress(data: bytes) -> bytes:
    """The bytes that were compressed. CorruptError if `data` is no Snappy block, LimitError if it promises the impossible."""
    length, at = _length(data)
    if length > _RATIO * len(data):
        raise LimitError(f"a compressed block of {len(data)} bytes says that it holds {length}")
    out = bytearray()
    end = len(data)
    while at < end:
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:
            size = tag >> 2
            if size >= 60:
                width = size - 59
                size = int.from_bytes(data[at : at + width], "little")
                at += width
            size += 1
            if at + size > end:
                raise CorruptError("a compressed block ends inside a literal")
            out += data[at : at + size]
            at += size
        else:
            width = (1, 2, 4)[kind - 1]
            if at + width > end:
                raise CorruptError("a compressed block ends inside a copy")
            back = int.from_bytes(data[at : at + width], "little")
            at += width
            if kind == 1:
                size = (tag >> 2 & 7) + 4
                back |= tag >> 5 << 8
            else:
                size = (tag >> 2) + 1
            _copy(out, back, size)
        if len(out) > length:
            raise CorruptError(f"a compressed block holds more than the {length} bytes it promises")
    if len(out) != length:
        raise CorruptError(f"a compressed block holds {len(out)} bytes, not the {length} it promises")
    return bytes(out)


def _length(data: bytes) -> tuple[int, int]:
    value = 0
    for index in range(min(5, len(data))):
        value |= (data[index] & 127) << 7 * index
        if data[index] < 128:
            return value, index + 1
    raise CorruptError("a compressed block has no length")


def _copy(out: bytearray, back: int, size: int) -> None:
    """Repeat `size` bytes from `back` bytes ago; what is being written may be part of what is repeated."""
    start = len(out) - back
    if not back or start < 0:
        raise CorruptError("a compressed block copies from before its beginning")
    piece = out[start : start + size]
    if back < size:
        piece = (piece * (size // back + 1))[:size]
    out += piece
