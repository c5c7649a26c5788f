"""The stream that torch.save wrote before 1.6: four pickles, the list of storage keys, then each storage after its length.

Sources: torch/serialization.py (`_legacy_save`, `_legacy_load`). Storages are little-endian whatever sys_info says.
"""

from __future__ import annotations

import struct
from typing import Any

from wtool.bytesource import ByteSource
from wtool.errors import CorruptError, TruncatedError, UnsupportedError
from wtool.formats.pickle_objects import Name, brief
from wtool.formats.pickles import read_pickle
from wtool.formats.torch.archive import Loaded
from wtool.formats.torch.rebuild import MEANINGS
from wtool.formats.torch.values import Storage, storage_dtype

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class Shelf:
    """The storages that a pickle of the stream has named, by key; views of them by their own."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.views: dict[str, tuple[Storage, Storage, int]] = {}  # view, of what, offset in bytes

    def persistent(self, given: Any) -> Any:
        word, *data = given
        if word in ("module", b"module"):
            return data[0]
        if word not in ("storage", b"storage"):
            raise CorruptError(f"a persistent id of kind {brief(word)!r}")
        kind, key, location, count, view = (*data, None)[:5]
        dtype = storage_dtype(kind)
        key = _word(key)
        if type(count) is not int or not 0 <= count < 1 << 60:
            raise CorruptError(f"storage '{key}' of {brief(count)} elements")
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(key, dtype, count, _word(location))
        elif storage.dtype is not dtype:
            raise CorruptError(f"storage '{key}' is declared as {storage.dtype} and as {dtype}")
        if view is None:
            return storage
        view_key, offset, size = view
        return self.view(_word(view_key), storage, offset, size)

    def view(self, key: str, storage: Storage, offset: Any, count: Any) -> Storage:
        if type(offset) is not int or type(count) is not int or not (offset >= 0 and 0 <= count <= storage.count - offset):
            raise CorruptError(f"the view '{key}' leaves storage '{storage.key}'")
        known = self.views.get(key)
        item = storage.dtype.itemsize if storage.dtype else 1
        if known is None:
            made = Storage(key, storage.dtype, count, storage.location)
            self.views[key] = (made, storage, offset * item)
            return made
        if known[1] is not storage or known[0].count != count or known[2] != offset * item:
            raise CorruptError(f"the view '{key}' is declared twice")
        return known[0]

    def place_views(self) -> None:
        for view, storage, offset in self.views.values():
            if storage.source is not None:
                view.place(storage.source, storage.start + offset)


def _word(given: Any) -> str:
    if isinstance(given, bytes):
        return given.decode("latin-1")
    return given if type(given) is str else brief(given)


def load(source: ByteSource) -> Loaded:
    name, size = source.name, source.size
    magic = read_pickle(source, 0, size, {}, window=64)
    if magic.value != MAGIC:
        raise CorruptError("does not begin with the magic number of torch's old format", path=name)
    protocol = read_pickle(source, magic.end, size, {}, window=64)
    if protocol.value != _PROTOCOL:
        raise UnsupportedError(f"protocol {brief(protocol.value)} of torch's old format is not known", path=name)
    system = read_pickle(source, protocol.end, size, {}, window=512)
    shelf = Shelf()
    main = read_pickle(source, system.end, size, MEANINGS, shelf.persistent, window=1 << 16)
    keys = read_pickle(source, main.end, size, MEANINGS, window=1 << 14)
    if type(keys.value) is not list:
        raise CorruptError("the list of its storages is no list", path=name)
    at = keys.end
    placed = set()
    for given in keys.value:
        key = _word(given)
        storage = shelf.storages.get(key)
        if storage is None:
            raise CorruptError(f"storage '{key[:100]}' belongs to no tensor", path=name)
        if key in placed:
            raise CorruptError(f"storage '{key[:100]}' is listed twice", path=name)
        placed.add(key)
        at = place(source, storage, at, size)
    shelf.place_views()
    for key, storage in shelf.storages.items():
        if key not in placed and storage.count and storage.location != "meta":
            raise CorruptError(f"storage '{key[:100]}' is not in the file", path=name)
    names: list[Name] = magic.names + protocol.names + system.names + main.names + keys.names
    from wtool.checkpoint import Warning

    warnings = [Warning("trailing-bytes", f"{size - at} bytes follow the last storage")] if at < size else []
    return Loaded(main.value, {}, names, warnings, "legacy", main.end - system.end)


def place(source: ByteSource, storage: Storage, at: int, end: int) -> int:
    """A storage that begins at `at` with its number of elements. The offset behind it."""
    if at + 8 > end:
        raise TruncatedError(f"ends at byte {end}, before storage '{storage.key}'", path=source.name)
    (count,) = struct.unpack("<q", source.pread(at, 8))
    if count != storage.count:
        raise CorruptError(
            f"storage '{storage.key}' has {count} elements, where the pickle says {storage.count}", path=source.name
        )
    if at + 8 + storage.nbytes > end:
        raise TruncatedError(
            f"ends at byte {end}, but storage '{storage.key}' reaches to byte {at + 8 + storage.nbytes}", path=source.name
        )
    storage.place(source, at + 8)
    return at + 8 + storage.nbytes
