"""The zip that torch.save and torch.jit.save write (caffe2/serialize: PyTorchStreamWriter).

`<root>/data.pkl` is the object; `<root>/data/<key>` are the storages, `<root>/constants/<key>` those of TorchScript's
constants; `<root>/byteorder` says "little" or "big". Any root, or none, is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from wtool.bytesource import ByteSource
from wtool.checkpoint import Warning
from wtool.errors import CorruptError, LimitError, UnknownFormatError, UnsafeError, UnsupportedError
from wtool.formats.inflate import check_sum, content, later
from wtool.formats.pickle_objects import MAX_BYTES, Name, brief
from wtool.formats.pickles import Pickled, read_pickle
from wtool.formats.torch.rebuild import MEANINGS
from wtool.formats.torch.values import Storage, storage_dtype
from wtool.formats.zips import Directory, Entry, read_directory

# A pickle may be this much larger than its deflated bytes: names that repeat make it a tenth, a bomb a thousandth.
_FREE_INFLATED, _MOST_INFLATED = 4 << 20, 32
_UNIQUE = ("data.pkl", "constants.pkl", "byteorder", "version")


class Loaded(NamedTuple):
    """What a container yields: the object, further ones by name, the names in its pickles; `nbytes` of pickle in all."""

    value: Any
    others: dict[str, Any]
    names: list[Name]
    warnings: list[Warning]
    variant: str
    nbytes: int


def load(source: ByteSource) -> Loaded:
    """Raises any of the errors of zips and pickles, and UnknownFormatError for a zip that holds no data.pkl."""
    directory = read_directory(source)
    root = find_root(directory, source)
    big = _byteorder(directory, root) == b"big"
    script = f"{root}constants.pkl" in directory.entries
    main, storages = _pickle(directory, root, "data.pkl", "data/")
    _place(directory, root, storages, big)
    others: dict[str, Any] = {}
    names = main.names
    if script:
        constants, held = _pickle(directory, root, "constants.pkl", "constants/")
        _place(directory, root, held, big)
        others["constants"] = constants.value
        names = names + constants.names
    nbytes = directory.entries[f"{root}data.pkl"].size
    return Loaded(main.value, others, names, list(directory.warnings), "torchscript" if script else "zip", nbytes)


def find_root(directory: Directory, source: ByteSource) -> str:
    """The folder of data.pkl, with its slash. UnsafeError for two of them, or for one in another spelling."""
    found = []
    for name in directory.entries:
        folder, _, last = name.rpartition("/")
        if last.lower() in _UNIQUE and folder.count("/") == 0:
            if last != last.lower():
                raise UnsafeError(
                    f"entry '{name}' is a twin of '{last.lower()}' to readers that ignore case", path=source.name
                )
            if last == "data.pkl":
                found.append(name)
    if len(found) > 1:
        raise UnsafeError(f"has two objects: '{found[0]}' and '{found[1]}'", path=source.name)
    if found:
        return found[0][: -len("data.pkl")]
    if any(name.rpartition("/")[2] == "model.json" for name in directory.entries):
        raise UnsupportedError(
            "is a TorchScript archive from before torch 1.4 (model.json)",
            path=source.name,
            hint="load it with torch.jit.load and save it again",
        )
    raise UnknownFormatError("is a zip archive, but not one of torch: it holds no data.pkl", path=source.name)


def _byteorder(directory: Directory, root: str) -> bytes:
    entry = directory.entries.get(f"{root}byteorder")
    if entry is None:
        return b"little"
    start, offset = content(directory.source, entry)
    order = start.pread(offset, min(entry.size, 16))
    if order not in (b"little", b"big"):
        raise CorruptError(f"its byte order is {order!r}", path=directory.source.name)
    return order


def _pickle(directory: Directory, root: str, name: str, folder: str) -> tuple[Pickled, dict[str, Storage]]:
    source = directory.source
    entry = directory.entries[f"{root}{name}"]
    storages: dict[str, Storage] = {}

    def persistent(given: Any) -> Storage:
        word, kind, key, location, count = given[:5]
        if word not in ("storage", b"storage") or len(given) != 5:
            raise CorruptError(f"a persistent id of kind {brief(word)!r}")
        if type(key) is not str:
            key = brief(key)
        dtype = storage_dtype(kind)
        if type(count) is not int or not 0 <= count < 1 << 60:
            raise CorruptError(f"storage '{key}' of {brief(count)} elements")
        place = f"{folder}{key}"
        known = storages.get(place)
        if known is None:
            made = storages[place] = Storage(place, dtype, count, location if type(location) is str else "cpu")
            return made
        if known.dtype is not dtype or known.count != count:
            if known.dtype is not None and dtype is not None:
                raise CorruptError(f"storage '{key}' is declared twice, as {known.count} {known.dtype} and {count} {dtype}")
            # One typed, one untyped: the same bytes under two names.
            alias = Storage(place, dtype, count, known.location)
            storages[f"{place}\n{dtype}"] = alias
            return alias
        return known

    if entry.method and entry.size > _FREE_INFLATED + _MOST_INFLATED * entry.packed:
        raise LimitError(f"entry '{entry.name}' inflates {entry.packed:,} bytes to {entry.size:,}", path=source.name)
    start, offset = content(source, entry)
    if entry.size <= MAX_BYTES:
        check_sum(source, entry, start, offset)
    read = read_pickle(start, offset, offset + entry.size, MEANINGS, persistent, window=1 << 20)
    return read, storages


def _place(directory: Directory, root: str, storages: dict[str, Storage], big: bool) -> None:
    """Find the bytes of each storage, and hold the size that the pickle claims against the entry's."""
    opened: dict[str, tuple[ByteSource, int]] = {}
    source = directory.source
    for storage in storages.values():
        if storage.location == "meta":
            continue
        name = f"{root}{storage.key}"
        entry: Entry | None = directory.entries.get(name)
        if entry is None:
            if storage.nbytes == 0:
                continue
            raise CorruptError(f"the archive has no entry '{name}' for one of its storages", path=source.name)
        item = storage.dtype.itemsize if storage.dtype else 1
        if not storage.nbytes <= entry.size < storage.nbytes + item:
            raise CorruptError(
                f"storage '{name}' has {entry.size:,} bytes, where the pickle says {storage.nbytes:,}", path=source.name
            )
        if entry.method:
            if name not in opened:
                opened[name] = later(source, entry)
            storage.place(*opened[name])
        else:
            storage.place(source, entry.offset)
        storage.swap = big
