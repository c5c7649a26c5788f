"""The k largest magnitudes of one tensor or of many: exact, in a few passes over the values, without sorting them.

A magnitude is worked on as the bits of its f64, which rise as it does. A pass either counts the values in bins of bits (over
the 16 binades below the largest seen first, then ever finer within the one bin that holds the k-th), or, once few enough
are left, gathers those with their places; in between it may find that they are many but of few kinds, as differences of half
types are. Small inputs are gathered at once: one pass. Large ones take two; the worst case that can be built takes seven.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.analysis.search import Bins, Search, places
from wtool.kernels.combine import PIECE, blame, wide
from wtool.kernels.trim import ALL, NONE, Keep
from wtool.tensor import LazyTensor

Array = NDArray[Any]

ROOM = 24 << 20  # bytes of gathered values and bins, however many columns and threads there are
_BINS = 16  # bits of the number of bins, where there is room
_GATHERED = 16  # bytes of a gathered value: its bits and its place
_SLOT = 77  # a scratch array


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


@dataclass(frozen=True, slots=True)
class Own:
    """The magnitudes of a tensor's own values, as one column. NotFiniteError names `name`, what the tensor came from."""

    tensor: LazyTensor
    name: str
    columns: Sequence[int] = (0,)

    @property
    def key(self) -> str:
        return self.tensor.key

    @property
    def elements(self) -> int:
        return self.tensor.elements

    def runs(self, columns: Sequence[int]) -> Iterator[tuple[int, list[Array]]]:
        start = 0
        for block in self.tensor.blocks():
            for at in range(0, len(block), PIECE):
                values = wide(block[at : at + PIECE], self.tensor.dtype, _SLOT)
                blame(self.key, [self.name], [values])
                np.abs(values, out=values)
                yield start + at, [values.view(np.int64)] * len(columns)
            start += len(block)


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
    wanted = {column: Search(rank, totals[column]) for column, rank in ranks.items() if 0 < rank < totals[column]}
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
        wanted: Mapping[int, Search],
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

    def _once(self, searches: Mapping[int, Search], gather: set[int], guesses: Mapping[int, tuple[int, int]]) -> None:
        free: list[dict[int, Bins]] = []
        made: list[dict[int, Bins]] = []
        gathered: dict[tuple[int, str], tuple[Array, Array]] = {}

        def bins() -> dict[int, Bins]:
            with self._lock:
                if free:
                    return free.pop()
                found: dict[int, Bins] = {}
                for column, search in searches.items():
                    if column not in gather:
                        width = max((search.high - search.low - 1).bit_length() - self._bits, 0)
                        start, shift = guesses.get(column, (search.low, width))
                        few = 0 if column in guesses else self._few
                        found[column] = Bins(start, shift, search.low, search.high, self._bits, few)
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
                        held[column].append(places(bits, start, searches[column]))
                    else:
                        counted[column].add(bits)
                self._tell(len(parts[0]))
            with self._lock:
                free.append(counted)
                for column, some in held.items():
                    if some:
                        values, where = zip(*some, strict=True)
                        gathered[column, stream.key] = np.concatenate(values), np.concatenate(where)

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

    def _finish(self, search: Search, column: int, gathered: Mapping[tuple[int, str], tuple[Array, Array]]) -> None:
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
            for key, where in search.places.items():
                if left <= len(where):
                    return key, int(where[left - 1])
                left -= len(where)
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
