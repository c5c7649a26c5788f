"""Store tensors that are mostly zero as what is left of them, and where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint
from wtool.dtypes import DType, dtype
from wtool.kernels.bitmask import RUN, Marks, Packer, compact, matrix, occupied, row_bytes
from wtool.sparse import PARTS
from wtool.tensor import BLOCK, LazyTensor

if TYPE_CHECKING:
    from wtool.boxes import Array

LAYOUTS = ("dense", "bitmask", "csr", "auto")
MARGIN = 1024  # bytes that a layout must save: headers say more of four tensors than of one
_SMALL = 1 << 31


@dataclass(frozen=True)
class Store:
    """Give each tensor the layout, or with "auto" the smallest, where it saves at least `margin` bytes; else leave it dense.

    `marks` (key -> what analysis.counts counted) are the tensors that are thought of; layouts and sizes are known from them,
    values are packed while they are written. Tied tensors stay tied. A tensor whose parts' keys are taken stays dense.
    """

    layout: str
    marks: Mapping[str, Marks] = field(repr=False)
    margin: int = MARGIN

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        made: dict[object, list[LazyTensor]] = {}
        new: dict[str, list[LazyTensor]] = {}
        for key, layout in self.layouts(checkpoint).items():
            tensor = checkpoint[key]
            who = key if tensor.identity is None else tensor.identity
            parts = made.get(who)
            if parts is None:
                parts = made[who] = split(tensor, self.marks[key], layout)
            new[key] = [part.renamed(f"{key}.{name}") for part, name in zip(parts, PARTS[layout], strict=True)]
        tensors = {part.key: part for key, tensor in checkpoint.tensors.items() for part in new.get(key, [tensor])}
        if not new:
            return replace(checkpoint, history=(*checkpoint.history, self))
        sections = tuple(
            replace(
                section,
                keys=tuple(part for key in section.keys for part in ([p.key for p in new[key]] if key in new else [key])),
            )
            for section in checkpoint.sections
        )
        history = (*checkpoint.history, self)
        return replace(checkpoint, tensors=tensors, sections=sections, structure=None, history=history)

    def layouts(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Key -> layout of the tensors that do not stay dense, in the order of the checkpoint."""
        found = {}
        for key, tensor in checkpoint.tensors.items():
            if key in self.marks and self.layout != "dense" and tensor.dtype.itemsize and tensor.elements:
                asked = ("bitmask", "csr") if self.layout == "auto" else (self.layout,)
                nbytes, layout = min((packed_bytes(tensor, self.marks[key].total, one), one) for one in asked)
                taken = any(f"{key}.{name}" in checkpoint.tensors for name in PARTS[layout])
                if nbytes + self.margin <= tensor.nbytes and not taken:
                    found[key] = layout
        return found

    def metadata(self, checkpoint: Checkpoint) -> str:
        """What the metadata of the outcome says: how many tensors of `checkpoint` are stored in which layout."""
        names = list(self.layouts(checkpoint).values())
        return json.dumps({name: names.count(name) for name in sorted(set(names))})


def packed_bytes(tensor: LazyTensor, nonzeros: int, layout: str) -> int:
    """Bytes of the parts' values."""
    rows, columns = matrix(tensor.shape)
    item, shape = tensor.dtype.itemsize, 8 * len(tensor.shape)
    if layout == "bitmask":
        return shape + nonzeros * item + rows * (row_bytes(columns) + 8)
    return shape + nonzeros * item + (nonzeros + rows + 1) * _index(columns, nonzeros).itemsize


def split(tensor: LazyTensor, marks: Marks, layout: str) -> list[LazyTensor]:
    """The parts of a tensor, in the order of sparse.PARTS, without names."""
    rows, columns = matrix(tensor.shape)
    total, i64 = marks.total, dtype("i64")
    shape = MemoryBytes(np.asarray(tensor.shape, "<i8").tobytes(), "shape")
    first = LazyTensor.contiguous("", i64, (len(tensor.shape),), shape, 0)
    values = _lazy(Part(tensor, marks, "values", tensor.dtype, total), (total,))
    if layout == "bitmask":
        bits = _lazy(Part(tensor, marks, "bits", dtype("u8"), rows * row_bytes(columns)), (rows, row_bytes(columns)))
        return [first, values, bits, _offsets(tensor, marks, i64, rows)]
    index = _index(columns, total)
    where = _lazy(Part(tensor, marks, "columns", index, total), (total,))
    return [first, _offsets(tensor, marks, index, rows + 1), where, values]


def _index(columns: int, nonzeros: int) -> DType:
    return dtype("i32" if max(columns, nonzeros) < _SMALL else "i64")


