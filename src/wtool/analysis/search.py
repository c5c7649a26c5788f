"""What passes over magnitudes learn of the k-th largest: the range of bits that it must lie in, ever narrower."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TOP = (0x7FF << 52) + 1  # above the bits of infinity


@dataclass
class Search:
    """What is known of the `rank`-th largest of one column: its bits are in [low, high), where there are `inside` values."""

    rank: int
    inside: int
    low: int = 0
    high: int = TOP
    above: int = 0  # values whose bits are `high` or more
    found: int | None = None  # its bits
    greater: int = 0
    equal: int = 0
    places: dict[str, Array] | None = None  # by key, where the equal ones are; None: not known

    def narrow(self, counts: Array, start: int, shift: int) -> None:
        """Learn from a histogram: `counts` of the values below `start`, of bins of 2**shift from there on, and of the rest."""
        rising = np.cumsum(counts[::-1])
        place = int(np.searchsorted(rising, self.rank - self.above))
        at = len(counts) - 1 - place
        self.inside = int(counts[at])
        self.above += int(rising[place]) - self.inside
        if at < len(counts) - 1:
            self.high = min(self.high, start + (at << shift))
        if at:
            self.low = max(self.low, start + (at - 1 << shift))
        if self.high - self.low == 1:
            self.settle(self.low, self.above, self.inside)

    def settle(self, bits: int, greater: int, equal: int) -> None:
        self.found, self.greater, self.equal = bits, greater, equal

    def settle_among(self, values: Array, counts: Array) -> None:
        """Learn from all values in [low, high), rising, and how many there are of each."""
        rising = np.cumsum(counts[::-1])
        place = int(np.searchsorted(rising, self.rank - self.above))
        at = len(values) - 1 - place
        self.settle(int(values[at]), self.above + int(rising[place] - counts[at]), int(counts[at]))


@dataclass
class Bins:
    """A histogram of bits, filled piece by piece. With `few`, also all values in range as long as they are of few kinds.

    Differences of half types fall into bins whose numbers are multiples of large powers of two, and those would share a
    line of the cache: so bin i is counted in cell i ^ (i >> half of its bits).
    """

    start: int
    shift: int
    low: int
    high: int
    bits: int
    few: int = 0
    cells: Array = field(init=False)
    held: list[Array] = field(default_factory=list)
    waiting: int = 0
    ends: tuple[Array, Array] | None = None
    kinds: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        self.cells = np.zeros(1 << self.bits + 1, np.int64)
        if self.few:
            self.kinds = np.empty(0, np.int64), np.empty(0, np.int64)

    @property
    def counts(self) -> Array:
        """Of the values below `start`, of each bin, and of the values above all bins."""
        bins = np.arange((1 << self.bits) + 2)
        found: Array = self.cells[bins ^ (bins >> self.bits // 2)]
        return found

    def add(self, bits: Array) -> None:
        if self.low or self.high != TOP:
            bits = _within(bits, self.low, self.high)
            if not len(bits):
                return
            if self.kinds is not None:
                self.held.append(bits)
                self.waiting += len(bits)
                if self.waiting >= self.few:
                    self.merge()
        place = bits - (self.start - (1 << self.shift))  # 0 is below the bins
        np.right_shift(place, self.shift, out=place)
        if self.ends is None or len(self.ends[0]) < len(place):  # clipped by arrays: by single values numpy is slow
            self.ends = np.zeros(len(place), np.int64), np.full(len(place), (1 << self.bits) + 1)
        np.maximum(place, self.ends[0][: len(place)], out=place)
        np.minimum(place, self.ends[1][: len(place)], out=place)
        np.bitwise_xor(place, place >> self.bits // 2, out=place)
        np.add.at(self.cells, place, 1)

    def merge(self, *others: tuple[Array, Array]) -> None:
        """Count the held values by kind, and those of others; forget all if there are too many."""
        if self.kinds is None:
            return
        parts = [np.unique(part, return_counts=True) for part in self.held]
        parts += [self.kinds, *others]
        values, where = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, where.reshape(-1), np.concatenate([part[1] for part in parts]))
        self.held, self.waiting = [], 0
        self.kinds = (values, counts) if len(values) <= self.few // 2 else None

    def join(self, other: Bins) -> None:
        self.cells += other.cells
        self.merge()
        other.merge()
        if other.kinds is None:
            self.kinds = None
        else:
            self.merge(other.kinds)


def _within(bits: Array, low: int, high: int) -> Array:
    """Those in [low, high), in a new array."""
    return bits[(bits >= low) & (bits < high)]


def places(bits: Array, start: int, search: Search) -> tuple[Array, Array]:
    """The values in the range of a search, and where they are."""
    if not search.low and search.high == TOP:
        return bits.copy(), np.arange(start, start + len(bits))
    where = np.flatnonzero((bits >= search.low) & (bits < search.high))
    return bits[where], where + start
