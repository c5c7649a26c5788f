"""Archives that two readers would read in two ways, that reach out of themselves, or that lie about sizes.

Ideas: CVE-2025-1944 (names), -1945 (flag bits), -10156 (sums), overlapping entries (zbsm), APPNOTE 6.3 4.3 and 4.4, polyglots.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from hostile_torch import VALUES, archive, bare_zip, pickled, tensor

from hostile import add, late

GOOD = pickled({"w": tensor()})
EVIL = pickled({"w": tensor(), "evil": b"cos\nsystem\nN\x85R"})
PARTS = [("archive/data.pkl", GOOD), ("archive/data/0", VALUES), ("archive/version", b"3\n")]


class Raw(NamedTuple):
    """An entry of which every field can lie. None is the truth."""

    name: bytes
    data: bytes
    local_name: bytes | None = None
    flags: int = 0
    local_flags: int | None = None
    method: int = 0
    local_method: int | None = None
    crc: int | None = None
    local_crc: int | None = None
    size: int | None = None
    local_size: int | None = None
    packed: int | None = None
    extra: bytes = b""
    made_by: int = 20
    mode: int = 0
    disk: int = 0
    at: int | None = None


def build(entries: list[Raw], *, before: bytes = b"", after: bytes = b"", comment: bytes = b"", count: int | None = None,
          here: int | None = None, offset: int = 0, size: int = 0, gap: bytes = b"") -> bytes:  # fmt: skip
    body, central = before, b""
    for one in entries:
        at, true = len(body), zlib.crc32(one.data)
        raw = one.data
        if one.method == 8:
            squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
            raw = squeeze.compress(one.data) + squeeze.flush()
        pick = lambda *given: next(value for value in given if value is not None)  # noqa: E731
        own = pick(one.local_name, one.name)
        packed = pick(one.packed, len(raw))
        body += b"PK\3\4" + struct.pack(
            "<5H3L2H", 20, pick(one.local_flags, one.flags), pick(one.local_method, one.method), 0, 0,
            pick(one.local_crc, one.crc, true), len(raw), pick(one.local_size, one.size, len(one.data)), len(own), 0,
        ) + own + raw  # fmt: skip
        central += b"PK\1\2" + struct.pack(
            "<6H3L5H2L", one.made_by, 20, one.flags, one.method, 0, 0, pick(one.crc, true), packed,
            pick(one.size, len(one.data)), len(one.name), len(one.extra), 0, one.disk, 0, one.mode, pick(one.at, at),
        ) + one.name + one.extra  # fmt: skip
    number = len(entries) if count is None else count
    end = struct.pack(
        "<4s4H2LH",
        b"PK\5\6",
        0,
        0,
        number if here is None else here,
        number,
        len(central) + size,
        len(body) + offset,
        len(comment),
    )
    return body + central + gap + end + comment + after


def torch(*extra: Raw, pickle: Raw | None = None, values: Raw | None = None, **options: object) -> bytes:
    first = pickle or Raw(b"archive/data.pkl", GOOD)
    second = values or Raw(b"archive/data/0", VALUES)
    return build([first, second, Raw(b"archive/version", b"3\n"), *extra], **options)  # type: ignore[arg-type]


def pkl(**lie: object) -> bytes:
    return torch(pickle=Raw(b"archive/data.pkl", GOOD)._replace(**lie))  # type: ignore[arg-type]


def val(**lie: object) -> bytes:
    return torch(values=Raw(b"archive/data/0", VALUES)._replace(**lie))  # type: ignore[arg-type]


ROOT = b"archive/"
add("zip true", torch(), "clean")
add("zip duplicate data.pkl", torch(Raw(b"archive/data.pkl", EVIL)), "unsafe")
add("zip duplicate storage", torch(Raw(b"archive/data/0", VALUES)), "unsafe")
add("zip duplicate directory entries by hand", bare_zip([*PARTS, ("archive/data.pkl", EVIL)]), "unsafe")
add("zip twin Data.pkl", torch(Raw(b"archive/Data.pkl", EVIL)), "unsafe")
add("zip twin DATA.PKL", torch(Raw(b"archive/DATA.PKL", EVIL)), "unsafe")
add("zip twin byteOrder", torch(Raw(b"archive/byteOrder", b"big")), "unsafe")
add("zip two roots", torch(Raw(b"other/data.pkl", EVIL)), "unsafe")
add("zip root and none", torch(Raw(b"data.pkl", EVIL)), "unsafe")
add("zip data.pkl deeper", torch(Raw(b"archive/x/data.pkl", EVIL)), "clean", "unsafe")
add("zip local name differs", pkl(local_name=b"archive/evil.pkl"), "unsafe")
add("zip local name of another length", pkl(local_name=b"archive/d.pkl"), "unsafe", "corrupt")
add("zip storage called data.pkl inside", val(local_name=b"archive/data.p"), "unsafe")
for bit in (0x1, 0x20, 0x40, 0x2000):
    add(f"zip flag {bit:#x}", pkl(flags=bit), "unsupported")
    add(f"zip local flag {bit:#x}", pkl(local_flags=bit), "unsafe", "unsupported")
    add(f"zip flag {bit:#x} on a storage", val(flags=bit), "unsupported")
add("zip method 99", pkl(method=99, local_method=99), "unsupported")
add("zip method bzip2", pkl(method=12), "unsupported")
add("zip methods differ", pkl(method=0, local_method=8), "unsafe")
add("zip deflated in one header", pkl(method=8, local_method=0), "unsafe", "corrupt")
add("zip wrong sum of the pickle", pkl(crc=1), "corrupt")
add("zip wrong sum of the deflated pickle", pkl(crc=1, method=8), "corrupt")
add("zip sums differ", pkl(local_crc=1), "unsafe")
add("zip size smaller", pkl(size=5), "corrupt", "unsafe")
add("zip size larger", pkl(size=1 << 30), "corrupt", "unsafe", "limit")
add("zip local size differs", pkl(local_size=3), "unsafe")
add("zip deflated size larger", pkl(method=8, size=len(GOOD) + 5), "corrupt")
add("zip deflated size smaller", pkl(method=8, size=len(GOOD) - 5), "corrupt")
add("zip packed size beyond the file", pkl(packed=1 << 30, size=1 << 30), "corrupt")
add("zip ratio of a million", pkl(method=8, size=1 << 31), "limit")
add(
    "zip deflate damaged",
    build([Raw(b"archive/data.pkl", GOOD, method=0), Raw(b"archive/data/0", VALUES)]).replace(
        b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x08\0", 1
    ),
    "unsafe",
)
add("zip entries overlap", val(at=10), "corrupt", "unsafe")
add("zip entries at one place", torch(values=Raw(b"archive/data/0", VALUES, at=0)), "unsafe", "corrupt")
add("zip entry beyond the file", val(at=1 << 20), "corrupt")
add("zip entry at 2^32", val(at=0xFFFFFFFF), "corrupt")
add(
    "zip zip64 extra lies",
    val(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60)),
    "corrupt",
    "unsafe",
    "limit",
)
add("zip zip64 extra cut", val(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 16)), "corrupt")
add("zip zip64 extra twice", val(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<HHQQ", 1, 16, 16, 16) * 2), "corrupt")
add(
    "zip zip64 locator to nowhere",
    torch()[:-22] + struct.pack("<4sLQL", b"PK\6\7", 0, 1 << 60, 1) + torch()[-22:],
    "corrupt",
    "unsafe",
    "truncated",
)
for name in (
    b"../evil",
    b"archive/../../evil",
    b"/etc/passwd",
    b"C:\\evil",
    b"archive\\..\\evil",
    b"archive/data/../x",
    b"a\0b",
    b"",
):
    add(f"zip name {name!r}", torch(Raw(name, b"x")), "unsafe")
add("zip traversal as the pickle", build([Raw(b"../data.pkl", GOOD), Raw(b"../data/0", VALUES)]), "unsafe")
add("zip link", torch(Raw(b"archive/data/1", b"/etc/passwd", made_by=0x0314, mode=0xA1FF0000)), "unsafe")
add("zip link for the storage", val(made_by=0x0314, mode=0xA1FF0000), "unsafe")
add("zip on another disk", val(disk=3), "unsupported")
add("zip count too small", torch(count=2), "corrupt")
add("zip count too large", torch(count=9), "corrupt")
add("zip counts differ", torch(here=2), "unsupported", "corrupt")
add("zip directory elsewhere", torch(offset=7), "corrupt", "unsafe")
add("zip directory longer", torch(size=9), "corrupt", "unsafe")
add("zip bytes before its end record", torch(gap=b"0123456789"), "corrupt", "unsafe")
add("zip trailing bytes", torch(after=b"x" * 30), "clean", "corrupt")
add("zip trailing archive", torch() + torch(pickle=Raw(b"archive/data.pkl", EVIL)), "unsafe", "corrupt")
add("zip in the comment of another", torch(comment=torch(pickle=Raw(b"archive/data.pkl", EVIL))), "unsafe", "corrupt")
add(
    "zip end record in the comment",
    torch(comment=b"xx" + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)),
    "unsafe",
    "clean",
)
add("zip comment", torch(comment=b"hello"), "clean")
add("zip leading bytes", torch(before=b"#!/bin/sh\nexit\n" + b"x" * 50), "clean", "unsafe", "unknown-format")
add("zip after an older pickle", torch(before=b"\x80\x02cos\nsystem\nN\x85R."), "clean", "unsafe", "unknown-format")
add("zip after an archive of its own", torch(before=torch(pickle=Raw(b"archive/data.pkl", EVIL))), "unsafe", "clean")
add("zip cut in the middle", torch()[: len(torch()) // 2], "truncated", "corrupt", "unknown-format")
add("zip cut by one byte", torch()[:-1], "truncated", "corrupt")
add("zip without data.pkl", bare_zip([("archive/data/0", VALUES)]), "unknown-format", "corrupt")
add("zip of nothing", bare_zip([]), "unknown-format")
add("zip storage missing", bare_zip([("archive/data.pkl", GOOD)]), "corrupt")
add("zip storage too short", val(data=VALUES[:8]), "corrupt")
add("zip storage too long", val(data=VALUES + bytes(64)), "corrupt")
add("zip storage only outside the root", bare_zip([("archive/data.pkl", GOOD), ("data/0", VALUES)]), "corrupt")
add("zip byteorder nonsense", archive(GOOD, extra={"archive/byteorder": b"middle"}), "corrupt")
add(
    "zip legacy magic after the archive",
    torch(after=b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
    "clean",
    "corrupt",
    "unsafe",
)


def many(count: int) -> Callable[[], bytes]:
    def make() -> bytes:
        out = BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("archive/data.pkl", GOOD)
            file.writestr("archive/data/0", VALUES)
            for number in range(count):
                file.writestr(zipfile.ZipInfo(f"archive/x{number}"), b"")
        return out.getvalue()

    return make


late("zip of 200,001 entries", lambda: _claimed(210_000), "limit")
late("zip of 30,000 empty entries", many(30_000), "clean")
late("zip of end records", lambda: torch(comment=b"PK\5\6" * 16_000), "unsafe", "clean", "corrupt", "truncated")
late(
    "zip that is only end records",
    lambda: b"PK\3\4" + b"PK\5\6" * 40_000,
    "unsafe",
    "unsupported",
    "corrupt",
    "truncated",
    "unknown-format",
)


def _claimed(count: int) -> bytes:
    """A zip64 archive whose directory really has `count` entries, all of one empty place."""
    body = b"PK\3\4" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 0, 0, 16, 0) + b"archive/data.pkl"
    central = b"".join(
        b"PK\1\2" + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0) + b"%05x" % number
        for number in range(count)
    )
    at = len(body)
    end = at + len(central)
    return (
        body + central + struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(central), at)
        + struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(central), at, 0)
    )  # fmt: skip
