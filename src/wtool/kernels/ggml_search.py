"""What the encoders of GGUF blocks share: blocks as columns, and the search for the scale with the least squared error.

An array here is [block, count]: element i of every block is one row, so that what belongs to a block (its scale, its
minimum) is a row too, and all arithmetic runs along rows. Every sum is folded in one fixed order and nothing is fused, so that
the outcome depends neither on how many blocks there are nor on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.errors import DtypeError
from wtool.kernels.buffers import scratch

Array = NDArray[Any]

NEGLIGIBLE = np.float32(2.0**-100)  # a block of smaller values has scales far below the smallest f16: it is zero
_PIECE = 1 << 18  # values worked on at a time: with fewer, threads wait for one another more than they work
_FIRST_SLOT = 40  # of the scratch arrays used here and by the encoders; other kernels use lower ones

_HUGE = np.float32(2.0**100)  # of larger ones sums may overflow: their scales are Inf, which no f16 holds
_NEARLY = np.float32(1 + 2.0**-10)  # more than the rounding of a normal f16 takes away

VALUES, WORK, OTHER, SHIFTED = range(4)  # slots of [block, count] arrays


def plane(shape: tuple[int, ...], slot: int, unit: str = "f4") -> Array:
    """Scratch of this shape, [block, count]."""
    return scratch(unit, math.prod(shape), _FIRST_SLOT + slot).reshape(shape)


def columns(blocks: Array, slot: int = VALUES) -> Array:
    """[count, block] to [block, count]."""
    out = plane(blocks.T.shape, slot)
    np.copyto(out, blocks.T)
    return out


def pieces(blocks: int, block: int) -> Iterator[slice]:
    """The blocks that a kernel takes at a time, about as many each."""
    number = -(-blocks * block // _PIECE)
    step = -(-blocks // max(number, 1))
    return (slice(first, first + step) for first in range(0, blocks, step or 1))


def fold(op: Any, values: Array, into: Array | None = None) -> Array:
    """`op` over the rows, halves first, whose number is a power of two. Overwrites `into`, or else `values`."""
    half = len(values) // 2
    work = values if into is None else into
    while half > 1:
        op(values[:half], values[half : 2 * half], out=work[:half])
        values, half = work, half // 2
    out: Array = op(values[0], values[1])
    return out


def extremes(values: Array) -> tuple[Array, Array]:
    """Of each block the least and the largest value."""
    work = plane(values.shape, WORK)
    return fold(np.minimum, values, work), fold(np.maximum, values, work)


def farthest(values: Array) -> Array:
    """Of each block the value of the largest magnitude, with its sign; the first one if two have it."""
    low, high = extremes(values)
    out = np.where(high > -low, high, low)
    ties = np.flatnonzero(high == -low)
    if len(ties):
        some = values[:, ties]
        out[ties] = np.take_along_axis(some, np.abs(some).argmax(axis=0)[None], axis=0)[0]
    return out


def inverse(scale: Array) -> Array:
    """1 / scale, and 0 for 0."""
    out = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=out, where=scale != 0)
    return out


def half(values: Array, name: str) -> Array:
    """f32 to f16. DtypeError if one does not fit."""
    out = values.astype(np.float16)
    if np.isinf(out).any():
        raise DtypeError(
            f"{name} keeps its scales in f16, and these values need one above 65504",
            hint="leave the tensor in its dtype, or cast it to bf16",
        )
    return out


def half_above(values: Array, name: str) -> Array:
    """The same, but a small one whose f16 is much nearer to zero becomes the f16 above: none becomes zero, or too coarse."""
    out = half(values, name)
    wanting = np.abs(values) > np.abs(out.astype(np.float32)) * _NEARLY
    out.view(np.uint16)[wanting] += np.uint16(1)
    return half(out, name)


def codes(values: Array, inverse_scale: Array, offset: float, top: int) -> Array:
    """trunc(values * inverse_scale + offset), held within 0 and `top`, as u8 scratch."""
    work, out = plane(values.shape, WORK), plane(values.shape, OTHER, "u1")
    np.multiply(values, inverse_scale, out=work)
    np.add(work, np.float32(offset), out=work)
    np.clip(work, np.float32(0), np.float32(top), out=work)
    np.copyto(out, work, casting="unsafe")
    return out


def symmetric(values: Array, peak: Array, least: int, top: int, reach: tuple[float, ...]) -> Array:
    """For each block the scale d that, of those tried, leaves the least of sum (x - d q)^2, q within `least` and `top`.

    Tried are the codes that x / (peak / r) rounds to, for each r of `reach`; `peak` is the value of the largest magnitude. Of
    given codes the best scale is sum(x q) / sum(q q), and the error it leaves sum(x x) - sum(x q)^2 / sum(q q).
    """
    codes, work, unit = (plane(values.shape, slot) for slot in (OTHER, WORK, SHIFTED))
    np.multiply(values, inverse(np.where(np.abs(peak) < NEGLIGIBLE, np.float32(0), peak)), out=unit)
    best, scale = np.full_like(peak, -1), np.zeros_like(peak)
    for r in reach:
        np.multiply(unit, np.float32(r), out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, np.float32(least), np.float32(top), out=codes)
        product = fold(np.add, np.multiply(codes, unit, out=work))
        square = np.maximum(fold(np.add, np.multiply(codes, codes, out=work)), np.float32(1))
        slope = product / square
        share = product * slope
        better = share > best
        np.copyto(best, share, where=better)
        np.copyto(scale, slope, where=better)
    scale = scale * peak
    np.copyto(scale, np.float32(np.inf), where=np.abs(peak) > _HUGE)
    return scale + np.float32(0)  # -0 becomes 0


def affine(values: Array, low: Array, high: Array, top: int, ends: tuple[tuple[float, float], ...]) -> tuple[Array, Array]:
    """For each block the scale d and the minimum m that, of those tried, leave the least of sum (x - d q - m)^2, q in 0..top.

    Tried are the codes by the grid whose ends lie (a, b) steps inside of the values' own, for each pair of `ends`; of given
    codes d and m are those of the regression of x on q.
    """
    codes, work, unit = (plane(values.shape, slot) for slot in (OTHER, WORK, SHIFTED))
    number, span = np.float32(len(values)), high - low
    np.subtract(values, low, out=unit)
    np.multiply(unit, inverse(np.where(span < NEGLIGIBLE, np.float32(0), span)), out=unit)
    total = fold(np.add, unit, work)
    best, scale, least = np.full_like(low, -1), np.zeros_like(low), np.zeros_like(low)
    for a, b in ends:
        np.multiply(unit, np.float32(top + a + b), out=codes)
        if a:
            np.subtract(codes, np.float32(a), out=codes)
        np.rint(codes, out=codes)
        if a or b:
            np.clip(codes, np.float32(0), np.float32(top), out=codes)
        product = fold(np.add, np.multiply(codes, unit, out=work))
        square = fold(np.add, np.multiply(codes, codes, out=work))
        mean = fold(np.add, codes) / number  # overwrites the codes
        product -= mean * total
        square -= mean * mean * number
        slope = product / np.maximum(square, np.float32(0.5))
        share = slope * product
        better = share > best
        np.copyto(best, share, where=better)
        np.copyto(scale, slope, where=better)
        np.copyto(least, total / number - slope * mean, where=better)
    scale, least = scale * span, low + least * span
    np.copyto(scale, np.float32(np.inf), where=~(span <= _HUGE))
    return scale + np.float32(0), least + np.float32(0)  # -0 becomes 0
