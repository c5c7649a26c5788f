"""The strict zip directory: what two readers could read apart is refused, what torch writes or people re-zip is read."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import pytest
from hostile_torch import bare_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool.bytesource import MemoryBytes
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsafeError, UnsupportedError, WtoolError
from wtool.formats.inflate import content
from wtool.formats.zips import Directory, read_directory

ENTRIES = [("a/data.pkl", b"hello"), ("a/data/0", bytes(range(64))), ("a/empty", b"")]


def read(data: bytes) -> Directory:
    return read_directory(MemoryBytes(data, "file"))


def contents(data: bytes) -> dict[str, bytes]:
    directory = read(data)
    found = {}
    for name, entry in directory.entries.items():
        source, offset = content(directory.source, entry)
        found[name] = source.pread(offset, entry.size)
    return found


def python_zip(method: int = zipfile.ZIP_STORED, comment: bytes = b"", big: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in ENTRIES:
            with file.open(name, "w", force_zip64=big) as entry:
                entry.write(data)
        file.comment = comment
    return out.getvalue()


class NoSeek(io.BytesIO):
    """Makes zipfile write sizes behind the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError

    def tell(self) -> int:
        raise OSError


def streamed() -> bytes:
    out = NoSeek()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in ENTRIES:
            file.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        bare_zip(ENTRIES),
        python_zip(),
        python_zip(zipfile.ZIP_DEFLATED),
        python_zip(big=True),
        python_zip(comment=b"hi"),
        streamed(),
    ],
)
def test_reads(data: bytes) -> None:
    assert contents(data) == dict(ENTRIES)


def changed(place: Callable[[bytes], int], value: bytes) -> bytes:
    data = bytearray(bare_zip(ENTRIES))
    at = place(bytes(data))
    data[at : at + len(value)] = value
    return bytes(data)


def central(field: int) -> Callable[[bytes], int]:
    return lambda data: data.index(b"PK\1\2") + field


def local(field: int) -> Callable[[bytes], int]:
    return lambda data: field


def end(field: int) -> Callable[[bytes], int]:
    return lambda data: data.rindex(b"PK\5\6") + field


