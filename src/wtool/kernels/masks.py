"""Which values of a tensor are kept when it is pruned: masks, told run by run in C order, and the zeros of the others.

A magnitude is compared as the bits of the value without its sign, which rise as it does in every floating dtype of two bytes
or more; NaN and Inf lie above all finite ones and so are always kept. What has one byte goes through a table of 256.
N of every M, and whole groups, are in patterns.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from math import inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType
from wtool.kernels.buffers import CHUNK, block, scratch
from wtool.kernels.trim import Keep

Array = NDArray[Any]
Tell = Callable[[int, Array, Array, Array | None], None]  # where a run begins, its values, which are kept, and what is left

_SLOT = 90
_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}
_EVERY = 1 << 62
_BITS = (1 << 64) - 1
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Mask(Protocol):
    """Frozen and picklable."""

    def keeps(self, start: int, block: Array) -> Array:
        """Bool, one for each value of a flat run that begins at C-order index `start`. In a new array."""
        ...


class Flat(Protocol):
    """Values by their place in C order, as a lazy tensor gives them."""

    def flat(self, first: int, last: int) -> Array: ...


@dataclass(frozen=True, slots=True)
class Pruned:
    """The values that a mask keeps, bit for bit, and +0 for the others. A function for `views.computed`.

    `tell` learns of every run of at most CHUNK. Of a second array the outcome's values are taken: the mask is that of the
    first, and nothing is told of what is left.
    """

    mask: Mask
    tell: Tell | None = field(default=None, compare=False)

    @property
    def placed(self) -> bool:
        return True

    def __call__(self, start: int, values: Array, others: Array | None = None) -> Array:
        source = values if others is None else others
        found = block(source.dtype, len(source))
        words, out = (array.view(_WORDS[source.dtype.itemsize]) for array in (source, found))
        for first in range(0, len(source), CHUNK):
            some = slice(first, first + CHUNK)
            kept = self.mask.keeps(start + first, values[some])
            np.multiply(words[some], kept, out=out[some])
            if self.tell is not None:
                self.tell(start + first, values[some], kept, found[some] if others is None else None)
        return found


@dataclass(frozen=True, slots=True)
class ByMagnitude:
    """Keeps what `keep` does of magnitudes; all that is not finite. `dtype` is that of the values."""

    keep: Keep
    dtype: DType

    def keeps(self, start: int, block: Array) -> Array:
        keep, count = self.keep, len(block)
        if keep.threshold == inf:
            return codes(block) >= np.array(first_odd(self.dtype), _WORDS[block.dtype.itemsize])
        if not keep.threshold and keep.until >= start + count:
            return np.ones(count, np.bool_)
        found = codes(block)
        code, met = _code(keep.threshold, self.dtype)
        edge = np.array(code, found.dtype)
        if not met or keep.until >= start + count:
            return found >= edge
        kept: Array = found > edge
        if start < keep.until:
            np.greater_equal(found[: keep.until - start], edge, out=kept[: keep.until - start])
        return kept


@dataclass(frozen=True, slots=True)
class ByChance:
    """Keeps the values whose `ticket` is above `threshold`, and of those equal to it the ones at an index below `until`."""

    seed: int
    key: str
    threshold: int
    until: int

    def keeps(self, start: int, block: Array) -> Array:
        found = tickets(self.seed, self.key, start, len(block))
        kept: Array = found > np.int64(self.threshold)
        if start < self.until:
            some = found[: self.until - start]
            np.greater_equal(some, np.int64(self.threshold), out=kept[: len(some)])
        return kept


@dataclass(frozen=True, slots=True)
class Finite:
    """Keeps what `mask` does and all that is not finite."""

    mask: Mask
    dtype: DType

    def keeps(self, start: int, block: Array) -> Array:
        odd = codes(block) >= np.array(first_odd(self.dtype), _WORDS[block.dtype.itemsize])
        return self.mask.keeps(start, block) | odd


@dataclass(frozen=True, slots=True)
class ByBits:
    """Keeps what a tensor of packed bits says: u8, one bit for each value in C order, the lowest bit of a byte first."""

    bits: Flat

    def keeps(self, start: int, block: Array) -> Array:
        first, stop = start // 8, -(-(start + len(block)) // 8)
        found = np.unpackbits(self.bits.flat(first, stop), bitorder="little").view(np.bool_)
        return found[start % 8 :][: len(block)]

    def count(self, elements: int) -> int:
        """How many of a tensor's values are kept."""
        kept = 0
        for start in range(0, elements, CHUNK * 8):
            some = min(CHUNK * 8, elements - start)
            bits = self.bits.flat(start // 8, -(-(start + some) // 8))
            kept += int(np.count_nonzero(np.unpackbits(bits, count=some, bitorder="little")))
        return kept


@dataclass(frozen=True, slots=True)
class Both:
    """Keeps what both masks keep."""

    one: Mask
    two: Mask

    def keeps(self, start: int, block: Array) -> Array:
        return self.one.keeps(start, block) & self.two.keeps(start, block)


@dataclass(frozen=True, slots=True)
class Everything:
    """Keeps all."""

    def keeps(self, start: int, block: Array) -> Array:
        return np.ones(len(block), np.bool_)


def codes(block: Array) -> Array:
    """The values without their sign as unsigned integers that rise with the magnitude; NaN and Inf above all others.

    At most CHUNK of them, in this thread's scratch, which the next call overwrites; more, in a new array.
    """
    size = block.dtype.itemsize
    if size == 1:
        return _table(block.dtype)[block.view(np.uint8)]
    words = block.view(_WORDS[size])
    out = scratch(_WORDS[size], len(block), _SLOT) if len(block) <= CHUNK else np.empty_like(words)
    found: Array = np.bitwise_and(words, words.dtype.type((1 << size * 8 - 1) - 1), out=out)
    return found


@cache
def _table(unit: np.dtype[Any]) -> Array:
    """Of each code of a dtype of one byte: its place among the magnitudes."""
    values = np.abs(np.arange(256, dtype=np.uint8).view(unit).astype(np.float64))
    values[~np.isfinite(values)] = inf
    found: Array = np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.uint8)
    return found


