"""What quantization cost: the values that were written against those that were there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf, log10, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.quantized import SLAB, decoding
from wtool.tensor import LazyTensor
from wtool.values import together

Array = NDArray[Any]

_ROW = 1 << 13  # of one dot product: of more than 10,000 OpenBLAS starts threads of its own
_LEAST = 1e-20  # a sum of squares in f32 may have lost some of its terms below that
_PIECE = 32 * SLAB  # elements that one thread is given


@dataclass(frozen=True, slots=True)
class Damage:
    """Sums over the weights of a tensor: of squares, of squared errors; the largest error.

    `clipped` counts the weights that lay beyond the range of their codes; None where the layout does not tell.
    """

    elements: int = 0
    energy: float = 0.0
    noise: float = 0.0
    worst: float = 0.0
    clipped: int | None = 0

    def __add__(self, other: Damage) -> Damage:
        clipped = None if self.clipped is None or other.clipped is None else self.clipped + other.clipped
        return Damage(
            self.elements + other.elements,
            self.energy + other.energy,
            self.noise + other.noise,
            max(self.worst, other.worst),
            clipped,
        )

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, 10 log10(sum w^2 / sum (w - q)^2), in dB; infinite where nothing changed."""
        if not self.noise:
            return inf
        return 10 * log10(self.energy / self.noise) if self.energy else -inf

    @property
    def relative(self) -> float:
        """The Frobenius norm of the error relative to that of the weights."""
        return 0.0 if not self.noise else sqrt(self.noise / self.energy) if self.energy else inf


def damage(
    pairs: Mapping[str, tuple[LazyTensor, LazyTensor]], jobs: int, progress: Callable[[int], None] | None = None
) -> dict[str, Damage]:
    """Key -> what the second tensor of a pair (f32, as it was decoded) lost of the first (f32, of the same shape).

    Sums are f32 over runs of 8,192 values, and f64 beyond. Large tensors are shared among threads, with the same outcome for
    any number of them.
    """
    tasks = [(key, first, last) for key, pair in pairs.items() for first, last in _pieces(*pair)]

    def work(task: tuple[str, int, int]) -> Damage:
        key, first, last = task
        one, two = pairs[key]
        found = Damage()
        for x, y, clipped in _runs(one, two, first, last):
            found += _of(x, y, clipped)
            if progress is not None:
                progress(x.nbytes)
        return found

    totals = {key: Damage() for key in pairs}
    for (key, _, _), found in zip(tasks, each(tasks, work, jobs), strict=True):
        totals[key] += found
    return totals


def _pieces(one: LazyTensor, two: LazyTensor) -> Iterator[tuple[int, int]]:
    """Rows that one thread is given; all where values are only had in turn."""
    source = decoding(two)
    if source is None or replace(one, kernels=()).span is None:
        yield 0, -1
        return
    many = max(_PIECE // source.columns // source.codec.step, 1) * source.codec.step
    for row in range(0, source.rows, many):
        yield row, min(row + many, source.rows)


def _runs(one: LazyTensor, two: LazyTensor, first: int, last: int) -> Iterator[tuple[Array, Array, int | None]]:
    """Runs of both, flat, and how many of the first lie beyond the range of the second's codes."""
    source = decoding(two)
    if source is None or last < 0:
        for _, (x, y) in together((one, two)):
            yield x, y, None
        return
    ends = getattr(source.codec, "ends", lambda *_: None)
    room = np.empty(max(SLAB, source.codec.step * source.columns), one.stored.numpy()) if one.stored.itemsize else None
    for row, parts, y in source.slabs(first, last, source.ahead()):
        low, high = row * source.columns, (row + len(y)) * source.columns
        x = one.flat(low, high, room if room is not None and room.size >= high - low else None)
        clipped = None
        if (bounds := ends(parts, row, source.columns)) is not None:
            clipped = _beyond(x, len(y), *bounds)
        yield x, y.reshape(-1), clipped


def _beyond(x: Array, rows: int, low: Array, high: Array) -> int:
    """How many of `x` lie outside; the bounds are [rows or 1, groups or 1]."""
    low, high = low[:rows], high[:rows]
    grouped = x.reshape(rows, low.shape[1], -1)
    return int(np.count_nonzero(grouped > high[:, :, None])) + int(np.count_nonzero(grouped < low[:, :, None]))


def _of(x: Array, y: Array, clipped: int | None) -> Damage:
    error = np.subtract(x, y, out=y if y.flags.writeable else None)
    energy = noise = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, len(x), _ROW):
            part, wrong = x[start : start + _ROW], error[start : start + _ROW]
            energy += float(np.dot(part, part))
            noise += float(np.dot(wrong, wrong))
    worst = max(float(error.max(initial=0)), -float(error.min(initial=0)))
    if not np.isfinite(energy + noise) or energy < _LEAST or (worst and noise < _LEAST):
        energy, noise = (float(np.square(one, dtype=np.float64).sum()) for one in (x, error))
    return Damage(len(x), energy, noise, worst, clipped)
