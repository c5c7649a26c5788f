"""Scales that make the squared error small: a smaller scale clips the ends of a group and has finer steps for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.buffers import CHUNK, scratch
from wtool.kernels.groups import tiles

Array = NDArray[Any]

# Ratios to the scale that reaches the ends of the group: by bits and whether symmetric, for groups of up to 32, 64, 128 and
# more weights. Found by coordinate ascent on groups drawn from normal, Laplace, uniform and t distributions (4 and 8 degrees
# of freedom) and a normal one with outlying columns: the loss against a grid of 64 is 0.02 to 0.1 dB.
_RATIOS = {
    (4, True): ((0.89, 0.96, 1.04), (0.88, 0.95, 1.03), (0.80, 0.87, 0.94, 1.02), (0.48, 0.63, 0.77, 0.98)),
    (3, True): ((0.77, 0.90, 1.05), (0.69, 0.80, 0.91, 1.02), (0.63, 0.74, 0.87, 1.02), (0.23, 0.44, 0.61, 0.94)),
    (2, True): ((0.54, 0.73, 1.04), (0.48, 0.66, 1.03), (0.40, 0.58, 1.04), (0.18, 0.31, 0.44, 0.80)),
    (4, False): ((0.96, 1.00, 1.06), (0.93, 0.97, 1.03), (0.89, 0.94, 0.99), (0.50, 0.66, 0.80, 0.98)),
    (3, False): ((0.87, 0.95, 1.08), (0.82, 0.91, 1.04), (0.75, 0.86, 1.02), (0.36, 0.54, 0.66, 0.94)),
    (2, False): ((0.66, 0.80, 1.08), (0.60, 0.75, 1.07), (0.52, 0.68, 1.06), (0.19, 0.33, 0.48, 0.80)),
}
_FINE = (0.92, 0.96, 0.98, 1.0)  # of more bits
_WIDTHS = (32, 64, 128)
_RUNS = (512, 128)  # products that are added before the sum goes to f64: the more, the coarser the parts
_LONG = 64  # from where on vecdot is faster than einsum
_WHOLE = 1.02  # at and above, no code is out of range


def search(table: Array, scales: Array, zeros: Array | None, bits: int, stored: Callable[[Array], Array]) -> Array:
    """A scale for each group of f32 [groups, width]; `scales` reach its ends, `zeros` are the zero points, kept as they are.

    For each of a few ratios the codes d = q - zero are made; of these codes the best scale is sum(x d) / sum(d d) (least
    squares). It is rounded as it will be `stored`, and judged so: the error is sum(x x) - s (2 sum(x d) - s sum(d d)).

    x is first rounded to whole parts of a step, few enough that sums of products are exact in the floats that hold them: the
    order of adding, which differs between processors, decides nothing.
    """
    widest = 1 << bits - (1 if zeros is None else 0)  # of |d|, and of |x / scale|
    unit, room = ("f4", 24) if bits <= 4 else ("f8", 53)
    run = _run(table.shape[1])
    parts = np.float32((1 << room - 1) // run // widest**2)  # half of what fits: a scale may have been rounded down
    fine = np.maximum(scales / parts, np.float32(2.0**-126))
    dots, squares = _products(table, fine, zeros, bits, float(parts), run, unit)
    best = stored((fine * (dots / squares)).astype(np.float32))
    value = best / fine
    gains = value * (dots + dots - value * squares)
    chosen, most = scales.copy(), np.zeros(len(scales), gains.dtype)
    for scale, gain in zip(best, gains, strict=True):
        more = gain > most  # never where squares are 0 or the scale is rounded to 0
        np.copyto(chosen, scale, where=more)
        np.copyto(most, gain, where=more)
    return chosen


def _products(
    table: Array, fine: Array, zeros: Array | None, bits: int, parts: float, run: int, unit: str
) -> tuple[Array, Array]:
    """sum(x d) and sum(d d) [ratios, groups], x being in units of `fine`."""
    groups, width = table.shape
    ratios = np.array(_ratios(bits, zeros is None, width))
    factors = (1 / (parts * ratios)).astype(unit)[:, None]
    clipped = int((ratios < _WHOLE).sum())
    dots, squares = np.zeros((len(ratios), groups)), np.zeros((len(ratios), groups))
    lowest = -(1 << bits - 1)
    limit = CHUNK // len(ratios) // run * run
    for rows, columns in tiles(groups, width, limit, run):
        piece, many = table[rows, columns], rows.stop - rows.start
        wide = -(-piece.shape[1] // run) * run
        count = many * wide
        x, d = scratch(unit, count, 30), scratch(unit, len(ratios) * count, 31).reshape(len(ratios), count)
        parted = x.reshape(many, wide)
        parted[:, piece.shape[1] :] = 0
        np.divide(piece, fine[rows, None], out=parted[:, : piece.shape[1]])
        np.rint(x, out=x)
        np.multiply(x, factors, out=d)
        np.rint(d, out=d)
        short = d[:clipped]
        if zeros is None:
            np.clip(short, x.dtype.type(lowest), x.dtype.type(-1 - lowest), out=short)
        else:  # clip is slow with arrays, minimum and maximum with numbers
            point, bound = zeros[rows, None].astype(unit), scratch(unit, count, 32)
            np.copyto(bound.reshape(many, wide), lowest - point)
            np.maximum(short, bound, out=short)
            np.copyto(bound.reshape(many, wide), -1 - lowest - point)
            np.minimum(short, bound, out=short)
        runs = d.reshape(len(ratios), -1, run)
        dots[:, rows] += _whole(_dot(x.reshape(-1, run), runs), many)
        squares[:, rows] += _whole(_dot(runs, runs), many)
    return dots.astype(unit), squares.astype(unit)


def _run(width: int) -> int:
    """Of whole groups where they are short; 512 only where it divides, so that little is padded."""
    return min(width, _RUNS[1]) if width % _RUNS[0] else _RUNS[0]


def _ratios(bits: int, symmetric: bool, width: int) -> tuple[float, ...]:
    sets = _RATIOS.get((bits, symmetric))
    return _FINE if sets is None else sets[sum(width > limit for limit in _WIDTHS)]


def _dot(left: Array, right: Array) -> Array:
    """Sums of products along the last axis. They are exact, so that the two ways give the same."""
    if left.shape[-1] >= _LONG and hasattr(np, "vecdot"):  # numpy 2
        products: Array = np.vecdot(left, right)
        return products
    sums: Array = np.einsum("...i,...i->...", left, right)
    return sums


def _whole(sums: Array, groups: int) -> Array:
    """Of sums over runs those over groups."""
    if sums.shape[1] == groups:
        return sums
    whole: Array = sums.reshape(len(sums), groups, -1).sum(axis=2, dtype=np.float64)
    return whole
