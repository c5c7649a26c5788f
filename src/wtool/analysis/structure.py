"""First passes of what is pruned as a whole: norms of groups, and the choice of those that stay.

`structured(tensors, structure, sparsity)` answers with a mask for each key; `router_norms` is for dropping experts.

Groups are ranked by the sum of their squares (l2) or of their magnitudes (l1), in f64. Where groups that compete are of unlike
sizes (several tensors, blocks cut off at an edge) it is the mean of these, which orders them as the norm divided by the root
of the size does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.analysis.select import largest
from wtool.errors import LimitError, NotFiniteError, UsageError
from wtool.kernels.combine import PIECE, blame, wide
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
    name: str = "",
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, ByGroups]:
    """Key -> which of its groups are kept, when `round(sparsity * groups)` of those that compete are zeroed.

    Those compete whose keys have the same `scope`: each tensor's alone, unless it is given. The ones with the largest norms
    stay; of equal ones those that come first, by the order of `tensors`, then of the groups. Groups that hold NaN or an
    infinity are a NotFiniteError that names `name`, or, with `odd`, are never zeroed and not counted. UsageError for a tensor
    without such groups, LimitError for more than MOST that compete. `progress` is told of bytes.
    """
    if norm not in NORMS:
        raise UsageError(f"unknown norm '{norm}'", hint="one of " + ", ".join(NORMS))
    if not 0 <= sparsity <= 1:
        raise UsageError(f"a sparsity of {sparsity:g} is not between 0 and 1")
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
        def of(key: str) -> Array:
            return sums(tensors[key], shapes[key], norm, odd=odd, name=name, progress=progress)

        found = dict(zip(pool, each(pool, of, threads), strict=True))
        return _choose(found, shapes, sparsity, threads)

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
    name: str = "",
    progress: Progress | None = None,
) -> Array:
    """Of each group the sum of its squares (l2) or magnitudes (l1), in f64; each value is read once.

    With `odd`, what is not finite makes a sum so; else it is a NotFiniteError.
    """
    totals = np.zeros(geometry.count)
    start = 0
    with np.errstate(all="ignore"):
        for block in tensor.blocks(stripe=_STRIPE):
            at = 0
            while at < len(block):
                size = _piece(geometry.columns, start + at, len(block) - at)
                values = wide(block[at : at + size], tensor.dtype, _SLOT)
                (np.square if norm == "l2" else np.abs)(values, out=values)
                geometry.add_up(totals, start + at, values)
                at += size
            start += len(block)
            if progress is not None:
                progress(block.nbytes)
    if not odd and not np.isfinite(totals).all():
        for block in tensor.blocks(stripe=_STRIPE):
            for at in range(0, len(block), PIECE):
                blame(tensor.key, [name], [wide(block[at : at + PIECE], tensor.dtype, _SLOT)])
        raise NotFiniteError(f"'{tensor.key}' holds values whose squares are too large for f64", path=name or None)
    return totals


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


def _choose(found: dict[str, Array], shapes: Mapping[str, Geometry], sparsity: float, jobs: int) -> dict[str, ByGroups]:
    """The masks of tensors whose groups compete."""
    if len({shapes[key].even for key in found}) > 1 or not all(shapes[key].even for key in found):
        for key, numbers in found.items():
            np.divide(numbers, shapes[key].sizes(), out=numbers)
    whole = {key: np.isfinite(numbers) for key, numbers in found.items()}
    streams = [_Ranked(key, numbers[whole[key]]) for key, numbers in found.items()]
    total = sum(stream.elements for stream in streams)
    keeps = largest(streams, {0: total - round(sparsity * total)}, jobs=jobs)
    masks = {}
    for stream in streams:
        kept = np.ones(len(whole[stream.key]), np.bool_)
        kept[whole[stream.key]] = keeps[0, stream.key].mask(0, stream.numbers)
        masks[stream.key] = ByGroups(np.packbits(kept, bitorder="little").tobytes(), shapes[stream.key])
    return masks
