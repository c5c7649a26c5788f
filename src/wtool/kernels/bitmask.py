"""Which values of a run are not zero: one bit each, and the values that are left.

A value is zero when all its bits are: a negative zero and a NaN of any payload are values. Bits lie as numpy.packbits with
bitorder "little" lays them, each row filled up to a whole byte, as compressed-tensors' sparse-bitmask format has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RUN = 1 << 16  # values between two marks


@dataclass(frozen=True, eq=False)
class Marks:
    """How many values that are not zero lie before every RUN-th value, and (last) in all; perhaps also before every row."""

    before: Array
    rows: Array | None = None

    @property
    def total(self) -> int:
        return int(self.before[-1])


def occupied(block: Array) -> Array:
    """Which values of a flat run have a bit that is set."""
    item = block.dtype.itemsize
    if item <= 8:
        words: Array = np.not_equal(block.view(f"u{item}"), 0)
        return words
    found: Array = np.logical_or.reduce(block.view(np.uint64).reshape(len(block), item // 8) != 0, axis=1)
    return found


def compact(block: Array, mask: Array) -> Array:
    """The values that a mask of the same length names. Four times as fast as indexing with the mask."""
    return block.take(np.flatnonzero(mask))


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Any shape as rows and columns: the first axis and the rest; a vector is one row."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def row_bytes(columns: int) -> int:
    return -(-columns // 8)


class Packer:
    """Bits of runs that follow one another, in rows of `columns`, beginning at a multiple of 8 within a row."""

    def __init__(self, columns: int, start: int) -> None:
        self._columns = columns
        self._column = start % columns
        self._left = np.empty(0, bool)

    def __call__(self, mask: Array) -> Array:
        """The bytes that are complete with these."""
        if len(self._left):
            mask = np.concatenate([self._left, mask])
        columns = self._columns
        if not columns % 8:  # rows do not show
            whole = len(mask) & -8
            self._left = mask[whole:].copy()
            return np.packbits(mask[:whole], bitorder="little")
        found, at = [], 0
        while at < len(mask):
            room = columns - self._column
            if self._column or len(mask) - at < room:
                some = min(room, len(mask) - at)
                ends = some == room
                some = some if ends else some & -8
                found.append(np.packbits(mask[at : at + some], bitorder="little"))
                self._column = 0 if ends else self._column + some
                at += some
                if not ends:
                    break
            else:
                rows = (len(mask) - at) // columns
                square = mask[at : at + rows * columns].reshape(rows, columns)
                found.append(np.packbits(square, axis=1, bitorder="little").reshape(-1))
                at += rows * columns
        self._left = mask[at:].copy()
        return np.concatenate(found) if found else np.empty(0, np.uint8)


def segments(columns: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Values `first` to `last` as at most three boxes (row, column, values): part of a row, whole rows, part of a row.

    A row of whole bytes has no seam: there it is one box, from a column on.
    """
    row, column = divmod(first, columns)
    if not columns % 8:
        if first < last:
            yield row, column, last - first
        return
    while first < last:
        row, column = divmod(first, columns)
        whole = (last - first) // columns * columns
        some = whole if not column and whole else min(columns - column, last - first)
        yield row, column, some
        first += some


def unpack(packed: Array, columns: int, column: int, count: int) -> Array:
    """A box of `segments` as a mask, from its bytes: from the one that holds `column` of the first row on."""
    if columns % 8 and count > columns - column:
        square = np.unpackbits(packed.reshape(-1, row_bytes(columns)), axis=1, count=columns, bitorder="little")
        return square.reshape(-1).view(bool)
    skip = column % 8
    return np.unpackbits(packed, count=skip + count, bitorder="little")[skip:].view(bool)


def counted(mask: Array, start: int, step: int, into: Array) -> None:
    """Add the number of True in each range of `step` of a flat order to `into`; the mask begins at `start`."""
    at = 0
    while at < len(mask):
        number, inside = divmod(start + at, step)
        some = min(step - inside, len(mask) - at)
        into[number] += np.count_nonzero(mask[at : at + some])
        at += some