@cache
def _code(threshold: float, row: DType) -> tuple[int, bool]:
    """The smallest code of at least a finite threshold, and whether its value is that one."""
    unit = row.numpy()
    if unit.itemsize == 1:
        values = np.abs(np.arange(256, dtype=np.uint8).view(unit).astype(np.float64))
        rising = np.unique(np.where(np.isfinite(values), values, inf))
        at = int(np.searchsorted(rising, threshold))
        return at, at < len(rising) and bool(rising[at] == threshold)
    word = _WORDS[unit.itemsize]
    with np.errstate(over="ignore"):
        near = np.array([threshold]).astype(unit)
    code = int(near.view(word)[0])
    if float(near.astype(np.float64)[0]) < threshold:
        code += 1
    value = float(np.array([code], word).view(unit).astype(np.float64)[0])
    return code, value == threshold


@cache
def first_odd(row: DType) -> int:
    """The smallest code that is not finite; above all codes where there is none."""
    unit = row.numpy()
    if unit.itemsize == 1:
        values = np.arange(256, dtype=np.uint8).view(unit).astype(np.float64)
        return int(_table(unit).max()) if not np.isfinite(values).all() else 255
    return int(np.array([inf]).astype(unit).view(_WORDS[unit.itemsize])[0])


def tickets(seed: int, key: str, start: int, count: int) -> Array:
    """Numbers of 56 bits, int64, that follow from a seed, a key and a flat index alone, for `count` values.

    A SplitMix64 sequence (Steele, Lea and Flood 2014, figure 16, with Stafford's Mix13). BLAKE2b-128 of the text
    `wtool prune 1`, the seed and the key, in UTF-8 with newlines between, gives its state, the first eight bytes read
    little-endian, and its gamma, the other eight, made odd. The ticket at flat index j is the upper 56 bits of
    mix(state + (j + 1) * gamma).
    """
    text = f"wtool prune 1\n{seed}\n{key}".encode("utf-8", "surrogatepass")
    found = blake2b(text, digest_size=16).digest()
    state, gamma = int.from_bytes(found[:8], "little"), int.from_bytes(found[8:], "little") | 1
    z = np.arange(count, dtype=np.uint64)
    np.multiply(z, np.uint64(gamma), out=z)
    np.add(z, np.uint64((state + (start + 1) * gamma) & _BITS), out=z)
    shifted = np.empty_like(z)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        np.right_shift(z, np.uint64(shift), out=shifted)
        np.bitwise_xor(z, shifted, out=z)
        np.multiply(z, factor, out=z)
    np.right_shift(z, np.uint64(31), out=shifted)
    np.bitwise_xor(z, shifted, out=z)
    np.right_shift(z, np.uint64(8), out=z)
    return z.view(np.int64)
