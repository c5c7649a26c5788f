"""What of tensors stays when they are pruned: values, squares of values, and rows, learned run by run while they go."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.bitmask import matrix
from wtool.kernels.buffers import CHUNK
from wtool.kernels.energy import energies
from wtool.kernels.masks import Tell
from wtool.tensor import LazyTensor

Array = NDArray[np.generic]
Bools = NDArray[np.bool_]

_DIGITS = 9  # of a share of energy: runs are cut in other places with other numbers of threads


@dataclass
class Shares:
    """What of each tensor stays: values, squares of values, and rows that are not dead. Safe to use from several threads.

    What is not finite does not count among the squares. A row, `w[i]`, is dead when nothing but zeros is kept of it; with
    `rewound` values, which are others than those seen here, when nothing is.
    """

    rewound: bool = False
    kept: dict[str, int] = field(default_factory=dict)
    _alive: dict[str, Bools] = field(default_factory=dict)
    _squares: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def of(self, tensor: LazyTensor) -> Tell:
        """What takes in the runs of one tensor."""
        self.kept[tensor.key] = 0
        squares = self._squares[tensor.key] = ([], [])
        row = tensor.dtype
        rows, columns = matrix(tensor.shape)
        alive = None
        if len(tensor.shape) > 1 and tensor.elements:
            alive = self._alive[tensor.key] = np.zeros(rows, np.bool_)

        def add(start: int, values: Array, kept: Bools, left: Array | None = None) -> None:
            before = after = 0.0
            for at in range(0, len(values), CHUNK):
                some = slice(at, at + CHUNK)
                one, two = energies(values[some], kept[some], row, None if left is None else left[some])
                before, after = before + one, after + two
            first, last = start // columns, -(-(start + len(values)) // columns)
            lives = None
            if alive is not None and not alive[first:last].all():
                lives = _living(values, kept, None if self.rewound else left, start % columns, columns, zeros=not self.rewound)
            with self._lock:
                self.kept[tensor.key] += int(np.count_nonzero(kept))
                if alive is not None and lives is not None:
                    alive[first:last] |= lives
                squares[0].append(before)
                squares[1].append(after)

        return add

    def learned(self) -> Any:
        """All counts and sums, for another process."""
        return self.kept, self._alive, self._squares

    def learn(self, learned: Any) -> None:
        """Take in the counts and sums of another process, of the same tensors."""
        kept, alive, squares = learned
        with self._lock:
            for key, count in kept.items():
                self.kept[key] += count
            for key, rows in alive.items():
                self._alive[key] |= rows
            for key, (before, after) in squares.items():
                self._squares[key][0].extend(before)
                self._squares[key][1].extend(after)

    def dead(self, key: str) -> int | None:
        """How many rows are dead; None of a tensor of fewer than two axes, or empty."""
        alive = self._alive.get(key)
        return None if alive is None else len(alive) - int(np.count_nonzero(alive))

    def energy(self, keys: Sequence[str]) -> float:
        """The share of the sum of squares that stays in these tensors; 1 where it is 0."""
        before = fsum(value for key in keys for value in self._squares[key][0])
        after = fsum(value for key in keys for value in self._squares[key][1])
        return round(after / before, _DIGITS) if before else 1.0


def _living(values: Array, kept: Bools, left: Array | None, column: int, columns: int, *, zeros: bool) -> Bools:
    """Of the rows of a run that begins at a column: whether a value other than zero is kept (unless `zeros`: any value)."""
    starts = np.arange(-column, len(kept), columns)
    starts[0] = 0
    if zeros and left is not None and left.dtype.itemsize > 1:  # bits of any value, but for the sign
        bits = np.bitwise_or.reduceat(left.view(f"u{left.dtype.itemsize}"), starts)
        found: Bools = np.left_shift(bits, 1) != 0
        return found
    lives: Bools = np.logical_or.reduceat((values != 0) & kept if zeros else kept, starts)
    return lives
