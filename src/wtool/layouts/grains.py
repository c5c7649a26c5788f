"""Codecs of the plain layout: codes as they are or packed into bytes, with scales along the rows, down the columns, or given.

A matrix is [R, C]. Codes of fewer than 8 bits are packed along the row, code j at bits j * b of it, low end first, with
2 ** (b - 1) added; a row ends on a whole byte.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import NotFiniteError
from wtool.kernels.affine import Affine
from wtool.kernels.minifloat import Float8
from wtool.kernels.packing import pack, unpack
from wtool.quantized import SLAB, Part
from wtool.tensor import LazyTensor

Array = NDArray[Any]

_measuring = threading.Lock()


def wide(columns: int, bits: int) -> int:
    """Bytes of a row of codes."""
    return -(-columns * bits // 8)


def _codes(rows: int, columns: int, bits: int, step: int) -> Part:
    many = wide(columns, bits)
    return Part("codes", dtype("i8" if bits == 8 else "u8"), (rows, many), step * many)


def _stored(codes: Array, bits: int) -> Array:
    return codes if bits == 8 else pack(codes, bits).view(np.uint8)[:, : wide(codes.shape[1], bits)]


def _read(stored: Array, bits: int, columns: int) -> Array:
    rows = stored.reshape(-1, wide(columns, bits))
    if bits == 8:
        return rows
    words = np.zeros((len(rows), -(-rows.shape[1] // 4) * 4), np.uint8)
    words[:, : rows.shape[1]] = rows
    return unpack(words.view("<i4")[:, : -(-columns * bits // 32)], bits, columns)


def _turned(matrices: Array) -> Array:
    """Each of them transposed: as many rows at once as fill a line of the cache, three times as fast as all."""
    many, rows, columns = matrices.shape
    out = np.empty((many, columns, rows), matrices.dtype)
    step = 64 // matrices.itemsize
    for low in range(0, rows, step):
        out[:, :, low : low + step] = matrices[:, low : low + step].swapaxes(1, 2)
    return out


@dataclass(frozen=True)
class AlongRows:
    """`codes`, `scale` [R, groups of a row] and, unless symmetric, `zero_point` i8 of that shape."""

    affine: Affine
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        groups = columns // self.affine.group if self.affine.group else 1
        scale = Part("scale", self.affine.dtype, (rows, groups), groups * self.affine.dtype.itemsize)
        zeros = () if self.affine.symmetric else (Part("zero_point", dtype("i8"), (rows, groups), groups),)
        return (_codes(rows, columns, self.affine.bits, 1), scale, *zeros)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        codes, scales, zeros = self.affine.encode(x)
        return (_stored(codes, self.affine.bits), scales, *(() if zeros is None else (zeros,)))

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        codes = _read(parts[0], self.affine.bits, columns)
        scales, *zeros = (part.reshape(len(codes), -1) for part in parts[1:])
        return self.affine.decode(codes, scales, zeros[0] if zeros else None)

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        scales, *zeros = (part.reshape(len(parts[0]) // wide(columns, self.affine.bits), -1) for part in parts[1:])
        return _ends(self.affine, scales, zeros[0] if zeros else None)


@dataclass(frozen=True)
class DownColumns:
    """`codes`, `scale` [R / group, C] and, unless symmetric, `zero_point` i8 of that shape. `affine` has no group."""

    affine: Affine
    group: int

    @property
    def step(self) -> int:
        return self.group

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        shape = (rows // self.group, columns)
        scale = Part("scale", self.affine.dtype, shape, columns * self.affine.dtype.itemsize)
        zeros = () if self.affine.symmetric else (Part("zero_point", dtype("i8"), shape, columns),)
        return (_codes(rows, columns, self.affine.bits, self.group), scale, *zeros)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        rows, columns = x.shape
        turned = _turned(x.reshape(-1, self.group, columns)).reshape(-1, self.group)
        codes, scales, zeros = self.affine.encode(turned)
        codes = _turned(codes.reshape(-1, columns, self.group)).reshape(rows, columns)
        return (_stored(codes, self.affine.bits), scales, *(() if zeros is None else (zeros,)))

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        codes = _read(parts[0], self.affine.bits, columns)
        values = codes.reshape(-1, self.group, columns).astype(np.float32)
        scales, *zeros = (part.reshape(len(values), 1, columns).astype(np.float32) for part in parts[1:])
        if zeros:
            values -= zeros[0]
        values *= scales
        return values.reshape(codes.shape)

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array]:
        scales, *zeros = (part.reshape(-1, columns).repeat(self.group, axis=0) for part in parts[1:])
        return _ends(self.affine, scales, zeros[0] if zeros else None)


class Scales(Protocol):
    """Scales that are known before the codes: f32 [E, C or 1], each for equally many rows, and zero points so or None."""

    @property
    def arrays(self) -> tuple[Array, Array | None]: ...


@dataclass(frozen=True)
class Known:
    """Scales and zero points (f32, C order) of a width."""

    scale: bytes
    width: int
    zero: bytes | None = None

    @property
    def arrays(self) -> tuple[Array, Array | None]:
        zero = None if self.zero is None else np.frombuffer(self.zero, np.float32).reshape(-1, self.width)
        return np.frombuffer(self.scale, np.float32).reshape(-1, self.width), zero


@dataclass(frozen=True)
class Measured:
    """Scales for the columns of each of E matrices of `rows` rows, which lie one behind the other in an f32 `tensor`.

    They are known when they are first asked for: the tensor is then read.
    """

    tensor: LazyTensor
    rows: int
    rule: Affine | Float8

    @property
    def arrays(self) -> tuple[Array, Array | None]:
        with _measuring:
            return self._arrays

    @cached_property
    def _arrays(self) -> tuple[Array, Array | None]:
        columns = self.tensor.shape[-1]
        many = max(SLAB // columns, 1) if self.tensor.span is not None else max((SLAB << 5) // columns, 1)
        least = np.zeros((self.tensor.elements // columns // self.rows, columns), np.float32)
        greatest = least.copy()
        for at in range(len(least)):
            for low in range(at * self.rows, (at + 1) * self.rows, many):
                block = self.tensor.flat(low * columns, min(low + many, (at + 1) * self.rows) * columns).reshape(-1, columns)
                np.minimum(least[at], block.min(axis=0), out=least[at])
                np.maximum(greatest[at], block.max(axis=0), out=greatest[at])
        if not (np.isfinite(least).all() and np.isfinite(greatest).all()):
            hint = "--on-nan keep leaves such tensors as they are"
            raise NotFiniteError(f"'{self.tensor.key}' holds NaN or an infinity", hint=hint)
        if isinstance(self.rule, Float8):
            return self.rule.scale_of(np.maximum(-least, greatest)).astype(np.float32), None
        scales, zeros = self.rule.scales_of(least, greatest)
        return scales.astype(np.float32), None if zeros is None else zeros.astype(np.float32)


@dataclass(frozen=True)
class Given:
    """`codes` alone, of ints (`rule` an Affine) or f8, whose scales are given: each is for `each` rows."""

    rule: Affine | Float8
    scales: Scales
    each: int
    step: int = 1

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]:
        if isinstance(self.rule, Float8):
            return (Part("codes", self.rule.kind, (rows, columns), columns),)
        return (_codes(rows, columns, self.rule.bits, 1),)

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        scales, zeros = self.scales.arrays
        codes = np.empty(x.shape, self.rule.kind.numpy() if isinstance(self.rule, Float8) else np.int8)
        one = np.ones(1, np.float32)
        for at, low, high in self._runs(len(x), row):
            quotient = x[low:high] / scales[at]
            if isinstance(self.rule, Float8):
                codes[low:high] = Float8(self.rule.kind, dtype("f32"), "tensor").encode(quotient, one)[0]
                continue
            if zeros is not None:
                quotient += zeros[at]
            np.rint(quotient, out=quotient)
            codes[low:high] = np.clip(quotient, self.rule.lowest, self.rule.highest, out=quotient)
        return (codes if isinstance(self.rule, Float8) else _stored(codes, self.rule.bits),)

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        scales, zeros = self.scales.arrays
        if isinstance(self.rule, Float8):
            one = np.ones(1, np.float32)
            values = Float8(self.rule.kind, dtype("f32"), "tensor").decode(parts[0].reshape(-1, columns), one)
        else:
            values = _read(parts[0], self.rule.bits, columns).astype(np.float32)
        for at, low, high in self._runs(len(values), row):
            if zeros is not None:
                values[low:high] -= zeros[at]
            values[low:high] *= scales[at]
        return values

    def ends(self, parts: Sequence[Array], row: int, columns: int) -> tuple[Array, Array] | None:
        if isinstance(self.rule, Float8):
            return None
        scales, zeros = self.scales.arrays
        index = (np.arange(len(parts[0]) // wide(columns, self.rule.bits)) + row) // self.each
        return _ends(self.rule, scales[index], None if zeros is None else zeros[index])

    def _runs(self, count: int, row: int) -> Iterator[tuple[int, int, int]]:
        """Number of a scale, and the first and last of the rows, counted from `row`, that have it."""
        low = 0
        while low < count:
            at = (row + low) // self.each
            high = min((at + 1) * self.each - row, count)
            yield at, low, high
            low = high


@dataclass(frozen=True)
class ScaleBytes:
    """A ByteSource of scales (or zero points, of `dtype` i8) that are measured when they are written."""

    scales: Scales
    dtype: DType
    count: int
    zero: bool = False
    name: str = field(default="scales", compare=False)

    @property
    def size(self) -> int:
        return self.count * self.dtype.itemsize

    def pread(self, offset: int, nbytes: int) -> bytes:
        found = self.scales.arrays[int(self.zero)]
        assert found is not None
        return found.astype(self.dtype.numpy()).tobytes()[offset : offset + nbytes]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.pread(offset, len(buffer))


def _ends(affine: Affine, scales: Array, zeros: Array | None) -> tuple[Array, Array]:
    width = scales.astype(np.float32)
    shift = np.float32(0) if zeros is None else zeros.astype(np.float32)
    return (np.float32(affine.lowest - 0.5) - shift) * width, (np.float32(affine.highest + 0.5) - shift) * width
