"""The sorted string table: an immutable file of (key, value) pairs in the order of their keys, as in LevelDB and TensorFlow.

Layout (LevelDB's doc/table_format.md; tensorflow/core/lib/io/{format,block_builder,table_builder}.cc):

- data blocks, a metaindex block (empty here), an index block, then a footer of 48 bytes: the handles (offset and size as
  varints) of the last two, padding, and the magic number.
- a block is entries, then the offsets of its restart points and their count (u32 each). Behind it stand its compression
  (0 none, 1 Snappy) and the masked crc32c of contents and compression byte.
- an entry is three varints (bytes of the key shared with the one before, bytes of its own, bytes of the value), key, value.
- the index block has one entry a data block: a key at or after its last and before the next block's first, and its handle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import pack

from google_crc32c import value as crc32c

from wtool.bytesource import ByteSource
from wtool.errors import CorruptError, LimitError, TruncatedError, WtoolError
from wtool.formats.protobuf import read_varint, varint
from wtool.formats.snappy import decompress

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48
BLOCK_SIZE = 256 << 10  # TensorFlow's table::Options
RESTART_INTERVAL = 16
_TRAILER = 5
_KEY_RATIO = 16  # restart points every 16 keys keep real tables below it

Entry = tuple[bytes, bytes]


def mask(crc: int) -> int:
    """A crc32c as it is stored: a sum over data that holds sums would be weak (LevelDB util/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(source: ByteSource) -> Iterator[Entry]:
    """All pairs, block by block, every checksum checked.

    Raises CorruptError or TruncatedError, with the path, for whatever contradicts the format: handles outside the file,
    wrong checksums, keys out of order; LimitError where keys would need far more memory than the file has bytes.
    """
    try:
        yield from _pairs(source)
    except WtoolError as error:
        raise error.at(source.name) from None


def _pairs(source: ByteSource) -> Iterator[Entry]:
    if source.size < FOOTER:
        raise TruncatedError(f"is {source.size} bytes long, too short for a sorted table")
    footer = source.pread(source.size - FOOTER, FOOTER)
    if footer[-8:] != MAGIC:
        raise CorruptError("does not end as a sorted table does: it was cut off, or is none")
    end = source.size - FOOTER
    _, at = _handle(footer, 0)  # of the metaindex block, where nothing is kept
    place, _ = _handle(footer, at)
    # Keys must rise through the whole table, so that no block can be named twice.
    last = None
    room = _KEY_RATIO * source.size + (1 << 20)
    for bound, handle in _entries(_block(source, place, end, "index block")):
        where, _ = _handle(handle, 0)
        for entry in _entries(_block(source, where, end, "data block")):
            key = entry[0]
            if last is not None and key <= last:
                raise CorruptError(f"has key {_shown(key)} after {_shown(last)}: its keys are out of order")
            last = key
            room -= len(key)
            if room < 0:
                raise LimitError(f"has keys that add up to more than {_KEY_RATIO} times the size of the file")
            yield entry
        if last is not None and last > bound:
            raise CorruptError(f"has key {_shown(last)} in a block that ends with {_shown(bound)}")


def _shown(key: bytes) -> str:
    return repr(key[:80].decode("utf-8", "backslashreplace"))


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _block(source: ByteSource, handle: tuple[int, int], end: int, what: str) -> bytes:
    offset, size = handle
    if offset + size + _TRAILER > end:
        raise CorruptError(f"has a {what} at byte {offset} of {size} bytes, beyond its end")
    raw = source.pread(offset, size + _TRAILER)
    if int.from_bytes(raw[-4:], "little") != mask(crc32c(raw[:-4])):
        raise CorruptError(f"has a wrong checksum at its {what} at byte {offset}")
    kind = raw[size]
    if kind == 0:
        return raw[:size]
    if kind == 1:
        return decompress(raw[:size])
    raise CorruptError(f"has a {what} at byte {offset} of unknown compression {kind}")


def _entries(block: bytes) -> Iterator[Entry]:
    """The pairs of one block, in order."""
    if len(block) < 4:
        raise CorruptError("has a block without restart points")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise CorruptError("has a block with more restart points than bytes")
    at, key = 0, b""
    while at < end:
        if at + 3 < end and (block[at] | block[at + 1] | block[at + 2]) < 128:
            shared, own, size = block[at], block[at + 1], block[at + 2]
            at += 3
        else:
            shared, at = read_varint(block, at)
            own, at = read_varint(block, at)
            size, at = read_varint(block, at)
        middle = at + own
        if shared > len(key) or middle + size > end:
            raise CorruptError(f"has an entry at byte {at} of a block that reaches outside of it")
        key = key[:shared] + block[at:middle]
        at = middle + size
        yield key, block[middle:at]


def write_table(entries: Iterable[Entry]) -> bytes:
    """The table of pairs whose keys rise strictly, uncompressed: byte for byte what TensorFlow's BundleWriter makes of it."""
    out = bytearray()
    index = _BlockWriter(1)
    block = _BlockWriter(RESTART_INTERVAL)
    pending: bytes | None = None  # the handle of a finished block, until the key of the next one is known
    last = b""
    for key, value in entries:
        if len(key) + len(value) >= 2 * BLOCK_SIZE and block.size:
            pending = _append(out, block)
            block = _BlockWriter(RESTART_INTERVAL)
        if pending is not None:
            index.add(_separator(last, key), pending)
            pending = None
        block.add(key, value)
        last = key
        if block.estimate >= BLOCK_SIZE:
            pending = _append(out, block)
            block = _BlockWriter(RESTART_INTERVAL)
    if block.size:
        pending = _append(out, block)
    metaindex = _append(out, _BlockWriter(RESTART_INTERVAL))
    if pending is not None:
        index.add(_successor(last), pending)
    handles = metaindex + _append(out, index)
    return bytes(out) + handles.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC


class _BlockWriter:
    """Entries with shared prefixes left out, except at every `interval`-th."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._parts: list[bytes] = []
        self._restarts = [0]
        self._since = 0
        self._last = b""
        self.size = 0

    @property
    def estimate(self) -> int:
        return self.size + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since < self._interval:
            shared = _common(self._last, key)
        else:
            self._restarts.append(self.size)
            self._since = 0
        entry = varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self._parts.append(entry)
        self.size += len(entry)
        self._last = key
        self._since += 1

    def contents(self) -> bytes:
        restarts = self._restarts
        return b"".join(self._parts) + pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _append(out: bytearray, block: _BlockWriter) -> bytes:
    """Write a block and its trailer; its handle."""
    data = block.contents() + b"\0"
    handle = varint(len(out)) + varint(len(data) - 1)
    out += data + mask(crc32c(data)).to_bytes(4, "little")
    return handle


def _common(a: bytes, b: bytes) -> int:
    """Length of the common prefix."""
    size = min(len(a), len(b))
    differing = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    return size - (differing.bit_length() + 7) // 8


def _separator(last: bytes, following: bytes) -> bytes:
    """A short key k with last <= k < following."""
    at = _common(last, following)
    if at < min(len(last), len(following)) and last[at] + 1 < following[at]:
        return last[:at] + bytes((last[at] + 1,))
    return last


def _successor(key: bytes) -> bytes:
    """A short key at or after `key`."""
    for at, byte in enumerate(key):
        if byte != 255:
            return key[:at] + bytes((byte + 1,))
    return key
