"""Casts to and from dtypes of a byte or less through tables, which numpy and ml_dtypes themselves fill."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]


def by_code(source: Array, target: Array, table: Array) -> None:
    """`table` has an entry for every code of `source`, which has 8 or 16 bits."""
    codes = source.view(np.uint8 if source.itemsize == 1 else np.uint16)
    entries = target.view(table.dtype)
    for first in range(0, len(codes), CHUNK):
        code = codes[first : first + CHUNK]
        index = scratch("p", len(code))
        np.copyto(index, code)
        np.take(table, index, out=entries[first : first + CHUNK], mode="wrap")


def from_f32(source: Array, target: Array, table: Array) -> None:
    """`table` has the outcome for every upper half of an f32.

    Rounding to odd comes first: the lower half of the f32 is gathered into the last bit of the upper. That keeps on which
    side of a tie a value lies, as long as the target's fraction is two bits or more shorter than the seven that stay.
    """
    bits, entries = source.view(np.uint32), target.view(table.dtype)
    low = np.uint32(0xFFFF)
    for first in range(0, len(bits), CHUNK):
        given = bits[first : first + CHUNK]
        odd, index = scratch("u4", len(given)), scratch("p", len(given))
        np.bitwise_and(given, low, out=odd)
        np.add(odd, low, out=odd)  # carries into bit 16 unless the lower half was zero
        np.bitwise_or(odd, given, out=odd)
        np.right_shift(odd, np.uint32(16), out=odd)
        np.copyto(index, odd)
        np.take(table, index, out=entries[first : first + CHUNK], mode="wrap")


@cache
def code_table(source: DType, target: DType) -> Array:
    """The cast of every code of an 8 or 16 bit dtype."""
    values = np.arange(1 << source.bits, dtype=f"u{source.itemsize}").view(source.numpy())
    if (
        source.bits == target.bits == 8 and source is not target
    ):  # ml_dtypes does not cast f8_e8m0 and the other f8 kinds into one another
        values = _cast(values, dtype("f32"))
    return _cast(values, target).view(f"u{target.itemsize}")


@cache
def half_table(target: DType) -> Array:
    """The cast of every f32 whose lower 16 bits are zero."""
    values = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    return _cast(values, target).view(f"u{target.itemsize}")


@cache
def pair_table(target: DType) -> Array:
    """The cast of the two f4 in every byte, the low four bits being the first: two elements of the target an entry."""
    from ml_dtypes import float4_e2m1fn

    codes = np.arange(256, dtype=np.uint8)
    nibbles = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
    values = _cast(nibbles.view(float4_e2m1fn).astype(dtype("f32").numpy()), target)
    return values.view("c16" if target.itemsize == 8 else f"u{2 * target.itemsize}")


def _cast(values: Array, target: DType) -> Array:
    with np.errstate(all="ignore"):
        return values.astype(target.numpy())
