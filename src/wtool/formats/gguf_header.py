"""The front of a GGUF file: its keys and values, and what it says of its tensors. Everything but the tensors' bytes.

The layout is ggml's docs/gguf.md: the magic, the version (u32), the number of tensors and of keys (u64 each), the keys, the
tensors, and, from the next multiple of `general.alignment` (32) on, the data. A string is its length (u64) and UTF-8. A value
is its type (u32) and then a number, a string, or an array: the type of its items (u32), their number (u64), the items.
Refused is what ggml refuses (ggml/src/gguf.cpp, `gguf_init_from_file_impl`), but that offsets may leave holes and be in any
order, and names be longer than ggml's 63 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from math import prod
from struct import Struct, calcsize, pack, unpack
from typing import Any, NamedTuple

from wtool.bytesource import ByteSource
from wtool.dtypes import BY_GGML, DType
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsafeError, UnsupportedError
from wtool.formats.safetensors_header import show
from wtool.tensor import Shape

MAGIC = b"GGUF"
MAX_HEADER = 100_000_000  # bytes, as of safetensors' headers; real ones have up to about 20 million
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_NAME = 1 << 16  # bytes of a key or a name, as the specification has it
ALIGNMENT = "general.alignment"

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
NAMES = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 10: "u64", 11: "i64", 12: "f64"}
STRING, ARRAY = 8, 9

_FIRST = 1 << 16  # bytes read first
_WINDOW = 1 << 20  # bytes read at once, later
_TEXT = 1 << 20  # bytes of a string that is shown as text
_ITEMS = 64  # numbers of an array that are shown
_DEPTH = 8  # of arrays in arrays
_NESTED = 10_000  # arrays inside of arrays, in the whole file
_GONE = {4: "q4_2", 5: "q4_3", 9: "q8_1", 15: "q8_k", 31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8"}
_U64 = Struct("<Q")
_LENGTH = 2**63


class Summary(NamedTuple):
    """What stands for a value that is too long to be held: so many items, and a digest of its bytes."""

    length: int
    items: str
    digest: str

    def __str__(self) -> str:
        return f"{self.length} {self.items}, blake2b {self.digest}"


class Entry(NamedTuple):
    """A key. `value` is plain, or a Summary; the bytes of type and value lie at `offset`."""

    name: str
    type: int
    value: Any
    offset: int
    nbytes: int


class Info(NamedTuple):
    """A tensor; `shape` in C order, `offset` in the file."""

    name: str
    dtype: DType
    shape: Shape
    offset: int


class Header(NamedTuple):
    version: int
    entries: tuple[Entry, ...]
    tensors: tuple[Info, ...]


class _Cursor:
    """Reads on and on, a window at a time, and not beyond the end or the limit."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.at = 0
        self._view = memoryview(b"")
        self._begin = 0

    def window(self, nbytes: int) -> tuple[memoryview, int]:
        """A buffer, and the place in it from which at least `nbytes` of the file, and mostly more, can be read."""
        begin = self.at - self._begin
        if begin + nbytes > len(self._view):
            self.need(nbytes)
            some = min(max(nbytes, min(self.at, _WINDOW), _FIRST), self.source.size - self.at)
            self._view, self._begin, begin = memoryview(self.source.pread(self.at, some)), self.at, 0
        return self._view, begin

    def need(self, nbytes: int) -> None:
        """Refuse before anything is read or allocated."""
        if nbytes > self.source.size - self.at:
            raise TruncatedError(
                f"{nbytes} bytes are declared at byte {self.at}, but only {self.source.size - self.at} are left",
                hint="the download or the copy was cut off: fetch it again",
            )
        if self.at + nbytes > MAX_HEADER:
            raise LimitError(f"its keys and names take more than {MAX_HEADER} bytes")

    def take(self, nbytes: int) -> memoryview:
        view, begin = self.window(nbytes)
        self.at += nbytes
        return view[begin : begin + nbytes]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def name(self, what: str) -> str:
        at, nbytes = self.at, self.u64()
        if nbytes > MAX_NAME:
            self.need(nbytes)
            raise LimitError(f"{what} at byte {at} has a name of {nbytes} bytes; GGUF allows {MAX_NAME - 1}")
        try:
            return bytes(self.take(nbytes)).decode()
        except UnicodeDecodeError:
            raise CorruptError(f"{what} at byte {at} has a name that is no UTF-8") from None

    def skip(self, nbytes: int, see: Callable[[memoryview], None]) -> None:
        """Go over bytes, a window at a time."""
        self.need(nbytes)
        while nbytes:
            some = min(nbytes, _WINDOW)
            see(self.take(some))
            nbytes -= some

    def skip_strings(self, count: int, see: Callable[[memoryview], None]) -> None:
        """Go over so many strings: a loop of few steps, since vocabularies have hundreds of thousands."""
        length = _U64.unpack_from
        self.need(8 * count)
        while count:
            view, begin = self.window(8)
            at, end, last = begin, len(view), len(view) - 8
            for _ in range(count):
                if at > last:
                    break
                behind = at + 8 + length(view, at)[0]
                if behind > end:
                    break
                at = behind
                count -= 1
            see(view[begin:at])
            self.at += at - begin
            if count:  # the next one is not whole in the window
                self.skip(8 + length(*self.window(8))[0], see)
                count -= 1


