"""Weights as small integers times a scale: w = (q - zero) * scale, by group along the row, by row, or with one scale for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype

Array = NDArray[Any]

_F32, _F16, _BF16 = map(dtype, ("f32", "f16", "bf16"))
_EPSILON = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}


@dataclass(frozen=True, slots=True)
class Affine:
    """Codes of `bits` (2 to 8), signed, with a scale for `group` weights along the row (None: for the whole row).

    With `search` false, codes, scales and zero points are those of compressed-tensors 0.19 (calculate_qparams in
    quantization/utils/helpers.py, _quantize in lifecycle/forward_helpers.py) with llm-compressor's min-max observer, bit
    for bit: every step is rounded to `dtype`, the weight's own (f32, bf16 or f16). With it the range is clipped where that
    makes the squared error smaller.
    """

    bits: int
    group: int | None
    symmetric: bool
    dtype: DType
    search: bool = False

    @property
    def lowest(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits - 1) - 1

    def scales_of(self, least: Array, greatest: Array) -> tuple[Array, Array | None]:
        """Scales and, unless symmetric, zero points for ranges given as f32 arrays of values of the dtype."""
        least, greatest = np.minimum(least, np.float32(0)), np.maximum(greatest, np.float32(0))
        steps = np.float32((1 << self.bits) - 1)
        if self.symmetric:
            scale = self._round(np.maximum(-least, greatest) / (steps / 2))
            zero = None
        else:
            scale = self._round(self._round(greatest - least) / steps)
            with np.errstate(all="ignore"):
                zero = self._round(np.float32(self.lowest) - self._round(least / scale))
            zero = np.rint(np.nan_to_num(np.clip(zero, self.lowest, self.highest), nan=0)).astype(np.int8)
        scale[scale == 0] = _EPSILON[self.dtype.name]
        return scale.astype(self.dtype.numpy()), zero

    def encode(self, x: Array, scale: Array | None = None) -> tuple[Array, Array, Array | None]:
        """Codes i8 [n, I], scales in the dtype [n, I / group or 1] and zero points i8 of the same shape (None if symmetric).

        `x` is f32 [n, I], the exact values of the dtype. A `scale` given (one number in the dtype, symmetric only) is used for
        all, and comes back for every row.
        """
        rows, columns = x.shape
        grouped = x.reshape(rows, -1, self.group or max(columns, 1))
        zeros: Array | None = None
        if scale is None:
            scales, zeros = self.scales_of(grouped.min(axis=2, initial=0), grouped.max(axis=2, initial=0))
        else:
            scales = np.full((rows, 1), np.asarray(scale).reshape(()), self.dtype.numpy())
            grouped = x.reshape(rows, 1, columns)
        quotient = self._round(grouped / scales.astype(np.float32)[:, :, None])
        if zeros is not None:
            quotient = self._round(quotient + zeros[:, :, None].astype(np.float32))
        codes = np.rint(np.clip(quotient, self.lowest, self.highest)).astype(np.int8)
        return codes.reshape(rows, columns), scales, zeros

    def decode(self, codes: Array, scales: Array, zeros: Array | None) -> Array:
        """f32 [n, I]: (q - zero) * scale, multiplied in f32. Rounding it to the dtype gives compressed-tensors' own outcome."""
        rows, columns = codes.shape
        grouped = codes.reshape(rows, scales.shape[1], -1).astype(np.float32)
        if zeros is not None:
            grouped -= zeros[:, :, None].astype(np.float32)
        grouped *= scales.astype(np.float32)[:, :, None]
        return grouped.reshape(rows, columns)

    def _round(self, values: Array) -> Array:
        if self.dtype is _F32:
            return values
        with np.errstate(over="ignore"):
            return values.astype(self.dtype.numpy()).astype(np.float32)
