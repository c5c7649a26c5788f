"""The tar that torch.save wrote before 0.2: members `sys_info`, `storages`, `tensors` and `pickle`.

`storages`: a count, for each a pickle (key, location, class) and its elements after their number, then a list of views.
`tensors`: a count, for each a pickle (key, storage key, class), the rank, sizes, strides and offset. `pickle`: the object,
whose persistent ids are keys. Source: torch/serialization.py (`legacy_load`). Tar headers: POSIX ustar.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from wtool.bytesource import ByteSource
from wtool.dtypes import BY_NAME
from wtool.errors import CorruptError, LimitError, TruncatedError, UnsafeError
from wtool.formats.pickle_objects import Name, brief
from wtool.formats.pickles import read_pickle
from wtool.formats.torch.archive import Loaded
from wtool.formats.torch.legacy import Shelf, place
from wtool.formats.torch.rebuild import MEANINGS
from wtool.formats.torch.values import Storage, View, storage_dtype

_WANTED = ("sys_info", "storages", "tensors", "pickle")
_MAX_MEMBERS = 1000
_MAX_RANK = 64


class _Member(NamedTuple):
    start: int
    end: int


def members(source: ByteSource) -> dict[str, _Member]:
    """The four files in the tar. UnsafeError for two of one name, or a link in their place."""
    found: dict[str, _Member] = {}
    at = 0
    for _ in range(_MAX_MEMBERS):
        if at + 512 > source.size:
            break
        block = source.pread(at, 512)
        if not block.strip(b"\0"):
            break
        _check(source, block, at)
        name = block[:100].split(b"\0")[0].decode("utf-8", "replace").removeprefix("./")
        nbytes = _number(source, block[124:136])
        end = at + 512 + nbytes
        if end > source.size:
            raise TruncatedError(
                f"ends at byte {source.size}, but member '{name[:100]}' reaches to byte {end}", path=source.name
            )
        if name in _WANTED:
            if block[156:157] not in (b"0", b"\0"):
                raise UnsafeError(f"member '{name}' is no plain file", path=source.name)
            if name in found:
                raise UnsafeError(f"has two members named '{name}'", path=source.name)
            found[name] = _Member(at + 512, end)
        at = end + -end % 512
    else:
        raise LimitError(f"has more than {_MAX_MEMBERS} members", path=source.name)
    missing = [name for name in _WANTED[1:] if name not in found]
    if missing:
        raise CorruptError(f"is a tar without the member '{missing[0]}'", path=source.name)
    return found


def _number(source: ByteSource, field: bytes) -> int:
    if field[0] & 0x80:  # GNU: a large number in base 256
        value = int.from_bytes(field, "big") & ((1 << 95) - 1)
    else:
        try:
            value = int(field.strip(b"\0 ") or b"0", 8)
        except ValueError:
            raise CorruptError("a number in the header of a member is damaged", path=source.name) from None
    if value < 0:
        raise CorruptError("a member has a negative size", path=source.name)
    return value


def _check(source: ByteSource, block: bytes, at: int) -> None:
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if _number(source, block[148:156]) != total:
        raise CorruptError(f"the header of the member at byte {at} is damaged", path=source.name)


def load(source: ByteSource) -> Loaded:
    found = members(source)
    names: list[Name] = []
    shelf, by_key = _storages(source, found["storages"], names)
    shelf.place_views()
    tensors = _tensors(source, found["tensors"], by_key, names)

    def persistent(given: Any) -> Any:
        if isinstance(given, tuple):
            return given[0]  # a class with its source
        key = _key(int(given) if isinstance(given, (str, bytes)) else given)
        if key in tensors:
            return tensors[key]
        if key in by_key:
            return by_key[key]
        raise CorruptError(f"the object refers to {key[:40]}, which is not there")

    start, end = found["pickle"]
    main = read_pickle(source, start, end, MEANINGS, persistent)
    return Loaded(main.value, {}, names + main.names, [], "tar", main.end - start)


def _key(given: Any) -> str:
    if type(given) is not int:
        raise CorruptError("a key that is no number")
    return f"{given:x}"


def _count(given: Any, limit: int, source: ByteSource) -> int:
    if type(given) is not int or not 0 <= given <= limit:
        raise CorruptError(f"a count of {brief(given)} in so few bytes", path=source.name)
    return given


def _triple(given: Any, source: ByteSource) -> tuple[Any, Any, Any]:
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        raise CorruptError("the description of a storage or tensor is damaged", path=source.name)
    first, second, third = given
    return first, second, third


def _storages(source: ByteSource, member: _Member, names: list[Name]) -> tuple[Shelf, dict[str, Storage]]:
    at, end = member
    head = read_pickle(source, at, end, {}, window=64)
    at = head.end
    shelf = Shelf()
    by_key: dict[str, Storage] = {}
    try:
        for _ in range(_count(head.value, (end - at) // 8, source)):
            described = read_pickle(source, at, end, {}, window=256)
            names += described.names
            key, _, kind = _triple(described.value, source)
            at = described.end
            if at + 8 > end:
                raise TruncatedError("ends inside its storages", path=source.name)
            (count,) = struct.unpack("<q", source.pread(at, 8))
            if not 0 <= count <= end - at:
                raise TruncatedError(f"a storage of {count} elements does not fit", path=source.name)
            storage = Storage(_key(key), storage_dtype(kind), count)
            if storage.key in by_key:
                raise CorruptError(f"storage {storage.key} is there twice", path=source.name)
            by_key[storage.key] = storage
            at = place(source, storage, at, end)
        views = read_pickle(source, at, end, MEANINGS)
        for view in views.value if isinstance(views.value, list) else ():
            target, root, offset, count = view
            if _key(root) not in by_key:
                raise CorruptError("a view of a storage that is not there", path=source.name)
            by_key[_key(target)] = shelf.view(_key(target), by_key[_key(root)], offset, count)
    except (TypeError, ValueError) as error:
        raise CorruptError(f"its storages are damaged: {error}", path=source.name) from None
    return shelf, by_key


def _tensors(source: ByteSource, member: _Member, by_key: dict[str, Storage], names: list[Name]) -> dict[str, View]:
    at, end = member
    head = read_pickle(source, at, end, {}, window=64)
    at = head.end
    tensors: dict[str, View] = {}
    for _ in range(_count(head.value, end - at, source)):
        described = read_pickle(source, at, end, {}, window=256)
        names += described.names
        key, storage_key, _ = _triple(described.value, source)
        at = described.end
        storage = by_key.get(_key(storage_key))
        if at + 8 > end:
            raise TruncatedError("ends inside its tensors", path=source.name)
        (rank,) = struct.unpack("<i", source.pread(at, 4))
        if not 0 <= rank <= _MAX_RANK or at + 16 + 16 * rank > end or storage is None:
            raise CorruptError("the description of a tensor is damaged", path=source.name)
        numbers = struct.unpack(f"<{2 * rank + 1}q", source.pread(at + 8, 16 * rank + 8))
        at += 16 + 16 * rank
        dtype = storage.dtype or BY_NAME["u8"]
        tensors[_key(key)] = View(storage, dtype, numbers[-1], numbers[:rank], numbers[rank : 2 * rank])
    return tensors
