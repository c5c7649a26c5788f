"""Which values a regular structure keeps: N of every M, or whole groups of a matrix.

For the command line: `parse_pattern` and `parse_structure` read the options, `pattern_mask(tensor, n, m)` and
`analysis.structure.structured(tensors, structure, sparsity)` answer with the masks.

A tensor of two or more axes is seen as a matrix of `shape[0]` rows, so the weight of a convolution (O, I, h, w) has rows of
I*h*w. Groups of N:M lie along them; where M divides the last axis, these are those along the last axis, the inputs of
torch's Linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType
from wtool.errors import NotFiniteError, UsageError
from wtool.kernels.buffers import CHUNK, scratch
from wtool.kernels.masks import codes, first_odd

Array = NDArray[Any]

_SMALL = 16  # values of a group, up to which comparing each with each is faster than sorting
_TOGETHER = (2, 4, 8)  # values of a group, as many as bytes of an integer
_SLOT = 96
_PATTERN = re.compile(r"(\d{1,4}):(\d{1,4})")
_BLOCK = re.compile(r"block:(\d{1,9})[x*](\d{1,9})")
STRUCTURES = ("row", "column", "filter", "block:RxC")


class Values(Protocol):
    """A lazy tensor, as far as it is needed here."""

    @property
    def key(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def flat(self, first: int, last: int) -> Array: ...


def parse_pattern(text: str) -> tuple[int, int]:
    """`N:M`, as in 2:4. UsageError unless 0 < N < M."""
    found = _PATTERN.fullmatch(text.strip())
    n, m = map(int, found.groups()) if found else (0, 0)
    if not 0 < n < m:
        raise UsageError(f"'{text}' is no pattern", hint="write N:M with N below M, as in 2:4: of every M values N are kept")
    return n, m


@dataclass(frozen=True, slots=True)
class ByPattern:
    """Keeps the `n` values of largest magnitude of every `m` in flat order; of equal ones those that come first.

    A run that begins or ends within a group is completed from `values`, the tensor itself. What is not finite ranks above
    all else and is never pruned; unless `odd`, it is a NotFiniteError that names the tensor and `name`, where it came from.
    """

    n: int
    m: int
    values: Values = field(compare=False)
    odd: bool = False
    name: str | None = None

    def keeps(self, start: int, block: Array) -> Array:
        stop = start + len(block)
        low, high = start // self.m * self.m, -(-stop // self.m) * self.m
        if low < start or high > stop:
            block = np.concatenate([self.values.flat(low, start), block, self.values.flat(stop, high)])
        found = codes(block)
        edge = np.array(first_odd(self.values.dtype), found.dtype)
        finite = not len(found) or found.max() < edge
        if not finite and not self.odd:
            what = "NaN" if np.isnan(block.astype(np.float64)).any() else "an infinity"
            hint = "--on-nan keep never prunes such values; --exclude leaves the tensor as it is"
            raise NotFiniteError(f"'{self.values.key}' holds {what}", path=self.name, hint=hint)
        kept = _most(found, self.n, self.m)
        if not finite:
            kept |= found >= edge
        return kept[start - low : stop - low]


def pattern_mask(tensor: Values, n: int, m: int, *, odd: bool = False, name: str | None = None) -> ByPattern:
    """The mask of N:M of a tensor. UsageError, with its key, where rows are no multiple of M; for `odd` see ByPattern."""
    row = prod(tensor.shape[1:])
    if row % m:
        said = "x".join(map(str, tensor.shape))
        hint = f"--exclude '{tensor.key}' leaves it as it is"
        raise UsageError(f"'{tensor.key}' is {said}: its rows of {row} are no multiple of {m}", path=name, hint=hint)
    return ByPattern(n, m, tensor, odd, name)


def _most(found: Array, n: int, m: int) -> Array:
    """Which of each group of `m` are its `n` largest, the first of equal ones. In a new array."""
    if m in _TOGETHER and len(found):
        return _most_together(found, n, m)
    groups = found.reshape(-1, m)
    if m > _SMALL:
        order = np.argsort(~groups, axis=1, kind="stable")  # unsigned: the largest first
        kept = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(kept, order[:, :n], True, axis=1)
        return kept.reshape(-1)
    columns = np.ascontiguousarray(groups.T)
    before = np.zeros(columns.shape, np.uint8)  # how many of its group come before each
    for one in range(m):
        for two in range(one):
            first = columns[two] >= columns[one]
            before[one] += first
            before[two] += ~first
    return np.ascontiguousarray((before < n).T).reshape(-1)


def _most_together(found: Array, n: int, m: int) -> Array:
    """The same for groups whose bytes of 0 and 1 fit an integer.

    Each value is compared with the one that is `step` further on, wherever groups begin, and of each group's answers, the
    bytes of one integer, those are taken that are about two of the group. So the integer is g, where byte i is 1 if value i
    comes before value i + step; then g << 8 * step tells the same of value i + step. With g added and the other taken away
    from how many values lie before each place, byte i becomes how many values of the group value i comes before.
    """
    word = np.dtype(f"u{m}")
    kept: Array = np.empty(len(found), np.bool_)
    for first in range(0, len(found), CHUNK):
        some = found[first : first + CHUNK]
        after = kept[first : first + CHUNK]
        count = len(some) // m
        total = scratch(word.str[1:], count, _SLOT)
        total[:] = np.frombuffer(bytes(range(m)), word)
        answers = scratch(word.str[1:], count, _SLOT + 1)
        for step in range(1, m):
            flags = answers.view(np.bool_)
            np.greater_equal(some[:-step], some[step:], out=flags[:-step])
            np.bitwise_and(answers, word.type((1 << 8 * (m - step)) - 1), out=answers)
            np.add(total, answers, out=total)
            np.left_shift(answers, word.type(8 * step), out=answers)
            np.subtract(total, answers, out=total)
        np.greater_equal(total.view(np.uint8), m - n, out=after)
    return kept


@dataclass(frozen=True, slots=True)
class Structure:
    """What is zeroed as a whole: `row`, `column`, `filter`, or `block` of `height` by `width`.

    A row is all of one output, `w[i]`; a filter the same of a convolution (three axes or more); a column all of one input,
    `w[:, j]`; these are the groups of torch.nn.utils.prune.ln_structured with dim 0 and 1.
    """

    kind: str
    height: int = 0
    width: int = 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape has such groups."""
        return len(shape) >= (3 if self.kind == "filter" else 2)

    def __str__(self) -> str:
        return f"block:{self.height}x{self.width}" if self.kind == "block" else self.kind


