"""The k largest magnitudes among tensors of a dtype of two bytes: all 32,768 magnitudes there are, counted in one pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.kernels.buffers import CHUNK
from wtool.kernels.combine import blame
from wtool.kernels.masks import Mask, codes, first_odd
from wtool.kernels.trim import ALL, NONE, Keep
from wtool.tensor import LazyTensor

Array = NDArray[Any]

_CODES = 1 << 15


def largest_halves(
    tensors: Sequence[LazyTensor],
    rank: int,
    name: str,
    *,
    before: Mapping[str, Mask] | None = None,
    odd: bool = False,
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Keep]:
    """What remains of each tensor if `rank` values of all are kept: as analysis.select answers, with the same ties.

    All are of one floating dtype of two bytes. Values that `before` does not keep do not count. Those that are not finite
    are a NotFiniteError, with `name`, or, if `odd`, the largest. `progress` is told of elements.
    """
    masks = before or {}
    row = tensors[0].dtype
    counts = np.zeros(_CODES, np.int64)
    lock = threading.Lock()

    def count(tensor: LazyTensor) -> None:
        own = np.zeros(_CODES, np.int64)
        for _, found, kept in _pieces(tensor, masks.get(tensor.key)):
            own += np.bincount(found if kept is None else found[kept], minlength=_CODES)
            if progress is not None:
                progress(len(found))
        edge = first_odd(row)
        if not odd and own[edge:].any():
            blame(tensor.key, [name], [np.array([np.nan if own[edge + 1 :].any() else np.inf])])
        with lock:
            np.add(counts, own, out=counts)

    each(tensors, count, jobs)
    if rank in (0, int(counts.sum())):
        return {tensor.key: ALL if rank else NONE for tensor in tensors}
    rising = np.cumsum(counts[::-1])
    place = int(np.searchsorted(rising, rank))
    code = _CODES - 1 - place
    if code >= first_odd(row):
        return {tensor.key: NONE for tensor in tensors}
    left = rank - int(rising[place]) + int(counts[code])  # of those equal to the smallest that stays
    threshold = float(np.array([code], np.uint16).view(row.numpy()).astype(np.float64)[0])
    if left == counts[code]:
        return {tensor.key: Keep(threshold, tensor.elements) for tensor in tensors}

    def equal(tensor: LazyTensor) -> int:
        return sum(
            int(np.count_nonzero(_same(found, kept, code))) for _, found, kept in _pieces(tensor, masks.get(tensor.key))
        )

    keeps = {}
    for tensor, same in zip(tensors, each(tensors, equal, jobs), strict=True):
        until = tensor.elements if left >= same else _place(tensor, masks.get(tensor.key), code, left) + 1 if left else 0
        keeps[tensor.key] = Keep(threshold, until)
        left = max(left - same, 0)
    return keeps


def _pieces(tensor: LazyTensor, before: Mask | None) -> Iterator[tuple[int, Array, Array | None]]:
    """Where a run begins, its codes, until the next one, and which of them count."""
    start = 0
    for block in tensor.blocks():
        for at in range(0, len(block), CHUNK):
            some = block[at : at + CHUNK]
            kept = None if before is None else before.keeps(start + at, some)
            yield start + at, codes(some), kept
        start += len(block)


def _same(found: Array, kept: Array | None, code: int) -> Array:
    same: Array = found == code
    return same if kept is None else same & kept


def _place(tensor: LazyTensor, before: Mask | None, code: int, left: int) -> int:
    """The flat index of the `left`-th value of a code that counts."""
    for start, found, kept in _pieces(tensor, before):
        same = _same(found, kept, code)
        here = int(np.count_nonzero(same))
        if left <= here:
            return start + int(np.flatnonzero(same)[left - 1])
        left -= here
    raise AssertionError("the values have changed between two passes")
