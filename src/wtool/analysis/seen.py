"""What quantization must know of all values of a tensor before the first is coded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from wtool.analysis.parallel import each
from wtool.errors import NotFiniteError
from wtool.layout import Seen
from wtool.tensor import LazyTensor

BLOCK_OF = 64  # weights whose largest magnitude is one number of the mean


def seen(
    tensors: Mapping[str, LazyTensor], jobs: int, progress: Callable[[int], None] | None = None, *, odd: set[str] | None = None
) -> dict[str, Seen]:
    """Key -> the largest magnitude of an f32 tensor, and the mean of the largest of its blocks of 64.

    NotFiniteError for NaN and infinities, or, with `odd`, their keys into it.
    """

    def work(key: str) -> Seen:
        largest, total, blocks = 0.0, 0.0, 0
        for block in tensors[key].blocks(BLOCK_OF << 14):
            size = np.abs(block)
            whole = len(size) // BLOCK_OF * BLOCK_OF
            tops = size[:whole].reshape(-1, BLOCK_OF).max(axis=1)
            if whole < len(size):
                tops = np.append(tops, size[whole:].max())
            total += float(tops.sum(dtype=np.float64))
            largest = max(largest, float(tops.max(initial=0))) if np.isfinite(total) else np.inf
            blocks += len(tops)
            if progress is not None:
                progress(block.nbytes)
        if not np.isfinite(largest) or not np.isfinite(total):
            if odd is None:
                raise NotFiniteError(f"'{key}' holds NaN or an infinity", hint="--on-nan keep leaves such tensors as they are")
            odd.add(key)
        return Seen(largest, total / max(blocks, 1))

    keys = list(tensors)
    return dict(zip(keys, each(keys, work, jobs), strict=True))
