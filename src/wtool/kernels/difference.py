"""How far apart two runs of values are: in bits, in size and in direction."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import UnsupportedError
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import Cast

Array = NDArray[Any]

_PIECE = 1 << 15  # elements worked on at a time: two arrays of f64 stay in the second cache
_GLANCE = 512  # bytes
_F32 = dtype("f32")


def same_bytes(one: Array, two: Array) -> bool:
    """Whether two blocks of equal size hold the same bytes."""
    one, two = one.view(np.uint8), two.view(np.uint8)
    if (one[:_GLANCE] != two[:_GLANCE]).any():  # blocks that differ mostly do so at once
        return False
    words = len(one) // 8 * 8
    return bool((one[:words].view(np.uint64) == two[:words].view(np.uint64)).all() and (one[words:] == two[words:]).all())


class Difference:
    """An accumulator of pairs of blocks of A and B, of any two dtypes. UnsupportedError for values that cannot be decoded.

    All sums are in f64. A pair differs if its bits do (equal dtypes) or its values (unlike ones); NaN equals NaN. With a
    tolerance it differs if |a - b| > atol + rtol * |b|. Pairs in which either is not finite and that are not equal count in
    `nonfinite`, and enter nothing else. Complex values differ by the magnitude of their difference.
    """

    def __init__(self, one: DType, two: DType, *, rtol: float = 0.0, atol: float = 0.0) -> None:
        self._bits = one is two and not rtol and not atol and one.bits >= 8
        self._rtol, self._atol = rtol, atol
        self._decoders = (_decoder(one), _decoder(two))
        self._pair = max(2 if row.kind == "complex" else 1 for row in (one, two))
        self._complex = (one.kind == "complex", two.kind == "complex")
        self.elements = self.differing = self.nonfinite = 0
        self.max_abs = self._sum_abs = 0.0
        self.squares_a = self.squares_b = self.squares_d = 0.0

    @property
    def mean_abs(self) -> float:
        """Over all elements, equal ones too."""
        return self._sum_abs / self.elements if self.elements else 0.0

    @property
    def rel_l2(self) -> float | None:
        """The L2 norm of a - b over that of a; None where a is zero and b is not."""
        if not self.squares_d:
            return 0.0
        return sqrt(self.squares_d / self.squares_a) if self.squares_a else None

    @property
    def cosine(self) -> float | None:
        """Of the angle between a and b; None where one of them is zero."""
        if not (self.squares_a and self.squares_b):
            return None
        # a.b by way of the difference: for neighbours it keeps the digits that a product of norms would lose.
        dot = (self.squares_a + self.squares_b - self.squares_d) / 2
        return max(-1.0, min(1.0, dot / (sqrt(self.squares_a) * sqrt(self.squares_b))))

    def add_same(self, block: Array) -> None:
        """Take in a block that A and B share, byte for byte."""
        with np.errstate(all="ignore"):
            values = self._real(block, 0)
            self.elements += len(values) // self._pair
            for first in range(0, len(values), _PIECE):
                piece = values[first : first + _PIECE]
                wide = scratch("f8", len(piece), 1)
                np.copyto(wide, piece, casting="unsafe")
                np.multiply(wide, wide, out=wide)
                total = float(wide.sum())
                if not total < float("inf"):
                    total = float(wide[np.isfinite(wide)].sum())
                self.squares_a += total
                self.squares_b += total

    def add(self, one: Array, two: Array) -> None:
        """Take in a block of A and the block of B at the same place."""
        with np.errstate(all="ignore"):
            a, b = self._real(one, 0), self._real(two, 1)
            codes = (_codes(one, len(a)), _codes(two, len(b))) if self._bits else None
            self.elements += len(a) // self._pair
            for first in range(0, len(a), _PIECE):
                last = first + _PIECE
                changed = None if codes is None else codes[0][first:last] != codes[1][first:last]
                self._piece(a[first:last], b[first:last], changed)

    def _piece(self, one: Array, two: Array, changed: Array | None) -> None:
        a, b, t = (scratch("f8", len(one), slot) for slot in (1, 2, 3))
        np.copyto(a, one, casting="unsafe")
        np.copyto(b, two, casting="unsafe")
        np.multiply(a, a, out=t)
        squares_a = float(t.sum())
        np.multiply(b, b, out=t)
        squares_b = float(t.sum())
        if not squares_a + squares_b < float("inf"):
            a, b, changed = self._finite(a, b, changed)
            t = np.empty(len(a))
            squares_a, squares_b = float((a * a).sum()), float((b * b).sum())
        if changed is not None:
            self.differing += int(np.count_nonzero(changed if self._pair == 1 else changed[::2] | changed[1::2]))
        if not len(a):
            return
        np.subtract(a, b, out=a)
        np.multiply(a, a, out=t)
        self.squares_a += squares_a
        self.squares_b += squares_b
        self.squares_d += float(t.sum())
        if self._pair == 2:
            a, b = np.hypot(a[::2], a[1::2]), np.hypot(b[::2], b[1::2])
        else:
            np.abs(a, out=a)
        self._sum_abs += float(a.sum())
        self.max_abs = max(self.max_abs, float(a.max()))
        if changed is None:
            if self._rtol or self._atol:
                np.abs(b, out=b)
                np.multiply(b, self._rtol, out=b)
                np.add(b, self._atol, out=b)
                self.differing += int(np.count_nonzero(a > b))
            else:
                self.differing += int(np.count_nonzero(a))

    def _finite(self, a: Array, b: Array, changed: Array | None) -> tuple[Array, Array, Array | None]:
        """The finite pairs. The others are counted here, and are not `changed` where both are NaN."""
        good = np.isfinite(a) & np.isfinite(b)
        alike = (a == b) | (np.isnan(a) & np.isnan(b))
        if self._pair == 2:
            good, alike = (np.repeat(mask[::2] & mask[1::2], 2) for mask in (good, alike))
        odd = int(np.count_nonzero(~good & ~alike)) // self._pair
        self.nonfinite += odd
        if changed is None:
            self.differing += odd
        else:
            changed = changed & ~(np.isnan(a) & np.isnan(b))
        return a[good], b[good], changed

    def _real(self, block: Array, side: int) -> Array:
        """Numbers that f64 can take; complex ones as pairs of parts."""
        decode = self._decoders[side]
        values = decode(block, {}) if decode is not None else block
        if values.dtype.kind == "b":
            return values.view(np.uint8)
        if self._complex[side]:
            return values.view(f"f{values.itemsize // 2}")
        if self._pair == 2:
            parts = np.zeros(2 * len(values), np.float64)
            parts[::2] = values
            return parts
        return values


def _codes(block: Array, count: int) -> Array:
    """The bits of `count` values, or parts of complex values, as integers."""
    return block.view(f"u{block.nbytes // count}") if count else block.view(np.uint8)


def _decoder(row: DType) -> Cast | None:
    """What makes a dtype that numpy does not compute with one that it does."""
    if row.bits < 8 or (row.floating and row.bits <= 16):
        if row.bits < 8 and row.name != "f4":
            raise UnsupportedError(f"the packing of {row} is not settled; its values cannot be compared")
        return Cast(row, _F32)
    if row.name == "c32":
        raise UnsupportedError("c32 values are compared by bytes only")
    return None
