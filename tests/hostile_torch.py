"""Builds torch files that the framework itself would not write: by hand, so that every byte can be wrong on purpose."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping


def string(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def storage(key: str = "0", count: int = 4, kind: str = "torch\nFloatStorage", location: str = "cpu") -> bytes:
    return b"(" + string("storage") + b"c" + kind.encode() + b"\n" + string(key) + string(location) + integer(count) + b"tQ"


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor(
    offset: int = 0, shape: tuple[int, ...] = (4,), strides: tuple[int, ...] = (1,), stored: bytes | None = None
) -> bytes:
    sizes = b"(" + b"".join(map(integer, shape)) + b"t"
    steps = b"(" + b"".join(map(integer, strides)) + b"t"
    inner = (storage() if stored is None else stored) + integer(offset) + sizes + steps
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + inner + b"\x89ccollections\nOrderedDict\n)RtR"


def pickled(items: Mapping[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in items.items()) + b"u."


VALUES = struct.pack("<4f", 1, 2, 3, 4)


def archive(
    pickle: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    root: str = "archive/",
    extra: Mapping[str, bytes] | None = None,
    deflate: bool = False,
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as file:
        file.writestr(f"{root}data.pkl", pickle)
        for key, data in ({"0": VALUES} if storages is None else storages).items():
            file.writestr(f"{root}data/{key}", data)
        for name, data in {f"{root}version": b"3\n", **(extra or {})}.items():
            file.writestr(name, data)
    return out.getvalue()


def legacy(pickle: bytes, storages: Mapping[str, bytes] | None = None, itemsize: int = 4) -> bytes:
    held = {"0": VALUES} if storages is None else storages
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + b"\x80\x02}" + string("little_endian") + b"\x88s."
    keys = b"\x80\x02](" + b"".join(map(string, held)) + b"e."
    return head + pickle + keys + b"".join(struct.pack("<q", len(data) // itemsize) + data for data in held.values())


def old_storage(key: str = "0", count: int = 4) -> bytes:
    """The persistent id of the stream has one more field, for views."""
    return b"(" + string("storage") + b"ctorch\nFloatStorage\n" + string(key) + string("cpu") + integer(count) + b"NtQ"


def bare_zip(entries: list[tuple[str, bytes]], *, local: Mapping[str, str] | None = None) -> bytes:
    """Stored entries, names repeated if they are; `local` gives an entry another name in its own header."""
    body, central = b"", b""
    for name, data in entries:
        at, crc = len(body), zlib.crc32(data)
        own = (local or {}).get(name, name).encode()
        fields = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, crc, len(data), len(data), len(own), 0)
        body += b"PK\3\4" + fields + own + data
        raw = name.encode()
        central += b"PK\1\2" + struct.pack(
            "<6H3L5H2L", 20, 20, 0, 0, 0, 0, crc, len(data), len(data), len(raw), 0, 0, 0, 0, 0, at
        )
        central += raw
    return body + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(entries), len(entries), len(central), len(body), 0)
