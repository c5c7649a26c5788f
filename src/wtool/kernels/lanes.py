"""Groups of weights as columns beside one another, so that what a group has in common is computed for many at a time.

numpy is slow where the inner axis is short: the largest of every 16 takes 3 ns a value along the row and 0.1 ns a column after
a transposing copy of 0.4 ns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels import halves
from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]

_F32, _F16, _BF16 = map(dtype, ("f32", "f16", "bf16"))


def pieces(groups: int, size: int) -> Iterator[slice]:
    """The groups of `size` values, as many at a time as CHUNK values."""
    step = max(CHUNK // size, 1)
    for first in range(0, groups, step):
        yield slice(first, min(first + step, groups))


def turned(groups: Array, slot: int) -> Array:
    """f32 [groups, size] as [size, groups], in this thread's scratch array number `slot`."""
    lanes = empty("f4", groups.shape[::-1], slot)
    np.copyto(lanes, groups.T)
    return lanes


def empty(unit: str, shape: tuple[int, ...], slot: int) -> Array:
    """This thread's scratch array number `slot` in a shape of two axes."""
    rows, columns = shape
    return scratch(unit, rows * columns, slot).reshape(rows, columns)


def tally(lanes: Array, edges: tuple[tuple[float, bool], ...], slot: int) -> Array:
    """u8 of the same shape: how many edges lie below a value; one marked true also counts if it is equal."""
    codes, above = empty("u1", lanes.shape, slot), empty("?", lanes.shape, slot + 1)
    for number, (edge, even) in enumerate(edges):
        compare = np.greater_equal if even else np.greater
        if number:
            compare(lanes, np.float32(edge), out=above)
            np.add(codes, above.view(np.uint8), out=codes)
        else:
            compare(lanes, np.float32(edge), out=codes.view(bool))
    return codes


def paired(codes: Array, out: Array, first_high: bool = False) -> None:
    """Lanes of codes u8 [size, groups] below 16 into bytes [groups, size / 2], the first of two in the low or high bits."""
    high, low = (codes[::2], codes[1::2]) if first_high else (codes[1::2], codes[::2])
    np.left_shift(high, np.uint8(4), out=high)
    np.bitwise_or(low, high, out=low)
    np.copyto(out, low.T)


def round_to(values: Array, to: DType) -> None:
    """Round a contiguous f32 array in place to the values of `to` (f32, bf16 or f16), ties to even; it holds no NaN."""
    if to is _F32:
        return
    flat = values.reshape(-1)
    for first in range(0, flat.size, CHUNK):
        piece = flat[first : first + CHUNK]
        if to is _F16:
            half = scratch("f2", len(piece), 40)
            halves.narrow(piece, half)
            halves.widen(half, piece)
            continue
        bits, odd = piece.view(np.uint32), scratch("u4", len(piece), 40)
        np.right_shift(bits, np.uint32(16), out=odd)
        np.bitwise_and(odd, np.uint32(1), out=odd)
        np.add(bits, odd, out=bits)
        np.add(bits, np.uint32(0x7FFF), out=bits)
        np.bitwise_and(bits, np.uint32(0xFFFF_0000), out=bits)
