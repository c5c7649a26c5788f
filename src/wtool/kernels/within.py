"""Masks of later rounds: what an earlier mask zeroed is 0 to those that look at the values, and stays so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.masks import Mask

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Within:
    """Keeps what `before` does, and of that what `mask` does of the values with zeros for what is gone."""

    before: Mask
    mask: Mask

    def keeps(self, start: int, block: Array) -> Array:
        kept = self.before.keeps(start, block)
        words = block.view(f"u{block.dtype.itemsize}")
        left: Array = np.multiply(words, kept).astype(words.dtype, copy=False).view(block.dtype)
        return np.logical_and(kept, self.mask.keeps(start, left), out=kept)
