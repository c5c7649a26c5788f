"""String tensors: as TensorFlow lays them out in a data shard, and as plain values.

Layout (WriteStringTensor in core/util/tensor_bundle/tensor_bundle.cc): the length of every string as a varint, the masked
crc32c of the lengths (each taken as a u32, or as a u64 where it does not fit), then all the bytes. The entry's checksum goes
over lengths (so taken), their checksum as it is stored, and bytes.
"""

from __future__ import annotations

from math import prod
from typing import Any

from google_crc32c import extend

from wtool.errors import CorruptError
from wtool.formats.protobuf import read_varint, varint
from wtool.formats.sstable import mask
from wtool.tensor import Shape


def decode(data: bytes, count: int, crc: int, big_endian: bool = False) -> list[bytes]:
    """The `count` strings in the bytes of an entry whose masked checksum is `crc`. CorruptError if they do not fit."""
    order = "big" if big_endian else "little"
    if count + 4 > len(data) and (count or data):
        raise CorruptError(f"{len(data)} bytes are too few for {count} strings")
    if not data:
        return []
    at, lengths, sums = 0, [], bytearray()
    for _ in range(count):
        length, at = read_varint(data, at)
        lengths.append(length)
        sums += length.to_bytes(4 if length < 1 << 32 else 8, order)  # type: ignore[arg-type]
    if at + 4 + sum(lengths) != len(data):
        raise CorruptError("the lengths of its strings do not add up to its size")
    total = extend(0, bytes(sums))
    if int.from_bytes(data[at : at + 4], order) != mask(total):  # type: ignore[arg-type]
        raise CorruptError("the checksum over the lengths of its strings is wrong")
    if mask(extend(total, data[at:])) != crc:
        raise CorruptError("its checksum is wrong")
    at += 4
    out = []
    for length in lengths:
        out.append(data[at : at + length])
        at += length
    return out


def encode(value: bytes) -> tuple[bytes, int]:
    """A 0-d string tensor: its bytes in the shard, and the masked checksum of its entry."""
    total = extend(0, len(value).to_bytes(4 if len(value) < 1 << 32 else 8, "little"))
    body = mask(total).to_bytes(4, "little") + value
    return varint(len(value)) + body, mask(extend(total, body))


def plain(strings: list[bytes], shape: Shape) -> Any:
    """Text, or {"base64": ...} for what is not UTF-8, nested in lists as the shape says; [] if there is none."""
    values: list[Any] = [_text(value) for value in strings]
    if not prod(shape):
        return []
    for size in reversed(shape):
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values[0]


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        from base64 import b64encode

        return {"base64": b64encode(value).decode()}
