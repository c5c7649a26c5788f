"""First passes of what is pruned as a whole: norms of groups, and the choice of those that stay.

`structured(tensors, structure, sparsity)` answers with a mask for each key; `router_norms` is for dropping experts.

Groups are ranked by the sum of their squares (l2) or of their magnitudes (l1), in f64. Where groups that compete are of unlike
sizes (several tensors, blocks cut off at an edge) it is the mean of these, which orders them as the norm divided by the root
of the size does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.analysis.select import largest
from wtool.errors import LimitError, NotFiniteError, UsageError
from wtool.kernels.combine import PIECE, blame, wide
from wtool.kernels.masks import Mask
from wtool.kernels.patterns import ByGroups, Geometry, Structure
from wtool.tensor import LazyTensor

Array = NDArray[Any]
Progress = Callable[[int], None]

NORMS = ("l2", "l1")
MOST = 1 << 24  # groups that compete with one another: 128 MiB of sums
_SLOT = 78  # a scratch array
_STRIPE = 8 << 20  # bytes of a tensor that must be gathered; the same however many threads there are


def structured(
    tensors: Mapping[str, LazyTensor],
    structure: Structure,
    sparsity: float,
    *,
    scope: Callable[[str], object] = lambda key: key,
    norm: str = "l2",
    odd: bool = False,
    before: Mapping[str, Mask] | None = None,
    of_remaining: bool = False,
    exact: bool = False,
    limits: Mapping[str, tuple[str, float]] | None = None,
    name: str = "",
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, ByGroups]:
    """Key -> which of its groups are kept, when `round(sparsity * groups)` of those that compete are zeroed.

    Those compete whose keys have the same `scope`: each tensor's alone, unless it is given. The ones with the largest norms
    stay; of equal ones those that come first, by the order of `tensors`, then of the groups. Groups that hold NaN or an
    infinity are a NotFiniteError that names `name`, or, with `odd`, are never zeroed and not counted. UsageError for a tensor
    without such groups, LimitError for more than MOST that compete. `progress` is told of bytes.

    What the masks `before` zero counts as 0. Groups of which they keep nothing are among those that are zeroed, and not
    ranked again; with `of_remaining` the share is of the others, and where it is `exact`, more of them than are to go are a
    UsageError. Of the keys of one name of `limits` no larger share of the groups goes, and more of the others; UsageError
    where that cannot be.
    """
    if norm not in NORMS:
        raise UsageError(f"unknown norm '{norm}'", hint="one of " + ", ".join(NORMS))
    if not 0 <= sparsity <= 1:
        raise UsageError(f"a sparsity of {sparsity:g} is not between 0 and 1")
    earlier = before or {}
    pools: dict[object, list[str]] = {}
    shapes: dict[str, Geometry] = {}
    for key, tensor in tensors.items():
        if not structure.fits(tensor.shape):
            raise UsageError(f"'{key}' of {len(tensor.shape)} axes has no {structure}s", path=name or None)
        shapes[key] = Geometry.of(structure, tensor.shape)
        pools.setdefault(scope(key), []).append(key)
    for pool in pools.values():
        count = sum(shapes[key].count for key in pool)
        if count > MOST:
            hint = "larger blocks, or --scope tensor"
            raise LimitError(f"{count} groups compete with one another, from '{pool[0]}' on", path=name or None, hint=hint)

    def chosen(pool: Sequence[str], threads: int) -> dict[str, ByGroups]:
        def of(key: str) -> _Groups:
            counts = None if key not in earlier else np.zeros(shapes[key].count)
            numbers = sums(
                tensors[key],
                shapes[key],
                norm,
                odd=odd,
                before=earlier.get(key),
                counts=counts,
                name=name,
                progress=progress,
            )
            whole = np.isfinite(numbers)
            return _Groups(numbers, whole, whole if counts is None else whole & (counts > 0))

        found = dict(zip(pool, each(pool, of, threads), strict=True))
        total, gone = sum(one.count for one in found.values()), sum(one.gone for one in found.values())
        zeros = gone + round(sparsity * (total - gone)) if of_remaining else round(sparsity * total)
        if zeros < gone and exact:
            raise UsageError(
                f"the mask leaves nothing of {gone:,} of {total:,} groups already, more than --sparsity {sparsity:g}",
                hint="--of-remaining prunes that share of what is left",
            )
        return _choose(found, shapes, max(zeros, gone), limits or {}, threads)

    alone = [pool for pool in pools.values() if len(pool) == 1]
    made: dict[str, ByGroups] = {}
    for masks in each(alone, lambda pool: chosen(pool, 1), jobs):
        made |= masks
    for pool in pools.values():
        if len(pool) > 1:
            made |= chosen(pool, jobs)
    return {key: made[key] for key in tensors}


def sums(
    tensor: LazyTensor,
    geometry: Geometry,
    norm: str = "l2",
    *,
    odd: bool = False,
    before: Mask | None = None,
    counts: Array | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> Array:
    """Of each group the sum of its squares (l2) or magnitudes (l1), in f64; each value is read once.

    With `odd`, what is not finite makes a sum so; else it is a NotFiniteError. What `before` zeroes is 0; how many values it
    keeps of each group is added to `counts`.
    """
    totals = np.zeros(geometry.count)
    with np.errstate(all="ignore"):
        for start, values, kept in _values(tensor, geometry.columns, before, progress):
            if kept is not None and counts is not None:
                geometry.add_up(counts, start, kept.astype(np.float64))
            (np.square if norm == "l2" else np.abs)(values, out=values)
            geometry.add_up(totals, start, values)
    if not odd and not np.isfinite(totals).all():
        for _, values, _ in _values(tensor, geometry.columns, before, None):
            blame(tensor.key, [name], [values])
        raise NotFiniteError(f"'{tensor.key}' holds values whose squares are too large for f64", path=name or None)
    return totals


def _values(
    tensor: LazyTensor, columns: int, before: Mask | None, progress: Progress | None
) -> Iterator[tuple[int, Array, Array | None]]:
    """Where a run begins, its values as f64, and what an earlier mask keeps of them: the others are 0. Mostly whole rows."""
    start = 0
    for block in tensor.blocks(stripe=_STRIPE):
        at = 0
        while at < len(block):
            size = _piece(columns, start + at, len(block) - at)
            some = block[at : at + size]
            kept = None if before is None else before.keeps(start + at, some)
            values = wide(some, tensor.dtype, _SLOT)
            if kept is not None:
                np.copyto(values, 0.0, where=~kept)
            yield start + at, values, kept
            at += size
        start += len(block)
        if progress is not None:
            progress(block.nbytes)


def _piece(columns: int, start: int, left: int) -> int:
    """How many values to take at once: whole rows if that can be."""
    end = (start + min(PIECE, left)) // columns * columns - start
    return end if end > 0 else min(PIECE, left)


def router_norms(routers: Mapping[str, LazyTensor], *, name: str = "") -> dict[str, list[float]]:
    """Key -> the L1 norm of each row: how strongly a router can call each expert."""
    row = Structure("row")
    return {
        key: [float(one) for one in sums(tensor, Geometry.of(row, tensor.shape), "l1", name=name)]
        for key, tensor in routers.items()
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """Numbers as `largest` takes them."""

    key: str
    numbers: Array
    columns: Sequence[int] = (0,)

    @property
    def elements(self) -> int:
        return len(self.numbers)

    def runs(self, columns: Sequence[int]) -> Iterator[tuple[int, list[Array]]]:
        for start in range(0, len(self.numbers), PIECE):
            yield start, [self.numbers[start : start + PIECE].view(np.int64)] * len(columns)


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Of each group of a tensor its number, whether it counts (is finite), and whether it is to be ranked."""

    numbers: Array
    whole: Array
    ranked: Array

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.whole))

    @property
    def gone(self) -> int:
        return self.count - int(np.count_nonzero(self.ranked))