def read_header(source: ByteSource) -> Header:
    """Raises CorruptError and its kin without a path."""
    cursor = _Cursor(source)
    if source.size < 24:
        raise TruncatedError(f"only {source.size} bytes: too short for a GGUF header")
    if cursor.take(4) != MAGIC:
        raise CorruptError("does not begin with GGUF")
    version = cursor.u32()
    if version not in (2, 3):
        if version and not version & 0xFFFF:
            raise UnsupportedError(
                "is a GGUF file for big-endian machines", hint="gguf-convert-endian of the gguf package turns it"
            )
        raise UnsupportedError(f"is a GGUF file of version {version}; versions 2 and 3 are read")
    tensors, keys = cursor.u64(), cursor.u64()
    for count, least, most, what in ((keys, 13, MAX_KEYS, "keys"), (tensors, 24, MAX_TENSORS, "tensors")):
        if count * least > source.size - cursor.at:
            raise TruncatedError(f"{count} {what} are declared in a file of {source.size} bytes")
        if count > most:
            raise LimitError(f"{count} {what} are declared; wtool takes {most}")
    entries = _entries(cursor, keys)
    alignment = next((entry.value for entry in entries if entry.name == ALIGNMENT and entry.type == 4), 32)
    wrong = next((entry for entry in entries if entry.name == ALIGNMENT and entry.type != 4), None)
    if wrong is not None or not alignment or alignment & (alignment - 1):
        raise CorruptError(f"{ALIGNMENT} is no power of two, as a u32")
    return Header(version, entries, _tensors(cursor, tensors, alignment))


def _entries(cursor: _Cursor, count: int) -> tuple[Entry, ...]:
    found: dict[str, Entry] = {}
    nested = [0]
    for _ in range(count):
        name = cursor.name("a key")
        begin = cursor.at
        type = cursor.u32()
        value = _value(cursor, type, name, nested)
        if name in found:
            raise UnsafeError(f"the key {show(name)} stands twice: two readers could read two models from it")
        found[name] = Entry(name, type, value, begin, cursor.at - begin)
    return tuple(found.values())


