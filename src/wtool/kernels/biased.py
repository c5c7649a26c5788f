"""Weights as unsigned integers times a scale, plus a bias, by group along the row: mlx's affine mode, w = q * scale + bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import DtypeError
from wtool.kernels import buffers
from wtool.kernels.affine import Affine
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import route
from wtool.kernels.groups import ends, tiles

Array = NDArray[Any]

_F32 = dtype("f32")
_LEAST = np.float32(1e-7)  # of the scale's magnitude


@dataclass(frozen=True, slots=True)
class Biased:
    """Codes of `bits` (2 to 8), unsigned, with a scale and a bias, both in `dtype`, for `group` weights along the row.

    With `search` false the outcome is that of mx.quantize (mlx 0.32, CPU: quantize in mlx/backend/cpu/quantized.cpp), bit for
    bit: the end of larger magnitude is a whole number of steps from zero, and codes are made with scales not yet rounded. With
    it the range is clipped where that makes the squared error smaller, zero staying a code (clip.py).
    """

    bits: int
    group: int
    dtype: DType
    search: bool = False

    def encode(self, x: Array) -> tuple[Array, Array, Array]:
        """Codes u8 [n, I], scales and biases in the dtype [n, I / group], of `x` f32 [n, I], the exact values of the dtype.

        DtypeError where a scale is beyond the dtype's range.
        """
        rows, columns = x.shape
        shape = (rows, columns // self.group)
        if self.search:
            return self._searched(x)
        codes = buffers.block(np.dtype(np.uint8), x.size).reshape(rows, columns)
        with np.errstate(all="ignore"):
            table = x.reshape(-1, self.group)
            scales, biases = self._ends(table)
            self._quantize(table, scales, biases, codes.reshape(table.shape))
            stored = self._narrow(scales), self._narrow(biases)
        return codes, stored[0].reshape(shape), stored[1].reshape(shape)

    def decode(self, codes: Array, scales: Array, biases: Array) -> Array:
        """f32 [n, I]: q * scale, plus the bias, each step rounded to the dtype of the scales, as mx.dequantize does it.

        (mlx's products of matrices round only their sums.)
        """
        out = buffers.block(np.dtype(np.float32), codes.size).reshape(codes.shape)
        table, values = codes.reshape(-1, self.group), out.reshape(-1, self.group)
        factors, shifts = (part.astype(np.float32).reshape(-1, 1) for part in (scales, biases))
        for rows, columns in tiles(*table.shape):
            piece = values[rows, columns]
            np.copyto(piece, table[rows, columns])
            np.multiply(piece, factors[rows], out=piece)
            self._round(piece)
            np.add(piece, shifts[rows], out=piece)
            self._round(piece)
        return out

    def _searched(self, x: Array) -> tuple[Array, Array, Array]:
        signed, scales, zeros = Affine(self.bits, self.group, False, self.dtype, True).encode(x)
        assert zeros is not None
        offset = 1 << self.bits - 1
        codes = signed.view(np.uint8)
        np.add(codes, np.uint8(offset), out=codes)  # wraps
        biases = scales.astype(np.float32) * -(zeros.astype(np.float32) + np.float32(offset))
        return codes, scales, self._narrow(biases + np.float32(0))

    def _ends(self, table: Array) -> tuple[Array, Array]:
        """Scales and biases in f32, before they are rounded to be stored."""
        steps = np.float32((1 << self.bits) - 1)
        least, greatest = ends(table)
        one_sided = np.flatnonzero((least == 0) | (greatest == 0))  # `ends` takes zero in, mlx does not
        if len(one_sided):
            some = table[one_sided]
            least[one_sided], greatest[one_sided] = some.min(axis=1), some.max(axis=1)
        below = np.abs(least) > np.abs(greatest)
        scales = np.maximum((greatest - least) / steps, _LEAST)
        scales = np.where(below, scales, -scales)
        edges = np.where(below, least, greatest)
        whole = np.rint(edges / scales)
        some_steps = whole != 0
        np.divide(edges, whole, out=scales, where=some_steps)
        return scales, np.where(some_steps, edges, np.float32(0))

    def _quantize(self, table: Array, scales: Array, biases: Array, codes: Array) -> None:
        steps = np.float32((1 << self.bits) - 1)
        for rows, columns in tiles(*table.shape):
            piece = table[rows, columns]
            quotient = scratch("f4", piece.size, 30).reshape(piece.shape)
            np.subtract(piece, biases[rows, None], out=quotient)
            np.divide(quotient, scales[rows, None], out=quotient)
            np.rint(quotient, out=quotient)
            np.clip(quotient, np.float32(0), steps, out=quotient)
            np.copyto(codes[rows, columns], quotient, casting="unsafe")

    def _narrow(self, values: Array) -> Array:
        out = np.empty(values.shape, self.dtype.numpy())
        route(_F32, self.dtype)(values.reshape(-1), out.reshape(-1))
        if not np.isfinite(values).all() or not np.isfinite(out).all():
            raise DtypeError(f"a scale is beyond {self.dtype}", hint="cast the weights to bf16 or f32 first")
        return out

    def _round(self, values: Array) -> None:
        if self.dtype is _F32:
            return
        flat = values.reshape(-1)
        short = scratch("u2", len(flat), 30).view(self.dtype.numpy())
        route(_F32, self.dtype)(flat, short)
        route(self.dtype, _F32)(short, flat)
