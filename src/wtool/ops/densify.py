"""Make tensors that are stored sparse, in wtool's layouts or torch's own, dense again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from wtool.checkpoint import Checkpoint
from wtool.dtypes import DType
from wtool.errors import CorruptError, KeyClashError
from wtool.kernels.bitmask import matrix, row_bytes, segments, unpack
from wtool.ops.coo import Gathered, checked
from wtool.sparse import METADATA, Stored, stored_sparse, without_sizes
from wtool.tensor import BLOCK, LazyTensor

if TYPE_CHECKING:
    from wtool.boxes import Array

_AXES = 64
_FEW = 1 << 20  # columns of rows in which any place is found quickly enough


@dataclass(frozen=True, slots=True)
class Densify:
    """Every tensor that sparse.stored_sparse finds becomes one dense tensor, at the place of its first part.

    Reads the shapes of wtool's layouts (a few bytes each), and of the rest only headers. CorruptError where the parts do not
    belong together; what only values tell is told when they are read. KeyClashError where the key is taken. What says that
    something is stored sparse goes from metadata, extras and warnings.
    """

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        found = stored_sparse(checkpoint.tensors, checkpoint.extras)
        if not found:
            return replace(checkpoint, history=(*checkpoint.history, self))
        dense: dict[str, LazyTensor] = {}
        part_of: dict[str, str] = {}
        made: dict[object, LazyTensor] = {}
        for stored in found:
            parts = {name: checkpoint[key] for name, key in stored.parts.items()}
            if stored.key in checkpoint.tensors:
                raise KeyClashError(
                    f"'{stored.key}' is a tensor, and the name of one that is stored sparse", path=checkpoint.source.path
                )
            who = (stored.layout, stored.size, *(tensor.identity for tensor in parts.values()))
            if None in who[2:] or who not in made:  # an empty part has no identity
                made[who] = _dense(stored, parts)
            dense[stored.key] = made[who].renamed(stored.key)
            part_of.update(dict.fromkeys(stored.parts.values(), stored.key))
        order = dict.fromkeys(part_of.get(key, key) for key in checkpoint.tensors)
        tensors = {key: dense.get(key) or checkpoint.tensors[key] for key in order}
        return replace(
            checkpoint.regrouped(tensors, {part: (key,) for part, key in part_of.items()}),
            metadata={key: text for key, text in checkpoint.metadata.items() if key != METADATA},
            extras=without_sizes(checkpoint.extras, {stored.key for stored in found if stored.size is not None}),
            structure=None,
            sparse=tuple(one for one in checkpoint.sparse if one.key not in dense),
            warnings=tuple(warning for warning in checkpoint.warnings if warning.code != "sparse"),
            history=(*checkpoint.history, self),
        )


def _dense(stored: Stored, parts: Mapping[str, LazyTensor]) -> LazyTensor:
    if stored.size is not None:
        checked(stored, parts)
        values = parts["values"]
        return LazyTensor.contiguous(stored.key, values.dtype, stored.size, Gathered(stored, dict(parts)), 0)
    shape = _shape(stored.key, parts["shape"])
    rows, columns = matrix(shape)
    source: _Rows
    if stored.layout == "bitmask":
        values = parts["compressed"]
        fits = parts["bitmask"].shape == (rows, row_bytes(columns)) and parts["row_offsets"].shape == (rows,)
        source = FromBits(stored.key, values, parts["row_offsets"], parts["bitmask"], rows, columns)
    else:
        values = parts["values"]
        fits = parts["crow_indices"].shape == (rows + 1,) and parts["col_indices"].shape == values.shape
        source = FromColumns(stored.key, values, parts["crow_indices"], parts["col_indices"], rows, columns)
    if not fits or not values.dtype.itemsize or values.elements > rows * columns:
        raise _corrupt(stored.key, f"its parts do not make up a tensor of shape {list(shape)}")
    return LazyTensor.contiguous(stored.key, values.dtype, shape, source, 0)


def _shape(key: str, tensor: LazyTensor) -> tuple[int, ...]:
    if tensor.elements > _AXES:
        raise _corrupt(key, f"it says that it has {tensor.elements} axes")
    shape = tuple(int(length) for length in tensor.array())
    if any(length < 0 for length in shape) or prod(shape) >= 1 << 60:
        raise _corrupt(key, f"its shape is {list(shape)}")
    return shape


def _corrupt(key: str, why: str) -> CorruptError:
    return CorruptError(f"'{key}', stored sparse, is damaged: {why}")


@dataclass(frozen=True, eq=False)
class _Rows:
    """A ByteSource of the dense values. `offsets` say how many values lie before each row."""

    key: str
    values: LazyTensor
    offsets: LazyTensor
    places: LazyTensor
    rows: int
    columns: int

    @property
    def name(self) -> str:
        return next((box.source.name for box in self.values.boxes), "memory")

    @property
    def unit(self) -> DType:
        return self.values.dtype

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def size(self) -> int:
        return self.elements * self.unit.itemsize

    @cached_property
    def direct(self) -> bool:
        return self.columns <= _FEW and all(part.span is not None for part in (self.values, self.offsets, self.places))

    def pread(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        item, end = self.unit.itemsize, offset + len(buffer)
        first, last = offset // item, -(-end // item)
        for low, block in self._blocks(first, last, max(BLOCK // item, 1)):
            start, stop = max(low * item, offset), min((low + len(block)) * item, end)
            buffer[start - offset : stop - offset] = block.view(np.uint8)[start - low * item : stop - low * item].data

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        for _, block in self._blocks(0, self.elements, max(nbytes // self.unit.itemsize, 1)):
            yield block

    def _blocks(self, first: int, last: int, step: int) -> Iterator[tuple[int, Array]]:
        # Words of as many bytes: numpy is slow with elements it does not know.
        item = self.unit.itemsize
        word = np.dtype(f"u{item}") if item <= 8 else np.dtype((np.void, item))
        room = np.empty(min(step, max(last - first, 0)), word)
        at: int | None = None
        for low in range(first, last, step):
            high = min(low + step, last)
            block = room[: high - low]
            block.view(np.uint8)[:] = 0
            at = self.fill(low, high, block, at)
            yield low, block.view(self.unit.numpy())

    def fill(self, first: int, last: int, block: Array, at: int | None) -> int:
        """Put the values of a range in their places; `at` of all lie before it, if that is known. How many before `last`."""
        raise NotImplementedError

    def taken(self, first: int, last: int, block: Array) -> Array:
        if not 0 <= first <= last <= self.values.elements:
            raise _corrupt(self.key, f"it names {last} values and has {self.values.elements}")
        return self.values.flat(first, last).view(block.dtype)


class FromBits(_Rows):
    """A bit for each value. The offsets are held against the bits wherever a row begins."""

    def fill(self, first: int, last: int, block: Array, at: int | None) -> int:
        wide, done = row_bytes(self.columns), 0
        at = self._before(first) if at is None else at
        for row, column, count in segments(self.columns, first, last):
            low = row * wide + column // 8
            ends = row * self.columns + column + count
            stop_row, stop_column = divmod(ends, self.columns)
            packed = self.places.flat(low, stop_row * wide + row_bytes(stop_column))
            mask = unpack(packed, self.columns, column, count)
            there = np.flatnonzero(mask)
            self._check(row + (column > 0), -(-ends // self.columns), row * self.columns + column, there, at)
            block[done + there] = self.taken(at, at + len(there), block)
            at, done = at + len(there), done + count
        if last == self.elements and at != self.values.elements:
            raise _corrupt(self.key, f"{at} bits are set for {self.values.elements} values")
        return at

    def _check(self, low: int, high: int, start: int, there: Array, at: int) -> None:
        """Rows `low` to `high` begin among values from `start` on, of which those `there` are not zero."""
        if low < high:
            begins = np.arange(low, high, dtype=np.int64) * self.columns - start
            if not np.array_equal(np.searchsorted(there, begins) + at, self.offsets.flat(low, high)):
                raise _corrupt(self.key, "row_offsets are not those of bitmask")

    def _before(self, first: int) -> int:
        row, column = divmod(first, self.columns)
        if not column:
            return int(self.offsets.flat(row, row + 1)[0])
        at, low = int(self.offsets.flat(row, row + 1)[0]), row * row_bytes(self.columns)
        for byte in range(0, column // 8, BLOCK):
            some = self.places.flat(low + byte, low + min(byte + BLOCK, column // 8))
            at += int(np.bitwise_count(some).sum(dtype=np.int64))
        if column % 8:
            last = self.places.flat(low + column // 8, low + column // 8 + 1)
            at += int(np.unpackbits(last, count=column % 8, bitorder="little").sum())
        return at


class FromColumns(_Rows):
    """The columns of the values of each row, which must rise."""

    def fill(self, first: int, last: int, block: Array, at: int | None) -> int:
        row, end = first // self.columns, -(-last // self.columns)
        bounds = self.offsets.flat(row, end + 1).astype(np.int64)
        if bounds[0] < 0 or bounds[-1] > self.values.elements or (bounds[1:] < bounds[:-1]).any():
            raise _corrupt(self.key, "crow_indices do not rise from 0 to the number of values")
        if (first == 0 and bounds[0] != 0) or (end == self.rows and bounds[-1] != self.values.elements):
            raise _corrupt(self.key, "crow_indices do not rise from 0 to the number of values")
        low = self._find(int(bounds[0]), int(bounds[1]), first - row * self.columns) if at is None else at
        high = self._find(int(bounds[-2]), int(bounds[-1]), last - (end - 1) * self.columns)
        if not low <= high <= low + last - first:
            raise _corrupt(self.key, "col_indices of a row do not rise")
        bounds[0], bounds[-1] = low, high
        columns = self.places.flat(low, high).astype(np.int64)
        if len(columns) and (columns.min() < 0 or columns.max() >= self.columns):
            raise _corrupt(self.key, f"col_indices leave its {self.columns} columns")
        columns += np.repeat(np.arange(row, end, dtype=np.int64) * self.columns - first, np.diff(bounds))
        if len(columns) and (columns[0] < 0 or columns[-1] >= last - first or (columns[1:] <= columns[:-1]).any()):
            raise _corrupt(self.key, "col_indices of a row do not rise")
        block[columns] = self.taken(low, high, block)
        return high

    def _find(self, low: int, high: int, column: int) -> int:
        """The first of the values `low` to `high`, of one row, that is not before a column."""
        if column == self.columns:
            return high
        while column and low < high:
            middle = (low + high) // 2
            if int(self.places.flat(middle, middle + 1)[0]) < column:
                low = middle + 1
            else:
                high = middle
        return low
