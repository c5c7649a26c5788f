"""torch's own sparse tensors, COO, CSR, CSC, BSR and BSC, as dense values. They are gathered in memory, as in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from wtool.errors import CorruptError, UnsupportedError
from wtool.sparse import Stored
from wtool.tensor import BLOCK, LazyTensor

if TYPE_CHECKING:
    from wtool.boxes import Array

_INTS = ("i32", "i64")


def checked(stored: Stored, parts: Mapping[str, LazyTensor]) -> None:
    """CorruptError unless headers fit together; UnsupportedError for batches and for values narrower than a byte."""
    size, values = stored.size or (), parts["values"]
    if prod(size) >= 1 << 60:
        raise _corrupt(stored, f"its shape is {list(size)}")
    if not values.dtype.itemsize:
        raise UnsupportedError(f"'{stored.key}', stored sparse, is {values.dtype}, packed")
    for name, part in parts.items():
        if name != "values" and part.dtype.name not in _INTS:
            raise _corrupt(stored, f"{name} are {part.dtype}")
    if stored.layout == "torch.sparse_coo":
        axes = parts["indices"].shape
        if len(axes) != 2 or axes[0] > len(size) or values.shape != (axes[1], *size[axes[0] :]):
            raise _corrupt(stored, f"its parts do not make up a tensor of shape {list(size)}")
        return
    first, second = (parts[name] for name in parts if name != "values")
    if len(first.shape) != 1:
        raise UnsupportedError(f"'{stored.key}' is a batch of sparse matrices: wtool makes only single ones dense")
    blocks = stored.layout in ("torch.sparse_bsr", "torch.sparse_bsc")
    rank = 3 if blocks else 1
    height, width = values.shape[1:3] if blocks and len(values.shape) >= 3 else (1, 1)
    down = stored.layout in ("torch.sparse_csr", "torch.sparse_bsr")
    fits = len(size) >= 2 and len(values.shape) >= rank and height and width
    fits = fits and values.shape[rank:] == size[2:] and second.shape == values.shape[:1]
    fits = fits and not (size[0] % height or size[1] % width)
    if not fits or first.shape != ((size[0] // height if down else size[1] // width) + 1,):
        raise _corrupt(stored, f"its parts do not make up a tensor of shape {list(size)}")


@dataclass(frozen=True, eq=False)
class Gathered:
    """A ByteSource of the dense values. All indices and values are in memory while it is read.

    Of several values of one place in COO the sum is taken in their order, in their own dtype, as torch.Tensor.to_dense does;
    in the other layouts, where torch allows none, they are an error, and so is an index out of range.
    """

    stored: Stored
    parts: Mapping[str, LazyTensor]

    direct = False

    @property
    def name(self) -> str:
        return next((box.source.name for box in self.parts["values"].boxes), "memory")

    @property
    def size(self) -> int:
        return prod(self.stored.size or ()) * self.parts["values"].dtype.itemsize

    def pread(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        item, end = self.parts["values"].dtype.itemsize, offset + len(buffer)
        for low, block in self._blocks(offset // item, -(-end // item), max(BLOCK // item, 1)):
            start, stop = max(low * item, offset), min((low + len(block)) * item, end)
            buffer[start - offset : stop - offset] = block.view(np.uint8)[start - low * item : stop - low * item].data

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        item = self.parts["values"].dtype.itemsize
        for _, block in self._blocks(0, self.size // item, max(nbytes // item, 1)):
            yield block

    def _blocks(self, first: int, last: int, step: int) -> Iterator[tuple[int, Array]]:
        starts, values = self._gathered()
        wide = values.shape[1]
        for low in range(first, last, step):
            high = min(low + step, last)
            block = np.zeros(high - low, values.dtype)
            # Runs of `wide` values begin at `starts`; the first may begin before the block.
            for at in range(*np.searchsorted(starts, [low - wide + 1, high]).tolist()) if wide > 1 else ():
                begin = int(starts[at])
                left, right = max(begin, low), min(begin + wide, high)
                block[left - low : right - low] = values[at, left - begin : right - begin]
            if wide == 1:
                a, b = np.searchsorted(starts, [low, high])
                block[starts[a:b] - low] = values[a:b, 0]
            yield low, block

    def _gathered(self) -> tuple[Array, Array]:
        """Where runs of values begin, rising, and the runs."""
        size, values = self.stored.size or (), self.parts["values"].array()
        if self.stored.layout == "torch.sparse_coo":
            indices = self.parts["indices"].array()
            axes = size[: len(indices)]
            wide = prod(size[len(indices) :])
            starts = np.zeros(indices.shape[1], np.int64)
            for index, length in zip(indices, axes, strict=True):
                if len(index) and (index.min() < 0 or index.max() >= length):
                    raise _corrupt(self.stored, f"an index leaves its shape {list(size)}")
                starts *= length
                starts += index
            starts *= wide
            values = values.reshape(len(starts), wide)
        else:
            starts, values = self._compressed(values)
        order = np.argsort(starts, kind="stable")
        starts, values = starts[order], values[order]
        again = np.flatnonzero(starts[1:] == starts[:-1]) + 1
        if len(again):
            if self.stored.layout != "torch.sparse_coo":
                raise _corrupt(self.stored, "it has two values for one place")
            if values.dtype.type is np.void:
                raise UnsupportedError(
                    f"'{self.stored.key}' has several values for one place, and {self.parts['values'].dtype} has no sum"
                )
            first = np.ones(len(starts), bool)
            first[again] = False
            group = np.cumsum(first) - 1
            total = values[first]
            with np.errstate(all="ignore"):
                np.add.at(total, group[again], values[again])
            starts, values = starts[first], total
        return starts, values

    def _compressed(self, values: Array) -> tuple[Array, Array]:
        size = self.stored.size or ()
        pointers, inner = (self.parts[name].array().astype(np.int64) for name in self.parts if name != "values")
        if pointers[0] != 0 or pointers[-1] != len(inner) or (np.diff(pointers) < 0).any():
            raise _corrupt(self.stored, "its pointers do not rise from 0 to the number of values")
        outer = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
        down = self.stored.layout in ("torch.sparse_csr", "torch.sparse_bsr")
        rows, columns = (outer, inner) if down else (inner, outer)
        blocks = self.stored.layout in ("torch.sparse_bsr", "torch.sparse_bsc")
        height, width = values.shape[1:3] if blocks else (1, 1)
        bounds = (size[0] // height, size[1] // width)
        for index, length in zip((rows, columns), bounds, strict=True):
            if len(index) and (index.min() < 0 or index.max() >= length):
                raise _corrupt(self.stored, f"an index leaves its shape {list(size)}")
        wide = prod(size[2:])
        row = rows[:, None, None] * height + np.arange(height)[None, :, None]
        column = columns[:, None, None] * width + np.arange(width)[None, None, :]
        starts = ((row * size[1] + column) * wide).reshape(-1)
        return starts, values.reshape(len(starts), wide)


def _corrupt(stored: Stored, why: str) -> CorruptError:
    return CorruptError(f"'{stored.key}', stored sparse, is damaged: {why}")
