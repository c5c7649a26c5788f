"""Values into ggml's super-blocks of 256 (the K types), by encoders of our own; `ggml_encode.encode` is the way in.

`ggml.RECORDS` has the layouts. A super-block has sub-blocks, each with a small integer s for its scale and, in some types, one
for its minimum, n (ggml-quants.c of github.com/ggml-org/ggml):

    q2_k   16 of 16   d s q - dmin n    q 0..3     s and n 0..15
    q3_k   16 of 16   d s (q - 4)       q 0..7     s -32..31
    q4_k    8 of 32   d s q - dmin n    q 0..15    s and n 0..63
    q5_k    8 of 32   d s q - dmin n    q 0..31    s and n 0..63
    q6_k   16 of 16   d s (q - 32)      q 0..63    s -128..127

First each sub-block gets the scale (and the minimum) with the least squared error of a few tried. d and dmin are the f16 of
which the largest in the super-block are about the largest multiples. "mse" then tries the neighbours of all s and n, by the
error of the values as they will be decoded. Nothing is weighted. A super-block without negative values gets a negative dmin,
where llama.cpp's encoder has minimums of 0.

Arrays are [values of a sub-block, sub-blocks, super-blocks], so that rows run over super-blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.ggml_search import (
    OTHER,
    SHIFTED,
    VALUES,
    WORK,
    affine,
    codes,
    extremes,
    farthest,
    fold,
    half_above,
    inverse,
    plane,
    symmetric,
)

Array = NDArray[Any]
Put = Callable[[Array, Array, Array, Array, Array, Array], None]  # of codes, s, n, d, dmin into records

BLOCK = 256
_ZERO = np.float32(0)
_NEIGHBOURS = (0, -1, 1)
# How many steps inside of a sub-block's values the tried grids end; more of them gain less than 0.05 dB.
_ENDS = ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.4, 0.4))
_MORE_ENDS = (*_ENDS, (-0.4, -0.4), (-0.4, 0.0), (0.0, -0.4), (-0.4, 0.4), (0.4, -0.4))


def _columns(blocks: Array, sub: int) -> Array:
    """[super-blocks, 256] to [sub, 256 / sub * super-blocks], sub-block by sub-block."""
    values = plane((sub, BLOCK // sub * len(blocks)), VALUES)
    np.copyto(values.reshape(sub, -1, len(blocks)), blocks.reshape(len(blocks), -1, sub).transpose(2, 1, 0))
    return values


def _multiples(exact: Array, unit: Array, low: int, high: int) -> Array:
    """Which multiples of `unit`, one for each super-block, `exact` is."""
    whole: Array = np.clip(np.rint(exact * inverse(unit)), low, high)
    return whole


def _scales(exact: Array, unit: Array, low: int, high: int) -> Array:
    """The same of scales: none that is not zero becomes zero, since codes by one too large are still nearer than all zero."""
    whole = _multiples(exact, unit, low, high)
    return np.where(whole == 0, np.sign(exact) * np.sign(unit), whole)


def _error(values: Array, scale: Array, low: int, high: int) -> Array:
    """sum (x - scale q)^2 over each sub-block, q the nearest within `low` and `high`."""
    code, work = plane(values.shape, OTHER), plane(values.shape, WORK)
    np.multiply(values, inverse(scale), out=code)
    np.rint(code, out=code)
    np.clip(code, np.float32(low), np.float32(high), out=code)
    np.multiply(code, scale, out=code)
    np.subtract(code, values, out=code)
    return fold(np.add, np.multiply(code, code, out=work))


def _affine(blocks: Array, out: Array, search: bool, *, name: str, sub: int, top: int, limit: int, put: Put) -> None:
    """`limit` is the largest s and n."""
    values, supers = _columns(blocks, sub), (-1, len(blocks))
    low, high = extremes(values)
    step, least = affine(values, low, high, top, _MORE_ENDS if search else _ENDS)
    sign = np.where(low.reshape(supers).min(axis=0) > 0, np.float32(-1), np.float32(1))
    offset = -least.reshape(supers) * sign
    beyond = offset < 0  # such a sub-block has no negative value, though others of its super-block have: its grid starts at 0
    offset = np.where(beyond, _ZERO, offset)
    step = np.where(beyond, high.reshape(supers) / np.float32(top), step.reshape(supers))
    d = half_above(step.max(axis=0) / np.float32(limit), name)
    dmin = half_above(offset.max(axis=0) / np.float32(limit), name)
    unit, floor = d.astype(np.float32), dmin.astype(np.float32)
    s, n = _scales(step, unit, 0, limit), _multiples(offset, floor, 0, limit)
    floor = floor * sign
    if search:
        s, n = _near(values, s, n, unit, floor, top, limit)
    _shift(values, n, floor, values)
    code = codes(values, inverse((s * unit).ravel()), 0.5, top)
    put(
        out, code.reshape(sub, *s.shape), s.astype(np.uint8), n.astype(np.uint8), d, np.copysign(dmin, sign.astype(np.float16))
    )


def _shift(values: Array, n: Array, floor: Array, out: Array) -> None:
    np.add(values, (n * floor).ravel(), out=out)


def _near(values: Array, s: Array, n: Array, unit: Array, floor: Array, top: int, limit: int) -> tuple[Array, Array]:
    """The integers, or their neighbours, with the least error."""
    shifted, best = plane(values.shape, SHIFTED), np.full(s.shape, np.inf, np.float32)
    best_s, best_n = s.copy(), n.copy()
    for more_n in _NEIGHBOURS:
        n2 = np.clip(n + np.float32(more_n), 0, limit)
        _shift(values, n2, floor, shifted)
        for more_s in _NEIGHBOURS:
            s2 = np.clip(s + np.float32(more_s), 0, limit)
            error = _error(shifted, (s2 * unit).ravel(), 0, top).reshape(s.shape)
            better = error < best
            for kept, tried in ((best, error), (best_s, s2), (best_n, n2)):
                np.copyto(kept, tried, where=better)
    return best_s, best_n


def _symmetric(
    blocks: Array, out: Array, search: bool, *, name: str, middle: int, reach: tuple[float, ...], least: int, put: Put
) -> None:
    """s is within `least` and -1 - `least`; `reach` as of `symmetric`."""
    values, supers = _columns(blocks, 16), (-1, len(blocks))
    scale = symmetric(values, farthest(values), -middle, middle - 1, reach).reshape(supers)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=0)[None], axis=0)[0]
    d = half_above(largest / np.float32(least), name)
    unit = d.astype(np.float32)
    s = _scales(scale, unit, least, -1 - least)
    if search:
        best, start = np.full(s.shape, np.inf, np.float32), s
        s = start.copy()
        for more in _NEIGHBOURS:
            s2 = np.clip(start + np.float32(more), least, -1 - least)
            error = _error(values, (s2 * unit).ravel(), -middle, middle - 1).reshape(s.shape)
            better = error < best
            np.copyto(best, error, where=better)
            np.copyto(s, s2, where=better)
    code = codes(values, inverse((s * unit).ravel()), middle + 0.5, 2 * middle - 1)
    put(out, code.reshape(16, *s.shape), s.astype(np.int8).view(np.uint8), s, d, d)


# Packing. Codes are u8 [sub, sub-blocks, super-blocks] and may be overwritten.


def _rows(out: Array, parts: Array) -> None:
    """[values, groups, super-blocks] bytes to the bytes [super-blocks, groups * values]."""
    flat = parts.transpose(2, 1, 0)
    np.copyto(out.reshape(flat.shape), flat)


def _merge(parts: Iterable[Array], bits: int) -> Array:
    """Codes of `bits` bits, the first in the lowest, in one array of bytes."""
    merged: Array | None = None
    for position, part in enumerate(parts):
        merged = (
            part.copy()
            if merged is None
            else np.bitwise_or(merged, np.left_shift(part, np.uint8(position * bits)), out=merged)
        )
    assert merged is not None
    return merged


def _put_six_bits(out: Array, s: Array, n: Array) -> None:
    """Eight s and n in twelve bytes: the first four s, then n, above them two bits of the last four; then their other bits."""
    for first, part in ((0, s), (4, n)):
        out[:, first : first + 4] = (part[:4] | part[4:] >> np.uint8(4) << np.uint8(6)).T
    out[:, 8:12] = (s[4:] & np.uint8(15) | n[4:] << np.uint8(4)).T


def _put_q4(out: Array, code: Array, s: Array, n: Array, d: Array, dmin: Array) -> None:
    out["d"] = d
    out["dmin"] = dmin
    _put_six_bits(out["scales"], s, n)
    _rows(out["qs"], _merge((code[:, 0::2] & np.uint8(15), code[:, 1::2]), 4))


def _put_q5(out: Array, code: Array, s: Array, n: Array, d: Array, dmin: Array) -> None:
    fifth = code >> np.uint8(4)
    _rows(out["qh"], _merge((fifth[:, k] for k in range(8)), 1)[:, None])
    _put_q4(out, code & np.uint8(15), s, n, d, dmin)


def _pairs_of_bits(code: Array) -> Array:
    """Codes of 2 bits [16, 16, super-blocks]: value 32 k + i of each half to bits 2 k of byte i, as [16, 4, super-blocks]."""
    halves = code.reshape(16, 2, 4, 2, -1)
    return _merge((halves[:, :, k] for k in range(4)), 2).reshape(16, 4, -1)


def _put_q2(out: Array, code: Array, s: Array, n: Array, d: Array, dmin: Array) -> None:
    out["scales"] = (s | n << np.uint8(4)).T
    _rows(out["qs"], _pairs_of_bits(code))
    out["d"] = d
    out["dmin"] = dmin


def _put_q3(out: Array, code: Array, s: Array, _n: Array, d: Array, _dmin: Array) -> None:
    high = (code >> np.uint8(2)).reshape(16, 8, 2, -1)
    _rows(out["hmask"], _merge((high[:, k] for k in range(8)), 1))
    _rows(out["qs"], _pairs_of_bits(code & np.uint8(3)))
    s = s + np.uint8(32)
    out["scales"][:, :8] = (s[:8] & np.uint8(15) | s[8:] << np.uint8(4)).T
    out["scales"][:, 8:] = _merge((s[first : first + 4] >> np.uint8(4) for first in range(0, 16, 4)), 2).T
    out["d"] = d


def _put_q6(out: Array, code: Array, s: Array, _n: Array, d: Array, _dmin: Array) -> None:
    low = (code & np.uint8(15)).reshape(16, 2, 2, 4, -1)
    _rows(out["ql"], _merge((low[:, :, 0], low[:, :, 1]), 4).reshape(16, 8, -1))
    _rows(out["qh"], _pairs_of_bits(code >> np.uint8(4)))
    out["scales"] = s.view(np.int8).T
    out["d"] = d


WRITERS: dict[str, Callable[[Array, Array, bool], None]] = {
    "q2_k": partial(_affine, name="Q2_K", sub=16, top=3, limit=15, put=_put_q2),
    "q3_k": partial(_symmetric, name="Q3_K", middle=4, reach=(-4, -3, -3.5, -4.5), least=-32, put=_put_q3),
    "q4_k": partial(_affine, name="Q4_K", sub=32, top=15, limit=63, put=_put_q4),
    "q5_k": partial(_affine, name="Q5_K", sub=32, top=31, limit=63, put=_put_q5),
    "q6_k": partial(_symmetric, name="Q6_K", middle=32, reach=(-32, -31, -31.5), least=-128, put=_put_q6),
}
