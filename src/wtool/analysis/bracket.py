"""The values of many tensors that rank highest: exact, mostly in one pass, in bounded memory.

A sample tells between which two ranks the one that is looked for lies, but for rare cases. One pass counts the values above
that bracket, and holds the few inside or counts these by rank. Where the sample misled, or too many values are inside, what
was counted still makes the bracket narrower, and another pass is made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.analysis.ranked import Ranked
from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]
Progress = Callable[[int], None]

ROOM = 16 << 20  # bytes of values held, however many threads there are
_PART = 1 << 22  # values of a tensor that one thread looks at
_SMALL = 1 << 16  # as many values are simply held
_CHUNKS = 512  # places that a sample is taken from
_SAMPLE = (1 << 14, 1 << 18)  # the fewest and the most values of it
_COARSE, _FINE = 10, 12  # bits of the most bins
_SIGMAS = 4
_SLOT = 93


@dataclass(frozen=True, slots=True)
class Cut:
    """What stays: the values that rank above `rank`, and of each tensor those of that rank at a flat index below `until`.

    None stay where `rank` is None.
    """

    rank: int | None
    until: Mapping[str, int] = field(default_factory=dict)


def highest(tensors: Sequence[Ranked], rank: int, *, jobs: int = 1, room: int = ROOM, progress: Progress | None = None) -> Cut:
    """The `rank` values that rank highest, of those that count. NotFiniteError.

    Of equal ones those come first that are first: by tensor, then by flat index. `jobs` threads; `room` bounds the bytes held,
    `progress` is told of elements.
    """
    total = sum(one.elements for one in tensors)
    work = _Passes(tensors, jobs, room, progress)
    if not rank:
        work.once(_Bracket(0, 1, 0))  # whether all are finite
        return Cut(None)
    bracket = work.guess(rank, total)
    while True:
        bracket, found = work.once(bracket)
        above = sum(one.above for one in found)
        inside = sum(one.many for one in found)
        if rank <= above:
            bracket = work.bracket(bracket.high, work.top, above)
        elif rank > above + inside:
            bracket = work.bracket(0, bracket.low, total - above - inside)
        elif bracket.shift is None:
            values = np.concatenate([one.inside for one in found])
            place = len(values) - (rank - above)
            values.partition(place)
            value = values[place]
            left = rank - above - int(np.count_nonzero(values[place:] > value))
            equal = [int(np.count_nonzero(one.inside == value)) for one in found]
            return Cut(int(value), work.untils(int(value), left, equal))
        else:
            counts = work.coarse if bracket.shift else np.sum([one.inside for one in found], axis=0)
            rising = np.cumsum(counts[::-1])
            place = int(np.searchsorted(rising, rank - above))
            at = len(counts) - 1 - place
            low = bracket.low + (at << bracket.shift)
            if not bracket.shift:
                left = rank - above - int(rising[place] - counts[at])
                return Cut(low, work.untils(low, left, [int(one.inside[at]) for one in found]))
            bracket = work.bracket(low, min(low + (1 << bracket.shift), bracket.high), int(counts[at]))


@dataclass(frozen=True, slots=True)
class _Bracket:
    """Ranks from `low` up to but not `high`. Those inside are counted by `rank - low >> shift`, or held if that is None."""

    low: int
    high: int
    shift: int | None

    @property
    def bins(self) -> int:
        return (self.high - self.low - 1 >> (self.shift or 0)) + 1


@dataclass(frozen=True, slots=True)
class _Part:
    """A range of a tensor: what one thread looks at."""

    tensor: Ranked
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class _Found:
    """Of one part: how many values lie above the bracket, and how many inside; these, or with a shift of 0 their counts."""

    above: int
    many: int
    inside: Array


class _Full(Exception):
    """More values are inside the bracket than there is room for."""


class _Passes:
    """Goes over the values."""

    def __init__(self, tensors: Sequence[Ranked], jobs: int, room: int, progress: Progress | None) -> None:
        self._tensors, self._jobs, self._room, self._progress = tensors, jobs, room, progress
        self.word = tensors[0].word
        self.top = 1 << self.word.itemsize * 8
        self.coarse: Array = np.zeros(0, np.int64)  # of the last pass, where its bins were of several ranks
        self._parts = [
            _Part(one, first, min(first + step, one.elements))
            for one in tensors
            for step in (_PART if one.cuttable else max(one.elements, 1),)
            for first in range(0, one.elements, step)
        ]
        self._lock = threading.Lock()

    def bracket(self, low: int, high: int, inside: int) -> _Bracket:
        """How to look at ranks when about so many values are there."""
        width = high - low
        if width <= 2 or (width <= 1 << _FINE and width * 8 * len(self._parts) <= self._room):
            return _Bracket(low, high, 0)
        if inside * self.word.itemsize <= self._room:
            return _Bracket(low, high, None)
        return self._coarser(low, high)

    @staticmethod
    def _coarser(low: int, high: int) -> _Bracket:
        return _Bracket(low, high, max((high - low - 1).bit_length() - _COARSE, 1))

    def guess(self, rank: int, total: int) -> _Bracket:
        """Between which ranks the one that is looked for probably lies, from a sample at even distances.

        How far off its count of values above a rank may be is told by how unlike neighbouring places are, as of any systematic
        sample (Wolter, Introduction to Variance Estimation, 2007, estimator v2 of chapter 8).
        """
        if total <= _SMALL:
            return self.bracket(0, self.top, total)
        size = max(min(total >> 7, _SAMPLE[1]), _SAMPLE[0]) // _CHUNKS
        chunks = self._sample(total, size)
        falling = np.sort(np.concatenate(chunks))[::-1]
        place = rank / total * len(falling)
        near = falling[min(int(place), len(falling) - 1)]
        counts = np.array([np.count_nonzero(chunk >= near) for chunk in chunks], np.float64)
        margin = _SIGMAS * (sqrt(float(np.square(np.diff(counts)).sum()) / 2) + 1)
        first, last = int(place - margin), int(place + margin) + 1
        low = int(falling[last]) if last < len(falling) else 0
        high = int(falling[first]) if first >= 0 else self.top
        return self.bracket(low, max(high, low + 1), int(2 * margin / len(falling) * total))

    def _sample(self, total: int, size: int) -> list[Array]:
        chunks: list[Array] = []
        before, number = 0, 0
        for one in self._tensors:
            places = []
            while number < _CHUNKS and (at := number * total // _CHUNKS) < before + one.elements:
                places.append(at - before)
                number += 1
            chunks += one.some(places, size)
            before += one.elements
        return chunks

    def once(self, bracket: _Bracket) -> tuple[_Bracket, list[_Found]]:
        """One pass: what is found in each part; of a coarser bracket where there was no room."""
        held = 0
        coarse = np.zeros(bracket.bins if bracket.shift else 0, np.int64)

        def look(part: _Part) -> _Found:
            nonlocal held
            looked = _Look(bracket, self.word)
            for _, ranks in part.tensor.runs(part.first, part.last):
                looked.add(ranks)
                if self._progress is not None:
                    self._progress(len(ranks))
            found = looked.found()
            with self._lock:
                if bracket.shift:
                    np.add(coarse, found.inside, out=coarse)
                    return _Found(found.above, found.many, coarse[:0])
                held += found.inside.nbytes if bracket.shift is None else 0
                if held > self._room:
                    raise _Full
            return found

        try:
            made = each(self._parts, look, self._jobs)
        except _Full:  # the sample misled
            return self.once(self._coarser(bracket.low, bracket.high))
        self.coarse = coarse
        return bracket, made

    def untils(self, rank: int, left: int, equal: Sequence[int]) -> dict[str, int]:
        """Of each tensor up to which flat index values of a rank stay, when `left` of all do. `equal` is of each part."""
        untils = {one.key: one.elements for one in self._tensors}
        over = False
        for part, count in zip(self._parts, equal, strict=True):
            if over:
                untils[part.tensor.key] = untils[part.tensor.key] if part.first else 0
            elif left >= count:
                left -= count
            else:
                untils[part.tensor.key] = _place(part, rank, left) + 1 if left else part.first
                over = True
        return untils


def _place(part: _Part, rank: int, left: int) -> int:
    """The flat index of the `left`-th value of a rank in a part."""
    for start, ranks in part.tensor.runs(part.first, part.last):
        same = np.flatnonzero(ranks == ranks.dtype.type(rank))
        if left <= len(same):
            return start + int(same[left - 1])
        left -= len(same)
    raise AssertionError("the values have changed between two passes")


class _Look:
    """What one pass finds in one part."""

    def __init__(self, bracket: _Bracket, word: np.dtype[Any]) -> None:
        self._low, self._high, self._shift, self._word = bracket.low, bracket.high, bracket.shift, word
        self._above = self._many = self._waiting = 0
        self._held: list[Array] = []
        self._counts: Array = np.zeros(0 if bracket.shift is None else bracket.bins, np.int64)

    def add(self, ranks: Array) -> None:
        unit, count = self._word.type, len(ranks)
        if self._high <= np.iinfo(self._word).max:
            over = np.greater_equal(ranks, unit(self._high), out=scratch("?", count, _SLOT))
            self._above += int(np.count_nonzero(over))
        elif not self._low:
            self._hold(ranks.copy())
            return
        place = np.subtract(ranks, unit(self._low), out=scratch(self._word.str[1:], count, _SLOT))
        last = unit(self._high - self._low - 1)  # what is below `low` has become very large
        inside = np.less_equal(place, last, out=scratch("?", count, _SLOT))
        if not last:
            self._many += int(np.count_nonzero(inside))
        else:
            self._hold(ranks.take(np.flatnonzero(inside)))

    def _hold(self, ranks: Array) -> None:
        self._held.append(ranks)
        self._many += len(ranks)
        self._waiting += len(ranks)
        if self._shift is not None and self._waiting >= CHUNK:
            self._count()

    def _count(self) -> None:
        if self._held:
            place = np.concatenate(self._held)
            np.subtract(place, self._word.type(self._low), out=place)
            np.right_shift(place, self._word.type(self._shift), out=place)
            self._counts += np.bincount(place.astype(np.int64), minlength=len(self._counts))
            self._held.clear()
            self._waiting = 0

    def found(self) -> _Found:
        if self._high - self._low == 1:
            return _Found(self._above, self._many, np.array([self._many]))
        if self._shift is not None:
            self._count()
            return _Found(self._above, self._many, self._counts)
        held: Array = np.concatenate(self._held) if self._held else np.empty(0, self._word)
        return _Found(self._above, self._many, held)
