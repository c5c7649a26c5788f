"""What of tensors stays when they are pruned: values, and squares of values, learned run by run while they go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import fsum, inf

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import route
from wtool.kernels.combine import PIECE, dot, wide
from wtool.tensor import LazyTensor

_SLOT = 92
_ROW = 1 << 13
_SINGLE = ("f32", "bf16", "f16")  # squares are summed up in f32 first
_TINY = 1e-20  # below it squares may be lost in f32
_DIGITS = 9  # of a share of energy: runs are cut in other places with other numbers of threads


@dataclass
class Shares:
    """What of each tensor stays: values, and squares of values. Safe to use from several threads.

    What is not finite does not count among the squares.
    """

    kept: dict[str, int] = field(default_factory=dict)
    _squares: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def of(self, tensor: LazyTensor) -> Callable[[int, NDArray[np.generic], NDArray[np.bool_]], None]:
        """What takes in the runs of one tensor."""
        self.kept[tensor.key] = 0
        squares = self._squares[tensor.key] = ([], [])
        row = tensor.dtype

        def add(start: int, values: NDArray[np.generic], kept: NDArray[np.bool_]) -> None:
            before = after = 0.0
            for at in range(0, len(values), PIECE):
                some, stays = values[at : at + PIECE], kept[at : at + PIECE]
                one, two = _energies(single(some, row), stays) if row.name in _SINGLE else (inf, inf)
                if not _TINY < one < inf:
                    exact = wide(some, row, _SLOT)
                    with np.errstate(all="ignore"):
                        np.copyto(exact, 0.0, where=~np.isfinite(exact))
                        one = dot(exact, exact)
                        np.multiply(exact, stays, out=exact)
                        two = dot(exact, exact)
                before, after = before + one, after + two
            with self._lock:
                self.kept[tensor.key] += int(np.count_nonzero(kept))
                squares[0].append(before)
                squares[1].append(after)

        return add

    def energy(self, keys: Sequence[str]) -> float:
        """The share of the sum of squares that stays in these tensors; 1 where it is 0."""
        before = fsum(value for key in keys for value in self._squares[key][0])
        after = fsum(value for key in keys for value in self._squares[key][1])
        return round(after / before, _DIGITS) if before else 1.0


def single(values: NDArray[np.generic], row: DType) -> NDArray[np.generic]:
    """Values of at most 32 bits as f32; at most CHUNK, in scratch where they are others."""
    if row.name == "f32":
        return values
    found = scratch("f4", len(values), _SLOT)
    if row.name == "bf16":
        bits = found.view(np.uint32)
        np.copyto(bits, values.view(np.uint16))
        np.left_shift(bits, np.uint32(16), out=bits)
    else:
        route(row, dtype("f32"))(values, found)
    return found


def _energies(values: NDArray[np.generic], kept: NDArray[np.bool_]) -> tuple[float, float]:
    """Sums of squares of f32 values, all and those kept; rows in f32, their sums in f64. Not finite: to be done again."""
    before = after = 0.0
    with np.errstate(all="ignore"):
        for at in range(0, len(values), _ROW):
            some = values[at : at + _ROW]
            stay = some * kept[at : at + _ROW]
            before += float(np.dot(some, some))
            after += float(np.dot(stay, stay))
    return before, after
