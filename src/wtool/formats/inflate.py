"""The content of one entry of a zip archive, as a ByteSource of its own."""

from __future__ import annotations

import zlib
from threading import Lock
from typing import Any

from wtool.bytesource import ByteSource, MemoryBytes
from wtool.errors import CorruptError, TruncatedError, UnsupportedError
from wtool.formats.zips import DEFLATED, STORED, Entry

_PIECE = 256 << 10
_SMALL = 1 << 20  # an entry up to this size is kept once it has been inflated


class Inflated:
    """A deflated entry, inflated from its beginning to wherever bytes are wanted, with bounded memory.

    Reading on is cheap; a step backwards begins again. The sum over the whole is checked when its end is reached.
    """

    def __init__(self, source: ByteSource, entry: Entry) -> None:
        self.source, self.entry = source, entry
        self.name = source.name
        self.size = entry.size
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._inflater: Any = None
        self._at, self._ready = 0, b""

    def _restart(self) -> None:
        self._inflater = zlib.decompressobj(-15)
        self._fed = 0  # packed bytes given to the inflater
        self._at = 0  # position of the first byte of _ready
        self._ready = b""
        self._crc = 0

    def pread(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise self._short(offset, nbytes)
        out = bytearray(nbytes)
        self.readinto(offset, memoryview(out))
        return bytes(out)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self.size:
            raise self._short(offset, len(buffer))
        with self._lock:
            if self._inflater is None or offset < self._at:
                self._restart()
            done = 0
            while done < len(buffer):
                have = self._at + len(self._ready) - offset - done
                if have > 0:
                    start = offset + done - self._at
                    count = min(have, len(buffer) - done)
                    buffer[done : done + count] = self._ready[start : start + count]
                    done += count
                else:
                    self._advance()
            if offset + done == self.size:
                self._forget()  # a file may have many entries, and each is mostly read once

    def _advance(self) -> None:
        """Make the next piece ready."""
        self._at += len(self._ready)
        feed = self._inflater.unconsumed_tail
        if not feed and not self._inflater.eof:
            count = min(_PIECE, self.entry.packed - self._fed)
            feed = self.source.pread(self.entry.offset + self._fed, count)
            self._fed += count
        try:
            self._ready = self._inflater.decompress(feed, _PIECE)
        except zlib.error as error:
            raise CorruptError(f"entry '{self.entry.name}' cannot be inflated: {error}", path=self.name) from None
        self._crc = zlib.crc32(self._ready, self._crc)
        reached = self._at + len(self._ready)
        if reached > self.size or (not self._ready and (self._inflater.eof or self._fed >= self.entry.packed)):
            raise CorruptError(f"entry '{self.entry.name}' is not of the size it declares", path=self.name)
        if reached == self.size and self._crc != self.entry.crc and self.entry.crc:
            raise CorruptError(f"entry '{self.entry.name}' has another CRC-32 than it declares", path=self.name)

    def _short(self, offset: int, nbytes: int) -> TruncatedError:
        return TruncatedError(
            f"entry '{self.entry.name}' ends at byte {self.size}, but bytes {offset} to {offset + nbytes} are needed",
            path=self.name,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inflated) and other.source == self.source and other.entry == self.entry

    def __hash__(self) -> int:
        return hash((self.source, self.entry))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Inflated, (self.source, self.entry)


def content(source: ByteSource, entry: Entry) -> tuple[ByteSource, int]:
    """The source and the offset in it where the entry's bytes begin. UnsupportedError for other methods than deflate."""
    if entry.method == STORED:
        return source, entry.offset
    if entry.method == DEFLATED:
        inflated = Inflated(source, entry)
        if entry.size <= _SMALL:
            return MemoryBytes(inflated.pread(0, entry.size), source.name), 0
        return inflated, 0
    raise UnsupportedError(f"entry '{entry.name}' is compressed with method {entry.method}", path=source.name)


def later(source: ByteSource, entry: Entry) -> tuple[ByteSource, int]:
    """As `content`, but nothing is inflated before it is read: a file may have very many small entries."""
    return (Inflated(source, entry), 0) if entry.method == DEFLATED else content(source, entry)


def check_sum(source: ByteSource, entry: Entry, start: ByteSource, offset: int) -> None:
    """CorruptError unless the entry's bytes have the CRC-32 it declares. 0 means that torch was told not to compute it."""
    crc = 0
    for at in range(0, entry.size, _PIECE):
        crc = zlib.crc32(start.pread(offset + at, min(_PIECE, entry.size - at)), crc)
    if entry.crc and crc != entry.crc:
        raise CorruptError(f"entry '{entry.name}' has another CRC-32 than it declares", path=source.name)
