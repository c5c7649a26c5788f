"""Lanes of quotients as e2m1: sign, two bits of exponent, one of fraction; 0, 0.5, 1, 1.5, 2, 3, 4 and 6.

OCP Microscaling Formats 1.0, 5.3.3. Nearest, ties to the even code, above 6 is 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels import lanes

Array = NDArray[Any]

# Half way between two values; where the upper one has an even code it is taken.
_EDGES = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))


def pack(quotients: Array, out: Array) -> None:
    """Codes of f32 [size, groups] as bytes [groups, size / 2], low four bits first. A negative value that becomes zero keeps
    its sign, a negative zero does not.
    """
    codes = lanes.tally(np.abs(quotients, out=lanes.empty("f4", quotients.shape, 31)), _EDGES, 32)
    sign = lanes.empty("?", quotients.shape, 33)
    np.less(quotients, np.float32(0), out=sign)
    np.left_shift(sign.view(np.uint8), np.uint8(3), out=sign.view(np.uint8))
    np.bitwise_or(codes, sign.view(np.uint8), out=codes)
    lanes.paired(codes, out)


def errors(weights: Array, scales: Array) -> Array:
    """Of each lane of f32 [size, groups] the squared error that its scale, f32 [groups], would leave.

    Adding a power of two whose last place is worth the step between the values rounds in hardware, as in halves.narrow.
    """
    size, power, bound = (lanes.empty("f4", weights.shape, slot) for slot in (31, 32, 33))
    np.abs(np.divide(weights, scales, out=size), out=size)
    np.bitwise_and(size.view(np.uint32), np.uint32(0x7F80_0000), out=power.view(np.uint32))
    bound.fill(1)
    np.maximum(power, bound, out=power)  # below 1 the step stays as it is above
    np.add(power.view(np.uint32), np.uint32(22 << 23), out=power.view(np.uint32))
    rounded = np.subtract(np.add(size, power, out=bound), power, out=bound)
    power.fill(6)
    np.minimum(rounded, power, out=rounded)
    np.subtract(size, rounded, out=size)
    np.multiply(size, size, out=size)
    with np.errstate(over="ignore"):
        return np.asarray(size.sum(axis=0) * scales * scales)
