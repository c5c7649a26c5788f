"""First passes of methods that thin out differences: what TIES and DARE must know of all values before they merge any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from wtool.analysis.parallel import each
from wtool.analysis.select import ROOM, largest
from wtool.dtypes import DType
from wtool.kernels.dare import Mass
from wtool.kernels.elect import Deltas
from wtool.kernels.trim import Keep
from wtool.tensor import LazyTensor
from wtool.views import together

if TYPE_CHECKING:
    from wtool.boxes import Array
    from wtool.ops.dare import Dare
    from wtool.ops.ties import Thinned, Ties

Progress = Callable[[int], None]
Method = TypeVar("Method", bound="Thinned")

_TOGETHER = 6  # inputs whose thresholds are looked for together: more, and their histograms leave the cache
_BLOCKS = 2 << 20  # bytes of all inputs that are looked at together


@dataclass(frozen=True, slots=True)
class Asked:
    """What a method was asked to combine: one tensor, its inputs by number in the order of summing, and its base."""

    key: str
    parts: Mapping[int, LazyTensor]
    base: LazyTensor
    names: Sequence[str]
    order: Sequence[int]

    @property
    def elements(self) -> int:
        return self.base.elements

    @property
    def columns(self) -> Sequence[int]:
        return [number for number in self.order if number in self.parts]

    def blocks(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[Array]]]:
        """Runs of the base and of these inputs."""
        tensors = [self.base, *(self.parts[number] for number in numbers)]
        return together(tensors, max(_BLOCKS // len(tensors), 1 << 16), _BLOCKS * 4)

    def deltas(self, numbers: Sequence[int]) -> Iterator[tuple[int, Array]]:
        """Runs of differences from the base, a row for each input. NotFiniteError."""
        said = ("the base", *(self.names[number] for number in numbers))
        dtypes = (self.base.dtype, *(self.parts[number].dtype for number in numbers))
        make = Deltas(self.key, said, dtypes)
        for start, blocks in self.blocks(numbers):
            yield from make(start, blocks)

    def runs(self, columns: Sequence[int]) -> Iterator[tuple[int, list[Array]]]:
        """Magnitudes of the differences, as analysis.select wants them."""
        for start, rows in self.deltas(columns):
            np.abs(rows, out=rows)
            yield start, list(rows.view(np.int64))


@dataclass
class Noting:
    """A method that notes what it is asked: what `prepared` needs. The tensors it makes have a spec and no values yet."""

    method: Thinned
    asked: list[Asked] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Of one pass over all that was asked for."""
        return sum(one.base.nbytes + sum(part.nbytes for part in one.parts.values()) for one in self.asked)

    def __call__(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor | None,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> LazyTensor:
        usable = self.method.usable(key, parts, base)
        if usable.elements:
            self.asked.append(Asked(key, parts, usable, names, order))
        return self.method(key, parts, base, names, order, dtype)


def prepared(method: Method, asked: Sequence[Asked], *, jobs: int = 1, progress: Progress | None = None) -> Method:
    """The method with what it must know filled in. NotFiniteError.

    The result depends on the values and keys alone, not on `jobs` or the order of `asked`. `progress` is told of bytes read.
    """
    asked = sorted(asked, key=lambda one: one.key)
    if method.needs == "cuts":
        method = cast(Method, _cut(cast("Ties", method), asked, jobs, progress))
    elif method.needs == "factors":
        method = cast(Method, _weighed(cast("Dare", method), asked, jobs, progress))
    if method.majority and method.election is not None:
        signs = sum(each(asked, lambda one: _signs(method, one, progress), jobs))
        method = replace(method, majority=False, election=replace(method.election, zero=1 if signs > 0 else -1))
    return method


def _cut(method: Ties, asked: Sequence[Asked], jobs: int, progress: Progress | None) -> Ties:
    keeps: dict[tuple[int, str], Keep] = {}
    if method.trim.scope == "model":
        keeps = _keeps(method, asked, jobs, ROOM, progress)
    else:
        for found in each(asked, lambda one: _keeps(method, [one], 1, ROOM // max(jobs, 1), progress), jobs):
            keeps |= found
    return replace(method, keeps=keeps)


def _keeps(
    method: Ties, asked: Sequence[Asked], jobs: int, room: int, progress: Progress | None
) -> dict[tuple[int, str], Keep]:
    totals: dict[int, int] = {}
    for one in asked:
        for number in one.columns:
            totals[number] = totals.get(number, 0) + one.elements
    ranks = {number: method.trim.rank(method.density, total) for number, total in totals.items()}
    keeps: dict[tuple[int, str], Keep] = {}
    for some in _batched(sorted(ranks), _TOGETHER):
        streams = [replace(one, order=some) for one in asked if any(number in one.parts for number in some)]
        keeps |= largest(
            streams,
            {number: ranks[number] for number in some},
            jobs=jobs,
            all_equal=method.trim.all_equal,
            room=room,
            progress=_bytes(streams, progress),
        )
    return keeps


def _batched(numbers: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    return (numbers[at : at + count] for at in range(0, len(numbers), count))


def _bytes(asked: Sequence[Asked], progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    one = asked[0]
    each_one = sum(tensor.dtype.bits for tensor in (one.base, *(one.parts[number] for number in one.columns))) // 8
    return lambda elements: progress(elements * each_one)


def _weighed(method: Dare, asked: Sequence[Asked], jobs: int, progress: Progress | None) -> Dare:
    factors: dict[tuple[int, str], float] = {}
    for one, found in zip(asked, each(asked, lambda one: _factors(method, one, progress), jobs), strict=True):
        factors |= {(number, one.key): factor for number, factor in zip(one.columns, found, strict=True)}
    return replace(method, factors=factors)


def _factors(method: Dare, one: Asked, progress: Progress | None) -> list[float]:
    masses = [Mass(method.bare(number, one.key)) for number in one.columns]
    tell = _bytes([one], progress)
    for _, rows in one.deltas(one.columns):
        for mass, row in zip(masses, rows, strict=True):
            mass.add(row)
        if tell is not None:
            tell(rows.shape[1])
    return [mass.factor() for mass in masses]


def _signs(method: Thinned, one: Asked, progress: Progress | None) -> int:
    function: Any = method.function(one.key, one.parts, one.base, one.names, one.order, None)
    tell = _bytes([one], progress)
    total = 0
    for start, blocks in one.blocks(function.numbers):
        total += function.signs(start, *blocks)
        if tell is not None:
            tell(len(blocks[0]))
    return total
