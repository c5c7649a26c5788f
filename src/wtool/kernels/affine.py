"""Weights as small integers times a scale: w = (q - zero) * scale, by group along the row, by row, or one scale for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import DtypeError
from wtool.kernels import buffers, clip
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import route
from wtool.kernels.groups import ends, magnitudes, tiles

Array = NDArray[Any]

_F32 = dtype("f32")
_EPSILON = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
_DROPPED = {"f16": 13, "bf16": 16}  # bits of an f32's fraction that the dtype lacks


@dataclass(frozen=True, slots=True)
class Affine:
    """Codes of `bits` (2 to 8), signed, with a scale for `group` weights along the row (None: for the whole row).

    With `search` false, codes, scales and zero points are those of compressed-tensors 0.19 (calculate_qparams in
    quantization/utils/helpers.py, _quantize in lifecycle/forward_helpers.py) with llm-compressor's min-max observer, bit
    for bit: every step is rounded to `dtype`, the weight's own (f32, bf16 or f16). With it the range is clipped where that
    makes the squared error smaller (see clip.py), and codes are the nearest.
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
        """Scales and, unless symmetric, zero points for ranges given as f32 arrays of values of the dtype.

        DtypeError where a scale is beyond the dtype's range.
        """
        with np.errstate(all="ignore"):
            least, greatest = np.minimum(least, np.float32(0)), np.maximum(greatest, np.float32(0))
            return self._scales(np.maximum(-least, greatest)) if self.symmetric else self._points(least, greatest)

    def encode(self, x: Array, scale: Array | None = None) -> tuple[Array, Array, Array | None]:
        """Codes i8 [n, I], scales in the dtype [n, I / group or 1] and zero points i8 of the same shape (None if symmetric).

        `x` is f32 [n, I], C-ordered, the exact values of the dtype. A `scale` given (one number in the dtype, symmetric only)
        is used for all, and comes back for every row. DtypeError where a scale is beyond the dtype's range.
        """
        rows, columns = x.shape
        width = columns if self.group is None or scale is not None else self.group
        table = x.reshape(-1, width) if x.size else np.empty((0, 1), np.float32)
        with np.errstate(all="ignore"):
            if scale is not None:
                assert self.symmetric
                scales, zeros = np.full(len(table), scale, self.dtype.numpy()), None
            elif self.symmetric:
                scales, zeros = self._scales(magnitudes(table))
            else:
                scales, zeros = self._points(*ends(table))
            wide = self._widen(scales)
            if self.search and scale is None:
                wide = clip.search(table, wide, zeros, self.bits, self._round)
                scales = self._narrow(wide)
            codes = buffers.block(np.dtype(np.int8), x.size).reshape(rows, columns)
            self._quantize(table, wide, zeros, codes.reshape(table.shape))
        shape = (rows, len(table) // rows if x.size else 0)
        return codes, scales.reshape(shape), None if zeros is None else zeros.reshape(shape)

    def decode(self, codes: Array, scales: Array, zeros: Array | None) -> Array:
        """f32 [n, I]: (q - zero) * scale, multiplied in f32. Rounded to the dtype it is what compressed-tensors gives."""
        if not codes.size:
            return np.zeros(codes.shape, np.float32)
        out = buffers.block(np.dtype(np.float32), codes.size).reshape(codes.shape)
        shape = (len(codes), scales.shape[1])
        wide = np.broadcast_to(self._widen(scales) if scales.dtype != np.float32 else scales, shape).reshape(-1, 1)
        points = None if zeros is None else np.broadcast_to(zeros, shape).reshape(-1, 1).astype(np.float32)
        table, values = codes.reshape(len(wide), -1), out.reshape(len(wide), -1)
        for rows, columns in tiles(*table.shape):
            piece = values[rows, columns]
            np.copyto(piece, table[rows, columns])
            if points is not None:
                np.subtract(piece, points[rows], out=piece)
            np.multiply(piece, wide[rows], out=piece)
        return out

    def _scales(self, greatest: Array) -> tuple[Array, None]:
        return self._settle(self._round(greatest / np.float32(((1 << self.bits) - 1) / 2))), None

    def _points(self, least: Array, greatest: Array) -> tuple[Array, Array]:
        scales = self._round(self._round(greatest - least) / np.float32((1 << self.bits) - 1))
        points = self._round(np.float32(self.lowest) - self._round(least / scales))
        points = np.nan_to_num(np.clip(points, self.lowest, self.highest), nan=0)  # NaN: 0 / 0
        return self._settle(scales), np.rint(points).astype(np.int8)

    def _settle(self, scales: Array) -> Array:
        scales[scales == 0] = _EPSILON[self.dtype.name]
        if not np.isfinite(scales).all():
            raise DtypeError(f"a scale is beyond {self.dtype}", hint="cast the weights to bf16 or f32 first")
        return self._narrow(scales)

    def _quantize(self, table: Array, scales: Array, zeros: Array | None, codes: Array) -> None:
        """Codes of the nearest values; without a search, of quotients that are first rounded to the dtype."""
        dropped = 0 if self.search else _DROPPED.get(self.dtype.name, 0)
        lowest, highest = np.float32(self.lowest), np.float32(self.highest)
        points = None if zeros is None else zeros.astype(np.float32)
        for rows, columns in tiles(*table.shape):
            piece = table[rows, columns]
            quotient = scratch("f4", piece.size, 30).reshape(piece.shape)
            np.divide(piece, scales[rows, None], out=quotient)
            if dropped:
                _shorten(quotient, dropped)
            if points is not None:
                np.add(quotient, points[rows, None], out=quotient)
                if dropped:
                    _shorten_even(quotient, dropped)
            np.clip(quotient, lowest, highest, out=quotient)
            np.rint(quotient, out=quotient)
            np.copyto(codes[rows, columns], quotient, casting="unsafe")

    def _round(self, values: Array) -> Array:
        return values if self.dtype is _F32 else self._widen(self._narrow(values))

    def _narrow(self, values: Array) -> Array:
        if self.dtype is _F32:
            return values
        flat = np.ascontiguousarray(values).reshape(-1)
        out = np.empty(flat.shape, self.dtype.numpy())
        route(_F32, self.dtype)(flat, out)
        return out.reshape(values.shape)

    def _widen(self, values: Array) -> Array:
        return values.astype(np.float32, copy=False)


def _shorten(values: Array, dropped: int) -> None:
    """Round f32 quotients of two numbers of a shorter dtype to that dtype, by adding half a last place and cutting.

    No quotient lies half way between two numbers of p bits: it would have p + 1 bits, odd at the end, and its product with the
    divisor, which is the dividend, more than p bits too. Nor does f32 round one to half way: with at most 11 bits each they
    are further from it than f32's steps.
    """
    bits = values.view(np.uint32)
    np.add(bits, np.uint32(1 << dropped - 1), out=bits)
    np.bitwise_and(bits, np.uint32(0xFFFF_FFFF >> dropped << dropped), out=bits)


def _shorten_even(values: Array, dropped: int) -> None:
    """Round f32 values to a shorter fraction, ties to even. Below f16's normal range that keeps too much: no code shows it."""
    bits = values.view(np.uint32)
    odd = scratch("u4", values.size, 31).reshape(values.shape)
    np.right_shift(bits, np.uint32(dropped), out=odd)
    np.bitwise_and(odd, np.uint32(1), out=odd)
    np.add(bits, odd, out=bits)
    np.add(bits, np.uint32((1 << dropped - 1) - 1), out=bits)
    np.bitwise_and(bits, np.uint32(0xFFFF_FFFF >> dropped << dropped), out=bits)
