"""Values of several inputs that are not averaged: they must agree, or the largest counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.errors import MismatchError
from wtool.kernels.difference import same_bytes

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Agree:
    """The first of blocks that hold the same bits. MismatchError names the input that does not."""

    key: str
    names: tuple[str, ...]

    def __call__(self, first: Array, *others: Array) -> Array:
        for name, other in zip(self.names[1:], others, strict=True):
            if not same_bytes(first, other):
                raise MismatchError(
                    f"the integers of '{self.key}' differ from those in '{self.names[0]}'",
                    path=name,
                    hint=f"--rule '{self.key}=first', last, max or drop",
                )
        return first


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest of the values at each place."""

    def __call__(self, first: Array, *others: Array) -> Array:
        for other in others:
            first = np.maximum(first, other)
        return first
