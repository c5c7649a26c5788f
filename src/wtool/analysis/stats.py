"""Statistics of every tensor's values, in one pass over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wtool.analysis.parallel import ask
from wtool.checkpoint import Checkpoint
from wtool.tensor import LazyTensor

if TYPE_CHECKING:
    from wtool.kernels.moments import Moments

_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Of the finite values of a tensor, those of complex ones by magnitude, bools as 0 and 1.

    `min`, `max`, `mean`, `std` (of the population) and `l2` are None where there is no finite value; `zeros`, `nan` and `inf`
    are counts; `histogram` has 16 equal bins between min and max, of a sample in long tensors; it is empty without values.
    """

    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    l2: float | None
    zeros: int
    nan: int
    inf: int
    histogram: tuple[int, ...]


def stats(checkpoint: Checkpoint, jobs: int = 1, progress: Callable[[int], None] | None = None) -> dict[str, TensorStats]:
    """Key -> statistics, in the order of the checkpoint, without the tensors whose packing cannot be decoded.

    `progress` is told of bytes that have been read, from any thread.
    """
    tensors = {key: tensor for key, tensor in checkpoint.items() if _decodable(tensor)}
    return ask(tensors, lambda tensor: tensor_stats(tensor, progress), jobs)


def tensor_stats(tensor: LazyTensor, progress: Callable[[int], None] | None = None) -> TensorStats:
    """The statistics of one tensor. UnsupportedError for f6."""
    from wtool.kernels.moments import Moments

    moments = Moments(tensor.dtype)
    for block in tensor.blocks():
        if progress is not None:
            progress(block.nbytes)
        moments.add(block)
    return _stats(moments)


def _decodable(tensor: LazyTensor) -> bool:
    """Not f6, and not an f4 tensor with half a byte of padding."""
    row = tensor.dtype
    return bool(row.itemsize or row.block or (row.name == "f4" and tensor.elements % 2 == 0))


def _stats(moments: Moments) -> TensorStats:
    known = moments.count > 0
    return TensorStats(
        min=moments.low if known else None,
        max=moments.high if known else None,
        mean=moments.mean if known else None,
        std=moments.std if known else None,
        l2=moments.norm if known else None,
        zeros=moments.zeros,
        nan=moments.nan,
        inf=moments.inf,
        histogram=moments.histogram(),
    )


def sparkline(histogram: tuple[int, ...]) -> str:
    """A bar for each bin, the tallest for the fullest; an empty bin is a space."""
    top = max(histogram, default=0)
    return "".join(_LEVELS[(count * len(_LEVELS) - 1) // top] if count else " " for count in histogram)
