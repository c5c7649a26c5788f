"""The messages in an index file: BundleHeaderProto under the empty key, then a BundleEntryProto a tensor.

Sources: tensorflow/core/protobuf/tensor_bundle.proto, framework/{tensor_shape,tensor_slice,types}.proto. A partitioned
variable has an entry of its own that lists its slices, and one for each slice under `slice_key` (checkpoint::
EncodeTensorNameSlice in core/util/saved_tensor_slice_util.cc, numbers as in core/lib/strings/ordered_code.cc).
"""

from __future__ import annotations

from typing import NamedTuple

from wtool.errors import CorruptError, LimitError, UnsupportedError
from wtool.formats.protobuf import BYTES, FIXED32, VARINT, bytes_field, fields, number_field, signed
from wtool.tensor import Shape

STRING, VARIANT = 7, 21  # of DataType
# Names of the DataTypes that wtool has no dtype for. 4-bit ones lie one to a byte.
OTHER_TYPES = {
    STRING: "string", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 20: "resource", VARIANT: "variant",
    27: "float8_e4m3b11fnuz", 29: "int4", 30: "uint4", 31: "int2", 32: "uint2", 33: "float4_e2m1fn",
}  # fmt: skip

HEADER = bytes_field(3, number_field(1, 1))  # version.producer
_CONSUMER = 1  # the newest version of the format that is known, TensorFlow's kTensorBundleVersion
_MAX_RANK = 32  # numpy's, before 2.0
_MAX_ENTRY = 1 << 20  # bytes: room for the slices of the most partitioned variable
_NUMBER_1, _NUMBER_2, _NUMBER_3, _NUMBER_4, _NUMBER_5 = (number << 3 | VARINT for number in range(1, 6))
_MESSAGE_1, _MESSAGE_2, _MESSAGE_3, _MESSAGE_7 = (number << 3 | BYTES for number in (1, 2, 3, 7))
_CRC = 6 << 3 | FIXED32
_ALL = (1 << 64) - 1  # -1


class Header(NamedTuple):
    shards: int
    big_endian: bool


class Extent(NamedTuple):
    """Part of one axis; `length` -1 means all of it."""

    start: int
    length: int


Slice = tuple[Extent, ...]


class Entry(NamedTuple):
    """Where a tensor lies: `size` bytes at `offset` of a shard. With `slices` the rest means nothing but dtype and shape."""

    dtype: int
    shape: Shape
    shard: int
    offset: int
    size: int
    crc: int  # masked
    slices: tuple[Slice, ...] = ()


def parse_header(data: bytes) -> Header | None:
    """None if it is the first value of a V1 checkpoint (SavedTensorSlices). UnsupportedError if it is too new."""
    shards = endianness = consumer = 0
    for tag, value in fields(data):
        if tag == _MESSAGE_1:
            return None
        if tag == _NUMBER_1:
            shards = value
        elif tag == _NUMBER_2:
            endianness = value
        elif tag == _MESSAGE_3:
            consumer = signed(_number(value, _NUMBER_2))
    if consumer > _CONSUMER:
        raise UnsupportedError(f"asks for a reader of version {consumer}; {_CONSUMER} is the newest known")
    if not 0 < shards < 1 << 31:
        raise CorruptError(f"says that it has {signed(shards)} data shards")
    return Header(shards, bool(endianness))


def parse_entry(data: bytes, shapes: dict[bytes, Shape]) -> Entry:
    """The entry, its numbers checked for sign; `shapes` remembers what was parsed, as most shapes come often."""
    if len(data) > _MAX_ENTRY:
        raise LimitError(f"its entry of {len(data)} bytes is longer than {_MAX_ENTRY}")
    dtype = shard = offset = size = crc = 0
    shape: Shape | None = None
    slices: list[Slice] = []
    for tag, value in fields(data):
        if tag == _NUMBER_1:
            dtype = value
        elif tag == _NUMBER_3:
            shard = value
        elif tag == _NUMBER_4:
            offset = value
        elif tag == _NUMBER_5:
            size = value
        elif tag == _CRC:
            crc = value
        elif tag == _MESSAGE_2:
            if shape is not None:
                raise CorruptError("it has two shapes")
            shape = shapes.get(value)
            if shape is None:
                shape = shapes[value] = _shape(value)
        elif tag == _MESSAGE_7:
            slices.append(_slice(value))
    if (shard | offset | size) >> 63:
        raise CorruptError("its shard, offset or size is negative")
    return Entry(dtype, shape or (), shard, offset, size, crc, tuple(slices))


def _number(data: bytes, tag: int, default: int = 0) -> int:
    """A number in a message, the last one if it is there more than once."""
    return int(dict(fields(data)).get(tag, default))


def _shape(data: bytes) -> Shape:
    shape: list[int] = []
    for tag, value in fields(data):
        if tag == _NUMBER_3 and value:
            raise CorruptError("its shape is unknown")
        if tag == _MESSAGE_2:
            size = _number(value, _NUMBER_1)
            if size >> 63:
                raise CorruptError(f"its shape has an axis of {signed(size)}")
            shape.append(size)
    if len(shape) > _MAX_RANK:
        raise LimitError(f"it has {len(shape)} axes; {_MAX_RANK} is the most")
    return tuple(shape)


def _slice(data: bytes) -> Slice:
    messages = (value for tag, value in fields(data) if tag == _MESSAGE_1)
    return tuple(Extent(signed(_number(one, _NUMBER_1)), signed(_number(one, _NUMBER_2, _ALL))) for one in messages)


def format_entry(entry: Entry) -> bytes:
    """As TensorFlow serialises it, but for the checksum: always there, so that its length does not depend on values."""
    dims = b"".join(bytes_field(2, number_field(1, size)) for size in entry.shape)
    return b"".join(
        (
            number_field(1, entry.dtype),
            bytes_field(2, dims),
            number_field(3, entry.shard),
            number_field(4, entry.offset),
            number_field(5, entry.size),
            bytes((_CRC,)),
            entry.crc.to_bytes(4, "little"),
        )
    )


def format_header(shards: int) -> bytes:
    return number_field(1, shards) + HEADER


def slice_key(name: bytes, part: Slice) -> bytes:
    """The key of one slice of the partitioned variable whose key in UTF-8 is `name`."""
    escaped = name.replace(b"\0", b"\0\xff")  # 0xff is escaped too, but does not occur in UTF-8
    numbers = b"".join(_ordered(extent.start) + _ordered(extent.length) for extent in part)
    return b"\0" + escaped + b"\0\1" + _ordered_count(len(part)) + numbers


def _ordered_count(value: int) -> bytes:
    """OrderedCode::WriteNumIncreasing: a length byte, then the number, big-endian."""
    size = (value.bit_length() + 7) // 8
    return bytes((size,)) + value.to_bytes(size, "big")


def _ordered(value: int) -> bytes:
    """OrderedCode::WriteSignedNumIncreasing: n bytes that begin with n bits unlike the sign, the value in the others."""
    bits = (~value if value < 0 else value).bit_length()
    size = 1 + bits // 7
    flipped = ((1 << size) - 1) << 7 * size
    return ((value & (1 << 8 * size) - 1) ^ flipped).to_bytes(size, "big")
