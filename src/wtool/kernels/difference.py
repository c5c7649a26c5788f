"""How far apart two runs of values are: in bits, in size and in direction."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import UnsupportedError, UsageError
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import Cast

Array = NDArray[Any]

_PIECE = 1 << 16  # numbers worked on at a time: with fewer, threads wait for one another more than they work
_ROW = 1 << 13  # numbers of one dot product: of more than 10,000 OpenBLAS starts threads of its own
_GLANCE = 512  # bytes
_F32, _F16, _F4 = dtype("f32"), dtype("f16"), dtype("f4")


def same_bytes(one: Array, two: Array) -> bool:
    """Whether two blocks of equal size hold the same bytes."""
    one, two = one.view(np.uint8), two.view(np.uint8)
    if (one[:_GLANCE] != two[:_GLANCE]).any():  # blocks that differ mostly do so at once
        return False
    words = len(one) // 8 * 8
    return bool((one[:words].view(np.uint64) == two[:words].view(np.uint64)).all() and (one[words:] == two[words:]).all())


def same_values(one: Array, two: Array) -> bool:
    """Whether two blocks of one floating dtype hold the same bits, or NaN in the same places."""
    if same_bytes(one, two):
        return True
    with np.errstate(all="ignore"):
        odd = np.flatnonzero(one.view(f"u{one.itemsize}") != two.view(f"u{two.itemsize}"))
        return bool((np.isnan(one[odd]) & np.isnan(two[odd])).all())


class Difference:
    """An accumulator of pairs of blocks of A and B, of any two dtypes. UnsupportedError for values that cannot be decoded.

    All sums are in f64, those of a - b of differences that are exact before they are rounded, of 64-bit integers too. A pair
    differs if its bits do (equal dtypes) or its values (unlike ones); NaN equals NaN. With a tolerance it differs if
    |a - b| > atol + rtol * |b|. Pairs of which either is not finite enter no sum; those of them that are not equal count in
    `nonfinite`. Complex values differ by the magnitude of their difference, and are NaN if a part of them is.

    The same blocks give the same bits, whatever runs beside it.
    """

    def __init__(self, one: DType, two: DType, *, rtol: float = 0.0, atol: float = 0.0) -> None:
        if not (0 <= rtol < inf and 0 <= atol < inf):
            raise UsageError("a tolerance is a finite number, 0 or more")
        odd = next((row for row in (one, two) if not (row.itemsize or row is _F4)), None)
        if odd is not None:
            raise UnsupportedError(f"the packing of {odd} is not settled; its values cannot be compared")
        self._dtypes = (one, two)
        self._bits = one is two and not rtol and not atol
        self._tolerance = (rtol, atol) if rtol or atol else None
        self._decoders = (_decoder(one), _decoder(two))
        self._pair = max(2 if row.kind == "complex" else 1 for row in (one, two))
        self._room: Array = np.empty(0)
        self._long = any(row.bits == 64 and row.kind in ("int", "uint") for row in (one, two))
        self.elements = self.finite = self.differing = self.nonfinite = 0
        self.max_abs = self.sum_abs = 0.0
        self.squares_a = self.squares_b = self.squares_d = self.products = 0.0

    def add_same(self, block: Array) -> None:
        """Take in a block that A and B share, byte for byte."""
        count = self._count(block)
        step = _PIECE // self._pair
        with np.errstate(all="ignore"):
            for first in range(0, count, step):
                last = min(first + step, count)
                (values,) = self._rooms(1, (last - first) * self._pair)
                self._widen(self._values(block, 0, first, last), 0, values)
                squares = _dot(values, values)
                finite = last - first
                if not squares < inf:
                    good = self._whole(np.isfinite(values))
                    squares, finite = _dot(values[good], values[good]), int(np.count_nonzero(good)) // self._pair
                self.elements += last - first
                self.finite += finite
                self.squares_a += squares
                self.squares_b += squares
                self.products += squares

    def add(self, one: Array, two: Array) -> None:
        """Take in a block of A and the block of B at the same place."""
        count = self._count(one)
        step = _PIECE // self._pair
        with np.errstate(all="ignore"):
            for first in range(0, count, step):
                last = min(first + step, count)
                self.elements += last - first
                a, b = self._values(one, 0, first, last), self._values(two, 1, first, last)
                changed = None
                if self._bits and self._dtypes[0] is _F4:
                    changed = _unlike(a, b)
                elif self._bits:
                    changed = _unlike(one[first:last], two[first:last], len(a))
                self._piece(a, b, changed)

    def _piece(self, one: Array, two: Array, changed: Array | None) -> None:
        rooms = self._rooms(3, max(len(one), len(two)))
        a, b, apart = rooms
        self._widen(one, 0, a)
        self._widen(two, 1, b)
        np.subtract(a, b, out=apart)
        if self._long:
            for values, wide, add in ((one, a, np.add), (two, b, np.subtract)):
                lost = _lost(values, wide)
                if lost is not None:
                    add(apart, lost, out=apart)
        squares_a, squares_b, squares_d = _squares(rooms)
        if not squares_a + squares_b < inf:
            a, b, apart = self._finite(a, b, apart, changed)
            squares_a, squares_b, squares_d = _dot(a, a), _dot(b, b), _dot(apart, apart)
        if changed is not None:
            self.differing += int(np.count_nonzero(changed if self._pair == 1 else changed[::2] | changed[1::2]))
        if not len(a):
            return
        self.finite += len(a) // self._pair
        self.squares_a += squares_a
        self.squares_b += squares_b
        self.squares_d += squares_d
        # For neighbours a.b by way of the difference spares a pass; far apart it would lose the digits.
        near = 4 * squares_d < squares_a + squares_b
        self.products += (squares_a + squares_b - squares_d) / 2 if near else _dot(a, b)
        if self._pair == 2:
            apart = np.hypot(apart[::2], apart[1::2])
        else:
            np.abs(apart, out=apart)
        self.sum_abs += float(np.add.reduce(apart))
        self.max_abs = max(self.max_abs, float(np.maximum.reduce(apart)))
        if changed is None:
            self.differing += self._beyond(apart, b)

    def _beyond(self, apart: Array, b: Array) -> int:
        """How many of the distances are more than what is tolerated."""
        mask = scratch("?", len(apart))
        if self._tolerance is None:
            return int(np.count_nonzero(np.not_equal(apart, 0.0, out=mask)))
        rtol, atol = self._tolerance
        bound = np.hypot(b[::2], b[1::2]) if self._pair == 2 else np.abs(b, out=b)
        np.multiply(bound, rtol, out=bound)
        np.add(bound, atol, out=bound)
        return int(np.count_nonzero(np.greater(apart, bound, out=mask)))

    def _finite(self, a: Array, b: Array, apart: Array, changed: Array | None) -> tuple[Array, Array, Array]:
        """The finite pairs. The others are counted here, and are not `changed` where both are NaN."""
        good = self._whole(np.isfinite(a) & np.isfinite(b))
        nan = ~self._whole(~np.isnan(a)) & ~self._whole(~np.isnan(b))
        odd = int(np.count_nonzero(~good & ~nan & ~self._whole(a == b))) // self._pair
        self.nonfinite += odd
        if changed is None:
            self.differing += odd
        else:
            changed &= ~nan
        return a[good], b[good], apart[good]

    def _whole(self, mask: Array) -> Array:
        """True for both parts of a complex value only where both parts are."""
        return mask if self._pair == 1 else np.repeat(mask[::2] & mask[1::2], 2)

    def _count(self, block: Array) -> int:
        return len(block) * (2 if self._dtypes[0] is _F4 else 1)

    def _values(self, block: Array, side: int, first: int, last: int) -> Array:
        """The elements `first` to `last` as numbers that f64 can take; complex ones as pairs of parts."""
        of, decode = self._dtypes[side], self._decoders[side]
        if of is _F4:
            assert decode is not None
            return decode(block[first // 2 : -(-last // 2)], {})[: last - first]
        piece = block[first:last]
        if of.name == "c32":
            piece = piece.view(np.float16)
        if decode is not None:
            return decode(piece, {})
        if of.kind == "complex":
            return piece.view(f"f{piece.itemsize // 2}")
        return piece.view(np.uint8) if of.kind == "bool" else piece

    def _widen(self, values: Array, side: int, wide: Array) -> None:
        """The values as f64; as pairs of parts where those of the other side are."""
        if self._pair == 2 and self._dtypes[side].kind != "complex":
            wide[1::2] = 0
            wide = wide[::2]
        np.copyto(wide, values, casting="unsafe")

    def _rooms(self, rows: int, count: int) -> Array:
        """Rows of f64 that lie together, used again."""
        if len(self._room) < rows * count:
            self._room = np.empty(rows * count)
        return self._room[: rows * count].reshape(rows, count)


def _squares(rooms: Array) -> list[float]:
    """The sum of squares of each row; in one step where rows are long, since every step is one more meeting of the threads."""
    count = rooms.shape[1]
    if not count or count % _ROW:
        return [_dot(row, row) for row in rooms]
    cut = rooms.reshape(len(rooms), -1, 1, _ROW)
    sums: list[float] = np.add.reduce(np.matmul(cut, cut.transpose(0, 1, 3, 2)), axis=(1, 2, 3)).tolist()
    return sums


def _dot(one: Array, two: Array) -> float:
    """The sum of products, in one order on one machine."""
    rows = len(one) // _ROW
    done = rows * _ROW
    total = float(np.dot(one[done:], two[done:])) if done < len(one) else 0.0
    if rows:
        products = np.matmul(one[:done].reshape(rows, 1, _ROW), two[:done].reshape(rows, _ROW, 1))
        total += float(np.add.reduce(products, axis=None))
    return total


def _unlike(one: Array, two: Array, count: int | None = None) -> Array:
    """Where the bits of `count` values, or parts of complex values, are not the same."""
    count = len(one) if count is None else count
    unit = f"u{one.nbytes // count}" if count else "u1"
    mask = scratch("?", count, 1)
    np.not_equal(one.view(unit), two.view(unit), out=mask)
    return mask


def _lost(values: Array, wide: Array) -> Array | None:
    """What 64-bit integers lost when they became f64, exactly; None if nothing."""
    if values.dtype.kind not in "iu" or values.itemsize < 8 or not len(values):
        return None
    if max(float(wide.max()), -float(wide.min())) < 2.0**53:
        return None
    half = values.dtype.type(32)
    high = (values >> half).astype(np.float64) * 2.0**32
    lost: Array = (values & values.dtype.type(0xFFFF_FFFF)).astype(np.float64) - (wide[:: len(wide) // len(values)] - high)
    if len(wide) == len(values):
        return lost
    parts = np.zeros(len(wide))
    parts[::2] = lost
    return parts


def _decoder(row: DType) -> Cast | None:
    """What makes a dtype that numpy does not compute with one that it does."""
    if row.name == "c32":
        return Cast(_F16, _F32)
    return Cast(row, _F32) if row is _F4 or (row.floating and row.bits <= 16) else None
