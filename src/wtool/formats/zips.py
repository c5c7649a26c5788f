"""The directory of a zip archive, read strictly: whoever reads the same file another way must find the same entries.

Layout: PKWARE's APPNOTE 6.3 (4.3.7 local header, 4.3.12 central directory, 4.3.14 zip64 records, 4.3.16 end record). Refused:
two entries of one name, an entry whose local header says something else than the directory, entries that overlap or leave the
file, encryption, links, names that lead out of the folder, a directory that is not where the end record says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from wtool.bytesource import ByteSource
from wtool.checkpoint import Warning
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsafeError, UnsupportedError

MAX_ENTRIES = 200_000
MAX_DIRECTORY = 256 << 20  # bytes
MAX_RATIO = 1040  # deflate cannot do more than 1032 : 1

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_NEAR = 8 << 10  # headers closer than this are read together
_BATCH = 256 << 10

STORED, DEFLATED = 0, 8


class Entry(NamedTuple):
    """One file in the archive. `header` is where its local header begins, `offset` where its data begins."""

    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int
    offset: int


@dataclass(frozen=True, slots=True)
class Directory:
    """All entries by name, in the order of the file."""

    source: ByteSource
    entries: dict[str, Entry]
    warnings: tuple[Warning, ...]


class _End(NamedTuple):
    at: int  # of the end record
    first: int  # of the end records, zip64's included: where the directory must end
    entries: int
    size: int
    offset: int
    trailing: int


def read_directory(source: ByteSource) -> Directory:
    """Raises CorruptError, TruncatedError, UnsafeError, LimitError or UnsupportedError."""
    end = _find_end(source)
    if end.entries > MAX_ENTRIES:
        raise LimitError(f"the archive declares {end.entries:,} entries; the limit is {MAX_ENTRIES:,}", path=source.name)
    if end.size > MAX_DIRECTORY:
        raise LimitError(f"the archive's directory is {end.size:,} bytes long", path=source.name)
    if end.offset + end.size > end.first or end.entries * _CENTRAL.size > end.size:
        raise CorruptError(
            f"the archive's directory (byte {end.offset}, {end.size} bytes) does not fit before byte {end.first}",
            path=source.name,
        )
    if end.offset + end.size != end.first:
        raise UnsafeError(
            f"{end.first - end.offset - end.size} bytes lie between the archive's directory and its end: "
            "readers differ on where it begins",
            path=source.name,
        )
    found = _central(source, end)
    entries, warnings = _local(source, found, end.offset)
    if warnings:
        _scan_end(source)  # what stands before may be another archive, whose comment this one pretends to be
    if end.trailing:
        warnings.append(Warning("trailing-bytes", f"{end.trailing} bytes follow the end of the archive"))
    return Directory(source, entries, tuple(warnings))


def _find_end(source: ByteSource) -> _End:
    size = source.size
    if size < _END.size:
        raise TruncatedError("ends before the end record of a zip archive", path=source.name)
    tail = source.pread(size - _END.size, _END.size)
    if tail.startswith(b"PK\5\6") and tail.endswith(b"\0\0"):
        return _parse_end(source, tail, 0, size - _END.size)
    return _scan_end(source)


def _scan_end(source: ByteSource) -> _End:
    """The only end record in the last 128 KiB: a comment or foreign bytes may follow it. UnsafeError for two."""
    size = source.size
    count = min(size, _END.size + 0xFFFF + 0x10000)
    tail = source.pread(size - count, count)
    places = []
    at = tail.rfind(b"PK\5\6", 0, count - _END.size + 4)
    while at >= 0:
        places.append(at)
        at = tail.rfind(b"PK\5\6", 0, at + 3)
    ends, fault = [], None
    for place in places:
        try:
            end = _parse_end(source, tail, place, size - count + place)
        except (CorruptError, UnsupportedError) as error:
            fault = fault or error
            continue
        if end.offset + end.size == end.first:
            ends.append(end)
        else:
            fault = fault or CorruptError("the archive's directory is not where its end record says", path=source.name)
    if len(ends) > 1:
        raise UnsafeError("has two ends of an archive: readers differ on which counts", path=source.name)
    if not ends:
        raise fault or TruncatedError("the archive's directory is missing: the file is cut off", path=source.name)
    return ends[0]


def _parse_end(source: ByteSource, tail: bytes, place: int, at: int) -> _End:
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(tail, place)
    if disk not in (0, 0xFFFF) or first_disk not in (0, 0xFFFF) or here != count:
        raise UnsupportedError("the archive is split over several disks", path=source.name)
    trailing = source.size - at - _END.size - comment
    if trailing < 0:
        raise TruncatedError("ends inside the comment of the archive", path=source.name)
    first = at
    if at >= _LOCATOR.size:
        magic, disk, where, disks = _LOCATOR.unpack(source.pread(at - _LOCATOR.size, _LOCATOR.size))
        if magic == b"PK\6\7":
            first = where
            if where + _END64.size > at - _LOCATOR.size or disk or disks > 1:
                raise CorruptError("the archive's zip64 end record is not where its locator says", path=source.name)
            record = _END64.unpack(source.pread(where, _END64.size))
            if record[0] != b"PK\6\6" or where + 12 + record[1] != at - _LOCATOR.size:
                raise CorruptError("the archive's zip64 end record is damaged", path=source.name)
            for short, long, most in (
                (count, record[7], 0xFFFF),
                (size, record[8], 0xFFFFFFFF),
                (offset, record[9], 0xFFFFFFFF),
            ):
                if short not in (long, most):
                    raise UnsafeError("the archive's two end records disagree", path=source.name)
            if record[6] != record[7]:
                raise UnsupportedError("the archive is split over several disks", path=source.name)
            count, size, offset = record[7:10]
    return _End(at, first, count, size, offset, trailing)


def _central(source: ByteSource, end: _End) -> list[tuple[bytes, Entry]]:
    data = source.pread(end.offset, end.size)
    found: list[tuple[bytes, Entry]] = []
    names = set()
    at = 0
    unpack = _CENTRAL.unpack_from
    for _ in range(end.entries):
        if at + _CENTRAL.size > len(data):
            raise CorruptError("the archive's directory holds fewer entries than it declares", path=source.name)
        magic, system, _, flags, method, _, _, crc, packed, size, n, e, c, disk, _, mode, header = unpack(data, at)
        stop = at + _CENTRAL.size + n + e + c
        if magic != b"PK\1\2" or stop > len(data):
            raise CorruptError(f"entry {len(found)} of the archive's directory is damaged", path=source.name)
        raw = data[at + _CENTRAL.size : at + _CENTRAL.size + n]
        if packed == 0xFFFFFFFF or size == 0xFFFFFFFF or header == 0xFFFFFFFF or e:
            extra = data[at + _CENTRAL.size + n : at + _CENTRAL.size + n + e]
            size, packed, header = _zip64(source, extra, size, packed, header)
        name = _name(source, raw, flags)
        if raw in names:
            raise UnsafeError(f"the archive has two entries named '{name}'", path=source.name)
        names.add(raw)
        if (system >> 8) == 3 and (mode >> 28) == 0xA:
            raise UnsafeError(f"entry '{name}' is a link", path=source.name)
        if flags & 0x2061:
            raise UnsupportedError(f"entry '{name}' is encrypted or patched", path=source.name)
        if disk:
            raise UnsupportedError("the archive is split over several disks", path=source.name)
        if method == STORED and packed != size:
            raise CorruptError(f"entry '{name}' is stored, yet its two sizes differ", path=source.name)
        if header + _LOCAL.size + n + packed > end.offset:
            raise CorruptError(f"entry '{name}' reaches past the end of the archive's data", path=source.name)
        if size > (packed + 16) * MAX_RATIO:
            raise LimitError(f"entry '{name}' claims to hold {size:,} bytes in {packed:,}", path=source.name)
        found.append((raw, Entry(name, method, flags, crc, packed, size, header, 0)))
        at = stop
    if at != len(data):
        raise CorruptError("the archive's directory holds more than it declares", path=source.name)
    return found


def _zip64(source: ByteSource, extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three fields, those that are all ones taken from the zip64 extra field (4.5.3)."""
    values = [size, packed, header]
    wanted = [index for index, value in enumerate(values) if value == 0xFFFFFFFF]
    at, seen = 0, False
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if kind == 1:
            if seen or at + length > len(extra) or length < 8 * len(wanted):
                raise CorruptError("a zip64 field of the archive is damaged", path=source.name)
            seen = True
            for number, index in enumerate(wanted):
                values[index] = struct.unpack_from("<Q", extra, at + 8 * number)[0]
        at += length
    if wanted and not seen:
        raise CorruptError("a zip64 field of the archive is missing", path=source.name)
    return values[0], values[1], values[2]


