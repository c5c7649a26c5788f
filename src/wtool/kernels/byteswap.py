"""Values that were stored big-endian, as little-endian ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wtool.dtypes import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ByteSwap:
    """Turns the bytes of each number around; a complex one is two numbers. In place: the block is the reader's own."""

    def dtype(self, stored: DType) -> DType:
        return stored

    def __call__(self, block: Array, tally: dict[str, int]) -> Array:
        size = block.itemsize // 2 if block.dtype.kind == "c" else block.itemsize
        if size > 1:
            block.view(f"u{size}").byteswap(inplace=True)
        return block
