"""The k largest magnitudes among tensors of a dtype of two bytes: all 32,768 magnitudes there are, counted in one pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.kernels.buffers import CHUNK
from wtool.kernels.combine import blame
from wtool.kernels.masks import codes, first_odd
from wtool.kernels.trim import ALL, NONE, Keep
from wtool.tensor import LazyTensor

Array = NDArray[Any]

_CODES = 1 << 15


def largest_halves(
    tensors: Sequence[LazyTensor], rank: int, name: str, *, jobs: int = 1, progress: Callable[[int], None] | None = None
) -> dict[str, Keep]:
    """What remains of each tensor if `rank` values of all are kept: as analysis.select answers, with the same ties.

    All are of one floating dtype of two bytes. NotFiniteError, with `name`. `progress` is told of elements.
    """
    row = tensors[0].dtype
    counts = np.zeros(_CODES, np.int64)
    lock = threading.Lock()

    def count(tensor: LazyTensor) -> None:
        own = np.zeros(_CODES, np.int64)
        for _, found in _pieces(tensor):
            own += np.bincount(found, minlength=_CODES)
            if progress is not None:
                progress(len(found))
        edge = first_odd(row)
        if own[edge:].any():
            odd = np.nan if own[edge + 1 :].any() else np.inf
            blame(tensor.key, [name], [np.array([odd])])
        with lock:
            np.add(counts, own, out=counts)

    each(tensors, count, jobs)
    if rank in (0, int(counts.sum())):
        return {tensor.key: ALL if rank else NONE for tensor in tensors}
    rising = np.cumsum(counts[::-1])
    place = int(np.searchsorted(rising, rank))
    code = _CODES - 1 - place
    left = rank - int(rising[place]) + int(counts[code])  # of those equal to the smallest that stays
    threshold = float(np.array([code], np.uint16).view(row.numpy()).astype(np.float64)[0])
    if left == counts[code]:
        return {tensor.key: Keep(threshold, tensor.elements) for tensor in tensors}

    def equal(tensor: LazyTensor) -> int:
        return sum(int(np.count_nonzero(found == code)) for _, found in _pieces(tensor))

    keeps = {}
    for tensor, same in zip(tensors, each(tensors, equal, jobs), strict=True):
        until = tensor.elements if left >= same else _place(tensor, code, left) + 1 if left else 0
        keeps[tensor.key] = Keep(threshold, until)
        left = max(left - same, 0)
    return keeps


def _pieces(tensor: LazyTensor) -> Iterator[tuple[int, Array]]:
    """Where a run begins, and its codes, until the next one."""
    start = 0
    for block in tensor.blocks():
        for at in range(0, len(block), CHUNK):
            yield start + at, codes(block[at : at + CHUNK])
        start += len(block)


def _place(tensor: LazyTensor, code: int, left: int) -> int:
    """The flat index of the `left`-th value of a code."""
    for start, found in _pieces(tensor):
        same = found == code
        here = int(np.count_nonzero(same))
        if left <= here:
            return start + int(np.flatnonzero(same)[left - 1])
        left -= here
    raise AssertionError("the values have changed between two passes")
