"""Checkpoints of a few tensors in memory, and sources that count what is read of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from wtool.bytesource import ByteSource, MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.tensor import LazyTensor


class Counting:
    """A source that notes every range that is asked for."""

    def __init__(self, inner: ByteSource) -> None:
        self.inner, self.name, self.size = inner, inner.name, inner.size
        self.ranges: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def _note(self, offset: int, nbytes: int) -> None:
        with self._lock:
            self.ranges.append((offset, nbytes))

    @property
    def total(self) -> int:
        return sum(nbytes for _, nbytes in self.ranges)

    def pread(self, offset: int, nbytes: int) -> bytes:
        self._note(offset, nbytes)
        return self.inner.pread(offset, nbytes)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._note(offset, len(buffer))
        self.inner.readinto(offset, buffer)


def covered_once(ranges: list[tuple[int, int]], size: int) -> bool:
    """Whether the ranges (offset, nbytes) partition `size` bytes."""
    at = 0
    for offset, nbytes in sorted(ranges):
        if offset != at:
            return False
        at += nbytes
    return at == size


def checkpoint_on(source: ByteSource, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Checkpoint:
    """Tensors (key -> dtype, shape) that lie one behind the other in `source`."""
    found: dict[str, LazyTensor] = {}
    offset = 0
    for key, (name, shape) in tensors.items():
        found[key] = LazyTensor.contiguous(key, dtype(name), shape, source, offset)
        offset += found[key].nbytes
    return Checkpoint(found, Source(source.name, "torch", "zip", ((source.name, source.size),)))


def checkpoint_of(seed: int, count: int = 3, elements: int = 1000) -> Checkpoint:
    """`count` f32 tensors `k0`, `k1`, ... whose values the seed decides."""
    values = np.random.default_rng(seed).standard_normal((count, elements)).astype("f4")
    return checkpoint_on(MemoryBytes(values.tobytes()), {f"k{n}": ("f32", (elements,)) for n in range(count)})


def values_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: checkpoint[key].array().tobytes() for key in sorted(checkpoint)}