def _choose(
    found: Mapping[str, _Groups],
    shapes: Mapping[str, Geometry],
    zeros: int,
    limits: Mapping[str, tuple[str, float]],
    jobs: int,
) -> dict[str, ByGroups]:
    """The masks of tensors whose groups compete, if so many are zeroed, those that are gone among them."""
    if len({shapes[key].even for key in found}) > 1 or not all(shapes[key].even for key in found):
        for key, one in found.items():
            np.divide(one.numbers, shapes[key].sizes(), out=one.numbers)
    total = sum(one.count for one in found.values())
    most = _most(found, limits)
    able = sum(one.count for key, one in found.items() if key not in limits) + sum(most.values())
    if zeros > able:
        hint = f"--sparsity {floor(able / total * 1000) / 1000:g}, or higher limits"
        raise UsageError(f"{zeros:,} of {total:,} groups are to go, and the limits let {able:,} go", hint=hint)
    kept: dict[str, Array] = {}
    left = dict(found)
    while left:
        some = _largest(left, zeros, jobs)
        over: set[str] = set()
        for limit, number in most.items():
            members = {key: left[key] for key in left if key in limits and limits[key][0] == limit}
            if sum(one.count - int(np.count_nonzero(some[key] & one.whole)) for key, one in members.items()) > number:
                over |= members.keys()
                zeros -= number
                kept |= _largest(members, number, jobs)
        if not over:
            kept |= some
            break
        left = {key: one for key, one in left.items() if key not in over}
    return {key: ByGroups(np.packbits(kept[key], bitorder="little").tobytes(), shapes[key]) for key in found}


def _most(found: Mapping[str, _Groups], limits: Mapping[str, tuple[str, float]]) -> dict[str, int]:
    """By name of a limit the most groups of its members that may go; those that are gone are."""
    members: dict[str, list[str]] = {}
    for key in found:
        if key in limits:
            members.setdefault(limits[key][0], []).append(key)
    return {
        name: max(
            floor(Fraction(str(limits[keys[0]][1])) * sum(found[key].count for key in keys)),
            sum(found[key].gone for key in keys),
        )
        for name, keys in members.items()
    }


def _largest(found: Mapping[str, _Groups], zeros: int, jobs: int) -> dict[str, Array]:
    """Which groups are kept if so many are zeroed, those that are gone among them."""
    streams = [_Ranked(key, one.numbers[one.ranked]) for key, one in found.items()]
    rank = sum(one.count for one in found.values()) - zeros
    keeps = largest(streams, {0: rank}, jobs=jobs)
    kept = {}
    for stream in streams:
        one = found[stream.key]
        kept[stream.key] = ~one.whole
        kept[stream.key][one.ranked] = keeps[0, stream.key].mask(0, stream.numbers)
    return kept
