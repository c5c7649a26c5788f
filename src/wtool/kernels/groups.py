"""Tables of groups: f32 [groups, width], worked on in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.kernels.buffers import CHUNK, scratch

Array = NDArray[Any]

_MAGNITUDE = np.int32(0x7FFF_FFFF)
_SIGN = np.uint32(0x8000_0000)


def tiles(groups: int, width: int, limit: int = CHUNK, run: int = 1) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of contiguous pieces: of whole groups, or of one group that is wider than `limit` elements.

    With its width rounded up to a multiple of `run`, which divides the limit, a piece has at most `limit` elements.
    """
    if width > limit:
        for group in range(groups):
            for first in range(0, width, limit):
                yield slice(group, group + 1), slice(first, min(first + limit, width))
        return
    many = limit // (-(-max(width, 1) // run) * run)
    for first in range(0, groups, many):
        yield slice(first, min(first + many, groups)), slice(0, width)


def magnitudes(table: Array) -> Array:
    """The largest magnitude of each group. As integers: the bits of floats without their sign have the same order."""
    found = np.zeros(len(table), np.int32)
    for rows, columns in tiles(*table.shape):
        piece = table[rows, columns].view(np.int32).reshape(-1)
        bits = scratch("i4", len(piece), 30)
        np.bitwise_and(piece, _MAGNITUDE, out=bits)
        np.maximum(found[rows], _largest(bits, rows), out=found[rows])
    return found.view(np.float32)


def ends(table: Array) -> tuple[Array, Array]:
    """The least and the greatest value of each group, but at most and at least zero.

    As signed integers every positive float is above every negative one, as unsigned ones the other way round.
    """
    greatest, least = np.zeros(len(table), np.int32), np.full(len(table), _SIGN)
    for rows, columns in tiles(*table.shape):
        piece = table[rows, columns].reshape(-1)
        np.maximum(greatest[rows], _largest(piece.view(np.int32), rows), out=greatest[rows])
        np.maximum(least[rows], _largest(piece.view(np.uint32), rows), out=least[rows])
    return least.view(np.float32), greatest.view(np.float32)


def _largest(flat: Array, rows: slice) -> Array:
    many = rows.stop - rows.start
    found: Array = np.maximum.reduceat(flat, _starts(many, len(flat) // many))  # twice as fast as reduce along short rows
    return found


@lru_cache(maxsize=64)
def _starts(many: int, width: int) -> Array:
    return np.arange(0, many * width, width)
