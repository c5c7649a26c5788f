"""From f64 to narrower floats in one rounding.

numpy's and ml_dtypes' `astype` from f64 to bf16 and to the 8-bit floats goes through f32 and so rounds twice: of a value a
hair above half way between two bf16 the first rounding makes the half, the second one the even neighbour, below.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels.buffers import CHUNK, scratch
from wtool.kernels.cast import route
from wtool.kernels.squares import product

Array = NDArray[Any]

_F64, _F32, _BF16 = map(dtype, ("f64", "f32", "bf16"))
_LOW = np.uint32(0xFFF)  # bits of an f32 that are zero wherever it lies half way between two of any narrower dtype
_HALF, _NONE = np.uint16(0x8000), np.uint32(0)  # of bf16: exactly half of a last place
_FEW = 64  # of more than one in so many, all are looked at


def narrow(values: Array, out: Array, target: DType) -> None:
    """f64 values rounded once, to nearest and ties to even, into `out`. For floating targets of 8 bits and more.

    The way over f32 is wrong only where f32 had to round and landed half way between two of the target. There the f32 is
    replaced by its neighbour on the value's side, whose last bit is odd ("round to odd": Boldo and Melquiond 2008), and which
    rounds as the value itself does.
    """
    if target is _F64 or target is _F32:
        np.copyto(out, values, casting="unsafe")
        return
    with np.errstate(all="ignore"):
        for first in range(0, len(values), CHUNK):
            exact = values[first : first + CHUNK]
            single, low, half = scratch("f4", len(exact), 20), scratch("u4", len(exact), 21), scratch("?", len(exact), 22)
            np.copyto(single, exact, casting="same_kind")
            if target is _BF16:
                below = scratch("u2", len(exact), 25)
                np.copyto(below, single.view(np.uint32), casting="unsafe")  # the lower half
                np.equal(below, _HALF, out=half)
            else:
                np.bitwise_and(single.view(np.uint32), _LOW, out=low)
                np.equal(low, _NONE, out=half)
            piece = out[first : first + CHUNK]
            count = np.count_nonzero(half)
            plain = target is _BF16 and not np.isnan(product(single, single))
            if plain and count <= len(exact) // _FEW:
                _upper(single, exact, np.flatnonzero(half) if count else None, piece)
                continue
            if count > len(exact) // _FEW:  # as of the mean of two bf16, which f32 holds
                wide = scratch("f8", len(exact), 23)
                np.copyto(wide, single)
                np.logical_and(half, np.not_equal(wide, exact, out=scratch("?", len(exact), 24)), out=half)
                count = np.count_nonzero(half)
            if count:
                _to_odd(single, exact, np.flatnonzero(half))
            if plain:
                _upper_even(single, piece)
            else:
                route(_F32, target)(single, piece)


# f32 that are no NaN to bf16, on integers: ml_dtypes' cast does not let other threads run.


def _upper(single: Array, exact: Array, ties: Array | None, out: Array) -> None:
    """`ties` are the few places half way between two, where the exact value decides."""
    bits, code = single.view(np.uint32), out.view(np.uint16)
    up = None
    if ties is not None:
        seen, meant = np.abs(single[ties]), np.abs(exact[ties])
        up = (meant > seen) | ((meant == seen) & (bits[ties] >> np.uint32(16) & np.uint32(1) == 1))
    np.add(bits, np.uint32(_HALF), out=bits)
    np.right_shift(bits, np.uint32(16), out=bits)
    np.copyto(code, bits, casting="unsafe")
    if ties is not None:
        code[ties] -= ~up  # type: ignore[operator]


def _upper_even(single: Array, out: Array) -> None:
    bits, odd = single.view(np.uint32), scratch("u4", len(single), 21)
    np.right_shift(bits, np.uint32(16), out=odd)
    np.bitwise_and(odd, np.uint32(1), out=odd)
    np.add(bits, odd, out=bits)
    np.add(bits, np.uint32(0x7FFF), out=bits)
    np.right_shift(bits, np.uint32(16), out=bits)
    np.copyto(out.view(np.uint16), bits, casting="unsafe")


def _to_odd(single: Array, exact: Array, some: Array) -> None:
    """Replace those of `some` places where f32 had to round."""
    seen, meant = single[some], exact[some]
    off = seen != meant
    if off.any():
        some, seen, meant = some[off], seen[off], meant[off]
        toward = np.where(meant > seen, np.float32(np.inf), np.float32(-np.inf))
        single[some] = np.where(np.isnan(meant), seen, np.nextafter(seen, toward))