PLAIN = bare_zip(ENTRIES)
HOSTILE = {
    "duplicate": (bare_zip([*ENTRIES, ("a/data.pkl", b"other")]), UnsafeError),
    "other local name": (bare_zip(ENTRIES, local={"a/data.pkl": "a/data.pkx"}), UnsafeError),
    "other local name, longer": (bare_zip(ENTRIES, local={"a/data.pkl": "a/data.pklx"}), UnsafeError),
    "traversal": (bare_zip([("../data.pkl", b"x")]), UnsafeError),
    "absolute": (bare_zip([("/data.pkl", b"x")]), UnsafeError),
    "backslash": (bare_zip([("a\\data.pkl", b"x")]), UnsafeError),
    "encrypted": (changed(central(8), b"\1\0"), UnsupportedError),
    "encrypted locally": (changed(local(6), b"\1\0"), UnsafeError),
    "patched": (changed(central(8), b"\x20\0"), UnsupportedError),
    "local method": (changed(local(8), b"\x08\0"), UnsafeError),
    "local size": (changed(local(18), b"\x04\0\0\0"), UnsafeError),
    "local crc": (changed(local(14), b"\x04\0\0\0"), UnsafeError),
    "central size": (changed(central(20), b"\x04\0\0\0"), CorruptError),
    "both sizes beyond": (changed(central(20), struct.pack("<2L", 1 << 30, 1 << 30)), CorruptError),
    "bomb": (changed(central(10), struct.pack("<HHHLLL", 8, 0, 0, 1, 5, 1 << 31)), LimitError),
    "link": (bare_zip(ENTRIES).replace(b"PK\1\2\x14\0", b"PK\1\2\x14\3", 1), None),
    "offset": (changed(central(42), b"\x05\0\0\0"), CorruptError),
    "count": (changed(end(8), b"\x02\0\x02\0"), CorruptError),
    "huge count": (changed(end(8), b"\xff\xff\xff\xff"), CorruptError),
    "directory offset": (changed(end(16), b"\x01\0\0\0"), UnsafeError),
    "directory beyond": (changed(end(16), b"\xff\xff\xff\x7f"), CorruptError),
    "disks": (changed(end(4), b"\1\0"), UnsupportedError),
    "bytes before": (b"junk" + PLAIN, UnsafeError),
    "two archives": (PLAIN + PLAIN, UnsafeError),
    "empty": (b"", TruncatedError),
    "cut": (PLAIN[:-30], TruncatedError),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    data, error = HOSTILE[name]
    if error is None:
        # Only the mode that says "link" makes it one.
        assert contents(data) == dict(ENTRIES)
        at = data.index(b"PK\1\2") + 38
        data, error = data[:at] + struct.pack("<L", 0o120777 << 16) + data[at + 4 :], UnsafeError
    with pytest.raises(error):
        read(data)


def test_overlap() -> None:
    """A local header inside the data of another entry: one run of bytes read as two."""
    inner = bare_zip([("b", b"x")])
    inner_local = inner[: inner.index(b"PK\1\2")]
    data = bytearray(bare_zip([("a", inner_local), ("b", b"x")]))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<L", data, second + 42, data.index(b"PK\3\4", 4))
    with pytest.raises(UnsafeError, match="overlaps"):
        read(bytes(data))


def test_second_end_in_the_comment() -> None:
    """A comment that is an archive's end of its own: some readers take the first, some the last."""
    second = bare_zip([("evil", b"x")])
    shifted = bytearray(second)
    comment_at = len(PLAIN)
    at = shifted.rindex(b"PK\5\6")
    struct.pack_into("<L", shifted, at + 16, comment_at + second.index(b"PK\1\2"))
    struct.pack_into("<L", shifted, second.index(b"PK\1\2") + 42, comment_at)
    whole = PLAIN[:-2] + struct.pack("<H", len(shifted)) + bytes(shifted)
    with pytest.raises(UnsafeError):
        read(whole)


def test_trailing_bytes_are_said() -> None:
    assert [warning.code for warning in read(PLAIN + b"\0" * 40).warnings] == ["trailing-bytes"]


def test_too_many_entries() -> None:
    data = bytearray(PLAIN)
    at = data.rindex(b"PK\5\6")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 0, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    data[at:at] = record + locator
    struct.pack_into("<2H2L", data, len(data) - 14, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    with pytest.raises(LimitError):
        read(bytes(data))


def test_inflates_forwards_backwards_and_checks_the_sum() -> None:
    out = io.BytesIO()
    values = bytes(range(256)) * 20_000
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x", values)
    directory = read(out.getvalue())
    source, base = content(directory.source, directory.entries["x"])
    for offset in (0, 4_000_000, 100, 2_000_000, len(values) - 5):
        assert source.pread(base + offset, 5) == values[offset : offset + 5]
    entry = directory.entries["x"]._replace(crc=1)
    wrong, base = content(directory.source, entry)
    with pytest.raises(CorruptError, match="CRC"):
        wrong.pread(base, entry.size)
    longer, base = content(directory.source, directory.entries["x"]._replace(size=entry.size + 10))
    with pytest.raises(CorruptError):
        longer.pread(base + entry.size, 10)


@given(st.integers(0, len(PLAIN) - 1), st.integers(0, 255), st.booleans())
@settings(max_examples=300, deadline=None)
def test_damage(place: int, value: int, cut: bool) -> None:
    for whole in (PLAIN, STREAMED):
        place %= len(whole)
        data = whole[:place] if cut else whole[:place] + bytes([value]) + whole[place + 1 :]
        try:
            contents(data)
        except WtoolError as error:
            assert "\n" not in error.message


STREAMED = streamed()
