"""Codecs that layouts share: integer codes packed into words of 32 bits, with their scales and zero points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels.affine import Affine
from wtool.kernels.cast import Cast
from wtool.kernels.packing import pack, unpack
from wtool.quantized import Part
from wtool.tensor import LazyTensor

Array = NDArray[Any]


@dataclass(frozen=True)
class PackedInts:
    """Codes dense in i32 words along the row; scales; zero points, unless symmetric, packed along the rows.

    Parts `packed` [O, ceil(I * b / 32)], `scale` [O, groups], `zero_point` [ceil(O * b / 32), groups]. With `scale` given it
    is the one scale of all. Source: compressed-tensors' pack-quantized compressor.
    """

    affine: Affine
    scale: float | None = None

    @property
    def step(self) -> int:
        return 1 if self.affine.symmetric else 32 // gcd(32, self.affine.bits)

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        bits, i32 = self.affine.bits, dtype("i32")
        wide, groups, item = -(-columns * bits // 32), self._groups(columns), self.affine.dtype.itemsize
        found = (
            Part("packed", i32, (rows, wide), self.step * wide * 4),
            Part("scale", self.affine.dtype, (rows, groups), self.step * groups * item),
        )
        if self.affine.symmetric:
            return found
        tall = -(-rows * bits // 32)
        return (*found, Part("zero_point", i32, (tall, groups), self.step * bits // 32 * groups * 4))

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        scale = None if self.scale is None else np.asarray(self.scale, self.affine.dtype.numpy())
        codes, scales, zeros = self.affine.encode(x, scale)
        packed = pack(codes, self.affine.bits)
        return (packed, scales) if zeros is None else (packed, scales, pack(zeros, self.affine.bits, axis=0))

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        groups, bits = self._groups(columns), self.affine.bits
        scales = parts[1].reshape(-1, groups)
        packed = parts[0].reshape(-1, -(-columns * bits // 32))
        codes = unpack(packed, bits, columns)
        zeros = None if self.affine.symmetric else unpack(parts[2].reshape(-1, groups), bits, len(codes), axis=0)
        return self.affine.decode(codes, scales[: len(codes)], zeros)

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        scales = parts[1].reshape(-1, self._groups(columns))
        zeros = None
        if not self.affine.symmetric:
            zeros = unpack(parts[2].reshape(-1, scales.shape[1]), self.affine.bits, len(scales), axis=0)
        return _ends(self.affine, scales, zeros)

    def _groups(self, columns: int) -> int:
        return columns // self.affine.group if self.affine.group else 1


@dataclass(frozen=True)
class PlainInts:
    """Codes as i8, one a byte, with their scales and zero points: `codes` [O, I], `scale`, `zero_point` [O, groups].

    With `scale` given it is the one of all (and `point` its zero point), and codes are the only part.
    """

    affine: Affine
    scale: float | None = None
    point: int = 0
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        i8, groups = dtype("i8"), columns // self.affine.group if self.affine.group else 1
        codes = Part("codes", i8, (rows, columns), columns)
        if self.scale is not None:
            return (codes,)
        scale = Part("scale", self.affine.dtype, (rows, groups), groups * self.affine.dtype.itemsize)
        return (codes, scale) if self.affine.symmetric else (codes, scale, Part("zero_point", i8, (rows, groups), groups))

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        scale = None if self.scale is None else np.asarray(self.scale, self.affine.dtype.numpy())
        codes, scales, zeros = self.affine.encode(x, scale)
        if self.scale is not None:
            return (codes,)
        return (codes, scales) if zeros is None else (codes, scales, zeros)

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        return self.affine.decode(parts[0].reshape(-1, columns), *self._scales(parts, columns))

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        low, high = _ends(self.affine, *self._scales(parts, columns))
        rows = len(parts[0]) // columns
        return np.broadcast_to(low, (rows, low.shape[1])), np.broadcast_to(high, (rows, low.shape[1]))

    def _scales(self, parts: Sequence[Array], columns: int) -> tuple[Array, Array | None]:
        if self.scale is not None:
            return np.full((1, 1), self.scale, np.float32), np.full((1, 1), self.point, np.int8)
        found = [part.reshape(len(parts[0]) // columns, -1) for part in parts[1:]]
        return found[0], None if self.affine.symmetric else found[1]


def _ends(affine: Affine, scales: Array, zeros: Array | None) -> tuple[Array, Array]:
    wide = scales.astype(np.float32)
    shift = np.float32(0) if zeros is None else zeros.astype(np.float32)
    return (np.float32(affine.lowest - 0.5) - shift) * wide, (np.float32(affine.highest + 0.5) - shift) * wide


def weight_dtype(row: DType) -> DType:
    """The dtype that scales take: that of the weights, f32 for f64."""
    return dtype("f32") if row.bits == 64 else row


def as_f32(tensor: LazyTensor) -> LazyTensor:
    """The values as f32: exact, but of f64."""
    f32 = dtype("f32")
    return tensor if tensor.dtype is f32 else tensor.map(Cast(tensor.dtype, f32))
