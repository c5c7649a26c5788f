"""TensorFlow's tables and bundles with a lie in them. Ideas: CVE-2021-41203, LevelDB's and Snappy's own fuzzers."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from hostile import add, case
from wtool.formats.protobuf import bytes_field, number_field, varint
from wtool.formats.sstable import FOOTER, MAGIC, mask, write_table
from wtool.formats.tensorflow.bundle import Entry, Extent, format_entry, format_header, slice_key

F32, STRING = 1, 7
DATA = struct.pack("<4f", 1, 2, 3, 4)
MINUS = b"\xff" * 9 + b"\1"


def at(offset: int, *shape: int, dtype: int = F32, shard: int = 0, size: int | None = None) -> bytes:
    count = 1
    for one in shape:
        count *= one
    return format_entry(Entry(dtype, shape, shard, offset, 4 * count if size is None else size, 0))


def write(folder: Path, index: bytes, *shards: bytes, count: int | None = None) -> Path:
    (folder / "m.index").write_bytes(index)
    for number, data in enumerate(shards or (DATA,)):
        (folder / f"m.data-{number:05}-of-{count or max(len(shards), 1):05}").write_bytes(data)
    return folder / "m"


def bundle(name: str, entries: Mapping[bytes, bytes], *expect: str, header: bytes | None = None, data: bytes = DATA) -> None:
    def build(folder: Path) -> Path:
        table = {b"": format_header(1) if header is None else header, **entries}
        return write(folder, write_table(sorted(table.items())), data)

    add(f"tensorflow {name}", build, *expect)


def table(name: str, index: bytes, *expect: str) -> None:
    add(f"table {name}", lambda folder: write(folder, index), *expect)


ONE = {b"a": at(0, 4)}
GOOD = write_table([(b"", format_header(1)), (b"a", at(0, 4))])
bundle("true", ONE, "clean")
bundle("shape beyond the shard", {b"a": at(0, 5)}, "truncated")
bundle("offset of 2^60", {b"a": at(1 << 60, 4)}, "truncated", "corrupt")
bundle("offset and size overflow", {b"a": at((1 << 63) - 1, 4)}, "truncated", "corrupt")
bundle("offset below 0", {b"a": at(0, 4) + b"\x20" + MINUS}, "corrupt")
bundle("size below 0", {b"a": at(0, 4) + b"\x28" + MINUS}, "corrupt")
bundle("shard below 0", {b"a": at(0, 4) + b"\x18" + MINUS}, "corrupt")
bundle("shard 7 of 1", {b"a": at(0, 4, shard=7)}, "corrupt")
bundle("shard of 2^31", {b"a": at(0, 4, shard=1 << 31)}, "corrupt")
bundle("shape overflows", {b"a": at(0, 1 << 40, 1 << 40, size=16)}, "corrupt")
bundle("shape wraps to its size", {b"a": at(0, 1 << 62, 4, size=0)}, "corrupt")
bundle("axis below 0", {b"a": b"\x08\1" + bytes_field(2, bytes_field(2, b"\x08" + MINUS))}, "corrupt")
bundle("rank unknown", {b"a": b"\x08\1" + bytes_field(2, b"\x18\1")}, "corrupt")
bundle("rank 33", {b"a": at(0, *[1] * 33)}, "limit")
bundle("two shapes", {b"a": at(0, 4) + bytes_field(2, b"")}, "corrupt")
bundle("entries overlap", {b"a": at(0, 2), b"b": at(4, 2)}, "corrupt")
bundle("size is not the shape's", {b"a": at(0, 4, size=12)}, "corrupt")
bundle("dtype of no name", {b"a": at(0, 4, dtype=99)}, "clean", "unsupported", "corrupt")
bundle("dtype of 2^60", {b"a": at(0, 4, dtype=1 << 60)}, "clean", "unsupported", "corrupt")
bundle("entry is no message", {b"a": b"\x0b\x0c"}, "corrupt")
bundle("entry of a huge length", {b"a": b"\x12" + varint(1 << 62)}, "corrupt")
bundle("entry with an endless number", {b"a": b"\x08" + b"\xff" * 30}, "corrupt")
bundle("key is no UTF-8", {b"\xff\xfe": at(0, 4)}, "corrupt")
bundle("key of control characters", {b"\x1b[2J\n": at(0, 4)}, "clean")
bundle("variant", {b"a": at(0, 4, dtype=21)}, "clean")
bundle("strings of 2^50", {b"s": at(0, 1 << 50, dtype=STRING, size=16)}, "corrupt")
bundle("string with a wrong sum", {b"s": at(0, dtype=STRING, size=16)}, "corrupt")
bundle("object graph of noise", {b"_CHECKPOINTABLE_OBJECT_GRAPH": at(0, dtype=STRING, size=16), **ONE}, "corrupt")
bundle("header of no shards", ONE, "corrupt", header=b"")
bundle("header of -1 shards", ONE, "corrupt", header=b"\x08" + MINUS)
bundle("header of 2^31 - 1 shards", ONE, "not-found", header=number_field(1, (1 << 31) - 1))
bundle("header too new", ONE, "unsupported", header=number_field(1, 1) + bytes_field(3, number_field(2, 9)))
bundle("header cut", ONE, "corrupt", header=b"\x08")
bundle("header of noise", ONE, "corrupt", header=b"\xff" * 40)
bundle("data shard empty", ONE, "truncated", data=b"")


def sliced(shape: tuple[int, ...], *parts: tuple[tuple[int, int], ...]) -> bytes:
    out = format_entry(Entry(F32, shape, 0, 0, 0, 0))
    for extents in parts:
        out += bytes_field(
            7, b"".join(bytes_field(1, number_field(1, start) + b"\x10" + varint(length)) for start, length in extents)
        )
    return out


def piece(name: str, *extents: tuple[int, int]) -> bytes:
    return slice_key(name.encode(), tuple(Extent(*extent) for extent in extents))


bundle("slice missing", {b"v": sliced((4,), ((0, 2),), ((2, 2),)), piece("v", (0, 2)): at(0, 2)}, "corrupt")
bundle(
    "slices leave a gap",
    {b"v": sliced((4,), ((0, 1),), ((2, 2),)), piece("v", (0, 1)): at(0, 1), piece("v", (2, 2)): at(4, 2)},
    "corrupt",
)
bundle("slice outside", {b"v": sliced((4,), ((3, 2),)), piece("v", (3, 2)): at(0, 2)}, "corrupt")
bundle("slice twice", {b"v": sliced((4,), ((0, 4),), ((0, 4),)), piece("v", (0, 4)): at(0, 4)}, "corrupt")
bundle("slice of another rank", {b"v": sliced((4, 1), ((0, 4),)), piece("v", (0, 4)): at(0, 4)}, "corrupt")
bundle(
    "slice of an absurd shape",
    {b"v": sliced((1 << 62, 1 << 62), ((0, 4), (0, 4))), piece("v", (0, 4), (0, 4)): at(0, 4, 4)},
    "corrupt",
    "truncated",
)


@case("tensorflow many slices of a grid", "clean", "limit")
def _(folder: Path) -> Path:
    entries = {b"": format_header(1)}
    for number in range(30):
        name = f"v{number:02}"
        places = [((row, 1), (column, 1)) for row in range(40) for column in range(50)]
        entries[name.encode()] = sliced((40, 50), *places)
        for order, place in enumerate(places):
            entries[piece(name, *place)] = at(4 * (2000 * number + order), 1, 1)
    return write(folder, write_table(sorted(entries.items())), bytes(4 * 2000 * 30))


# The table itself.
def block(contents: bytes, kind: int = 0) -> bytes:
    raw = contents + bytes((kind,))
    from google_crc32c import value

    return raw + mask(value(raw)).to_bytes(4, "little")


def entries(*rows: tuple[int, bytes, bytes]) -> bytes:
    body = b"".join(varint(shared) + varint(len(own)) + varint(len(value)) + own + value for shared, own, value in rows)
    return body + struct.pack("<2I", 0, 1)


def assembled(
    data: bytes, kind: int = 0, handle: bytes | None = None, index: bytes | None = None, foot: bytes | None = None
) -> bytes:
    first = block(data, kind)
    own = varint(0) + varint(len(data)) if handle is None else handle
    second = block(entries((0, b"\xff", own)) if index is None else index)
    place = varint(0) + varint(0) + varint(len(first)) + varint(len(second) - 5)
    return first + second + (place if foot is None else foot).ljust(FOOTER - 8, b"\0") + MAGIC


ROWS = entries((0, b"", format_header(1)), (0, b"a", at(0, 4)))
table("true", assembled(ROWS), "clean")
table("wrong sum", GOOD[:10] + bytes((GOOD[10] ^ 1,)) + GOOD[11:], "corrupt")
table("wrong sum of the index", GOOD[:-54] + bytes((GOOD[-54] ^ 1,)) + GOOD[-53:], "corrupt")
table("no magic", GOOD[:-1], "corrupt", "unknown-format")
table("only its magic", MAGIC, "truncated", "corrupt")
table("cut in the middle", GOOD[: len(GOOD) // 2], "corrupt", "truncated")
table("handle beyond the file", assembled(ROWS, handle=varint(1 << 40) + varint(10)), "corrupt")
table("handle of 2^64", assembled(ROWS, handle=varint((1 << 64) - 1) + varint((1 << 64) - 1)), "corrupt")
table("handle that does not end", assembled(ROWS, handle=b"\xff" * 20), "corrupt")
table("handle of the footer", assembled(ROWS, handle=varint(0) + varint(1 << 20)), "corrupt")
table("footer of endless numbers", assembled(ROWS, foot=b"\xff" * 40), "corrupt")
table("index block beyond the file", assembled(ROWS, foot=varint(0) + varint(0) + varint(1 << 50) + varint(5)), "corrupt")
table("compression 7", assembled(ROWS, kind=7), "corrupt")
table("restart points beyond", assembled(ROWS[:-4] + b"\xff\xff\xff\x7f"), "corrupt")
table("block of nothing", assembled(b""), "corrupt")
table("shared more than there is", assembled(entries((9, b"", format_header(1)))), "corrupt")
table("value beyond the block", assembled(b"\0\0" + varint(1 << 40) + struct.pack("<2I", 0, 1)), "corrupt")
table("keys out of order", assembled(entries((0, b"", format_header(1)), (0, b"b", at(0, 1)), (0, b"a", at(4, 1)))), "corrupt")
table("key twice", assembled(entries((0, b"", format_header(1)), (0, b"a", at(0, 1)), (0, b"a", at(4, 1)))), "corrupt")
table(
    "block named twice",
    assembled(ROWS, index=entries((0, b"\xfe", varint(0) + varint(len(ROWS))), (0, b"\xff", varint(0) + varint(len(ROWS))))),
    "corrupt",
)
table("no header", assembled(entries((0, b"a", at(0, 4)))), "corrupt")
table("snappy of 4 GiB", assembled(b"\xff\xff\xff\xff\x0f" + b"\0x", kind=1), "limit", "corrupt")
table("snappy without a length", assembled(b"\xff" * 9, kind=1), "corrupt")
table("snappy copy from before", assembled(varint(64) + b"\xfe\xff\xff", kind=1), "corrupt", "limit")
table("snappy copy of nothing back", assembled(varint(8) + b"\0x\x01\x00", kind=1), "corrupt")
table("snappy literal beyond", assembled(varint(60) + b"\xfc\xff\xff\xff\xff" + bytes(10), kind=1), "corrupt", "limit")
table("snappy more than it says", assembled(varint(3) + b"\x10hello", kind=1), "corrupt")
table("snappy bomb", assembled(varint(64 * 300_000 + 1) + b"\0\0" + b"\xfe\x01\x00" * 300_000, kind=1), "corrupt", "limit")
table(
    "keys that share a start",
    assembled(
        entries(
            (0, b"", format_header(1)), (0, b"a" * 50_000, at(0, 1)), *((50_000 + n, b"b", at(0, 1)) for n in range(3_000))
        )
    ),
    "limit",
    "clean",
    "corrupt",
)
table("keys that repeat a long start",
      assembled(entries((0, b"", format_header(1)), (0, b"a" * 200_000, at(0, 1)), *(
          (200_000, b"%06d" % n, b"") for n in range(20_000)))), "limit")  # fmt: skip
table(
    "fields by the million",
    assembled(entries((0, b"", format_header(1)), (0, b"a", b"\x38\x01" * 3_000_000))),
    "limit",
    "corrupt",
)
table(
    "axes by the million",
    assembled(entries((0, b"", format_header(1)), (0, b"a", bytes_field(2, b"\x12\0" * 2_000_000)))),
    "limit",
)
table(
    "slices by the million",
    assembled(entries((0, b"", format_header(1)), (0, b"a", b"\x3a\0" * 1_000_000))),
    "limit",
    "corrupt",
)


def state(name: str, text: bytes, *expect: str) -> None:
    def build(folder: Path) -> Path:
        inside = folder / "in"
        inside.mkdir()
        write(inside, GOOD)
        (folder / "out.index").write_bytes(GOOD)
        (folder / "out.data-00000-of-00001").write_bytes(DATA)
        (inside / "checkpoint").write_bytes(text)
        return inside

    add(f"state {name}", build, *expect)


state("true", b'model_checkpoint_path: "m"\n', "clean")
state("of another machine", b'model_checkpoint_path: "/home/someone/run/m"\n', "clean")
state("leads out", b'model_checkpoint_path: "../out"\n', "not-found")
state("leads to passwd", b'model_checkpoint_path: "/etc/passwd"\n', "not-found")
state("leads out by escapes", b'model_checkpoint_path: "\\056\\056/out"\n', "not-found")
state("leads out backwards", b'model_checkpoint_path: "..\\\\out"\n', "not-found")
state("names a folder", b'model_checkpoint_path: ".."\n', "corrupt")
state("names nothing", b'model_checkpoint_path: ""\n', "corrupt")
state("of null bytes", b'model_checkpoint_path: "m\\000x"\n', "corrupt")
state("of noise", bytes(range(256)) * 10, "corrupt")
state("of many quotes", b'model_checkpoint_path: "' + b"\\" * 200_000, "corrupt")


@case("tensorflow data shard is a pipe", "unreadable")
def _(folder: Path) -> Path:
    import os

    prefix = write(folder, GOOD)
    (folder / "m.data-00000-of-00001").unlink()
    os.mkfifo(folder / "m.data-00000-of-00001")
    return prefix


@case("tensorflow state file is a pipe", "unreadable")
def _(folder: Path) -> Path:
    import os

    write(folder, GOOD)
    os.mkfifo(folder / "checkpoint")
    return folder


@case("tensorflow index is a link to a device", "unreadable")
def _(folder: Path) -> Path:
    write(folder, GOOD)
    (folder / "m.index").unlink()
    (folder / "m.index").symlink_to("/dev/zero")
    return folder / "m"


@case("tensorflow data shard missing", "not-found")
def _(folder: Path) -> Path:
    prefix = write(folder, GOOD)
    (folder / "m.data-00000-of-00001").unlink()
    return prefix