def _value(cursor: _Cursor, type: int, name: str, nested: list[int], depth: int = 0) -> Any:
    if type in NUMBERS:
        return number(type, bytes(cursor.take(calcsize(f"<{NUMBERS[type]}"))))
    digest = blake2b(digest_size=4)
    if type == STRING:
        nbytes = cursor.u64()
        if nbytes <= _TEXT:
            data = bytes(cursor.take(nbytes))
            try:
                return data.decode()
            except UnicodeDecodeError:
                return data
        cursor.skip(nbytes, digest.update)
        return Summary(nbytes, "bytes of text", digest.hexdigest())
    if type != ARRAY:
        raise CorruptError(f"the key {show(name)} has a value of type {type}, which GGUF has not")
    items, count = cursor.u32(), cursor.u64()
    if items in NUMBERS:
        each = calcsize(f"<{NUMBERS[items]}")
        if count <= _ITEMS:
            return [number(items, bytes(cursor.take(each))) for _ in range(count)]
        cursor.skip(each * count, digest.update)
        return Summary(count, NAMES[items], digest.hexdigest())
    if items == STRING:
        cursor.skip_strings(count, digest.update)
        return Summary(count, "strings", digest.hexdigest())
    nested[0] += count
    if items != ARRAY:
        raise CorruptError(f"the key {show(name)} has an array of type {items}, which GGUF has not")
    if depth >= _DEPTH or nested[0] > _NESTED:
        cursor.need(12 * count)
        raise LimitError(f"the key {show(name)} has arrays within arrays beyond all measure")
    found = [_value(cursor, ARRAY, name, nested, depth + 1) for _ in range(count)]
    digest.update(repr(found).encode("utf-8", "surrogatepass"))
    return Summary(count, "arrays", digest.hexdigest())


def number(type: int, data: bytes) -> int | float | bool:
    """A number of its bytes; an f32 as the shortest decimal that is it."""
    value: int | float | bool = unpack(f"<{NUMBERS[type]}", data)[0]
    if NAMES[type] == "f32" and value - value == 0:
        return next(short for digits in range(6, 10) if pack("<f", short := float(f"{value:.{digits}g}")) == data)
    return value


def _tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[Info, ...]:
    rows: dict[str, tuple[DType, Shape, int]] = {}
    for _ in range(count):
        name = cursor.name("a tensor")
        axes = cursor.u32()
        if axes > 4:
            raise CorruptError(f"tensor {show(name)} has {axes} axes; ggml has 4")
        shape = tuple(cursor.u64() for _ in range(axes))[::-1]
        kind, offset = cursor.u32(), cursor.u64()
        if name in rows:
            raise UnsafeError(f"the tensor {show(name)} stands twice: two readers could read two models from it")
        row = BY_GGML.get(kind)
        if row is None:
            gone = f", {_GONE[kind]}, which no file should have" if kind in _GONE else ""
            raise UnsupportedError(f"tensor {show(name)} has the type {kind}{gone} of ggml's, which wtool does not know")
        elements = prod(size or 1 for size in shape)
        if elements * max(row.run[1], 1) >= _LENGTH:
            raise CorruptError(f"tensor {show(name)}: its shape overflows 64 bits")
        if row.block and (shape[-1] if shape else 1) % row.block[0]:
            raise CorruptError(
                f"tensor {show(name)}: rows of {(shape or (1,))[-1]} values are no blocks of {row}, which have {row.block[0]}"
            )
        if offset % alignment:
            raise CorruptError(f"tensor {show(name)} begins at {offset}, which is no multiple of {alignment}")
        rows[name] = row, shape, offset
    begin = -(-cursor.at // alignment) * alignment
    infos = tuple(Info(name, row, shape, begin + offset) for name, (row, shape, offset) in rows.items())
    _check_places(infos, cursor.source.size)
    return infos


def _check_places(infos: tuple[Info, ...], size: int) -> None:
    end, before = 0, None
    for info in sorted(infos, key=lambda info: info.offset):
        nbytes = info.dtype.nbytes(prod(info.shape))
        if not nbytes:
            continue
        if info.offset < end and before is not None:
            raise CorruptError(f"tensor {show(info.name)} overlaps {show(before.name)}")
        end, before = info.offset + nbytes, info
        if end > size:
            raise TruncatedError(
                f"tensor {show(info.name)} ends at byte {end}, but the file has {size}",
                hint="the download or the copy was cut off: fetch it again",
            )
