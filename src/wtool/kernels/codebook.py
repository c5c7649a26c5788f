"""bitsandbytes' layouts: four bits through a table of sixteen (nf4, fp4) in blocks over the flattened tensor, and int8 rows.

Source: bitsandbytes 0.50, functional.py, backends/default/ops.py, csrc/cpu_ops.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wtool.kernels import lanes, tables
from wtool.kernels.buffers import CHUNK, block

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
    "fp4": np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12),
}  # fmt: skip


_LEAST = np.float32(1e-38)  # what a smaller absmax counts as


@cache
def dynamic_map() -> Array:
    """The 256 values in rising order that nested absmaxes are coded by (`nested_quant_map`), f32.

    8-Bit Approximations for Parallelism in Deep Learning (arXiv 1511.04561), as functional.create_dynamic_map builds it: for
    every power of ten from -6 to 0 twice as many numbers as for the one before it, evenly spread between 0.1 and 1 of it.
    """
    found = [0.0, 1.0]
    for number in range(7):
        means = _between(2**number)
        scaled = (np.float32(10.0 ** (number - 6)) * means).tolist()
        found += [*scaled, *(-value for value in scaled)]
    return np.sort(np.array(found, np.float32))


def _between(count: int) -> Array:
    """The middles of `count` equal parts of 0.1 to 1, in f32: torch.linspace rounds once, going from the nearer end."""
    step = float((np.float32(1) - np.float32(0.1)) / np.float32(count))
    number = np.arange(count + 1, dtype=np.float64)
    bounds = np.where(number < (count + 1) // 2, float(np.float32(0.1)) + step * number, 1 - step * (count - number))
    single = bounds.astype(np.float32)
    return np.asarray((single[:-1] + single[1:]) / np.float32(2))


@dataclass(frozen=True, slots=True)
class FourBit:
    """Codes of four bits into a table, the first of two in the high bits, for blocks of `size` (32 to 4096, a power of two)
    over the flattened tensor, each with its largest magnitude, the absmax.

    A slab is a run of the flattened tensor that begins at a multiple of `size` (with nested absmaxes: of 256 * `size`); all
    but the last have whole blocks. Without `search`, codes and absmaxes are those of bitsandbytes' quantize_4bit on a CPU, bit
    for bit. With it absmaxes are chosen by squared error: the codes for absmax and 0.9 absmax, the better of the two, and what
    least squares makes of it.
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
        flat = x.reshape(-1)
        rising, edges, places = _sorted(self.book)
        whole = flat.size // self.size * self.size
        packed = block(np.dtype(np.uint8), -(-flat.size // 2))
        absmax = np.empty(-(-flat.size // self.size), np.float32)
        groups, codes = flat[:whole].reshape(-1, self.size), packed[: whole // 2].reshape(-1, self.size // 2)
        for some in lanes.pieces(len(groups), self.size):
            weights = lanes.turned(groups[some], 30)
            largest = np.abs(weights, out=lanes.empty("f4", weights.shape, 31)).max(axis=0)
            if self.search:
                largest = _chosen(weights, largest, rising, edges)
            absmax[some] = largest
            lanes.paired(_nearest(weights, largest, edges), codes[some], first_high=True)
        if whole < flat.size:
            rest = flat[whole:]
            absmax[-1] = max(np.abs(rest).max(), _LEAST)
            last = np.zeros(-(-rest.size // 2) * 2, np.float32)
            np.divide(rest, absmax[-1], out=last[: rest.size])
            found = lanes.tally(last[:, None], edges, 32)
            packed[whole // 2 :] = found[::2, 0] << 4 | found[1::2, 0]
        if places is not None:
            tables.by_code(packed, packed, places)
        return packed, absmax

    def decode(self, packed: Array, absmax: Array, count: int, table: Array | None = None) -> Array:
        """f32 [count]: table[code] * absmax, multiplied in f32; bitsandbytes rounds this to the weight's dtype.

        `table` is the `quant_map` of a file, where it has another.
        """
        sixteen = self.table if table is None else table.astype(np.float32).reshape(16)
        codes = np.arange(256)
        pairs = np.stack([sixteen[codes >> 4], sixteen[codes & 15]], axis=1).reshape(-1).view(np.uint64)
        packed = packed.reshape(-1)[: -(-count // 2)]
        values = block(np.dtype(np.float32), len(packed) * 2)
        tables.by_code(packed, values, pairs)
        values = values[:count]
        whole = count // self.size
        groups, scales = values[: whole * self.size].reshape(whole, self.size), absmax.reshape(-1, 1)
        with np.errstate(all="ignore"):  # a damaged file
            for some in lanes.pieces(whole, self.size):
                np.multiply(groups[some], scales[some], out=groups[some])
            if whole * self.size < count:
                values[whole * self.size :] *= scales[whole]
        return values


@cache
def _sorted(book: Book) -> tuple[Array, tuple[tuple[float, bool], ...], Array | None]:
    """The values in rising order, what lies half way between them, and bytes of codes for bytes of places in that order.

    Of fp4's two zeros code 0 is the lower: what is a little above zero has code 8.
    """
    table = BOOKS[book]
    order = np.argsort(table, kind="stable").astype(np.uint8)
    rising = table[order]
    edges = tuple((float(edge), False) for edge in (rising[:-1] + rising[1:]) / np.float32(2))
    byte = np.arange(256)
    places = None if book == "nf4" else order[byte >> 4] << 4 | order[byte & 15]
    return rising, edges, places


def _nearest(weights: Array, absmax: Array, edges: tuple[tuple[float, bool], ...]) -> Array:
    """Lanes of places, u8; multiplied by the reciprocal, as bitsandbytes does."""
    scaled = np.multiply(weights, 1 / np.maximum(absmax, _LEAST), out=lanes.empty("f4", weights.shape, 31))
    return lanes.tally(scaled, edges, 32)


def _chosen(weights: Array, largest: Array, rising: Array, edges: tuple[tuple[float, bool], ...]) -> Array:
    """For codes with sum(w v) = s and sum(v v) = n the best absmax is s / n; it takes s s / n off the squared error."""
    best, most = largest, np.zeros_like(largest)
    for part in (1.0, 0.9):
        places, index = _nearest(weights, largest * np.float32(part), edges), lanes.empty("p", weights.shape, 34)
        np.copyto(index, places)
        values = np.take(rising, index, out=lanes.empty("f4", weights.shape, 31), mode="wrap")
        product = np.multiply(weights, values, out=lanes.empty("f4", weights.shape, 35)).sum(axis=0)
        squares = np.multiply(values, values, out=values).sum(axis=0)
        with np.errstate(all="ignore"):
            meant = product / squares
            gain = product * meant
        better = gain > most  # not where it is NaN: a block of zeros
        best, most = np.where(better, meant, best), np.where(better, gain, most)
    return best


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
        """Codes u8 [k] (the part `absmax`) and seconds f32 [ceil(k / 256)] (`nested_absmax`).

        Bit for bit what bitsandbytes' CPU kernel gives (quantize_cpu_impl in csrc/cpu_ops.cpp): the nearest of the map, looked
        up for the nearest of 65536 steps between -1 and 1; its CUDA kernel has no such steps.
        """
        values = np.zeros(-(-absmax.size // NESTED) * NESTED, np.float32)
        np.subtract(absmax.reshape(-1), np.float32(self.offset), out=values[: absmax.size])
        groups = values.reshape(-1, NESTED)
        seconds = np.abs(groups).max(axis=1)
        with np.errstate(all="ignore"):
            groups *= np.where(seconds == 0, np.float32(0), 1 / seconds)[:, None]
        half = (np.clip(np.nan_to_num(values), -1, 1) + np.float32(1)) * np.float32(0.5)
        steps = (half.astype(np.float64) * 65535 + 0.5).astype(np.float32).astype(np.intp)
        codes = _steps().take(steps, mode="clip").reshape(-1, NESTED)
        codes[seconds == 0] = 0
        return codes.reshape(-1)[: absmax.size], seconds

    def decode(self, codes: Array, seconds: Array, table: Array | None = None) -> Array:
        """f32 [k] absmaxes, for `FourBit.decode`; `table` is the `nested_quant_map` of a file, where it has another."""
        values = (dynamic_map() if table is None else table.astype(np.float32).reshape(256)).take(codes.reshape(-1))
        with np.errstate(all="ignore"):  # a damaged file
            values *= seconds.astype(np.float32).reshape(-1).repeat(NESTED)[: values.size]
            values += np.float32(self.offset)
        return np.asarray(values)


@cache
def _steps() -> Array:
    """The place in the map that is nearest to each of the 65536 steps."""
    values, step = dynamic_map(), np.arange(65536, dtype=np.float32)
    edges = np.float32(0.5) * (values[:-1] + values[1:])
    return np.searchsorted(edges, np.float32(-1) + np.float32(2) * step / np.float32(65535), side="left").astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """LLM.int8() weights: i8 [O, I] and `SCB` f32 [O], the largest magnitude of the row; w = code * SCB / 127.

    bitsandbytes' Int8Params rounds a weight to f16 first; who wants its very codes gives `encode` f16 values.
    """

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Codes i8 [n, I], SCB f32 [n]: round(x * (127 * (1 / SCB))) in f32. A row of zeros has SCB 0 and codes 0."""
        rows, columns = x.shape
        if not x.size:
            return np.zeros(x.shape, np.int8), np.zeros(rows, np.float32)
        scb = np.maximum(x.max(axis=1), -x.min(axis=1)) + np.float32(0)
        with np.errstate(all="ignore"):
            factor = (1 / scb) * np.float32(127)
        lost = ~np.isfinite(factor)  # zeros, and what is too small to have a reciprocal
        factor[lost] = 0
        codes = block(np.dtype(np.int8), x.size).reshape(x.shape)
        wide = min(columns, CHUNK)
        for some in lanes.pieces(rows, columns):
            for first in range(0, columns, wide):
                weights = x[some, first : first + wide]
                scaled = np.multiply(weights, factor[some, None], out=lanes.empty("f4", weights.shape, 30))
                np.copyto(codes[some, first : first + wide], np.rint(scaled, out=scaled), casting="unsafe")
        for row in np.flatnonzero(lost & (scb > 0)):
            codes[row] = np.rint(x[row].astype(np.float64) * 127 / float(scb[row]))
        return codes, scb

    def decode(self, codes: Array, scb: Array) -> Array:
        """f32 [n, I]: (code * SCB) * 0.007874015718698502 in f32, as bitsandbytes' int8_vectorwise_dequant."""
        values = block(np.dtype(np.float32), codes.size).reshape(codes.shape)
        wide = scb.astype(np.float32).reshape(-1, 1)
        with np.errstate(all="ignore"):  # a damaged file
            for some in lanes.pieces(len(codes), max(codes.shape[1], 1)):
                np.multiply(codes[some], wide[some], out=values[some])
                np.multiply(values[some], np.float32(7.874015718698502e-3), out=values[some])
        return values
