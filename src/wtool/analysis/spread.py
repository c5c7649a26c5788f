"""How far each input lies from the outcome of an average: collected while the outcome is written."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import median

_FAR = 3.0  # times the median distance: an outlier


@dataclass
class Spread:
    """Sums of squares in f64: of every input minus the outcome, and of the outcome. Safe to use from several threads."""

    inputs: int
    squares: list[float] = field(default_factory=list)
    outcome: float = 0.0

    def __post_init__(self) -> None:
        self.squares = [0.0] * self.inputs
        self._lock = threading.Lock()

    def add(self, numbers: Sequence[int], squares: Sequence[float], outcome: float) -> None:
        """Take in one run of values: the sums for some of the inputs, by number, and of the outcome."""
        with self._lock:
            self.outcome += outcome
            for number, value in zip(numbers, squares, strict=True):
                self.squares[number] += value

    @property
    def distances(self) -> list[float]:
        """L2, relative to the norm of the outcome; 0 where that is 0 and nothing moved."""
        norm = sqrt(self.outcome)
        return [sqrt(value) / norm if norm else sqrt(value) for value in self.squares]

    @property
    def outliers(self) -> list[int]:
        """Inputs more than three times as far as the median of all, where there are three or more."""
        found = self.distances
        if len(found) < 3:
            return []
        usual = median(found)
        return [number for number, distance in enumerate(found) if distance > _FAR * usual and usual > 0]
