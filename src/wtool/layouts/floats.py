"""Codecs of small floats with scales: f8 by tensor, row or block; nvfp4; mxfp4; mxfp8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels.minifloat import SQUARE, Float8, MxFloat4, MxFloat8, NvFloat4
from wtool.quantized import Part

Array = NDArray[Any]


@dataclass(frozen=True)
class Floats:
    """f8 codes [O, I] and their scales: `scale` [O, 1] or [ceil(O / 128), ceil(I / 128)] in `kept`; none beside the one given.

    `kept` is the dtype that scales are stored in, as a reader found them; that of the weights, where they are written.
    """

    float8: Float8
    kept: DType
    scale: float | None = None

    @property
    def step(self) -> int:
        return SQUARE if self.float8.grain == "block" else 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        codes = Part("codes", self.float8.kind, (rows, columns), self.step * columns)
        if self.float8.grain == "tensor":
            return (codes,)
        high, wide = (rows, 1) if self.float8.grain == "row" else (-(-rows // SQUARE), -(-columns // SQUARE))
        return codes, Part("scale", self.kept, (high, wide), wide * self.kept.itemsize)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        given = None if self.scale is None else np.asarray([self.scale], np.float32)
        return self.float8.encode(x, given)[: 1 if self.float8.grain == "tensor" else 2]

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        codes = parts[0].reshape(-1, columns)
        return self.float8.decode(codes, self._scales(parts, columns))

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array] | None:
        """Of one scale for the tensor, or for each row; those of blocks are not told."""
        if self.float8.grain == "block":
            return None
        # Beyond the largest value by half of the last step, 32 of 448 and 8,192 of 57,344.
        most = np.float32(464 if self.float8.kind.name == "f8_e4m3" else 61440)
        high = self._scales(parts, columns).astype(np.float32).reshape(-1, 1) * most
        high = np.broadcast_to(high, (len(parts[0]) // columns, 1))
        return -high, high

    def _scales(self, parts: Sequence[Array], columns: int) -> Array:
        if self.scale is not None:
            return np.asarray([self.scale], np.float32)
        return parts[1].reshape(-1, 1 if self.float8.grain == "row" else -(-columns // SQUARE))


@dataclass(frozen=True)
class NvFloats:
    """nvfp4: `packed` u8 [O, I / 2] and `scale` f8_e4m3 [O, I / 16]; the global scale is given."""

    nv: NvFloat4
    whole: float
    reciprocal: bool = False
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        return _halves(rows, columns, Part("scale", dtype("f8_e4m3"), (rows, columns // 16), columns // 16))

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        return self.nv.encode(x, np.asarray([self.whole], np.float32))

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        packed, scales = parts[0].reshape(-1, columns // 2), parts[1].reshape(-1, columns // 16)
        return self.nv.decode(packed, scales, np.asarray([self.whole], np.float32), self.reciprocal)

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        scales = parts[1].reshape(-1, columns // 16).astype(np.float32)
        high = scales * np.float32(7 * self.whole if self.reciprocal else 7 / self.whole)
        return -high, high


@dataclass(frozen=True)
class MxFloats:
    """mxfp4: `packed` u8 [O, I / 2] and `scale` u8 [O, I / 32], exponents."""

    mx: MxFloat4
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        return _halves(rows, columns, Part("scale", dtype("u8"), (rows, columns // 32), columns // 32))

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        return self.mx.encode(x)

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        return self.mx.decode(parts[0].reshape(-1, columns // 2), parts[1].reshape(-1, columns // 32))

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        power = np.ldexp(np.float32(7), parts[1].reshape(-1, columns // 32).astype(np.int32) - 127)
        return -power, power


@dataclass(frozen=True)
class MxFloats8:
    """mxfp8, only read: codes f8_e4m3 [O, I] and `scale` u8 [O, I / 32], exponents."""

    mx: MxFloat8
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        scale = Part("scale", dtype("u8"), (rows, columns // 32), columns // 32)
        return Part("codes", self.mx.kind, (rows, columns), columns), scale

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        raise NotImplementedError

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        return self.mx.decode(parts[0].reshape(-1, columns), parts[1].reshape(-1, columns // 32))


def _halves(rows: int, columns: int, scale: Part) -> tuple[Part, ...]:
    return Part("packed", dtype("u8"), (rows, columns // 2), columns // 2), scale
