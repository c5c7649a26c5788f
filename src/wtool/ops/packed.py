"""Byte sources of what a tensor becomes when it is stored sparse: its values, their places, the bits that say which they are.

All are made from runs of the dense tensor while they are read; `Marks` say where in it any of them begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from wtool.dtypes import DType
from wtool.kernels.bitmask import RUN, Marks, Packer, compact, matrix, occupied, row_bytes
from wtool.tensor import BLOCK, LazyTensor

if TYPE_CHECKING:
    from wtool.boxes import Array


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
    """Of the values that are not zero, the `values`, or their `places`; or the `bits` that say which they are.

    A place is `flat index // inner % length`, for an axis of `length` with `inner` values to each of its steps.
    """

    dense: LazyTensor
    marks: Marks
    what: str
    unit: DType
    count: int
    inner: int = 1
    length: int = 1

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

    def _maker(self, columns: int, start: int) -> Callable[[int, Array], Array]:
        if self.what == "bits":
            pack = Packer(columns, start)
            return lambda at, block: pack(occupied(block))
        if self.what == "values":
            return lambda at, block: compact(block, occupied(block))
        unit, inner, length = self.unit.numpy(), self.inner, self.length

        def places(at: int, block: Array) -> Array:
            found = np.flatnonzero(occupied(block))
            first = at % (inner * length)
            found += first
            if inner > 1:
                np.floor_divide(found, inner, out=found)
            if first + len(block) > inner * length:
                np.remainder(found, length, out=found)
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


@dataclass(frozen=True, eq=False)
class Indices(_Made):
    """The places of the values that are not zero along the first axis, then along the second, and so on: torch's `indices`."""

    dense: LazyTensor
    marks: Marks
    unit: DType
    count: int

    def numbers(self, first: int, last: int) -> Iterator[Array]:
        total = self.marks.total
        for axis, part in enumerate(self._axes()):
            low, high = max(first - axis * total, 0), min(last - axis * total, total)
            for found in part.numbers(low, high) if low < high else ():
                some = found[: high - low]
                low += len(some)
                if len(some):
                    yield some

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        for part in self._axes():
            yield from part.stream(nbytes, stripe)

    def _axes(self) -> Iterator[Part]:
        inner = self.dense.elements
        for size in self.dense.shape:
            inner //= size
            yield Part(self.dense, self.marks, "places", self.unit, self.marks.total, inner, size)