def _lazy(part: Part | Offsets, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor.contiguous("", part.unit, shape, part, 0)


def _offsets(tensor: LazyTensor, marks: Marks, unit: DType, count: int) -> LazyTensor:
    if marks.rows is None:
        return _lazy(Offsets(tensor, marks, unit, count), (count,))
    numbers = np.append(marks.rows, marks.total)[:count].astype(unit.numpy())
    return LazyTensor.contiguous("", unit, (count,), MemoryBytes(numbers.tobytes(), "row offsets"), 0)


class _Made:
    """A ByteSource of numbers that are made from runs of a dense tensor, any range of them or all in turn."""

    dense: LazyTensor
    unit: DType
    count: int

    @property
    def name(self) -> str:
        return next((box.source.name for box in self.dense.boxes), "memory")

    @property
    def size(self) -> int:
        return self.count * self.unit.itemsize

    @cached_property
    def direct(self) -> bool:
        return self.dense.span is not None

    def pread(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        item, end = self.unit.itemsize, offset + len(buffer)
        at, last = offset // item, -(-end // item)
        for found in self.numbers(at, last) if at < last else ():
            found = found[: last - at]
            start, stop = max(at * item, offset), min((at + len(found)) * item, end)
            buffer[start - offset : stop - offset] = found.view(np.uint8)[start - at * item : stop - at * item].data
            at += len(found)
        assert at == last, "the values have changed since they were counted"

    def numbers(self, first: int, last: int) -> Iterator[Array]:
        """Those from `first` to at least `last`."""
        raise NotImplementedError

    def runs(self, first: int, last: int) -> Iterator[tuple[int, Array]]:
        """Runs of the dense tensor, and where they begin."""
        step = max(BLOCK // self.dense.dtype.itemsize, 1)
        room = np.empty(min(step, max(last - first, 0)), self.dense.stored.numpy())
        for low in range(first, last, step):
            yield low, self.dense.flat(low, min(low + step, last), room)


@dataclass(frozen=True, eq=False)
class Part(_Made):
    """The values that are not zero, their columns, or the bits that say which they are."""

    dense: LazyTensor
    marks: Marks
    what: str
    unit: DType
    count: int

    def numbers(self, first: int, last: int) -> Iterator[Array]:
        columns = matrix(self.dense.shape)[1]
        if self.what == "bits":
            wide = row_bytes(columns)
            start = first // wide * columns + first % wide * 8
            stop = min(last // wide * columns + min(last % wide * 8, columns), self.dense.elements)
            skip = 0
        else:
            before = self.marks.before
            mark = int(np.searchsorted(before, first, "right")) - 1
            start, skip = mark * RUN, first - int(before[mark])
            stop = min(int(np.searchsorted(before, last)) * RUN, self.dense.elements)
        make = self._maker(columns, start)
        for at, block in self.runs(start, stop):
            found = make(at, block)
            if skip < len(found):
                yield found[skip:]
            skip = max(skip - len(found), 0)

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        """All in turn, as LazyTensor.blocks: never more of them than of the dense values."""
        make, at, done = self._maker(matrix(self.dense.shape)[1], 0), 0, 0
        item = self.dense.dtype.itemsize
        for block in self.dense.blocks(max(nbytes // max(self.unit.itemsize // item, 1), 64), stripe=stripe):
            found = make(at, block)
            at, done = at + len(block), done + len(found)
            if len(found):
                yield found
        assert done == self.count, "the values have changed since they were counted"

    def _maker(self, columns: int, start: int):  # type: ignore[no-untyped-def]
        if self.what == "bits":
            pack = Packer(columns, start)
            return lambda at, block: pack(occupied(block))
        if self.what == "values":
            return lambda at, block: compact(block, occupied(block))
        unit = self.unit.numpy()

        def places(at: int, block: Array) -> Array:
            found = np.flatnonzero(occupied(block))
            found += at % columns
            if at % columns + len(block) > columns:
                np.remainder(found, columns, out=found)
            return found.astype(unit)

        return places


@dataclass(frozen=True, eq=False)
class Offsets(_Made):
    """How many values that are not zero lie before each row, counted again, of a tensor that can be read anywhere."""

    dense: LazyTensor
    marks: Marks
    unit: DType
    count: int

    def numbers(self, first: int, last: int) -> Iterator[Array]:
        rows, columns = matrix(self.dense.shape)
        mark = first * columns // RUN
        total = int(self.marks.before[mark])
        for _, block in self.runs(mark * RUN, first * columns):
            total += int(np.count_nonzero(occupied(block)))
        many = max((BLOCK // self.dense.dtype.itemsize) // columns, 1)
        for low in range(first, min(last, rows), many):
            high = min(low + many, rows)
            counts = np.zeros(high - low + 1, np.int64)
            for at, block in self.runs(low * columns, high * columns):
                mask = occupied(block)
                if len(mask) == (high - low) * columns:
                    counts[1:] = np.count_nonzero(mask.reshape(-1, columns), axis=1)
                else:  # one long row
                    counts[at // columns - low + 1] += np.count_nonzero(mask)
            np.cumsum(counts, out=counts)
            counts += total
            total = int(counts[-1])
            yield counts[:-1].astype(self.unit.numpy())
        if last > rows:
            yield np.asarray([self.marks.total], self.unit.numpy())

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        yield from self.numbers(0, self.count)
