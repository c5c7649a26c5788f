"""What values are ranked by, as unsigned integers: the bits of magnitudes, which rise as these do, or numbers drawn by lot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import NotFiniteError
from wtool.kernels.buffers import CHUNK
from wtool.kernels.combine import wide
from wtool.kernels.energy import single
from wtool.kernels.masks import Mask, codes, first_odd, tickets
from wtool.tensor import BLOCK, LazyTensor

Array = NDArray[Any]

_ODD = 1 << 62  # by lot: of what is not finite
_SLOT = 92


@dataclass(frozen=True, slots=True)
class Ranked:
    """A tensor and what its values are ranked by: their magnitudes as values of `unit` or, with a `seed`, their tickets.

    Values that `before` does not keep have rank 0, and then all others are one more than they were (`shifted`, the same for
    all tensors). What is not finite and counts ranks highest if `odd`; else it is a NotFiniteError that names `name`.
    """

    tensor: LazyTensor
    unit: DType
    name: str
    before: Mask | None = None
    shifted: bool = False
    odd: bool = False
    seed: int | None = None

    @property
    def key(self) -> str:
        return self.tensor.key

    @property
    def elements(self) -> int:
        return self.tensor.elements

    @property
    def word(self) -> np.dtype[Any]:
        """The dtype of ranks."""
        return np.dtype("u8" if self.seed is not None else f"u{self.unit.itemsize}")

    @property
    def cuttable(self) -> bool:
        """Whether several threads may each read a part of it."""
        return self.tensor.near and self.tensor.span is not None

    def runs(self, first: int, last: int) -> Iterator[tuple[int, Array]]:
        """Ranks of a range: where a run begins, and its ranks, valid until the next."""
        for start, block in _blocks(self.tensor, first, last):
            for at in range(0, len(block), CHUNK):
                yield start + at, self._ranks(start + at, block[at : at + CHUNK])

    def some(self, places: Sequence[int], size: int) -> Iterator[Array]:
        """Ranks of `size` values, or fewer at the end, from each of these places on, in new arrays."""
        # What is not finite may be where an earlier mask hides it, and a pass over all will tell.
        free = replace(self, odd=True)
        for start, values in _some(self.tensor, places, size):
            yield free._ranks(start, values).copy()

    def odd_ones(self) -> int:
        """How many values that count are not finite."""
        found = 0
        for start, block in _blocks(self.tensor, 0, self.elements):
            for at in range(0, len(block), CHUNK):
                some = block[at : at + CHUNK]
                ranks = codes(_in_unit(some, self.tensor.dtype, self.unit))
                if ranks.max() >= first_odd(self.unit):
                    strange = ranks >= ranks.dtype.type(first_odd(self.unit))
                    kept = None if self.before is None else self.before.keeps(start + at, some)
                    found += int(np.count_nonzero(strange if kept is None else strange & kept))
        return found

    def _ranks(self, start: int, values: Array) -> Array:
        """Of at most CHUNK values that begin at a flat index, valid until the next call of this thread."""
        kept = None if self.before is None else self.before.keeps(start, values)
        found = codes(_in_unit(values, self.tensor.dtype, self.unit))
        edge, strange = first_odd(self.unit), None
        if found.max() >= edge:
            strange = found >= found.dtype.type(edge)
            if not self.odd:
                self._refuse(found[strange if kept is None else strange & kept])
        if self.seed is not None:
            found = tickets(self.seed, self.key, start, len(values)).view(np.uint64)
            if strange is not None:
                found[strange] = _ODD
        if self.shifted:
            np.add(found, found.dtype.type(1), out=found)
        if kept is not None:
            np.multiply(found, kept, out=found)
        return found

    def _refuse(self, strange: Array) -> None:
        if len(strange):
            what = "NaN" if (strange > first_odd(self.unit)).any() else "an infinity"
            hint = "leave the input or, with --exclude, the tensor out"
            raise NotFiniteError(f"'{self.key}' holds {what}", path=self.name, hint=hint)


def unit_of(dtypes: Sequence[DType]) -> DType:
    """The dtype whose values all can be told by: their own if it is one of at least two bytes, else f32 or f64."""
    if len(set(dtypes)) == 1 and dtypes[0].bits > 8:
        return dtypes[0]
    return dtype("f32" if all(row.bits <= 32 for row in dtypes) else "f64")


def magnitude(rank: int, unit: DType) -> float:
    """The magnitude whose bits these are; infinite if they are of a NaN."""
    value = float(np.array([rank], f"u{unit.itemsize}").view(unit.numpy()).astype(np.float64)[0])
    return value if rank < first_odd(unit) else float("inf")


def _in_unit(values: Array, row: DType, unit: DType) -> Array:
    """At most CHUNK values of a dtype as those of one that has them all, perhaps in scratch."""
    if row is unit:
        return values
    return single(values, row, _SLOT) if unit.name == "f32" else wide(values, row, _SLOT)


def _blocks(tensor: LazyTensor, first: int, last: int) -> Iterator[tuple[int, Array]]:
    """A range of the values: where a run begins, and that run, valid until the next."""
    if not first and last == tensor.elements:
        for block in tensor.blocks():
            yield first, block
            first += len(block)
        return
    step = BLOCK // tensor.stored.itemsize
    room: Array = np.empty(min(step, last - first), tensor.stored.numpy())
    for at in range(first, last, step):
        yield at, tensor.flat(at, min(at + step, last), room)


def _some(tensor: LazyTensor, places: Sequence[int], size: int) -> Iterator[tuple[int, Array]]:
    """Values from these rising places on: as many as `size`, or fewer."""
    if tensor.near or not places:
        for at in places:
            yield at, tensor.flat(at, min(at + size, tensor.elements))
        return
    left = list(reversed(places))
    start = 0
    for block in tensor.blocks():
        while left and left[-1] < start + len(block):
            at = left.pop()
            yield at, block[at - start :][:size]
        start += len(block)
