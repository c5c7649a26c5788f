"""Values of small magnitude become zero."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]

_EVERY = 1 << 62
_SLOT = 76


@dataclass(frozen=True, slots=True)
class Keep:
    """Keeps values of a magnitude above `threshold`, and of those equal to it the ones at a flat index below `until`."""

    threshold: float
    until: int

    def __call__(self, start: int, values: Array) -> None:
        """Set the others to zero, in f64 values that begin at a flat index. What is not finite does not become so."""
        if self.threshold == 0.0 and self.until >= start + len(values):
            return
        for first in range(0, len(values), CHUNK):
            some = values[first : first + CHUNK]
            magnitudes = np.abs(some, out=scratch("f8", len(some), _SLOT))
            np.multiply(some, self.mask(start + first, magnitudes), out=some)

    def mask(self, start: int, magnitudes: Array) -> Array:
        """Which of these, at a flat index, are kept."""
        if self.until >= start + len(magnitudes):
            return np.greater_equal(magnitudes, self.threshold)
        kept: Array = magnitudes > self.threshold
        if start < self.until:
            some = magnitudes[: self.until - start]
            np.logical_or(kept[: len(some)], some == self.threshold, out=kept[: len(some)])
        return kept


ALL = Keep(0.0, _EVERY)
NONE = Keep(inf, 0)
