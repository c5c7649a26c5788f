"""Weights as small integers times a scale plus a bias, as mlx has them: w = q * scale + bias, by groups along the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels import buffers
from wtool.kernels.affine import Affine
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import route
from wtool.kernels.groups import tiles

Array = NDArray[Any]

_F32 = dtype("f32")
_LEAST = np.float32(1e-7)  # scale


@dataclass(frozen=True, slots=True)
class Biased:
    """Codes of `bits` (2 to 8), unsigned, with a scale and a bias in `dtype` (f32, bf16, f16) for `group` weights of a row.

    With `search` false, all is that of mx.quantize of mlx 0.32 (mode affine), bit for bit: the end of larger magnitude is one
    of the values, and so is zero where the group spans it. With it, scales are Affine's, of the least squared error.
    """

    bits: int
    group: int
    dtype: DType
    search: bool = False

    def encode(self, x: Array) -> tuple[Array, Array, Array]:
        """Codes u8 [n, I], scales and biases in the dtype [n, I / group], of f32 `x` [n, I]."""
        rows, columns = x.shape
        shape = (rows, columns // self.group)
        if self.search:
            codes, scales, zeros = Affine(self.bits, self.group, False, self.dtype, True).encode(x)
            assert zeros is not None
            middle = 1 << self.bits - 1
            product = self._round(scales.astype(np.float32) * (zeros.astype(np.float32) + np.float32(middle)))
            codes = codes.view(np.uint8) + np.uint8(middle)
            codes &= np.uint8((1 << self.bits) - 1)
            return codes, scales, self._narrow(np.float32(0) - product)
        table = x.reshape(-1, self.group)
        codes = buffers.block(np.dtype(np.uint8), x.size).reshape(rows, columns)
        scales, biases = np.empty(len(table), np.float32), np.empty(len(table), np.float32)
        most = np.float32((1 << self.bits) - 1)
        with np.errstate(all="ignore"):
            for part, _ in tiles(*table.shape):
                piece = table[part]
                starts = np.arange(0, piece.size, self.group)  # twice as fast as reduce along short rows
                flat = piece.reshape(-1)
                scale, bias = self._scales(np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts), most)
                quotient = scratch("f4", piece.size, 30).reshape(piece.shape)
                np.subtract(piece, bias[:, None], out=quotient)
                np.divide(quotient, scale[:, None], out=quotient)
                np.rint(quotient, out=quotient)
                np.clip(quotient, np.float32(0), most, out=quotient)
                np.copyto(codes.reshape(table.shape)[part], quotient, casting="unsafe")
                scales[part], biases[part] = scale, bias
        return codes, self._narrow(scales).reshape(shape), self._narrow(biases).reshape(shape)

    def decode(self, codes: Array, scales: Array, biases: Array) -> Array:
        """f32 [n, I]: q * scale, rounded to the dtype, plus bias. Rounding this to the dtype gives mx.dequantize on a CPU."""
        out = buffers.block(np.dtype(np.float32), codes.size).reshape(codes.shape)
        table, values = codes.reshape(-1, self.group), out.reshape(-1, self.group)
        wide, shift = (part.reshape(-1, 1).astype(np.float32) for part in (scales, biases))
        for part, _ in tiles(*table.shape):
            piece = values[part]
            np.copyto(piece, table[part])
            np.multiply(piece, wide[part], out=piece)
            if self.dtype is not _F32:
                flat, half = piece.reshape(-1), scratch("u2", piece.size, 30).view(self.dtype.numpy())
                route(_F32, self.dtype)(flat, half)
                route(self.dtype, _F32)(half, flat)
            np.add(piece, shift[part], out=piece)
        return out

    def _scales(self, least: Array, greatest: Array, most: np.float32) -> tuple[Array, Array]:
        """mlx's affine_quantize."""
        low = np.abs(least) > np.abs(greatest)
        scale = np.maximum((greatest - least) / most, _LEAST)
        np.negative(scale, out=scale, where=~low)
        edge = np.where(low, least, greatest)
        steps = np.rint(edge / scale)
        some = steps != 0
        np.divide(edge, steps, out=scale, where=some)
        return scale, np.where(some, edge, np.float32(0))

    def _narrow(self, values: Array) -> Array:
        if self.dtype is _F32:
            return values
        found = np.empty(values.shape, self.dtype.numpy())
        route(_F32, self.dtype)(np.ascontiguousarray(values).reshape(-1), found.reshape(-1))
        return found

    def _round(self, values: Array) -> Array:
        return self._narrow(values).astype(np.float32)
