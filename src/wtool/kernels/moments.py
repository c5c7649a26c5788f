"""What one pass over a tensor's values tells: range, mean, spread, norm, zeros, NaN, Inf and a coarse histogram."""

from __future__ import annotations

from math import floor, isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import UnsupportedError
from wtool.kernels.buffers import CHUNK, scratch
from wtool.kernels.cast import Cast

Array = NDArray[Any]

_BINS = 64
_SAMPLE = 7  # of long blocks every seventh value enters the histogram
_F32 = dtype("f32")


class Moments:
    """An accumulator of blocks of one dtype. UnsupportedError for a dtype whose values cannot be decoded.

    Complex values count by their magnitude, bools as 0 and 1, f4 decoded. NaN and Inf are counted and enter nothing else, so
    that `count` is of the finite values. Sums are in f64: those of a chunk are taken around its first value and pairwise, and
    chunks are merged by Chan, Golub and LeVeque's formula (1979), so that a large mean does not eat the spread. Integers wider
    than 53 bits are exact in `low` and `high` only.
    """

    def __init__(self, of: DType) -> None:
        self.dtype = of
        self.count = self.zeros = self.nan = self.inf = 0
        self.low: float = float("inf")
        self.high: float = float("-inf")
        self.mean = 0.0
        self._squares = 0.0  # sum of (value - mean)**2
        self._histogram = _Histogram()
        self._decode: Cast | None = None
        if not of.itemsize or (of.floating and of.bits <= 16):
            if not (of.itemsize or of.block or of.name == "f4"):
                raise UnsupportedError(f"the packing of {of} is not settled; it has no statistics")
            self._decode = Cast(of, _F32)

    @property
    def std(self) -> float:
        """Of the population: divided by the count, not by one less."""
        return sqrt(max(self._squares, 0.0) / self.count) if self.count else 0.0

    @property
    def norm(self) -> float:
        """The L2 norm of the finite values."""
        return sqrt(max(self._squares, 0.0) + self.count * self.mean * self.mean)

    def histogram(self, bins: int = 16) -> tuple[int, ...]:
        """About how the finite values spread between `low` and `high`, in equal bins; of long tensors every seventh value."""
        return self._histogram.between(float(self.low), float(self.high), bins) if self.count else ()

    def add(self, block: Array) -> None:
        """Take in a flat block as LazyTensor.blocks yields it (raw bytes of packed dtypes)."""
        with np.errstate(all="ignore"):
            values = self._real(block)
            for first in range(0, len(values), CHUNK):
                self._chunk(values[first : first + CHUNK])

    def _real(self, block: Array) -> Array:
        if self._decode is not None:
            return self._decode(block, {})
        if self.dtype.name == "c32":  # numpy has no such dtype; it is two f16
            return np.abs(block.view(np.float16).astype(np.float32).view(np.complex64))
        if self.dtype.kind == "complex":
            return np.abs(block)
        return block.view(np.uint8) if self.dtype.kind == "bool" else block

    def _chunk(self, given: Array) -> None:
        values = given
        low, high = values.min(), values.max()
        if values.dtype.kind == "f" and not (isfinite(low) and isfinite(high)):
            nan = int(np.count_nonzero(np.isnan(values)))
            values = values[np.isfinite(values)]
            self.nan += nan
            self.inf += len(given) - nan - len(values)
            if not len(values):
                return
            low, high = values.min(), values.max()
        self.zeros += int(np.count_nonzero(values == 0))
        self.low, self.high = min(self.low, low.item()), max(self.high, high.item())
        pivot = float(values[0])
        wide = scratch("f8", len(values))
        np.copyto(wide, values, casting="unsafe")
        sample = wide if len(wide) <= CHUNK // 8 else wide[::_SAMPLE]
        self._histogram.add(sample, float(low), float(high))
        np.subtract(wide, pivot, out=wide)
        total = float(wide.sum())
        np.multiply(wide, wide, out=wide)
        self._merge(len(values), pivot + total / len(values), float(wide.sum()) - total * total / len(values))

    def _merge(self, count: int, mean: float, squares: float) -> None:
        both, apart = self.count + count, mean - self.mean
        self.mean += apart * (count / both)
        self._squares += squares + apart * apart * (self.count * (count / both))
        self.count = both


class _Histogram:
    """Counts in equal bins over a range that doubles when values fall outside of it."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.start = self.width = 0.0  # of the range, and of one bin; no range yet while the width is 0

    def add(self, values: Array, low: float, high: float) -> None:
        if not self.width:
            self.width = max((high - low) / _BINS, abs(low) * 2.0**-40, abs(high) * 2.0**-40, 2.0**-1000)
            self.start = low
        if not isfinite(self.width):  # a range beyond that of f64
            return
        while low < self.start or high >= self.start + self.width * _BINS:
            if not isfinite(self.width * _BINS * 2):
                return
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            if low < self.start:
                self.start -= self.width * _BINS
                self.counts[_BINS // 2 :] = merged
            else:
                self.counts[: _BINS // 2] = merged
            self.width *= 2
        scaled = (values - self.start) * (1 / self.width)
        self.counts += np.bincount(np.clip(scaled, 0, _BINS - 1).astype(np.intp), minlength=_BINS)

    def between(self, low: float, high: float, bins: int) -> tuple[int, ...]:
        """The counts in `bins` equal bins from `low` to `high`, each old bin shared out by its overlap."""
        step = (high - low) / bins
        if not step or not isfinite(step) or not isfinite(self.width):
            return (*[0] * (bins // 2), int(self.counts.sum()), *[0] * (bins - bins // 2 - 1))
        shared = [0.0] * bins
        for index, count in enumerate(self.counts.tolist()):
            if not count:
                continue
            left = max((self.start + index * self.width - low) / step, 0.0)
            right = min((self.start + (index + 1) * self.width - low) / step, float(bins))
            first = min(floor(left), bins - 1)
            last = min(floor(right), bins - 1)
            for place in range(first, last + 1):
                overlap = min(right, place + 1) - max(left, place)
                shared[place] += count * (overlap / (right - left) if right > left else 1 / (last - first + 1))
        return tuple(round(share) for share in shared)
