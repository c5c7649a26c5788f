"""Arrays that are used again: a fresh one for every block would cost more in page faults than most kernels take."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK = 1 << 16  # elements a kernel works on at a time, so that its scratch stays in the cache
_KEPT = 4  # blocks kept for each thread


def _references(kept: list[Array], index: int) -> int:
    return sys.getrefcount(kept[index])


# What _references says of an array that only its list holds; it differs between versions of Python.
_IDLE = _references([np.empty(1)], 0)


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.scratch: dict[tuple[str, int], Array] = {}
        self.blocks: list[Array] = []


_buffers = _Buffers()


def scratch(unit: str, count: int, slot: int = 0) -> Array:
    """`count` elements of this thread's scratch array number `slot`, which is kept; any call may overwrite it."""
    array = _buffers.scratch.get((unit, slot))
    if array is None or len(array) < count:
        array = _buffers.scratch[unit, slot] = np.empty(max(count, CHUNK), unit)
    return array[:count]


def block(unit: np.dtype[Any], count: int) -> Array:
    """An uninitialised array for the outcome of a kernel: one of this thread's that nobody holds any more, else a new one."""
    nbytes = count * unit.itemsize
    kept = _buffers.blocks
    for index in range(len(kept)):
        if _references(kept, index) == _IDLE:
            if kept[index].size < nbytes:
                kept[index] = np.empty(nbytes, np.uint8)
            return kept[index][:nbytes].view(unit)
    fresh = np.empty(nbytes, np.uint8)
    if len(kept) < _KEPT:
        kept.append(fresh)
    return fresh.view(unit)
