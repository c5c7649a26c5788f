"""Values drop out at random: a mask that depends on nothing but a seed, a name and a place.

The mask of one tensor of one input is a SplitMix64 sequence (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators", figure 16, with Stafford's Mix13). BLAKE2b-128 of the text `wtool dare 1`, the seed, the number of the input (from
0, as given) and the key, in UTF-8 with newlines between, gives its state, the first eight bytes read little-endian, and its
gamma, the other eight, made odd. Output j = mix(state + (j + 1) * gamma) mod 2**64 serves two values: the one at flat index 2j
gets its low half, the one at 2j + 1 its high half. A value is kept where its half is below density * 2**32.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_RUN = 1 << 14
_SMALL = 1e-7
_MASK = (1 << 64) - 1
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True, slots=True)
class Drop:
    """Keeps about `density` of the values and multiplies those by `factor` / `divisor`.

    `key`, `number` and `seed` choose the mask. Density 1 keeps all.
    """

    seed: int
    number: int
    key: str
    density: float
    divisor: float = 1.0
    factor: float = 1.0

    def __call__(self, start: int, values: Array) -> None:
        """Drop out of f64 values that begin at a flat index, in place. What is not finite does not become so."""
        if self.density < 1.0:
            np.multiply(values, self.mask(start, len(values)), out=values)
        if self.divisor != 1.0:
            np.divide(values, self.divisor, out=values)
        if self.factor != 1.0:
            np.multiply(values, self.factor, out=values)

    def mask(self, start: int, count: int) -> Array:
        """Which of `count` values from a flat index on are kept."""
        level = round(self.density * 2**32)
        if level > 0xFFFFFFFF:
            return np.ones(count, np.bool_)
        return halves(*stream(self.seed, self.number, self.key), start, count) < np.uint32(level)


def stream(seed: int, number: int, key: str) -> tuple[int, int]:
    """State and gamma of the sequence of one tensor of one input."""
    found = blake2b(f"wtool dare 1\n{seed}\n{number}\n{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:], "little") | 1


def halves(state: int, gamma: int, start: int, count: int) -> Array:
    """The halves of a sequence, u32, for `count` values from a flat index on."""
    first, last = start // 2, (start + count + 1) // 2
    z = np.arange(last - first, dtype=np.uint64)
    np.multiply(z, np.uint64(gamma), out=z)
    np.add(z, np.uint64((state + (first + 1) * gamma) & _MASK), out=z)
    shifted = np.empty_like(z)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        np.right_shift(z, np.uint64(shift), out=shifted)
        np.bitwise_xor(z, shifted, out=z)
        np.multiply(z, factor, out=z)
    np.right_shift(z, np.uint64(31), out=shifted)
    np.bitwise_xor(z, shifted, out=z)
    found: Array = z.astype("<u8", copy=False).view("<u4")
    return found[start % 2 :][:count]


class Mass:
    """Sums of the magnitudes of values before and after they are thinned, given run by run in flat order.

    Summed in runs of a fixed length and those exactly (fsum), so that the result does not depend on how the values came.
    """

    def __init__(self, drop: Drop) -> None:
        self._drop = drop
        self._room = np.empty(_RUN)
        self._start = self._held = 0
        self._sums: tuple[list[float], list[float]] = ([], [])

    def add(self, values: Array) -> None:
        done = 0
        while done < len(values):
            some = values[done : done + _RUN - self._held]
            self._room[self._held : self._held + len(some)] = some
            self._held += len(some)
            done += len(some)
            if self._held == _RUN:
                self._flush()

    def _flush(self) -> None:
        values = self._room[: self._held]
        np.abs(values, out=values)
        self._sums[0].append(float(values.sum()))
        self._drop(self._start, values)
        self._sums[1].append(float(values.sum()))
        self._start += self._held
        self._held = 0

    def factor(self) -> float:
        """What brings the sum back to that of before; 1 where one of them is below 1e-7, as in mergekit."""
        self._flush()
        before, after = map(fsum, self._sums)
        return 1.0 if before < _SMALL or after < _SMALL else before / after
