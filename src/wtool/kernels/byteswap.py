"""Turns big-endian values into little-endian ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wtool.dtypes import DType

if TYPE_CHECKING:
    from wtool.tensor import Array, Tally


@dataclass(frozen=True, slots=True)
class ByteSwap:
    """Reverses the bytes of each number; a complex number is two."""

    width: int  # bytes of one number

    @staticmethod
    def of(dtype: DType) -> ByteSwap:
        return ByteSwap(dtype.itemsize // 2 if dtype.kind == "complex" else dtype.itemsize)

    def dtype(self, stored: DType) -> DType:
        return stored

    def __call__(self, block: Array, tally: Tally) -> Array:
        return block.view(f"u{self.width}").byteswap().view(block.dtype)
