"""bitsandbytes' layouts: four bits through a table of sixteen (nf4, fp4) in blocks over the flattened tensor, and int8 rows.

Source: bitsandbytes 0.50, functional.py, backends/default/ops.py; the numbers are those of its CPU kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType

Array = NDArray[Any]
Book = Literal["nf4", "fp4"]

NESTED = 256  # absmaxes that share a second one

# NF4: quantiles of the normal distribution, QLoRA (arXiv 2305.14314), appendix E. FP4: sign, two bits of exponent, one of
# fraction, over 12; in the order of the codes.
BOOKS: dict[str, Array] = {
    "nf4": np.array([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ], np.float32),
    "fp4": np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12),
}  # fmt: skip


@cache
def dynamic_map() -> Array:
    """The 256 values in rising order that nested absmaxes are coded by (`nested_quant_map`), f32: 8-Bit Approximations for
    Parallelism in Deep Learning (arXiv 1511.04561), as functional.create_dynamic_map builds it.
    """
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FourBit:
    """Codes of four bits into a table, the first of two in the high bits, for blocks of `size` (32 to 4096, a power of two)
    over the flattened tensor, each with its largest magnitude, the absmax.

    A slab is a run of the flattened tensor that begins at a multiple of `size` (with nested absmaxes: of 256 * `size`); all
    but the last have whole blocks. With `search`, absmaxes are chosen by squared error.
    """

    book: Book
    size: int = 64
    search: bool = False

    @property
    def table(self) -> Array:
        """`quant_map`: f32 [16]."""
        return BOOKS[self.book]

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Packed codes u8 [ceil(N / 2)] and absmaxes f32 [ceil(N / size)] of the N values of `x`, f32 of any shape."""
        raise NotImplementedError

    def decode(self, packed: Array, absmax: Array, count: int) -> Array:
        """f32 [count]: table[code] * absmax, multiplied in f32; bitsandbytes rounds this to the weight's dtype."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Nested:
    """Absmaxes as codes of 8 bits: absmax = dynamic_map()[code] * second + offset, a second for every 256 absmaxes.

    `offset` (`nested_offset`, f32) is the mean of all absmaxes of the tensor. The first pass gathers their sum in f64 (and
    their number) from `FourBit.encode(slab)[1]`, or from max |x| of each block where nothing is searched; see `offset_of`.
    """

    offset: float

    @staticmethod
    def offset_of(total: float, count: int) -> float:
        """The mean as an f32. bitsandbytes takes torch's f32 mean, whose last bits depend on how its threads add."""
        return float(np.float32(total / count)) if count else 0.0

    def encode(self, absmax: Array) -> tuple[Array, Array]:
        """Codes u8 [k] (the part `absmax`) and seconds f32 [ceil(k / 256)] (`nested_absmax`)."""
        raise NotImplementedError

    def decode(self, codes: Array, seconds: Array) -> Array:
        """f32 [k] absmaxes, for `FourBit.decode`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """LLM.int8() weights: i8 [O, I] and `SCB` f32 [O], the largest magnitude of the row; w = code * SCB / 127.

    `dtype` is the weight's own. Codes are round(x * (127 / SCB)), the product rounded to the dtype where bitsandbytes does.
    """

    dtype: DType

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Codes i8 [n, I], SCB f32 [n]. A row of zeros has SCB 0 and codes 0."""
        raise NotImplementedError

    def decode(self, codes: Array, scb: Array) -> Array:
        """f32 [n, I]: (code * SCB) * 0.007874015718698502 in f32, as bitsandbytes' int8_vectorwise_dequant."""
        raise NotImplementedError
