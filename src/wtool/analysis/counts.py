"""How many values of tensors are not zero, and where: one pass over the values, before a sparse layout can be drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.kernels.bitmask import RUN, Marks, counted, matrix, occupied
from wtool.tensor import BLOCK, LazyTensor

Array = NDArray[Any]

_PIECE = 1 << 24  # values that a thread takes at a time from a tensor that can be read anywhere; a multiple of RUN
_ROWS = 32 << 20  # bytes of all counts by row together
_SHORT = 1 << 10  # columns of rows too short to be worth a count of their own


def count(tensors: Mapping[str, LazyTensor], jobs: int = 1, progress: Callable[[int], None] | None = None) -> dict[str, Marks]:
    """Key -> marks of the tensors of a byte or more a value; of tied ones the same object. Reads all values once.

    `progress` learns of bytes.
    """
    same: dict[object, str] = {}
    found: dict[str, Marks] = {}
    owner: dict[str, str] = {}
    pieces: list[tuple[str, int, int]] = []
    sums: dict[str, tuple[Array, Array | None]] = {}
    room = _ROWS
    lock = threading.Lock()
    for key, tensor in tensors.items():
        if not tensor.dtype.itemsize:
            continue
        owner[key] = key if tensor.identity is None else same.setdefault(tensor.identity, key)
        if owner[key] != key:
            continue
        rows, columns = matrix(tensor.shape)
        direct = tensor.span is not None
        # What cannot be read anywhere is not read once more for the sake of its rows.
        wanted = tensor.elements > 0 and (not direct or (columns >= _SHORT and 8 * rows <= room))
        room -= 8 * rows if wanted and direct else 0
        sums[key] = (np.zeros(-(-tensor.elements // RUN), np.int64), np.zeros(rows, np.int64) if wanted else None)
        step = _PIECE if direct else max(tensor.elements, 1)
        pieces += [(key, low, min(low + step, tensor.elements)) for low in range(0, tensor.elements, step)]

    def look(piece: tuple[str, int, int]) -> None:
        key, low, high = piece
        tensor = tensors[key]
        columns = matrix(tensor.shape)[1]
        whole = tensor.span is None
        first = low // columns
        runs = np.zeros(-(-(high - low) // RUN), np.int64)
        rows = None if sums[key][1] is None else np.zeros((high - 1) // columns + 1 - first, np.int64)
        step = max(BLOCK // tensor.dtype.itemsize, 1)
        room = None if whole else np.empty(min(step, high - low), tensor.stored.numpy())
        ranges = (tensor.flat(at, min(at + step, high), room) for at in range(low, high, step))
        at = low
        for block in tensor.blocks() if whole else ranges:
            mask = occupied(block)
            counted(mask, at - low, RUN, runs)
            if rows is not None:
                counted(mask, at - first * columns, columns, rows)
            at += len(mask)
            if progress is not None:
                progress(block.nbytes)
        with lock:  # two threads may share a row
            total, by_row = sums[key]
            total[low // RUN : low // RUN + len(runs)] += runs
            if by_row is not None and rows is not None:
                by_row[first : first + len(rows)] += rows

    each(pieces, look, jobs)
    for key, (total, by_row) in sums.items():
        found[key] = Marks(_before(total), None if by_row is None else _before(by_row)[:-1])
    return {key: found[first] for key, first in owner.items()}


def _before(counts: Array) -> Array:
    found = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=found[1:])
    return found
