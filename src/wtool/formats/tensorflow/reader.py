"""TensorFlow's checkpoint V2 ("tensor bundle") -> Checkpoint. Reads the index file and the string tensors, no values.

Everything that an entry says is held against the length of its shard before it is believed.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from os.path import basename
from typing import Any, NamedTuple

from wtool.adapter import Probe
from wtool.bytesource import ByteSource, LocalFile, MemoryBytes
from wtool.checkpoint import Checkpoint, Opaque, Source, Warning
from wtool.dtypes import BY_TF, DType
from wtool.errors import CorruptError, LimitError, NotFoundError, TruncatedError, UnsupportedError, WtoolError
from wtool.formats.sstable import read_table
from wtool.formats.tensorflow.bundle import OTHER_TYPES, STRING, Entry, parse_entry, parse_header, slice_key
from wtool.formats.tensorflow.graph import EMPTY, KEY, Graph, alias, is_object_key, parse_graph
from wtool.formats.tensorflow.place import INDEX, Place, locate, shard_name
from wtool.formats.tensorflow.sections import framework, sections, worth_parsing
from wtool.formats.tensorflow.strings import decode, plain
from wtool.keys import short_key
from wtool.tensor import Box, LazyTensor, Shape, TensorSpec, c_strides
from wtool.text import printable

_MAX_TEXT = 64 << 20  # bytes of a string tensor that is still read at open
_MAX_STRINGS = 1_000_000  # in it
_MAX_SLICES = 256  # that are compared pairwise

_NOTHING = MemoryBytes(b"", "empty tensor")


class _Range(NamedTuple):
    """Bytes of a shard that belong to a key."""

    shard: int
    offset: int
    end: int
    key: str


def open_bundle(probe: Probe) -> Checkpoint:
    """The checkpoint that the user named. Raises a WtoolError with the file it is about."""
    place = locate(probe)
    try:
        pairs = read_table(place.table)
        key, value = next(pairs, (None, b""))
        if key != b"":
            raise CorruptError("is a sorted table, but no TensorFlow checkpoint: it has no header")
        header = parse_header(value)
        if header is None:
            from wtool.formats.tensorflow.v1 import open_v1

            return open_v1(place)
        if not place.table.name.endswith(INDEX):
            text = f"is the index of a TensorFlow checkpoint, but its name does not end in {INDEX}"
            raise UnsupportedError(text, hint="its data shards are found by its name: give it back the one it had")
        bundle = _Bundle(place, header.shards, header.big_endian)
        shapes: dict[bytes, Shape] = {}
        for key, value in pairs:
            bundle.add(key, value, shapes)
        return bundle.checkpoint(probe.path)
    except WtoolError as error:
        raise error.at(place.table.name) from None


class _Bundle:
    """The entries of one index, on their way to being a Checkpoint."""

    def __init__(self, place: Place, shards: int, big_endian: bool) -> None:
        self._place = place
        self._count = shards
        self._big = big_endian
        self._shards: dict[int, LocalFile] = {}
        self._entries: dict[str, Entry] = {}
        self._slices: dict[bytes, Entry] = {}
        self._ranges: list[_Range] = []
        self._warnings: list[Warning] = []

    def add(self, key: bytes, value: bytes, shapes: dict[bytes, Shape]) -> None:
        try:
            entry = parse_entry(value, shapes)
            if key[0]:
                self._entries[key.decode()] = entry
            else:
                self._slices[key] = entry
        except UnicodeDecodeError:
            raise CorruptError(f"has a key that is no UTF-8: {key[:80]!r}") from None
        except CorruptError as error:
            raise CorruptError(f"has a bad entry for {key[:200].decode('utf-8', 'replace')!r}: {error.message}") from None

    def checkpoint(self, path: str) -> Checkpoint:
        found: list[tuple[_Range, LazyTensor]] = []
        extras: dict[str, Any] = {}
        hidden = self._repeated()
        for key, entry in self._entries.items():
            if key in hidden:
                continue
            before = len(self._ranges)
            dtype = BY_TF.get(entry.dtype)
            if dtype is None:
                extras[key] = self._other(key, entry)
                continue
            tensor = self._joined(key, entry, dtype) if entry.slices else self._whole(key, entry, dtype)
            # In the order of the data, which is the order of the objects; a partitioned variable stands where it begins.
            at = min(self._ranges[before:], default=_Range(entry.shard, entry.offset, entry.offset, key))
            found.append((at._replace(key=key), tensor))
        self._check_ranges()
        found.sort(key=lambda row: row[0])
        tensors = {at.key: tensor for at, tensor in found}
        raw = extras.get(KEY, b"")
        raw = raw if isinstance(raw, bytes) else b""
        graph = self._graph(raw) if worth_parsing(raw) else EMPTY
        self._notice(len(tensors))
        table = self._place.table
        return Checkpoint(
            tensors,
            Source(
                path,
                "tensorflow",
                self._place.variant,
                ((table.name, table.size), *((shard.name, shard.size) for _, shard in sorted(self._shards.items()))),
                framework(raw),
            ),
            extras=extras,
            sections=sections(tensors, graph),
            warnings=tuple(self._warnings),
        )

    def _shard(self, number: int, key: str) -> LocalFile:
        shard = self._shards.get(number)
        if shard is None:
            if number >= self._count:
                raise CorruptError(f"puts '{key}' into data shard {number} of {self._count}")
            path = shard_name(self._place.prefix, number, self._count)
            try:
                shard = self._shards[number] = LocalFile(path)
            except NotFoundError:
                raise NotFoundError(f"is missing: data shard {number + 1} of {self._count}", path=path) from None
        return shard

    def _take(self, key: str, entry: Entry) -> ByteSource:
        """The source of an entry's bytes, which must lie in it."""
        if not entry.size:
            return _NOTHING
        shard = self._shard(entry.shard, key)
        end = entry.offset + entry.size
        if end > shard.size:
            raise TruncatedError(f"ends at byte {shard.size}, but '{key}' lies at {entry.offset} to {end}", path=shard.name)
        self._ranges.append(_Range(entry.shard, entry.offset, end, key))
        return shard

    def _whole(self, key: str, entry: Entry, dtype: DType) -> LazyTensor:
        needed = dtype.nbytes(prod(entry.shape))
        if entry.size != needed:
            raise CorruptError(f"gives '{key}' {entry.size} bytes, but {dtype} {list(entry.shape)} needs {needed}")
        source = self._take(key, entry)
        return self._native(LazyTensor.contiguous(key, dtype, entry.shape, source, entry.offset if entry.size else 0))

    def _native(self, tensor: LazyTensor) -> LazyTensor:
        if self._big and tensor.dtype.itemsize > 1:
            from wtool.kernels.byteswap import ByteSwap

            return tensor.map(ByteSwap())
        return tensor

    def _joined(self, key: str, entry: Entry, dtype: DType) -> LazyTensor:
        """The whole of a partitioned variable: one box a slice."""
        boxes: list[Box] = []
        for extents in entry.slices:
            if len(extents) != len(entry.shape):
                raise CorruptError(f"has a slice of '{key}' with {len(extents)} axes, not {len(entry.shape)}")
            start = tuple(extent.start if extent.length >= 0 else 0 for extent in extents)
            lengths = [extent.length for extent in extents]
            shape = tuple(size if length < 0 else length for length, size in zip(lengths, entry.shape, strict=True))
            if any(a < 0 or a + n > size for a, n, size in zip(start, shape, entry.shape, strict=True)):
                raise CorruptError(f"has a slice of '{key}' outside of its shape {list(entry.shape)}")
            name = f"{key}' {list(start)}+{list(shape)}"
            part = self._slices.pop(slice_key(key.encode(), extents), None)
            if part is None:
                raise CorruptError(f"lacks the slice of '{name}")
            if part.dtype != entry.dtype or part.shape != shape:
                raise CorruptError(f"has another dtype or shape at the slice of '{name}")
            piece = self._whole(key, part, dtype).boxes[0]
            if part.size:
                boxes.append(Box(start, shape, piece.source, piece.offset, c_strides(shape)))
        if not _partition(boxes, entry.shape):
            raise CorruptError(f"has slices of '{key}' that leave out or repeat a part of it")
        self._warnings.append(Warning("partitioned", f"'{key}' was saved in {len(entry.slices)} parts; they are joined"))
        if not boxes:
            return LazyTensor.contiguous(key, dtype, entry.shape, _NOTHING, 0)
        return self._native(LazyTensor(TensorSpec(key, dtype, entry.shape), tuple(boxes), dtype))

    def _other(self, key: str, entry: Entry) -> Any:
        """A plain value for what is no array of numbers."""
        source = self._take(key, entry)
        name = OTHER_TYPES.get(entry.dtype, f"type {entry.dtype}")
        if entry.dtype != STRING or entry.slices:
            if entry.dtype != STRING:
                text = f"'{key}' holds values of {name}, for which there is no dtype here; it is left out"
                self._warnings.append(Warning("unsupported-dtype", text))
            return Opaque(f"tensorflow.{name} {list(entry.shape)}")
        if entry.size > _MAX_TEXT or (prod(entry.shape) > _MAX_STRINGS and entry.size > _MAX_STRINGS):
            return Opaque(f"tensorflow.string {list(entry.shape)}, {entry.size} bytes")
        try:
            strings = decode(
                source.pread(entry.offset if entry.size else 0, entry.size), prod(entry.shape), entry.crc, self._big
            )
        except CorruptError as error:
            raise CorruptError(f"'{key}' is damaged: {error.message}", path=source.name) from None
        if key == KEY and not entry.shape:
            return strings[0]
        return plain(strings, entry.shape)

    def _graph(self, raw: bytes) -> Graph:
        try:
            return parse_graph(raw)
        except CorruptError as error:
            self._warnings.append(Warning("object-graph", f"the object graph cannot be read ({error.message})"))
            return EMPTY

    def _check_ranges(self) -> None:
        """Two tensors may be the same bytes, but not share some. Counts what no tensor covers."""
        self._ranges.sort()
        before: _Range | None = None
        covered: dict[int, int] = {}
        for here in self._ranges:
            same = before is not None and before[:3] == here[:3]
            if before is not None and before.shard == here.shard and here.offset < before.end and not same:
                raise CorruptError(f"has '{before.key}' and '{here.key}' overlap in data shard {here.shard}")
            if not same:
                covered[here.shard] = covered.get(here.shard, 0) + here.end - here.offset
            before = here
        unused = sum(shard.size - covered.get(number, 0) for number, shard in self._shards.items())
        if unused:
            self._warnings.append(Warning("unused-bytes", f"{unused} bytes of the data shards belong to no tensor"))

    def _repeated(self) -> set[str]:
        """Object keys that only repeat a plain one, so that objects can be restored (see writer)."""
        entries = self._entries
        pairs = ((alias(key), entry) for key, entry in entries.items() if not (entry.slices or is_object_key(key)))
        return {repeat for repeat, entry in pairs if entries.get(repeat) == entry}

    def _notice(self, count: int) -> None:
        if self._slices:
            self._warnings.append(Warning("orphan-slices", f"{len(self._slices)} slices belong to no variable"))
        if not count:
            self._warnings.append(Warning("no-tensors", "this checkpoint holds no tensor of numbers"))
        base = basename(self._place.prefix)
        left = [name for name in self._place.names if name.startswith(base) and (".tempstate" in name or "_temp" in name)]
        if left:
            some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
            self._warnings.append(Warning("temporary-files", f"an interrupted save has left {some} beside it"))


