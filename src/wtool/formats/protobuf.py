"""The wire format of Protocol Buffers, as much of it as checkpoints use.

By hand and not with the `protobuf` package: importing that costs more CPU than opening a checkpoint, it would be one more
dependency (whose versions TensorFlow pins), and the four small messages that are read here need no generated code.
Layout: https://protobuf.dev/programming-guides/encoding/. Groups (wire types 3 and 4) are refused: nothing here uses them.
"""

from __future__ import annotations

from typing import Any

from wtool.errors import CorruptError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_SMALL = tuple(bytes((value,)) for value in range(128))
_VARIABLE = (VARINT, BYTES)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned number (below 2^64) at `at`, and where it ends. CorruptError if it does not end in time."""
    value = shift = 0
    for index in range(at, min(at + 10, len(data))):
        byte = data[index]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, index + 1
        shift += 7
    raise CorruptError(f"a number at byte {at} does not end")


def signed(value: int) -> int:
    """The int64 that was written as this unsigned number."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes) -> list[tuple[int, Any]]:
    """(tag, value) of each field. CorruptError if malformed.

    A tag is number << 3 | wire type; a value is bytes for the wire type BYTES, an unsigned int for the others.
    """
    out: list[tuple[int, Any]] = []
    at, end = 0, len(data)
    while at < end:
        # Nearly all numbers are below 128; the call is what costs.
        tag = data[at]
        at += 1
        if tag > 127:
            tag, at = read_varint(data, at - 1)
        if tag < 8:
            raise CorruptError("a field has number 0")
        wire = tag & 7
        if wire in _VARIABLE:
            size = data[at] if at < end else 128
            at += 1
            if size > 127:
                size, at = read_varint(data, at - 1)
            if wire == VARINT:
                out.append((tag, size))
                continue
        elif wire == FIXED32:
            size = 4
        elif wire == FIXED64:
            size = 8
        else:
            raise CorruptError(f"field {tag >> 3} has wire type {wire}")
        if size > end - at:
            raise CorruptError(f"field {tag >> 3} is longer than its message")
        part = data[at : at + size]
        at += size
        out.append((tag, part if wire == BYTES else int.from_bytes(part, "little")))
    return out


def varint(value: int) -> bytes:
    """A number from 0 to 2^64 - 1."""
    if value < 128:
        return _SMALL[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    """A varint field; empty for 0, as proto3 writes it."""
    return varint(number << 3) + varint(value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field, written even if it is empty: a message that is there."""
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def text_field(number: int, value: str) -> bytes:
    """A string field; left out if empty, as proto3 does."""
    return bytes_field(number, value.encode()) if value else b""
