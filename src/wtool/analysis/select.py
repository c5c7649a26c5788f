"""The k largest magnitudes of one tensor or of many: exact, in a few passes over the values, without sorting them.

A magnitude is worked on as the bits of its f64, which rise as it does. A pass either counts the values in bins of bits (over
the 16 binades below the largest seen first, then ever finer within the one bin that holds the k-th), or, once few enough
are left, gathers those with their places; in between it may find that they are many but of few kinds, as differences of half
types are. Small inputs are gathered at once: one pass. Large ones take two; the worst case that can be built takes seven.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.kernels.trim import ALL, NONE, Keep

Array = NDArray[Any]

ROOM = 24 << 20  # bytes of gathered values and bins, however many columns and threads there are
_BINS = 16  # bits of the number of bins, where there is room
_GATHERED = 16  # bytes of a gathered value: its bits and its place
_TOP = (0x7FF << 52) + 1  # above the bits of infinity


class Magnitudes(Protocol):
    """The values of one key in one or several columns (of several inputs, say), by magnitude."""

    @property
    def key(self) -> str: ...

    @property
    def elements(self) -> int: ...

    @property
    def columns(self) -> Sequence[int]: ...

    def runs(self, columns: Sequence[int]) -> Iterator[tuple[int, list[Array]]]:
        """Where a run begins, in flat order, and the bits (int64) of the absolute values, f64, of each of these columns.

        Valid until the next one. A run has at most a few 10,000 values, none of them NaN or infinite.
        """
        ...


@dataclass
class _Search:
    """What is known of the `rank`-th largest of one column: its bits are in [low, high), where there are `inside` values."""

    rank: int
    inside: int
    low: int = 0
    high: int = _TOP
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
class _Bins:
    """A histogram of bits, filled piece by piece. With `few`, also all values in range as long as they are of few kinds."""

    start: int
    shift: int
    low: int
    high: int
    bits: int
    few: int = 0
    counts: Array = field(init=False)
    held: list[Array] = field(default_factory=list)
    waiting: int = 0
    ends: tuple[Array, Array] | None = None
    kinds: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        self.counts = np.zeros((1 << self.bits) + 2, np.int64)
        if self.few:
            self.kinds = np.empty(0, np.int64), np.empty(0, np.int64)

    def add(self, bits: Array) -> None:
        if self.low or self.high != _TOP:
            bits = _within(bits, self.low, self.high)
            if not len(bits):
                return
            if self.kinds is not None:
                self.held.append(bits)
                self.waiting += len(bits)
                if self.waiting >= self.few:
                    self.merge()
        place = bits - self.start
        np.right_shift(place, self.shift, out=place)
        if self.ends is None or len(self.ends[0]) < len(place):  # clipped by arrays: by single values numpy is slow
            self.ends = np.full(len(place), -1), np.full(len(place), len(self.counts) - 2)
        np.maximum(place, self.ends[0][: len(place)], out=place)
        np.minimum(place, self.ends[1][: len(place)], out=place)
        np.add(place, 1, out=place)
        np.add.at(self.counts, place, 1)

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

    def join(self, other: _Bins) -> None:
        self.counts += other.counts
        self.merge()
        other.merge()
        if other.kinds is None:
            self.kinds = None
        else:
            self.merge(other.kinds)


def largest(
    streams: Sequence[Magnitudes],
    ranks: Mapping[int, int],
    *,
    jobs: int = 1,
    all_equal: bool = False,
    room: int = ROOM,
    progress: Callable[[int], None] | None = None,
) -> dict[tuple[int, str], Keep]:
    """What remains, by column and key, if of each column only its `ranks[column]` values of largest magnitude are kept.

    Of values equal to the smallest kept, those count first that come first: by the order of `streams`, then by flat index;
    with `all_equal` all of them are kept, however many. A rank of 0 keeps nothing, one of all values everything. `jobs`
    threads; `room` bounds the bytes held. `progress` is told of elements.
    """
    totals = {column: sum(s.elements for s in streams if column in s.columns) for column in ranks}
    wanted = {column: _Search(rank, totals[column]) for column, rank in ranks.items() if 0 < rank < totals[column]}
    passes = _Passes(streams, wanted, jobs, room, progress)
    passes.run()
    keeps: dict[tuple[int, str], Keep] = {}
    for column, rank in ranks.items():
        own = [stream for stream in streams if column in stream.columns]
        search = wanted.get(column)
        if search is None:
            keeps |= {(column, stream.key): ALL if rank else NONE for stream in own}
            continue
        assert search.found is not None
        threshold = float(np.int64(search.found).view(np.float64))
        left = search.equal if all_equal else search.rank - search.greater
        last: tuple[str, int] | None = None if left == search.equal else passes.place(column, left)
        after = False
        for stream in own:
            here = last is not None and stream.key == last[0]
            until = 0 if after else stream.elements if last is None or not here else last[1] + 1
            keeps[column, stream.key] = Keep(threshold, until)
            after = after or here
    return keeps


class _Passes:
    """Goes over the values until every search has found its value."""

    def __init__(
        self,
        streams: Sequence[Magnitudes],
        wanted: Mapping[int, _Search],
        jobs: int,
        room: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._streams, self._wanted, self._jobs, self._progress = streams, wanted, jobs, progress
        share = room // max(len(wanted), 1)
        self._few = max(share // 2 // _GATHERED, 64)
        self._bits = min(_BINS, max((share // 2 // (8 * max(jobs, 1))).bit_length() - 1, 8))
        self._lock = threading.Lock()

    def run(self) -> None:
        first = True
        while searches := {column: search for column, search in self._wanted.items() if search.found is None}:
            gather = {column for column, search in searches.items() if search.inside <= self._few}
            guesses = self._guesses([column for column in searches if column not in gather]) if first else {}
            self._once(searches, gather, guesses)
            first = False

    def _guesses(self, columns: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Where bins begin and how wide they are, in bits, from a first look: 16 binades, and two above the largest seen."""
        guesses: dict[int, tuple[int, int]] = {}
        for stream in sorted(self._streams, key=lambda stream: -stream.elements):
            asked = [column for column in columns if column in stream.columns and column not in guesses]
            if asked and stream.elements:
                _, parts = next(stream.runs(asked))
                for column, bits in zip(asked, parts, strict=True):
                    top = int(bits.max()) >> 52 or 1020
                    guesses[column] = (max(top - 13, 0) << 52, 52 + 4 - self._bits)
        return guesses

    def _once(self, searches: Mapping[int, _Search], gather: set[int], guesses: Mapping[int, tuple[int, int]]) -> None:
        free: list[dict[int, _Bins]] = []
        made: list[dict[int, _Bins]] = []
        gathered: dict[tuple[int, str], tuple[Array, Array]] = {}

        def bins() -> dict[int, _Bins]:
            with self._lock:
                if free:
                    return free.pop()
                found: dict[int, _Bins] = {}
                for column, search in searches.items():
                    if column not in gather:
                        width = max((search.high - search.low - 1).bit_length() - self._bits, 0)
                        start, shift = guesses.get(column, (search.low, width))
                        few = 0 if column in guesses else self._few
                        found[column] = _Bins(start, shift, search.low, search.high, self._bits, few)
                made.append(found)
                return found

        def look(stream: Magnitudes) -> None:
            columns = [column for column in stream.columns if column in searches]
            if not columns:
                return
            counted = bins()
            held: dict[int, list[tuple[Array, Array]]] = {column: [] for column in columns if column in gather}
            for start, parts in stream.runs(columns):
                for column, bits in zip(columns, parts, strict=True):
                    if column in gather:
                        held[column].append(_places(bits, start, searches[column]))
                    else:
                        counted[column].add(bits)
                self._tell(len(parts[0]))
            with self._lock:
                free.append(counted)
                for column, some in held.items():
                    if some:
                        values, places = zip(*some, strict=True)
                        gathered[column, stream.key] = np.concatenate(values), np.concatenate(places)

        each(self._streams, look, self._jobs)
        for column, search in searches.items():
            if column in gather:
                self._finish(search, column, gathered)
                continue
            total, *others = (found[column] for found in made)
            for other in others:
                total.join(other)
            total.merge()
            if total.kinds is not None:
                search.settle_among(*total.kinds)
            else:
                search.narrow(total.counts, total.start, total.shift)

    def _finish(self, search: _Search, column: int, gathered: Mapping[tuple[int, str], tuple[Array, Array]]) -> None:
        keys = [stream.key for stream in self._streams if (column, stream.key) in gathered]
        values = np.concatenate([gathered[column, key][0] for key in keys])
        values.sort()
        bits = int(values[len(values) - (search.rank - search.above)])
        over = len(values) - int(np.searchsorted(values, bits, side="right"))
        search.settle(bits, search.above + over, len(values) - over - int(np.searchsorted(values, bits)))
        search.places = {key: gathered[column, key][1][gathered[column, key][0] == bits] for key in keys}

    def place(self, column: int, left: int) -> tuple[str, int]:
        """Key and flat index of the `left`-th of the values that equal the one that was found."""
        search = self._wanted[column]
        own = [stream for stream in self._streams if column in stream.columns]
        if search.places is not None:
            for key, places in search.places.items():
                if left <= len(places):
                    return key, int(places[left - 1])
                left -= len(places)
        counts = [search.equal] if len(own) == 1 else each(own, lambda s: self._equal(s, column, search.found), self._jobs)
        for stream, count in zip(own, counts, strict=True):
            if left <= count:
                for start, (bits,) in stream.runs([column]):
                    same = bits == search.found
                    here = int(np.count_nonzero(same))
                    if left <= here:
                        return stream.key, start + int(np.flatnonzero(same)[left - 1])
                    left -= here
            left -= count
        raise AssertionError("the values have changed between two passes")

    def _equal(self, stream: Magnitudes, column: int, found: int | None) -> int:
        return sum(int(np.count_nonzero(bits == found)) for _, (bits,) in stream.runs([column]))

    def _tell(self, elements: int) -> None:
        if self._progress is not None:
            self._progress(elements)


def _within(bits: Array, low: int, high: int) -> Array:
    """Those in [low, high), in a new array."""
    return bits[(bits >= low) & (bits < high)]


def _places(bits: Array, start: int, search: _Search) -> tuple[Array, Array]:
    """The values in the range of a search, and where they are."""
    if not search.low and search.high == _TOP:
        return bits.copy(), np.arange(start, start + len(bits))
    where = np.flatnonzero((bits >= search.low) & (bits < search.high))
    return bits[where], where + start
