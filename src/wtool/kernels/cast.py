"""From one floating dtype to another, bit for bit as numpy's and ml_dtypes' `astype` do it, and faster where they are slow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import DtypeError, UnsupportedError
from wtool.kernels import buffers, ggml, halves, tables
from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]
Tally = dict[str, int]

_F32, _F16, _BF16, _F4, _E8M0 = map(dtype, ("f32", "f16", "bf16", "f4", "f8_e8m0"))

# Of each dtype: the mask that takes the sign off its code, and the first code without the sign that is not finite.
_CODES = {
    "f64": (0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "f32": (0x7FFF_FFFF, 0x7F80_0000),
    "f16": (0x7FFF, 0x7C00),
    "bf16": (0x7FFF, 0x7F80),
    "f8_e4m3": (0x7F, 0x7F),
    "f8_e5m2": (0x7F, 0x7C),
}
_WIDE = 8  # the scratch array that holds blocks decoded: no decoder and no cast uses it
_ONLY_NAN = {"f8_e4m3fnuz": 0x80, "f8_e5m2fnuz": 0x80, "f8_e8m0": 0xFF}  # and no negative zero, no infinity

# Every value of the left is in the range of the right.
_WITHIN = {
    "f32": {"f64"},
    "f16": {"f64", "f32", "bf16"},
    "bf16": {"f64", "f32"},
    "f8_e4m3": {"f64", "f32", "f16", "bf16", "f8_e5m2", "f8_e5m2fnuz"},
    "f8_e5m2": {"f64", "f32", "f16", "bf16", "f8_e5m2fnuz"},
    "f8_e4m3fnuz": {"f64", "f32", "f16", "bf16", "f8_e5m2", "f8_e5m2fnuz"},
    "f8_e5m2fnuz": {"f64", "f32", "f16", "bf16"},
    "f8_e8m0": {"f64", "f32", "bf16"},
    "f4": {"f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz"},
}


@dataclass(frozen=True, slots=True)
class Cast:
    """An elementwise cast, a Kernel. DtypeError unless both are floating; UnsupportedError where no rule exists.

    Rounds to nearest, ties to even; what is too large becomes Inf or, in a dtype without Inf, NaN. f4 comes as packed bytes,
    the low four bits first; ggml's blocks come whole, and are cast as the f32 values that ggml makes of them. Neither can be
    a target: that is quantization, which needs scales. `tally["overflow"]` counts finite values whose outcome is not finite,
    `tally["underflow"]` nonzero ones that became zero.
    """

    source: DType
    target: DType

    def __post_init__(self) -> None:
        if not (self.source.floating and self.target.floating):
            raise DtypeError(f"{self.source} cannot be cast to {self.target}: only floating dtypes are")
        if not self.target.itemsize:
            raise UnsupportedError(f"a cast to {self.target} would need scales")
        if not (self.source.itemsize or self.source.block or self.source is _F4):
            raise UnsupportedError(f"the packing of {self.source} is not settled; it cannot be decoded")

    def dtype(self, stored: DType) -> DType:
        assert stored is self.source, (stored, self)
        return self.target

    def __call__(self, block: Array, tally: Tally) -> Array:
        count = len(block)
        if not self.source.itemsize:
            elements, nbytes = self.source.run
            count = count // nbytes * elements
        out = buffers.block(self.target.numpy(), count)
        if not count:
            return out
        with np.errstate(all="ignore"):
            if self.source.block:
                self._decode(block, out, tally)
                return out
            route(self.source, self.target)(block, out)
        if self.target is not self.source and self.target.name not in _WITHIN.get(self.source.name, ()):
            self._count(block, out, tally)
        return out

    def _decode(self, block: Array, out: Array, tally: Tally) -> None:
        decode = ggml.decoder(self.source)
        if self.target is _F32:
            decode(block, out)
            return
        narrow = Cast(_F32, self.target)
        elements, nbytes = self.source.run
        for first in range(0, len(out), CHUNK):
            part = out[first : first + CHUNK]
            wide = scratch("f4", len(part), _WIDE)
            decode(block[first // elements * nbytes : (first + len(part)) // elements * nbytes], wide)
            route(_F32, self.target)(wide, part)
            if self.target.name not in _WITHIN["f32"]:
                narrow._count(wide, part, tally)

    def _count(self, block: Array, out: Array, tally: Tally) -> None:
        zeros, unbounded = census(out, self.target)
        if not (zeros or unbounded):
            return
        zeros_before, unbounded_before = (0, 0) if self.source is _F4 else census(block, self.source)
        for name, number in (("overflow", unbounded - unbounded_before), ("underflow", zeros - zeros_before)):
            if number > 0:
                tally[name] = tally.get(name, 0) + number


def census(values: Array, of: DType) -> tuple[int, int]:
    """How many of the values are zero, and how many NaN or infinite."""
    codes = values.view(f"u{of.itemsize}")
    if of.name in _ONLY_NAN:
        zeros = 0 if of is _E8M0 else len(codes) - np.count_nonzero(codes)
        return int(zeros), int(np.count_nonzero(codes == _ONLY_NAN[of.name]))
    mask, first = _CODES[of.name]
    zeros = unbounded = 0
    for start in range(0, len(codes), CHUNK):
        code = codes[start : start + CHUNK]
        magnitude = scratch(f"u{of.itemsize}", len(code))
        np.bitwise_and(code, codes.dtype.type(mask), out=magnitude)
        zeros += len(code) - int(np.count_nonzero(magnitude))
        if magnitude.max() >= first:
            unbounded += int(np.count_nonzero(magnitude >= first))
    return zeros, unbounded


@cache
def route(source: DType, target: DType) -> Callable[[Array, Array], None]:
    """What writes the cast of its first array into its second."""
    if source is _F4:
        return partial(tables.by_code, table=tables.pair_table(target))
    if source.bits == 8 or (source.bits == 16 and target.bits <= 16):
        return partial(tables.by_code, table=tables.code_table(source, target))
    if source is _F32 and target.bits == 8 and target is not _E8M0:
        return partial(tables.from_f32, table=tables.half_table(target))
    if source is _F32 and target is _F16:
        return halves.narrow
    if source is _F16 and target is _F32:
        return halves.widen
    return _shifted if source is _BF16 and target is _F32 else _plain


def _shifted(source: Array, target: Array) -> None:
    """bf16 to f32, on integers: ml_dtypes' own cast does not let other threads run."""
    bits = target.view(np.uint32)
    np.copyto(bits, source.view(np.uint16))
    np.left_shift(bits, np.uint32(16), out=bits)


def _plain(source: Array, target: Array) -> None:
    np.copyto(target, source, casting="unsafe")
