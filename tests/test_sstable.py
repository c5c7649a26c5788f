"""The sorted table and the two codings in it, against their specifications; test_tensorflow_* hold it against TensorFlow."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from wtool.bytesource import MemoryBytes
from wtool.errors import CorruptError, LimitError, TruncatedError, WtoolError
from wtool.formats.protobuf import bytes_field, fields, number_field, read_varint, signed, varint
from wtool.formats.snappy import decompress
from wtool.formats.sstable import FOOTER, MAGIC, mask, read_table, write_table

TABLES = st.dictionaries(st.binary(max_size=40), st.binary(max_size=60), max_size=60).map(lambda pairs: sorted(pairs.items()))


def read(data: bytes) -> list[tuple[bytes, bytes]]:
    return list(read_table(MemoryBytes(data, "t.index")))


def block(contents: bytes, kind: int = 0) -> bytes:
    raw = contents + bytes((kind,))
    return raw + mask(crc32c(raw)).to_bytes(4, "little")


def table(*data: bytes, index: bytes | None = None) -> bytes:
    """A table of finished data blocks, whose index names them in turn with keys that bound nothing."""
    entries, out = b"", b""
    for number, one in enumerate(data):
        handle = varint(len(out)) + varint(len(one) - 5)
        entries += bytes((0, 2, len(handle))) + b"\xff" + bytes((number,)) + handle
        out += one
    index = block((entries if index is None else index) + RESTART)
    handles = varint(0) + varint(0) + varint(len(out)) + varint(len(index) - 5)
    return out + index + handles.ljust(FOOTER - 8, b"\0") + MAGIC


RESTART = b"\0\0\0\0\1\0\0\0"


@given(TABLES)
def test_what_is_written_is_read(pairs: list[tuple[bytes, bytes]]) -> None:
    assert read(write_table(pairs)) == pairs


def test_many_blocks() -> None:
    pairs = [(f"layer_{number:06}/kernel".encode(), b"v" * (number % 90)) for number in range(20_000)]
    data = write_table(pairs)
    assert len(data) > 3 * 256 * 1024
    assert read(data) == pairs


def test_a_value_larger_than_a_block_stands_alone() -> None:
    pairs = [(b"a", b"1"), (b"b", b"2" * (600 << 10)), (b"c", b"3")]
    assert read(write_table(pairs)) == pairs


@pytest.mark.parametrize("flip", [1, 0x80])
def test_any_flipped_byte_is_an_error_or_changes_nothing(flip: int) -> None:
    pairs = [(b"", b"head"), *((f"k{number:03}".encode(), b"x" * number) for number in range(40))]
    data = write_table(pairs)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= flip
        try:
            assert read(bytes(damaged)) == pairs, at
        except WtoolError as error:
            assert error.path == "t.index"


def test_any_truncation_is_an_error() -> None:
    data = write_table([(b"a", b"1"), (b"b", b"2")])
    for size in range(len(data)):
        with pytest.raises((CorruptError, TruncatedError)):
            read(data[:size])


ENTRY_A, ENTRY_B = b"\0\1\1a1", b"\0\1\1b2"
BOUND = b"\0\1"  # an index entry: nothing shared, one byte of its own


@pytest.mark.parametrize(
    ("data", "error", "fault"),
    [
        (b"", TruncatedError, "too short"),
        (b"x" * 100, CorruptError, "does not end as a sorted table"),
        (table(block(ENTRY_B + ENTRY_A + RESTART)), CorruptError, "out of order"),
        (table(block(ENTRY_A + ENTRY_A + RESTART)), CorruptError, "out of order"),
        (table(block(ENTRY_A + RESTART), index=BOUND + b"\2a\0\x0d" + BOUND + b"\2b\0\x0d"), CorruptError, "out of order"),
        (table(block(ENTRY_B + RESTART), index=BOUND + b"\2a\0\x0d"), CorruptError, "a block that ends with 'a'"),
        (table(block(ENTRY_A + RESTART), index=BOUND + b"\3z\0\xff\7"), CorruptError, "beyond its end"),
        (table(block(ENTRY_A + RESTART, kind=9)), CorruptError, "unknown compression 9"),
        (table(block(ENTRY_A + b"\0\0\0\0\xff\xff\xff\x7f")), CorruptError, "more restart points"),
        (table(block(b"\1")), CorruptError, "without restart points"),
        (table(block(b"\5\1\1a1" + RESTART)), CorruptError, "reaches outside"),
        (table(block(b"\0\1\x7fa1" + RESTART)), CorruptError, "reaches outside"),
        (table(block(b"\0\1" + b"\xff" * 11 + RESTART)), CorruptError, "does not end"),
        (table(block(ENTRY_A + RESTART).replace(b"a1", b"a2")), CorruptError, "wrong checksum"),
    ],
)
def test_each_fault_has_its_error(data: bytes, error: type[WtoolError], fault: str) -> None:
    with pytest.raises(error, match=fault):
        read(data)


def test_keys_that_explode_are_refused() -> None:
    # 100,000 bytes of key, then entries of five bytes that share all of it: 64 times the file in keys after a few.
    long = b"\0" + varint(100_000) + b"\0" + b"k" * 100_000
    more = b"".join(varint(100_000) + b"\2\0" + number.to_bytes(2, "big") for number in range(5_000))
    with pytest.raises(LimitError, match="times the size of the file"):
        read(table(block(long + more + RESTART)))


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (b"\0", b""),
        (b"\5\x10hello", b"hello"),
        (b"\x0a\0a\x22\1\0", b"a" * 10),  # a copy of 9 from 1 back, offset of two bytes
        (b"\x08\x04ab\x09\x02", b"ab" + b"ababab"),  # a copy of 6, offset of one byte
        (b"\x41\xf0\x40" + b"z" * 65, b"z" * 65),  # a literal whose length has a byte of its own
        (b"\5\0a\x0f\1\0\0\0", b"a" * 5),  # an offset of four bytes
    ],
)
def test_snappy(packed: bytes, plain: bytes) -> None:
    assert decompress(packed) == plain


@pytest.mark.parametrize(
    ("packed", "error", "fault"),
    [
        (b"", CorruptError, "no length"),
        (b"\xff\xff\xff\xff\xff\x01", CorruptError, "no length"),
        (b"\xff\xff\xff\x7f\0a", LimitError, "says that it holds"),
        (b"\5\x10hel", CorruptError, "inside a literal"),
        (b"\5\x10hello\x05", CorruptError, "inside a copy"),
        (b"\5\0a\x0d\2", CorruptError, "before its beginning"),
        (b"\5\0a\x0d\0", CorruptError, "before its beginning"),
        (b"\5\0a", CorruptError, "not the 5"),
        (b"\1\x10hello", CorruptError, "more than the 1"),
    ],
)
def test_snappy_faults(packed: bytes, error: type[WtoolError], fault: str) -> None:
    with pytest.raises(error, match=fault):
        decompress(packed)


@given(st.binary(max_size=200))
def test_snappy_of_anything(data: bytes) -> None:
    with suppress(WtoolError):
        decompress(data)


def test_snappy_blocks_are_read() -> None:
    contents = ENTRY_A + ENTRY_B + RESTART
    packed = varint(len(contents)) + bytes((len(contents) - 1 << 2,)) + contents
    assert read(table(block(packed, kind=1))) == [(b"a", b"1"), (b"b", b"2")]


@given(st.integers(0, (1 << 64) - 1))
def test_varint(value: int) -> None:
    assert read_varint(b"_" + varint(value) + b"_", 1) == (value, 1 + len(varint(value)))
    assert signed(value) % (1 << 64) == value


def test_fields() -> None:
    message = number_field(1, 300) + bytes_field(2, b"x") + b"\x1d\1\0\0\0" + b"\x21\2\0\0\0\0\0\0\0" + number_field(9, 0)
    assert fields(message) == [(1 << 3, 300), (2 << 3 | 2, b"x"), (3 << 3 | 5, 1), (4 << 3 | 1, 2)]


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (b"\x08", "does not end"),
        (b"\x08" + b"\xff" * 10, "does not end"),
        (b"\x12\5abc", "longer than its message"),
        (b"\x15abc", "longer than its message"),
        (b"\x12", "does not end"),
        (b"\x0b", "wire type 3"),
        (b"\2\1a", "number 0"),
        (b"\0\1", "number 0"),
    ],
)
def test_malformed_messages(message: bytes, fault: str) -> None:
    with pytest.raises(CorruptError, match=fault):
        fields(message)
