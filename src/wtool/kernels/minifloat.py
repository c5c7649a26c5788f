"""Weights as floats of 8 or 4 bits times a scale: f8 by tensor, row or square block, nvfp4, mxfp4, mxfp8.

Scales and codes are those of compressed-tensors 0.19 and 0.20 (quantization/utils/helpers.py, mxfp_utils.py;
lifecycle/forward_helpers.py; compressors/) with llm-compressor's min-max observer, bit for bit: quotients are rounded to the
weight's own dtype where theirs are. Where they differ a docstring says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import MismatchError
from wtool.kernels import e2m1, e8m0, lanes
from wtool.kernels.buffers import CHUNK, block
from wtool.kernels.cast import route

Array = NDArray[Any]
Grain = Literal["tensor", "row", "block"]

SQUARE = 128  # rows and columns of a block of f8
_F32, _F16, _F4, _E4M3 = map(dtype, ("f32", "f16", "f4", "f8_e4m3"))
_LARGEST = {"f8_e4m3": 448.0, "f8_e5m2": 57344.0}
_EPSILON = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
_F8 = np.arange(256, dtype=np.uint8).view(_E4M3.numpy()).astype(np.float32)


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
    """f8 codes with a scale for the tensor, for each row, or for each block of 128 x 128 (at the edges of what is there).

    `kind` is f8_e4m3 or f8_e5m2, `dtype` the weight's own (f32, bf16, f16) and that of the scales. A scale is the largest
    magnitude / 448 (57344), a code weight / scale, both rounded to the dtype. compressed-tensors has f8_e4m3 only.
    """

    kind: DType
    dtype: DType
    grain: Grain = "row"

    def scale_of(self, greatest: Array | float) -> Array:
        """Scales in the dtype for largest magnitudes; for grain "tensor" a first pass gathers max |x| of the tensor."""
        scale = np.array(greatest, np.float32)
        scale /= np.float32(_LARGEST[self.kind.name])
        lanes.round_to(scale, self.dtype)
        scale[scale == 0] = _EPSILON[self.dtype.name]
        return scale.astype(self.dtype.numpy())

    def encode(self, x: Array, scale: Array | None = None) -> tuple[Array, Array]:
        """Codes in the kind's dtype [n, I] and scales in the dtype: [1] (the `scale` given, which only grain "tensor" takes
        and needs), [n, 1] or [ceil(n / 128), ceil(I / 128)]: for blocks a slab begins at a multiple of 128 rows.
        """
        largest = self._largest(x)
        scales = self.scale_of(largest) if scale is None else np.asarray(scale).astype(self.dtype.numpy()).reshape(1)
        wide, most = scales.astype(np.float32), np.float32(_LARGEST[self.kind.name])
        # An f16 scale may have few bits left; else no quotient gets half way to the next code, which does not exist.
        clip = self.dtype is _F16 or scale is not None
        codes = block(self.kind.numpy(), x.size).reshape(x.shape)
        for rows, columns in self._pieces(x.shape):
            quotient = lanes.empty("f4", (rows.stop - rows.start, columns.stop - columns.start), 30)
            with np.errstate(over="ignore"):
                np.divide(x[rows, columns], self._spread(wide, rows, columns), out=quotient)
            lanes.round_to(quotient, self.dtype)
            if clip:
                np.clip(quotient, -most, most, out=quotient)
            piece = codes[rows, columns]
            if piece.flags.c_contiguous:
                route(_F32, self.kind)(quotient.reshape(-1), piece.reshape(-1))
            else:
                part = block(self.kind.numpy(), quotient.size)
                route(_F32, self.kind)(quotient.reshape(-1), part)
                piece[...] = part.reshape(piece.shape)
        return codes, scales

    def decode(self, codes: Array, scales: Array) -> Array:
        """f32 [n, I]: code * scale in f32, whatever float dtype the scales have. Shapes as `encode` gives them; scales for
        rows may be [n] too, one for the tensor of any shape. Rounded to the dtype it is compressed-tensors' own outcome.
        """
        values = _widened(codes, self.kind)
        wide = scales.astype(np.float32)
        wide = wide.reshape(-1, 1) if self.grain == "row" else wide
        with np.errstate(all="ignore"):  # a damaged file
            for rows, columns in self._pieces(codes.shape):
                values[rows, columns] *= self._spread(wide, rows, columns)
        return values

    def _pieces(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
        """At most CHUNK values at a time, of one row of blocks."""
        rows, columns = shape
        wide = min(max(columns, 1), CHUNK)
        tall = min(CHUNK // wide, SQUARE) if self.grain == "block" else CHUNK // wide
        for first in range(0, rows, SQUARE if self.grain == "block" else max(rows, 1)):
            last = min(first + SQUARE, rows) if self.grain == "block" else rows
            for row in range(first, last, tall):
                for column in range(0, columns, wide):
                    yield slice(row, min(row + tall, last)), slice(column, min(column + wide, columns))

    def _spread(self, scales: Array, rows: slice, columns: slice) -> Array:
        """The scales of a piece, as f32 that broadcast."""
        if self.grain == "tensor":
            return scales.reshape(1, 1)
        if self.grain == "row":
            return scales[rows]
        first = columns.start // SQUARE
        line = scales[rows.start // SQUARE, first : -(-columns.stop // SQUARE)].repeat(SQUARE)
        return line[columns.start - first * SQUARE :][: columns.stop - columns.start][None]

    def _largest(self, x: Array) -> Array:
        rows, columns = x.shape
        if self.grain == "tensor" or not x.size:
            return np.zeros(1 if self.grain == "tensor" else self._scales(rows, columns), np.float32)
        if self.grain == "row":
            return np.asarray(np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True)))
        down, across = self._scales(rows, columns)
        lines = np.zeros((down, across * SQUARE), np.float32)
        for number in range(down):
            rows_of = x[number * SQUARE : (number + 1) * SQUARE]
            np.maximum(rows_of.max(axis=0), -rows_of.min(axis=0), out=lines[number, :columns])
        return np.asarray(lines.reshape(down, across, SQUARE).max(axis=2))

    def _scales(self, rows: int, columns: int) -> tuple[int, int]:
        return (rows, 1) if self.grain == "row" else (-(-rows // SQUARE), -(-columns // SQUARE))


@dataclass(frozen=True, slots=True)
class NvFloat4:
    """nvfp4: e2m1 codes, two to a byte, low four bits first; for 16 weights along the row a scale in f8_e4m3; a global scale.

    w = code * scale / global, with global = 448 * 6 / (largest magnitude of the tensor). Rows must divide by 16. With
    `search`, block scales are chosen by squared error.
    """

    dtype: DType
    search: bool = False

    def global_of(self, greatest: float) -> Array:
        """The global scale, f32 [1], from max |x| of the tensor (or of all that a runtime fuses: q, k and v; gate and up).

        compressed-tensors reckons 2688 * (1 / greatest) in the dtype. Where that overflows in f16 (below 0.041) it falls
        back to 1, for which scales in f8 are too small to be told apart; here the reckoning is in f32 then.
        """
        found = np.array([greatest], np.float32)
        for to in (self.dtype, _F32):
            with np.errstate(all="ignore"):
                whole = 1 / found
                lanes.round_to(whole, to)
                whole *= np.float32(448 * 6)
                lanes.round_to(whole, to)
            if np.isfinite(whole).all():
                return whole
        return np.ones(1, np.float32)

    def encode(self, x: Array, whole: Array) -> tuple[Array, Array]:
        """Packed codes u8 [n, I / 2] and scales f8_e4m3 [n, I / 16]; `whole` is the global scale, f32 [1]."""
        rows, columns = x.shape
        grouped = x.reshape(-1, 16)
        packed, scales = block(np.dtype(np.uint8), x.size // 2).reshape(-1, 8), np.empty(len(grouped), _E4M3.numpy())
        for some in lanes.pieces(len(grouped), 16):
            weights = lanes.turned(grouped[some], 30)
            largest = np.abs(weights, out=lanes.empty("f4", weights.shape, 31)).max(axis=0)
            self._scale(largest / np.float32(6), whole, scales[some])
            if self.search:
                self._choose(weights, largest, whole, scales[some])
            np.divide(weights, _F8.take(scales[some].view(np.uint8)) / whole, out=weights)
            e2m1.pack(weights, packed[some])
        return packed.reshape(rows, columns // 2), scales.reshape(rows, columns // 16)

    def _scale(self, meant: Array, whole: Array, out: Array) -> None:
        lanes.round_to(meant, self.dtype)
        meant *= whole
        np.minimum(meant, np.float32(448), out=meant)
        route(_F32, _E4M3)(meant, out)
        codes = out.view(np.uint8)
        codes[codes == 0] = 0x20  # 0.125

    def _choose(self, weights: Array, largest: Array, whole: Array, scales: Array) -> None:
        """Replace the scales by the code below or by that which makes the largest 4, where the error is smaller."""
        codes = scales.view(np.uint8)
        fewest = e2m1.errors(weights, _F8.take(codes) / whole)
        other = np.empty_like(scales)
        self._scale(largest / np.float32(4), whole, other)
        for trial in (np.maximum(codes, 2) - np.uint8(1), other.view(np.uint8)):
            found = e2m1.errors(weights, _F8.take(trial) / whole)
            better = found < fewest
            np.copyto(codes, trial, where=better)
            np.copyto(fewest, found, where=better)

    def decode(self, packed: Array, scales: Array, whole: Array, reciprocal: bool = False) -> Array:
        """f32 [n, I]: code * (scale / global), both in f32; compressed-tensors rounds this to bf16. With `reciprocal` the
        global scale is ModelOpt's weight_scale_2, which multiplies.
        """
        rows, columns = len(packed), packed.shape[1] * 2
        values, wide = _widened(packed, _F4).reshape(-1, 16), _widened(scales, _E4M3).reshape(-1, 1)
        one = whole.astype(np.float32).reshape(())
        with np.errstate(all="ignore"):  # a damaged file
            (np.multiply if reciprocal else np.divide)(wide, one, out=wide)
            for some in lanes.pieces(len(values), 16):
                np.multiply(values[some], wide[some], out=values[some])
        return values.reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class MxFloat4:
    """mxfp4: e2m1 codes, two to a byte, low four bits first; for 32 weights along the row a power of two, 2 ** (byte - 127).

    OCP Microscaling Formats 1.0. Rows must divide by 32. With `search`, the powers are chosen by squared error.

    compressed-tensors loses f16 groups whose largest is below 0.75 * 2 ** -14 (their power underflows to 0, is replaced by 1,
    and all codes are 0), and gives the byte 255, which is NaN, where the largest would round up to Inf. Here the first are
    as in f32, and the others are clipped.
    """

    dtype: DType
    search: bool = False

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Packed codes u8 [n, I / 2] and exponents u8 [n, I / 32] (e8m0)."""
        rows, columns = x.shape
        grouped = x.reshape(-1, e8m0.SIZE)
        packed, bytes_ = block(np.dtype(np.uint8), x.size // 2).reshape(-1, 16), np.empty(len(grouped), np.uint8)
        for some in lanes.pieces(len(grouped), e8m0.SIZE):
            weights = lanes.turned(grouped[some], 30)
            largest = np.abs(weights, out=lanes.empty("f4", weights.shape, 31)).max(axis=0)
            chosen = e8m0.exponents(largest, 2, self.dtype)
            if self.search:
                below = np.maximum(chosen, 1) - np.uint8(1)
                better = e2m1.errors(weights, e8m0.power(below)) < e2m1.errors(weights, e8m0.power(chosen))
                np.copyto(chosen, below, where=better)
            np.divide(weights, e8m0.power(chosen), out=weights)
            if self.dtype is _F16:  # quotients are f16 there: multiples of 2 ** -24
                np.add(weights, np.float32(0.75), out=weights)
                np.subtract(weights, np.float32(0.75), out=weights)
            e2m1.pack(weights, packed[some])
            bytes_[some] = chosen
        return packed.reshape(rows, columns // 2), bytes_.reshape(rows, columns // e8m0.SIZE)

    def decode(self, packed: Array, scales: Array) -> Array:
        """f32 [n, I], exact."""
        return e8m0.multiply(_widened(packed, _F4), scales)


@dataclass(frozen=True, slots=True)
class MxFloat8:
    """mxfp8: f8 codes; for 32 weights along the row a power of two, 2 ** (byte - 127). Only f8_e4m3 is encoded.

    Where the byte would be 255 and of small f16 groups holds what MxFloat4 says.
    """

    kind: DType = _E4M3
    dtype: DType = _F32

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Codes f8_e4m3 [n, I] and exponents u8 [n, I / 32]."""
        assert self.kind is _E4M3
        rows, columns = x.shape
        grouped = x.reshape(-1, e8m0.SIZE)
        codes, bytes_ = block(_E4M3.numpy(), x.size).reshape(-1, e8m0.SIZE), np.empty(len(grouped), np.uint8)
        for some in lanes.pieces(len(grouped), e8m0.SIZE):
            weights = lanes.turned(grouped[some], 30)
            largest = np.abs(weights, out=lanes.empty("f4", weights.shape, 31)).max(axis=0)
            bytes_[some] = e8m0.exponents(largest, 8, self.dtype)
            quotient = lanes.empty("f4", weights.shape[::-1], 31)
            np.divide(grouped[some], e8m0.power(bytes_[some])[:, None], out=quotient)
            np.clip(quotient, np.float32(-448), np.float32(448), out=quotient)
            route(_F32, _E4M3)(quotient.reshape(-1), codes[some].reshape(-1))
        return codes.reshape(rows, columns), bytes_.reshape(rows, columns // e8m0.SIZE)

    def decode(self, codes: Array, scales: Array) -> Array:
        """f32 [n, I], exact, from codes [n, I] and exponents u8 [n, I / 32]."""
        return e8m0.multiply(_widened(codes, self.kind), scales)


def _widened(codes: Array, kind: DType) -> Array:
    """Codes [n, k] as f32, [n, 2k] where two share a byte."""
    rows, columns = codes.shape
    columns *= 2 if kind is _F4 else 1
    values = block(np.dtype(np.float32), rows * columns)
    route(kind, _F32)(np.ascontiguousarray(codes).reshape(-1), values)
    return values.reshape(rows, columns)
