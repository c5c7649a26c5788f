"""Values into the blocks of a GGUF file, for ggml's types of 32 values a block; the K types are in `ggml_encode_k`.

`ggml.RECORDS` has the layouts. What they mean (ggml-quants.c of github.com/ggml-org/ggml), q being the code of a value:

    q8_0   d q           q -127..127
    q4_0   d (q - 8)     q 0..15
    q4_1   d q + m       q 0..15
    q5_0   d (q - 16)    q 0..31; bit k of qh is bit 4 of value k's
    q5_1   d q + m       q 0..31
    mxfp4  2**(e - 128) times 0 1 2 3 4 6 8 12 and, with bit 3 set, minus that
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.errors import UnsupportedError
from wtool.kernels import buffers, ggml_encode_k
from wtool.kernels.ggml import RECORDS
from wtool.kernels.ggml_search import (
    OTHER,
    SHIFTED,
    WORK,
    affine,
    codes,
    columns,
    extremes,
    farthest,
    fold,
    half,
    half_above,
    inverse,
    pieces,
    plane,
    symmetric,
)

Array = NDArray[Any]
Writer = Callable[[Array, Array, bool], None]
"""Writes the values [count, 32 or 256] into records [count], by a search or not."""

BLOCK = 32
_BELOW_HALF = np.uint32(0x3EFF_FFFF)  # the f32 below 0.5: added before truncation, 0.49999997 stays 0 and 0.5 becomes 1
_SIGN = np.uint32(0x8000_0000)


def encode(name: str, x: Array, method: str = "rtn") -> Array:
    """f32 [n, C] to u8 [n, C / block * bytes]; C is a multiple of the block, 32 or (K types) 256, and x has no NaN and no Inf.

    `name` is that of the block type, in either case. "rtn" takes the scales from the values' range, and for q8_0, q4_0, q4_1,
    q5_0 and q5_1 gives the bytes that the `gguf` package gives; "mse" looks for the scales with the least squared error. The K
    types always look, and with "mse" longer. DtypeError if a scale is beyond f16.
    """
    name = name.lower()
    block, writers = (ggml_encode_k.BLOCK, ggml_encode_k.WRITERS) if name.endswith("_k") else (BLOCK, _WRITERS)
    if name not in writers:
        raise UnsupportedError(f"there is no encoder for the GGUF type {name.upper()}")
    record, write = RECORDS[name], writers[name]
    if x.shape[1] % block:
        raise UnsupportedError(f"rows of {x.shape[1]} values do not fit {name.upper()}, whose blocks have {block}")
    rows, width = len(x), x.shape[1] // block * record.itemsize
    out = buffers.block(np.dtype(np.uint8), rows * width)
    blocks, written = x.reshape(-1, block), out.view(record)
    with np.errstate(all="ignore"):
        for piece in pieces(len(blocks), block):
            write(blocks[piece], written[piece], method == "mse")
    return out.reshape(rows, width)


def _nibbles(code: Array, out: Array) -> None:
    """Codes of 4 bits, [32, count], to [count, 16] bytes. Overwrites the codes."""
    np.left_shift(code[16:], np.uint8(4), out=code[16:])
    np.bitwise_or(code[:16], code[16:], out=code[:16])
    np.copyto(out, code[:16].T)


def _fifth(code: Array, out: Array) -> None:
    """Bit 4 of each of the codes [32, count] to [count, 4] bytes, the first value in the lowest bit; the codes lose it."""
    bits = plane(code.shape, WORK, "u1")
    np.right_shift(code, np.uint8(4), out=bits)
    np.bitwise_and(code, np.uint8(15), out=code)
    by_byte = bits.reshape(4, 8, -1)
    for position in range(1, 8):
        np.left_shift(by_byte[:, position], np.uint8(position), out=by_byte[:, position])
        np.bitwise_or(by_byte[:, 0], by_byte[:, position], out=by_byte[:, 0])
    np.copyto(out, by_byte[:, 0].T)


def _pack(code: Array, bits: int, out: Array) -> None:
    if bits == 5:
        _fifth(code, out["qh"][:, None].view(np.uint8))
    _nibbles(code, out["qs"])


def _forget(code: Array, unit: Array) -> None:
    """Zero codes where the inverse of the scale overflowed: the scale itself is zero as f16."""
    lost = np.isinf(unit)
    if lost.any():
        code[:, lost] = 0


def _symmetric(blocks: Array, out: Array, search: bool, bits: int, reach: tuple[float, ...]) -> None:
    middle, name = 1 << bits - 1, f"Q{bits}_0"
    values = columns(blocks)
    peak = farthest(values)
    if search:
        scale = half_above(symmetric(values, peak, -middle, middle - 1, reach), name)
        unit = inverse(scale.astype(np.float32))
    else:
        exact = peak / np.float32(-middle)
        scale, unit = half(exact, name), inverse(exact)
    code = codes(values, unit, middle + 0.5, 2 * middle - 1)
    _forget(code, unit)
    out["d"] = scale
    _pack(code, bits, out)


def _affine(blocks: Array, out: Array, search: bool, bits: int) -> None:
    top, name = (1 << bits) - 1, f"Q{bits}_1"
    values = columns(blocks)
    low, high = extremes(values)
    _sign_zeros(values, low)
    if search:
        exact, least = affine(values, low, high, top, _ENDS)
        scale, low16 = half_above(exact, name), half(least, name)
        unit, low = inverse(scale.astype(np.float32)), low16.astype(np.float32)
    else:
        exact = (high - low) / np.float32(top)
        scale, low16, unit = half(exact, name), half(low, name), inverse(exact)
    np.subtract(values, low, out=values)
    code = codes(values, unit, 0.5, top)
    _forget(code, unit)
    out["d"] = scale
    out["m"] = low16
    _pack(code, bits, out)


def _sign_zeros(values: Array, low: Array) -> None:
    """A least value of zero is -0 only where all zeros are: which of two zeros a minimum is depends on the machine."""
    zero = np.flatnonzero(low == 0)
    if len(zero):
        some = values[:, zero]
        low[zero] = np.where(((some == 0) & ~np.signbit(some)).any(axis=0), np.float32(0), np.float32(-0.0))


def _eight(blocks: Array, out: Array, search: bool) -> None:
    """Rounds half away from zero."""
    values = columns(blocks)
    low, high = extremes(values)
    peak = np.maximum(high, -low) + np.float32(0)  # -0 becomes 0
    if search:
        scale = half_above(symmetric(values, peak, -127, 127, (127, 126.5, 126)), "Q8_0")
        unit = inverse(scale.astype(np.float32))
    else:
        exact = peak / np.float32(127)
        scale, unit = half(exact, "Q8_0"), inverse(exact)
    code, work = plane(values.shape, OTHER, "u1"), plane(values.shape, WORK)
    np.multiply(values, unit, out=values)
    bits = work.view(np.uint32)
    np.bitwise_and(values.view(np.uint32), _SIGN, out=bits)
    np.bitwise_or(bits, _BELOW_HALF, out=bits)
    np.add(values, work, out=values)
    if search:
        np.clip(values, np.float32(-127), np.float32(127), out=values)
    np.copyto(code.view(np.int8), values, casting="unsafe")
    _forget(code, unit)
    out["d"] = scale
    np.copyto(out["qs"].view(np.uint8), code.T)


_MIDDLES = (0.5, 1.5, 2.5, 3.5, 5, 7, 10)  # between neighbours of 0 1 2 3 4 6 8 12


def _fours(size: Array, unit: Array) -> Array:
    """Which of the eight magnitudes times `unit` is nearest, the smaller of two: how many of the middles are below."""
    code, above = plane(size.shape, OTHER, "u1"), plane(size.shape, WORK, "?")
    code[:] = 0
    for middle in _MIDDLES:
        np.greater(size, unit * np.float32(middle), out=above)
        np.add(code, above.view(np.uint8), out=code)
    return code


def _fours_error(size: Array, unit: Array) -> Array:
    """The squared error in squared units. Neighbours lie 1 apart up to 4, 2 up to 8, then 4: half the power of two below."""
    given, work = plane(size.shape, OTHER), plane(size.shape, WORK)
    np.multiply(size, inverse(unit), out=given)
    np.bitwise_and(given.view(np.uint32), np.uint32(0x7F80_0000), out=work.view(np.uint32))
    np.clip(work, np.float32(2), np.float32(8), out=work)
    np.multiply(work, np.float32(1.5 * 2.0**22), out=work)  # plus this, a value is rounded to multiples of half the power
    nearest = plane(size.shape, SHIFTED)
    np.add(given, work, out=nearest)
    np.subtract(nearest, work, out=nearest)
    np.clip(nearest, np.float32(0), np.float32(12), out=nearest)
    np.subtract(nearest, given, out=nearest)
    return fold(np.add, np.multiply(nearest, nearest, out=work))


def _mxfp4(blocks: Array, out: Array, search: bool) -> None:
    """e is floor(log2 of the largest magnitude) - 2, exactly: gguf, by way of log2, goes one up just below a power of two."""
    values = columns(blocks)
    low, high = extremes(values)
    peak = np.maximum(high, -low) + np.float32(0)
    exponent = np.frexp(peak)[1]
    biased = np.where(peak > 0, np.clip(exponent - 1 - 2 + 127, 0, 254), 0)
    negative = plane(values.shape, 4, "?")
    np.signbit(values, out=negative)
    np.abs(values, out=values)
    if search:
        here, above = (_fours_error(values, np.ldexp(np.float32(1), biased + more - 128)) for more in (0, 1))
        biased = np.where((above * np.float32(4) < here) & (biased > 0) & (biased < 252), biased + 1, biased)
    code = _fours(values, np.ldexp(np.float32(1), biased - 128))
    sign = np.logical_and(negative, code, out=negative).view(np.uint8)
    np.left_shift(sign, np.uint8(3), out=sign)
    np.bitwise_or(code, sign, out=code)
    out["e"] = biased
    _nibbles(code, out["qs"])


# What the searches try, the plain choice first, which stays where another is only as good: of the symmetric types the code of
# the largest magnitude (-8 or, on the other side, 7), of the others how many steps inside of the values the grid ends. More
# of them gain less than 0.1 dB.
_ENDS = ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.4, 0.4))

_WRITERS: dict[str, Writer] = {
    "q8_0": _eight,
    "q4_0": partial(_symmetric, bits=4, reach=(-8, -7, -7.5, -8.5)),
    "q4_1": partial(_affine, bits=4),
    "q5_0": partial(_symmetric, bits=5, reach=(-16, -14.8, -15.2, -15.6, -16.4)),
    "q5_1": partial(_affine, bits=5),
    "mxfp4": _mxfp4,
}