def parse_structure(text: str) -> Structure:
    """`row`, `column`, `filter` or `block:16x16`."""
    word = text.strip().lower()
    if word in STRUCTURES[:3]:
        return Structure(word)
    found = _BLOCK.fullmatch(word)
    height, width = map(int, found.groups()) if found else (0, 0)
    if not height * width:
        raise UsageError(f"unknown structure '{text}'", hint="one of " + ", ".join(STRUCTURES) + ", as in block:16x16")
    return Structure("block", height, width)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Groups of a matrix: blocks of `height` by `width`, numbered in C order. Those at the edges may be smaller."""

    rows: int
    columns: int
    height: int
    width: int

    @staticmethod
    def of(structure: Structure, shape: tuple[int, ...]) -> Geometry:
        rows, columns = shape[0], prod(shape[1:])
        if structure.kind == "block":
            return Geometry(rows, columns, structure.height, structure.width)
        if structure.kind == "column":
            return Geometry(rows, columns, max(rows, 1), max(prod(shape[2:]), 1))
        return Geometry(rows, columns, 1, max(columns, 1))

    @property
    def down(self) -> int:
        return -(-self.rows // self.height)

    @property
    def across(self) -> int:
        return -(-self.columns // self.width)

    @property
    def count(self) -> int:
        return self.down * self.across

    def sizes(self) -> Array:
        """Values of each group."""
        tall = np.minimum(np.arange(self.down) * self.height + self.height, self.rows) - np.arange(self.down) * self.height
        long = np.minimum(np.arange(self.across) * self.width + self.width, self.columns) - np.arange(self.across) * self.width
        found: Array = np.multiply.outer(tall, long).reshape(-1)
        return found

    @property
    def even(self) -> int:
        """Values of a group if all have as many, else 0."""
        edges = self.rows % self.height or self.columns % self.width
        return 0 if edges else self.height * self.width

    def pieces(self, start: int, count: int) -> Iterator[tuple[slice, int, int, int, int]]:
        """A run from a flat index on, as parts of one row and as whole rows: (where in the run, row, column, rows, width)."""
        at, stop = start, start + count
        while at < stop:
            row, column = divmod(at, self.columns)
            whole = 0 if column else (stop - at) // self.columns
            width = self.columns if whole else min(self.columns - column, stop - at)
            size = width * max(whole, 1)
            yield slice(at - start, at - start + size), row, column, max(whole, 1), width
            at += size

    def add_up(self, totals: Array, start: int, values: Array) -> None:
        """Add a run of values, from a flat index on, to the totals of their groups."""
        table = totals.reshape(self.down, self.across)
        for part, row, column, rows, width in self.pieces(start, len(values)):
            found = values[part].reshape(rows, width)
            first, last = row // self.height, (row + rows - 1) // self.height
            if self.height > 1:
                cuts = np.maximum(np.arange(first, last + 1) * self.height - row, 0)
                found = found.sum(axis=0, keepdims=True) if len(cuts) == 1 else np.add.reduceat(found, cuts, axis=0)
            left, right = column // self.width, (column + width - 1) // self.width
            if self.width > 1:
                cuts = np.maximum(np.arange(left, right + 1) * self.width - column, 0)
                found = found.sum(axis=1, keepdims=True) if len(cuts) == 1 else np.add.reduceat(found, cuts, axis=1)
            table[first : last + 1, left : right + 1] += found


@dataclass(frozen=True, slots=True)
class ByGroups:
    """Keeps the groups whose bit is set; `kept` is packed, the lowest bit of a byte first."""

    kept: bytes
    geometry: Geometry

    @property
    def left(self) -> int:
        """How many groups are kept."""
        return int.from_bytes(self.kept, "little").bit_count()

    def keeps(self, start: int, block: Array) -> Array:
        shape = self.geometry
        out = np.empty(len(block), np.bool_)
        for part, row, column, rows, width in shape.pieces(start, len(block)):
            first, last = row // shape.height, (row + rows - 1) // shape.height
            left, right = column // shape.width, (column + width - 1) // shape.width
            if first == last:
                bits = self._bits(first * shape.across + left, first * shape.across + right + 1)[None]
            else:
                bits = self._bits(first * shape.across, (last + 1) * shape.across).reshape(-1, shape.across)
            if left != right and shape.width > 1:
                ends = np.minimum(np.arange(left + 1, right + 2) * shape.width, column + width) - column
                bits = np.repeat(bits, np.diff(ends, prepend=0), axis=1)
            if first != last and shape.height > 1:
                ends = np.minimum(np.arange(first + 1, last + 2) * shape.height, row + rows) - row
                bits = np.repeat(bits, np.diff(ends, prepend=0), axis=0)
            out[part].reshape(rows, width)[:] = bits
        return out

    def _bits(self, first: int, last: int) -> Array:
        """The bits from one group on, up to another."""
        packed = np.frombuffer(self.kept, np.uint8)[first // 8 : -(-last // 8)]
        return np.unpackbits(packed, bitorder="little").view(np.bool_)[first % 8 :][: last - first]
