"""First pass of methods whose weights depend on how the inputs lie to one another: dot products, tensor by tensor, in f64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum

import numpy as np

from wtool.analysis.parallel import each
from wtool.dtypes import DType
from wtool.errors import NotFiniteError
from wtool.kernels.combine import PIECE, blame, real, wide
from wtool.kernels.squares import product as dot
from wtool.tensor import LazyTensor
from wtool.views import together

Progress = Callable[[int], None]
Gram = tuple[tuple[float, ...], ...]

_BLOCKS = 2 << 20  # bytes of all tensors that are looked at together
_STRIPE = 8 << 20  # and of those that must be gathered; the same however many threads there are
_SLOT = 64  # of the scratch arrays of the tensors


@dataclass(frozen=True, slots=True)
class Asked:
    """A tensor that a method was asked to combine: its inputs by number, and the base its differences are from, if any."""

    key: str
    parts: Mapping[int, LazyTensor]
    base: LazyTensor | None
    names: Sequence[str]


@dataclass
class Noting:
    """A method that only notes what it is asked; stands for one that needs dot products. `based`: of differences."""

    based: bool
    asked: list[Asked] = field(default_factory=list)

    def __call__(
        self,
        key: str,
        parts: Mapping[int, LazyTensor],
        base: LazyTensor | None,
        names: Sequence[str],
        order: Sequence[int],
        dtype: DType | None,
    ) -> LazyTensor:
        fits = base is not None and base.shape == parts[min(parts)].shape
        if len(parts) > 1 and parts[min(parts)].elements and (fits or not self.based):
            self.asked.append(Asked(key, parts, base if self.based else None, names))
        return parts[min(parts)]


def grams(asked: Sequence[Asked], *, jobs: int = 1, progress: Progress | None = None) -> dict[str, Gram]:
    """Key -> the dot products of its inputs in order of their numbers, minus the base. NotFiniteError names an input.

    Each value is read once. The same values give the same bits, whatever `jobs` is. `progress` is told of bytes read.
    """
    found = each(asked, lambda one: _gram(one, progress), jobs)
    return {one.key: gram for one, gram in zip(asked, found, strict=True)}


def _gram(one: Asked, progress: Progress | None) -> Gram:
    numbers = sorted(one.parts)
    tensors = [one.parts[number] for number in numbers]
    names = [one.names[number] for number in numbers]
    if one.base is not None:
        tensors, names = [one.base, *tensors], ["the base", *names]
    rows = [real(tensor.dtype) for tensor in tensors]
    many, skip = len(numbers), len(tensors) - len(numbers)
    sums: list[list[list[float]]] = [[[] for _ in range(many)] for _ in range(many)]
    step = max(PIECE * 4 // len(tensors), 1 << 10) & -1024
    for _, blocks in together(tensors, max(_BLOCKS // len(tensors), 1 << 16), _STRIPE):
        parts = [block.view(row.numpy()) for block, row in zip(blocks, rows, strict=True)]
        products = np.zeros((many, many))
        with np.errstate(all="ignore"):
            for start in range(0, len(parts[0]), step):
                pieces = [
                    wide(part[start : start + step], row, _SLOT + place)
                    for place, (part, row) in enumerate(zip(parts, rows, strict=True))
                ]
                for piece in pieces[skip:]:
                    if skip:
                        np.subtract(piece, pieces[0], out=piece)
                for a in range(many):
                    for b in range(a + 1):
                        products[a, b] += dot(pieces[skip + a], pieces[skip + b])
        if not np.isfinite(products).all():
            for start in range(0, len(parts[0]), step):
                blame(
                    one.key,
                    names,
                    [
                        wide(part[start : start + step], row, _SLOT + place)
                        for place, (part, row) in enumerate(zip(parts, rows, strict=True))
                    ],
                )
            raise NotFiniteError(
                f"'{one.key}' holds values whose squares are too large for f64", hint="--rule, or --method mean"
            )
        for a in range(many):
            for b in range(a + 1):
                sums[a][b].append(float(products[a, b]))
        if progress is not None:
            progress(sum(block.nbytes for block in blocks))
    totals = [[fsum(sums[max(a, b)][min(a, b)]) for b in range(many)] for a in range(many)]
    return tuple(tuple(row) for row in totals)
