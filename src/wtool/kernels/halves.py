"""Between f32 and f16 by arithmetic on bits, several times as fast as numpy and equal to it bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]

_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_EXPONENT = np.uint32(0x7F80_0000)
_ROUNDS_TO_INF = 0x477F_F000  # 65520 as f32: half way between the largest f16 and the next power of two
_SMALLEST_NORMAL = np.float32(2.0**-14)
_BEYOND = np.float32(2.0**16)


def narrow(source: Array, target: Array) -> None:
    """f32 to f16, to nearest, ties to even. NaNs, infinities and what overflows go through numpy, one by one.

    Let E be the exponent of x, but at least that of the smallest normal f16. Adding 2**(E+13), whose last place is worth
    2**(E-10), rounds |x| to a multiple q of 2**(E-10) in hardware, and q is what the sum's bits gained. The code of the f16 is
    q + (E + 14 << 10): for a normal number q's leading bit carries into the exponent, and so does a round up to the next
    binade; for a subnormal one E + 14 is 0.
    """
    bits, codes = source.view(np.uint32), target.view(np.uint16)
    for first in range(0, len(bits), CHUNK):
        given, code = bits[first : first + CHUNK], codes[first : first + CHUNK]
        rounded, power, half = scratch("u4", len(given)), scratch("u4", len(given), 1), scratch("u2", len(given))
        np.bitwise_and(given, _MAGNITUDE, out=rounded)
        special = np.flatnonzero(rounded >= _ROUNDS_TO_INF) if rounded.max() >= _ROUNDS_TO_INF else None
        np.bitwise_and(given, _EXPONENT, out=power)
        np.clip(power.view(np.float32), _SMALLEST_NORMAL, _BEYOND, out=power.view(np.float32))
        np.add(power, np.uint32(13 << 23), out=power)
        np.add(rounded.view(np.float32), power.view(np.float32), out=rounded.view(np.float32))
        np.copyto(code, rounded, casting="unsafe")  # the low 16 bits of the power are zero: this is q
        np.right_shift(power, np.uint32(13), out=power)
        np.copyto(half, power, casting="unsafe")
        np.add(code, half, out=code)
        np.subtract(code, np.uint16((13 - 14 + 127) << 10 & 0xFFFF), out=code)
        np.right_shift(given, np.uint32(16), out=power)
        np.copyto(half, power, casting="unsafe")
        np.bitwise_and(half, np.uint16(0x8000), out=half)
        np.bitwise_or(code, half, out=code)
        if special is not None:
            code[special] = given[special].view(np.float32).astype(np.float16).view(np.uint16)


def widen(source: Array, target: Array) -> None:
    """f16 to f32, exactly. NaNs and infinities go through numpy.

    The exponent and the fraction of an f16, put where those of an f32 are, are 2**112 times too small; that holds for
    subnormal numbers too.
    """
    codes, bits = source.view(np.int16), target.view(np.int32)
    for first in range(0, len(codes), CHUNK):
        code, wide = codes[first : first + CHUNK], bits[first : first + CHUNK]
        np.copyto(wide, code)
        np.left_shift(wide, np.int32(13), out=wide)
        unsigned = wide.view(np.uint32)
        np.bitwise_and(unsigned, np.uint32(0x8FFF_FFFF), out=unsigned)  # the extended sign's copies leave the exponent
        np.multiply(wide.view(np.float32), np.float32(2.0**112), out=wide.view(np.float32))
        magnitude = scratch("u2", len(code))
        np.bitwise_and(code.view(np.uint16), np.uint16(0x7FFF), out=magnitude)
        if magnitude.max() >= 0x7C00:
            special = np.flatnonzero(magnitude >= 0x7C00)
            wide[special] = code[special].view(np.float16).astype(np.float32).view(np.int32)
