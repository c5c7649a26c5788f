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

Array = NDArray[Any]

_F32, _F64 = dtype("f32"), dtype("f64")
_LOW = np.uint32(0xFFF)  # bits of an f32 that are zero wherever it lies half way between two of any narrower dtype
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
            np.bitwise_and(single.view(np.uint32), _LOW, out=low)
            np.equal(low, 0, out=half)
            count = np.count_nonzero(half)
            if count > len(exact) // _FEW:  # as of the mean of two bf16, which f32 holds
                wide = scratch("f8", len(exact), 23)
                np.copyto(wide, single)
                np.logical_and(half, np.not_equal(wide, exact, out=scratch("?", len(exact), 24)), out=half)
                count = np.count_nonzero(half)
            if count:
                _to_odd(single, exact, np.flatnonzero(half))
            route(_F32, target)(single, out[first : first + CHUNK])


def _to_odd(single: Array, exact: Array, some: Array) -> None:
    """Replace those of `some` places where f32 had to round."""
    seen, meant = single[some], exact[some]
    off = seen != meant
    if off.any():
        some, seen, meant = some[off], seen[off], meant[off]
        toward = np.where(meant > seen, np.float32(np.inf), np.float32(-np.inf))
        single[some] = np.where(np.isnan(meant), seen, np.nextafter(seen, toward))
