"""Weights as floats of 8 or 4 bits times a scale: f8 by tensor, row or square block, nvfp4, mxfp4, mxfp8.

Scales and codes are those of compressed-tensors 0.20 (quantization/utils/helpers.py, mxfp_utils.py; lifecycle/forward_helpers.py;
compressors/) with llm-compressor's min-max observer, bit for bit: quotients are rounded to the weight's own dtype where
theirs are. The few places where they are not the same are named where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import MismatchError
from wtool.kernels.cast import route

Array = NDArray[Any]
Grain = Literal["tensor", "row", "block"]

SQUARE = 128  # rows and columns of a block of f8
_F32, _F16, _BF16, _E4M3, _E5M2 = map(dtype, ("f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"))
_LARGEST = {"f8_e4m3": 448.0, "f8_e5m2": 57344.0}
_EPSILON = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def grain(weight: tuple[int, ...], scale: tuple[int, ...]) -> Grain:
    """How the f8 scales of a found checkpoint lie, by their shape: one number ([], [1], [1, 1]), one a row ([O], [O, 1]), or
    one for each block of 128 x 128 ([ceil(O / 128), ceil(I / 128)], as DeepSeek's weight_scale_inv). MismatchError if neither.
    """
    rows, columns = weight
    if all(size == 1 for size in scale):
        return "tensor"
    if scale in ((rows,), (rows, 1)):
        return "row"
    if scale == (-(-rows // SQUARE), -(-columns // SQUARE)):
        return "block"
    raise MismatchError(f"scales of shape {list(scale)} do not fit an 8-bit float weight of shape {list(weight)}")


@dataclass(frozen=True, slots=True)
class Float8:
    """f8 codes with a scale for the tensor, for each row, or for each block of 128 x 128 (those at the edges are smaller).

    `kind` is f8_e4m3 or f8_e5m2, `dtype` the weight's own (f32, bf16, f16) and that of the scales. Scale = largest magnitude
    / 448 (57344), codes = weight / scale, both rounded to the dtype. compressed-tensors has f8_e4m3 only.
    """

    kind: DType
    dtype: DType
    grain: Grain = "row"

    def scale_of(self, greatest: Array | float) -> Array:
        """Scales in the dtype for largest magnitudes; for grain "tensor" the first pass gathers max |x| of the whole tensor."""
        scale = _rounded(np.asarray(greatest, np.float32) / np.float32(_LARGEST[self.kind.name]), self.dtype)
        scale = np.where(scale == 0, np.float32(_EPSILON[self.dtype.name]), scale)
        return scale.astype(self.dtype.numpy())

    def encode(self, x: Array, scale: Array | None = None) -> tuple[Array, Array]:
        """Codes in the kind's dtype [n, I] and scales in the dtype: [1] (the `scale` given, which only grain "tensor" takes and
        needs), [n, 1] or [ceil(n / 128), ceil(I / 128)]: for blocks a slab begins at a multiple of 128 rows.
        """
        rows, columns = x.shape
        if self.grain == "tensor":
            assert scale is not None
            scales = np.asarray(scale).astype(self.dtype.numpy()).reshape(1)
        elif self.grain == "row":
            scales = self.scale_of(np.abs(x).max(axis=1, initial=0, keepdims=True))
        else:
            across, down = range(0, columns, SQUARE), range(0, rows, SQUARE)
            largest = np.zeros((len(down), len(across)), np.float32)
            for i, j in np.ndindex(*largest.shape):
                largest[i, j] = np.abs(x[i * SQUARE : (i + 1) * SQUARE, j * SQUARE : (j + 1) * SQUARE]).max()
            scales = self.scale_of(largest)
        most = np.float32(_LARGEST[self.kind.name])
        quotient = np.clip(_rounded(x / self._spread(scales, rows, columns), self.dtype), -most, most)
        codes = np.empty(x.shape, self.kind.numpy())
        route(_F32, self.kind)(quotient.reshape(-1), codes.reshape(-1))
        return codes, scales

    def decode(self, codes: Array, scales: Array) -> Array:
        """f32 [n, I]: code * scale in f32, whatever float dtype the scales have. Shapes as `encode` gives them; scales for rows
        may be [n] too, one for the tensor of any shape. Rounding it to the dtype gives compressed-tensors' own outcome.
        """
        rows, columns = codes.shape
        values = np.empty(codes.shape, np.float32)
        route(self.kind, _F32)(codes.reshape(-1), values.reshape(-1))
        values *= self._spread(scales, rows, columns)
        return values

    def _spread(self, scales: Array, rows: int, columns: int) -> Array:
        wide = scales.astype(np.float32)
        if self.grain == "tensor":
            return wide.reshape(1, 1)
        if self.grain == "row":
            return wide.reshape(rows, 1)
        return wide.repeat(SQUARE, axis=0)[:rows].repeat(SQUARE, axis=1)[:, :columns]


@dataclass(frozen=True, slots=True)
class NvFloat4:
    """nvfp4: e2m1 codes, two to a byte, low four bits first; for 16 weights along the row a scale in f8_e4m3; a global scale.

    w = code * scale / global, with global = 448 * 6 / (largest magnitude of the tensor). Rows must divide by 16. With
    `search`, block scales are chosen by squared error.
    """

    dtype: DType
    search: bool = False

    def global_of(self, greatest: float) -> Array:
        """The global scale, f32 [1], from max |x| of the tensor (or of all that a runtime fuses: q, k and v; gate and up)."""
        with np.errstate(all="ignore"):
            reciprocal = _rounded(np.float32(1) / np.asarray([greatest], np.float32), self.dtype)
            whole = _rounded(reciprocal * np.float32(448 * 6), self.dtype)
        return np.nan_to_num(whole, nan=1.0, posinf=1.0)

    def encode(self, x: Array, whole: Array) -> tuple[Array, Array]:
        """Packed codes u8 [n, I / 2] and scales f8_e4m3 [n, I / 16]; `whole` is the global scale, f32 [1]."""
        rows, columns = x.shape
        grouped = x.reshape(rows, columns // 16, 16)
        scale = _rounded(np.abs(grouped).max(axis=2) / np.float32(6), self.dtype) * whole
        scales = np.empty(scale.shape, _E4M3.numpy())
        route(_F32, _E4M3)(np.minimum(scale, np.float32(448)).reshape(-1), scales.reshape(-1))
        scales[scales.view(np.uint8) == 0] = 0.125
        quotient = grouped / (scales.astype(np.float32) / whole)[:, :, None]
        return _packed(quotient.reshape(rows, columns)), scales

    def decode(self, packed: Array, scales: Array, whole: Array, reciprocal: bool = False) -> Array:
        """f32 [n, I]: code * (scale / global), both in f32; compressed-tensors rounds this to bf16. With `reciprocal` the global
        scale is ModelOpt's weight_scale_2, which multiplies.
        """
        values = _unpacked(packed)
        wide = scales.astype(np.float32)
        wide = wide * whole.astype(np.float32).reshape(()) if reciprocal else wide / whole.astype(np.float32).reshape(())
        values.reshape(len(values), -1, 16)[...] *= wide[:, :, None]
        return values


@dataclass(frozen=True, slots=True)
class MxFloat4:
    """mxfp4: e2m1 codes, two to a byte, low four bits first; for 32 weights along the row a power of two, 2 ** (byte - 127).

    OCP Microscaling Formats 1.0. Rows must divide by 32. With `search`, the powers are chosen by squared error.
    """

    dtype: DType
    search: bool = False

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Packed codes u8 [n, I / 2] and exponents u8 [n, I / 32] (e8m0)."""
        rows, columns = x.shape
        grouped = x.reshape(rows, columns // 32, 32)
        largest = np.abs(grouped).max(axis=2)
        exponents = np.clip((largest.view(np.uint32) + np.uint32(1 << 21) >> np.uint32(23)).astype(np.int32) - 2, 0, 254)
        power = np.ldexp(np.float32(1), exponents - 127)
        quotient = grouped / power[:, :, None]
        return _packed(quotient.reshape(rows, columns)), exponents.astype(np.uint8)

    def decode(self, packed: Array, scales: Array) -> Array:
        """f32 [n, I], exact."""
        values = _unpacked(packed)
        values.reshape(len(values), -1, 32)[...] *= _power(scales)[:, :, None]
        return values


@dataclass(frozen=True, slots=True)
class MxFloat8:
    """mxfp8: f8_e4m3 codes; for 32 weights along the row a power of two, 2 ** (byte - 127)."""

    kind: DType = _E4M3

    def decode(self, codes: Array, scales: Array) -> Array:
        """f32 [n, I], exact, from codes [n, I] and exponents u8 [n, I / 32]."""
        values = np.empty(codes.shape, np.float32)
        route(self.kind, _F32)(codes.reshape(-1), values.reshape(-1))
        values.reshape(len(values), -1, 32)[...] *= _power(scales)[:, :, None]
        return values


def _power(exponents: Array) -> Array:
    power: Array = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), power)


def _rounded(values: Array, to: DType) -> Array:
    if to is _F32:
        return values
    with np.errstate(over="ignore"):
        return values.astype(to.numpy()).astype(np.float32)


def _packed(quotient: Array) -> Array:
    size = np.abs(quotient)
    codes = np.zeros(size.shape, np.uint8)
    for edge, even in ((0.25, 0), (0.75, 1), (1.25, 0), (1.75, 1), (2.5, 0), (3.5, 1), (5.0, 0)):
        codes += size >= edge if even else size > edge
    codes |= (quotient < 0).astype(np.uint8) << 3
    return codes[:, ::2] | codes[:, 1::2] << 4


def _unpacked(packed: Array) -> Array:
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    return _E2M1[codes]