def _name(source: ByteSource, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = raw.decode("cp437")
    if not name or "\0" in name or "\\" in name or name[0] == "/" or ":" in name[1:2]:
        raise UnsafeError(f"the archive has an entry with the name {name[:100]!r}", path=source.name)
    if ".." in name and ".." in name.split("/"):
        raise UnsafeError(f"the name '{name[:100]}' leads out of the archive's folder", path=source.name)
    return name


def _local(source: ByteSource, found: list[tuple[bytes, Entry]], limit: int) -> tuple[dict[str, Entry], list[Warning]]:
    """The entries with the place of their data, after their local headers have been compared with the directory."""
    order = sorted(range(len(found)), key=lambda index: found[index][1].header)
    placed: list[Entry | None] = [None] * len(found)
    data, base, end = b"", 0, 0  # what has been read, where it begins, where the last entry ended
    unpack = _LOCAL.unpack_from
    for number, index in enumerate(order):
        raw, entry = found[index]
        name, header = entry.name, entry.header
        fixed = _LOCAL.size + len(raw)
        if header < end:
            raise UnsafeError(f"entry '{name}' overlaps the one before it", path=source.name)
        if header + fixed > base + len(data):
            stop = header + fixed + 64
            for later in order[number + 1 : number + 2000]:
                following = found[later][1].header
                if following - stop > _NEAR or following - header > _BATCH:
                    break
                stop = following + fixed + 64
            base = header
            data = source.pread(base, min(stop, limit) - base)
        magic, _, flags, method, _, _, crc, packed, size, n, e = unpack(data, header - base)
        at = header - base + _LOCAL.size
        if magic != b"PK\3\4":
            raise CorruptError(f"entry '{name}' has no header where the directory says", path=source.name)
        if n != len(raw) or data[at : at + n] != raw:
            other = data[at : at + n].decode("utf-8", "replace")
            raise UnsafeError(f"entry '{name}' is called '{other[:100]}' by its own header", path=source.name)
        offset = header + fixed + e
        if offset + entry.packed > limit:
            raise CorruptError(f"entry '{name}' reaches past the end of the archive's data", path=source.name)
        if packed == 0xFFFFFFFF or size == 0xFFFFFFFF:
            size, packed, _ = _zip64(source, source.pread(header + fixed, e), size, packed, 0)
        late = flags & 8  # sizes and sum follow the data
        same = (
            not flags & 0x2061
            and method == entry.method
            and (packed == entry.packed or (late and not packed))
            and (size == entry.size or (late and not size))
            and (crc == entry.crc or (late and not crc))
        )
        if not same:
            raise UnsafeError(f"entry '{name}' is described otherwise by its own header", path=source.name)
        end = offset + entry.packed
        placed[index] = entry._replace(offset=offset)
    warnings = []
    if order and found[order[0]][1].header:
        warnings.append(Warning("leading-bytes", f"{found[order[0]][1].header} bytes stand before the archive"))
    entries = {entry.name: entry for entry in placed if entry is not None}
    if len(entries) != len(found):
        raise UnsafeError("the archive has two entries of one name", path=source.name)
    return entries, warnings
