"""How far each input lies from the outcome of an average: collected while the outcome is written."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum, sqrt
from statistics import median

_FAR = 3.0  # times the median distance: an outlier
_DIGITS = 5  # of a distance: runs are cut in other places with other numbers of threads, and summed in f32


@dataclass
class Spread:
    """Sums of squares in f64: of every input minus the outcome, and of the outcome. Safe to use from several threads."""

    inputs: int
    squares: list[list[float]] = field(default_factory=list)
    outcome: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.squares = [[] for _ in range(self.inputs)]
        self._lock = threading.Lock()

    def add(self, numbers: Sequence[int], squares: Sequence[float], outcome: float) -> None:
        """Take in one run of values: the sums for some of the inputs, by number, and of the outcome."""
        with self._lock:
            self.outcome.append(outcome)
            for number, value in zip(numbers, squares, strict=True):
                self.squares[number].append(value)

    def learned(self) -> tuple[list[list[float]], list[float]]:
        """All sums, for another process."""
        return self.squares, self.outcome

    def learn(self, learned: tuple[list[list[float]], list[float]]) -> None:
        """Take in the sums of another process."""
        squares, outcome = learned
        with self._lock:
            self.outcome += outcome
            for own, more in zip(self.squares, squares, strict=True):
                own += more

    @property
    def distances(self) -> list[float | None]:
        """L2, relative to the norm of the outcome, over what was combined; absolute where that norm is 0. To five digits.

        None for an input of which nothing was combined. The order in which threads came does not matter.
        """
        norm = sqrt(fsum(self.outcome)) or 1.0
        return [float(f"{sqrt(fsum(values)) / norm:.{_DIGITS}g}") if values else None for values in self.squares]

    @property
    def outliers(self) -> list[int]:
        """Inputs more than three times as far as the median of all, where there are three or more."""
        found = [(number, distance) for number, distance in enumerate(self.distances) if distance is not None]
        if len(found) < 3:
            return []
        usual = median(distance for _, distance in found)
        return [number for number, distance in found if distance > _FAR * usual > 0]