def _partition(boxes: list[Box], shape: Shape) -> bool:
    """Whether the boxes, each inside the shape, fill it without overlapping. LimitError if they are too many to compare."""
    if sum(prod(box.shape) for box in boxes) != prod(shape):
        return False
    axes = [axis for axis in range(len(shape)) if any(box.shape[axis] != shape[axis] for box in boxes)]
    if len(axes) <= 1:
        # Cut along one axis, as TensorFlow's partitioners do.
        ends = sorted((box.start[axis], box.start[axis] + box.shape[axis]) for box in boxes for axis in axes)
        return all(one[1] <= two[0] for one, two in pairwise(ends))
    if len(boxes) > _MAX_SLICES:
        raise LimitError(f"has a variable in {len(boxes)} slices along several axes; {_MAX_SLICES} is the most")
    return not any(
        all(a < b + m and b < a + n for a, n, b, m in zip(one.start, one.shape, two.start, two.shape, strict=True))
        for number, one in enumerate(boxes)
        for two in boxes[:number]
    )


def index_lines(path: str) -> list[str]:
    """What an index file says of its tensors without its data shards: sorted lines of key, dtype, shape and CRC-32C.

    Of a partitioned variable that of each slice. Empty if it is no index of a checkpoint V2.
    """
    try:
        pairs = read_table(LocalFile(path))
        key, value = next(pairs, (None, b""))
        if key != b"" or parse_header(value) is None:
            return []
        shapes: dict[bytes, Shape] = {}
        slices: dict[bytes, Entry] = {}  # those of partitioned variables, which come first
        found = ["# tensorflow index; the values lie in its data shards"]
        for key, value in pairs:
            entry = parse_entry(value, shapes)
            if key[:1] == b"\0":
                slices[key] = entry
                continue
            row = BY_TF.get(entry.dtype)
            name = row.name if row is not None else OTHER_TYPES.get(entry.dtype, str(entry.dtype))
            shape = ", ".join(map(str, entry.shape))
            parts = [slices.get(slice_key(key, extents), entry) for extents in entry.slices] or [entry]
            sums = " ".join(f"{part.crc:08x}" for part in parts)
            text = printable(short_key(key.decode("utf-8", "backslashreplace")))
            found.append(f"{text}  {name} [{shape}]  crc32c {sums}")
        return found
    except WtoolError:
        return []
