"""Means of runs of f16 or bf16 in f32, wherever that gives the bits that exact arithmetic gives.

Let p be the bits of a significand (11 or 8), and let the largest and the smallest of n values lie at most d powers of two
apart. All are multiples of 2**L, the last place of the smallest, and less than 2**(L + p + d). If d <= 24 - p - log2(n), then

- every partial sum is a multiple of 2**L below 2**(L + 24): f32 holds it, and the sum S is exact;
- S/n, rounded to f32, is a value h half way between two of the target only if S/n is h: let 2**e <= h < 2**(e + 1). S - n h is
  a multiple of 2**L or of 2**(e - p), so S/n = h or it is off by at least 1/n of the smaller one. Half a last place of an f32
  there is 2**(e - 24), and that is less: 2**L / n as h is not above the largest value, 2**(e - p) / n as n < 2**(24 - p).

Rounding to nearest keeps order, so what is rounded to f32 and then to the target is S/n rounded once; and so is what goes
through f64, for the same reasons. Where the values lie further apart, f64 decides, value by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels.buffers import scratch
from wtool.kernels.rounding import narrow
from wtool.kernels.squares import product

Array = NDArray[Any]

_F16, _BF16 = dtype("f16"), dtype("bf16")
_SLOT = 90  # of the first input's scratch array; others lie below
_TOTAL, _MEAN, _CODES = 82, 83, 84
_SCALE = 2.0**112  # between an f16 and the f32 that has its bits where an f32 has its own
_LARGEST = {_F16: 0x7C00, _BF16: (127 + 50) << 7}  # codes below which squares have a sum in f32
_LEAST = {_F16: 1, _BF16: (127 - 40) << 7}  # and from which on what vanishes of them does not matter
_MANY = 16  # of more than one value in so many f64 is as well asked for all
_PIECE = 1 << 17  # elements worked on at a time: with fewer, threads wait for one another more often
_ROOM = 1 << 19  # elements of all inputs together
MOST = 64  # inputs

# As arrays: to make one of a scalar takes as long as the call that gets it.
_MAGNITUDE = np.array(0x7FFF, np.uint16)
_1, _3, _13, _16 = (np.array(value, np.uint32) for value in (1, 3, 13, 16))
_HIGH, _SIGN, _REST = (np.array(value, np.uint32) for value in (0xFFFF_0000, 0x8000_0000, 0x7FFF_0000))
_UP_BF16, _UP_F16 = np.array(0x7FFF, np.uint32), np.array(0xFFF, np.uint32)
_DOWN, _KEEP = np.array(3, np.int32), np.array(-0x7000_2000, np.int32)
_GROW = np.array(_SCALE, np.float32)


def mean(row: DType, blocks: Sequence[Array], out: Array, squares: list[float] | None) -> tuple[float, list[slice]]:
    """The mean of blocks of one length into `out`: the sum of its squares, and what was left out.

    Left out are runs where another way must be gone: values that are not finite, very large or very small ones, many of unlike
    size, an odd last one. The distances of the blocks from the mean, squared, are added to `squares`; these and the sum are
    good to about 1e-6 of themselves, and the distances to 1e-7 of the norm of the mean.
    """
    size, norm = len(out), 0.0
    step = min(_PIECE, _ROOM // len(blocks)) & -2
    if any(not block.view(np.uint16)[: size & -2].view(np.uint32).flags.aligned for block in (*blocks, out)):
        return 0.0, [slice(0, size)]
    left, wide = [], []
    for start in range(0, size & -2, step):
        stop = min(start + step, size & -2)
        codes = [block[start:stop].view(np.uint16) for block in blocks]
        apart = _apart(row, codes)
        if apart is None:
            left.append(slice(start, stop))
            continue
        norm += _mean(row, codes, out[start:stop].view(np.uint32), squares)
        if len(apart):
            wide.append(apart + start)
    if wide:
        _by_f64(row, blocks, out, np.concatenate(wide))
    return norm, left if size % 2 == 0 else [*left, slice(size - 1, size)]


def _mean(row: DType, codes: Sequence[Array], words: Array, squares: list[float] | None) -> float:
    size = len(codes[0])
    planes = [_decoded(row, code.view(np.uint32), scratch("f4", size, _SLOT + place)) for place, code in enumerate(codes)]
    total, rounded = scratch("f4", size, _TOTAL), scratch("u4", size, _MEAN)
    np.add(planes[0], planes[1], total)
    for plane in planes[2:]:
        np.add(total, plane, total)
    if row is _BF16:
        np.divide(total, _number(len(codes)), total)
        _to_bf16(total.view(np.uint32), rounded, words)
    else:
        np.divide(total, _number(len(codes) * _SCALE), total)
        _to_f16(total.view(np.uint32), rounded, words)
        np.multiply(total, _GROW, total)
    if squares is not None:
        for place, plane in enumerate(planes):
            np.subtract(plane, total, plane)
            squares[place] += product(plane, plane)
    return product(total, total)


@cache
def _number(value: float) -> Array:
    return np.array(value, np.float32)


def _by_f64(row: DType, blocks: Sequence[Array], out: Array, places: Array) -> None:
    total = np.zeros(len(places))
    for block in blocks:
        total += block[places].astype(np.float64)
    some = np.empty(len(places), out.dtype)
    narrow(total / len(blocks), some, row)
    out[places] = some


def _apart(row: DType, codes: Sequence[Array]) -> Array | None:
    """Where the values lie too far apart for f32; None if f64 should do it all."""
    size = len(codes[0])
    large, small, other = (scratch("u2", size, _CODES + place) for place in range(3))
    np.bitwise_and(codes[0], _MAGNITUDE, other)
    np.bitwise_and(codes[1], _MAGNITUDE, large)
    np.minimum(other, large, small)
    np.maximum(other, large, large)
    for code in codes[2:]:
        np.bitwise_and(code, _MAGNITUDE, other)
        np.minimum(small, other, small)
        np.maximum(large, other, large)
    most = int(large.max())
    if most and not _LEAST[row] <= most < _LARGEST[row]:
        return None
    np.subtract(large, small, small)
    found = np.greater(small, _far(row, len(codes)), scratch("?", size, _CODES))
    many = np.count_nonzero(found)
    if many > size // _MANY:
        return None
    return np.flatnonzero(found) if many else small[:0]


@cache
def _far(row: DType, count: int) -> Array:
    """Codes of magnitudes that differ by more may be more powers of two apart than f32 has room for."""
    fraction = 10 if row is _F16 else 7
    return np.array(24 - (fraction + 1) - (count - 1).bit_length() << fraction, np.uint16)


def _decoded(row: DType, words: Array, plane: Array) -> Array:
    """The values in f32: first those at even places, then those at odd ones."""
    half = len(words)
    if row is _BF16:
        bits = plane.view(np.uint32)
        np.left_shift(words, _16, bits[:half])
        np.bitwise_and(words, _HIGH, bits[half:])
        return plane
    signed = plane.view(np.int32)  # copies of the sign take the places that are cleared
    np.left_shift(words, _16, signed[:half].view(np.uint32))
    np.right_shift(signed[:half], _DOWN, signed[:half])
    np.right_shift(words.view(np.int32), _DOWN, signed[half:])
    np.bitwise_and(signed, _KEEP, signed)
    np.multiply(plane, _GROW, plane)
    return plane


def _to_bf16(bits: Array, rounded: Array, words: Array) -> None:
    half = len(words)
    np.right_shift(bits, _16, rounded)
    np.bitwise_and(rounded, _1, rounded)
    np.add(rounded, bits, rounded)
    np.add(rounded, _UP_BF16, rounded)
    np.bitwise_and(rounded[half:], _HIGH, rounded[half:])
    np.right_shift(rounded[:half], _16, words)
    np.bitwise_or(words, rounded[half:], words)


def _to_f16(bits: Array, rounded: Array, words: Array) -> None:
    """Of f32 that are too small by _SCALE: subnormal ones become subnormal."""
    half = len(words)
    np.right_shift(bits, _13, rounded)
    np.bitwise_and(rounded, _1, rounded)
    np.add(rounded, bits, rounded)
    np.add(rounded, _UP_F16, rounded)
    np.left_shift(rounded, _3, rounded)
    np.bitwise_and(rounded, _REST, rounded)
    signs = scratch("u4", len(bits), _MEAN + 1)
    np.bitwise_and(bits, _SIGN, signs)
    np.bitwise_or(rounded, signs, rounded)
    np.right_shift(rounded[:half], _16, words)
    np.bitwise_or(words, rounded[half:], words)
