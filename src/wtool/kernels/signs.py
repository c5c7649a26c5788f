"""Values that torch keeps as a flag on a view: the conjugate and the negative of what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wtool.dtypes import DType

if TYPE_CHECKING:
    from wtool.tensor import Array, Tally


@dataclass(frozen=True, slots=True)
class Signs:
    """Flips the sign bit of the imaginary part (`conjugate`), of all (`negative`), or, with both, of the real part.

    For floating and complex dtypes: a NaN keeps its bits but the sign, as in torch.
    """

    conjugate: bool
    negative: bool

    def dtype(self, stored: DType) -> DType:
        return stored

    def __call__(self, block: Array, tally: Tally) -> Array:
        import numpy as np

        if block.dtype.kind != "c":
            return -block if self.negative else block
        parts = block.view(f"f{block.dtype.itemsize // 2}").reshape(-1, 2)
        out = np.empty_like(parts)
        np.copyto(out, parts)
        if self.negative:
            np.negative(out[:, 0], out=out[:, 0])
        if self.conjugate != self.negative:
            np.negative(out[:, 1], out=out[:, 1])
        return out.reshape(-1).view(block.dtype)
