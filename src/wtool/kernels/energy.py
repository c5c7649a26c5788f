"""Sums of squares of values, and of those among them that stay when a tensor is pruned."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import route
from wtool.kernels.combine import wide
from wtool.kernels.squares import squared

Array = NDArray[Any]

_SLOT = 94
_TINY = 1e-20  # below it squares may be lost in f32
_SINGLE = ("f32", "bf16", "f16")  # squares are summed up in f32 first
_LOW, _HIGH = np.uint32(16), np.uint32(0xFFFF_0000)


def single(values: Array, row: DType, slot: int = _SLOT) -> Array:
    """Values of at most 32 bits as f32; at most CHUNK, in scratch where they are others."""
    if row.name == "f32":
        return values
    found = scratch("f4", len(values), slot)
    if row.name == "bf16":
        bits = found.view(np.uint32)
        np.copyto(bits, values.view(np.uint16))
        np.left_shift(bits, _LOW, out=bits)
    else:
        route(row, dtype("f32"))(values, found)
    return found


def energies(values: Array, kept: Array, row: DType, left: Array | None = None) -> tuple[float, float]:
    """The sums of squares of at most CHUNK values, all and those kept. What is not finite does not count.

    `left` are the values with zeros for those not kept, where they are there already. Rows are summed in f32, if they can be,
    and their sums in f64.
    """
    if row.name in _SINGLE:
        found = _single_energies(values, kept, row, left)
        if found is not None:
            return found
    exact = wide(values, row, _SLOT)
    with np.errstate(all="ignore"):
        np.copyto(exact, 0.0, where=~np.isfinite(exact))
        before = squared(exact)
        np.multiply(exact, kept, out=exact)
        return before, squared(exact)


def _single_energies(values: Array, kept: Array, row: DType, left: Array | None) -> tuple[float, float] | None:
    with np.errstate(all="ignore"):
        before = _squares(values, row)
        if not _TINY < before < np.inf:
            return None
        if left is None:
            words = values.view(f"u{row.itemsize}")
            left = np.multiply(words, kept, out=scratch(words.dtype.str[1:], len(words), _SLOT + 1)).view(values.dtype)
        return before, _squares(left, row)


def _squares(values: Array, row: DType) -> float:
    """The sum of the squares of values of f32, f16 or bf16; not finite if one of them or of the sums is not."""
    if row.name == "bf16" and not len(values) % 2:
        words = values.view(np.uint32)  # two values in each: the second is one of f32, but for bits that the first has
        both = scratch("u4", len(values), _SLOT)
        np.left_shift(words, _LOW, out=both[: len(words)])
        np.bitwise_and(words, _HIGH, out=both[len(words) :])
        return squared(both.view(np.float32))
    return squared(single(values, row))
