"""Scales that are powers of two, one for 32 weights: a byte for 2 ** (byte - 127); 255 is NaN.

OCP Microscaling Formats 1.0, 5.4.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels import lanes

Array = NDArray[Any]

SIZE = 32  # weights that share a scale
_F16 = dtype("f16")
_POWERS = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan))


def exponents(largest: Array, most: int, of: DType) -> Array:
    """Bytes for largest magnitudes (f32) where 2 ** most is the greatest power of two that a code has.

    floor(log2(largest)) - most, one more where the fraction is 1.75 or above: compressed-tensors' generate_mx_scales. For
    zeros it gives 127 in f16 (`of`), else 0. Where one more would be Inf in the dtype it gives 255; here the power is not
    raised then, so that what is decoded is a number in the dtype.
    """
    found = (largest.view(np.uint32) + np.uint32(1 << 21) >> np.uint32(23)).astype(np.int32)
    found = np.minimum(found, 127 + (15 if of is _F16 else 127)) - most
    if of is _F16:
        found[largest == 0] = 127
    return np.maximum(found, 0).astype(np.uint8)


def power(exponents: Array) -> Array:
    """f32 of the same shape."""
    return np.asarray(_POWERS.take(exponents))


def multiply(values: Array, exponents: Array) -> Array:
    """f32 [n, I], a contiguous array, times the powers [n, I / 32], in place."""
    groups, powers = values.reshape(-1, SIZE), power(exponents).reshape(-1, 1)
    with np.errstate(all="ignore"):  # a damaged file
        for some in lanes.pieces(len(groups), SIZE):
            np.multiply(groups[some], powers[some], out=groups[some])
    return values
