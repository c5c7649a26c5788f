"""Several runs of values become one: weighted sums in f64, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import NotFiniteError
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import Cast
from wtool.kernels.difference import same_bytes

Array = NDArray[Any]
Tell = Callable[[Sequence[int], Sequence[float], float], None]  # inputs, their squared distances, the square of the outcome

PIECE = 1 << 14  # elements worked on at a time: the sum and one input in f64 stay in the second cache
_F32, _F64 = dtype("f32"), dtype("f64")


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """sum(weight * input) / divisor, elementwise: products and sums in f64 in the order given, one rounding at the end.

    `names` are the inputs', for the error; `sources` their dtypes, `target` that of the outcome. Where all inputs hold the
    same bits and `mean` is set, so does the outcome, whatever f64 would round. NotFiniteError names the first input that has
    a NaN or an infinity, unless `finite` is off. `tell` learns how far the inputs called `numbers` lie from the outcome.
    """

    key: str
    names: tuple[str, ...]
    sources: tuple[DType, ...]
    target: DType
    weights: tuple[float, ...]
    divisor: float = 1.0
    mean: bool = True
    finite: bool = True
    tell: Tell | None = field(default=None, compare=False)
    numbers: tuple[int, ...] = ()

    def __call__(self, *blocks: Array) -> Array:
        first = blocks[0]
        if self.mean and self.sources[0] is self.target and alike(blocks, self.sources):
            self._check_one(first)
            if self.tell is not None:
                values = widened(first, self.target).astype(np.float64)
                self.tell(self.numbers, (0.0,) * len(self.numbers), float(np.dot(values, values)))
            return first
        with np.errstate(all="ignore"):
            inputs = [widened(block, source) for block, source in zip(blocks, self.sources, strict=True)]
            out = np.empty(len(inputs[0]), self.target.numpy())
            for start in range(0, len(out), PIECE):
                pieces = [values[start : start + PIECE] for values in inputs]
                total = self._total(pieces)
                narrow(total, out[start : start + PIECE], self.target)
                if self.tell is not None:
                    tell_distances(self.tell, self.numbers, pieces, total)
        return out

    def _total(self, pieces: list[Array]) -> Array:
        total, term = scratch("f8", len(pieces[0]), 4), scratch("f8", len(pieces[0]), 5)
        for place, (piece, weight) in enumerate(zip(pieces, self.weights, strict=True)):
            into = total if not place else term
            if weight == 1.0:
                np.copyto(into, piece, casting="unsafe")
            else:
                np.multiply(piece, weight, out=into, dtype=np.float64, casting="unsafe")
            if place:
                np.add(total, term, out=total)
        if self.divisor != 1.0:
            np.divide(total, self.divisor, out=total)
        if self.mean and _F64 in self.sources:
            same = np.logical_and.reduce([pieces[0] == other for other in pieces[1:]]) if len(pieces) > 1 else True
            np.copyto(total, pieces[0], where=same, casting="unsafe")
        if self.finite and not np.isfinite(total).all():
            blame(self.key, self.names, pieces)
        return total

    def _check_one(self, block: Array) -> None:
        if self.finite and self.target.kind in ("float", "complex"):
            for start in range(0, len(block), PIECE):
                piece = widened(block[start : start + PIECE], self.target)
                if not np.isfinite(piece).all():
                    blame(self.key, self.names, [piece])


def tell_distances(tell: Tell, numbers: tuple[int, ...], pieces: Sequence[Array], total: Array) -> None:
    """Tell how far the inputs called `numbers` lie from the outcome; pieces before those of them, a base, are no inputs."""
    term = scratch("f8", len(total), 5)
    squares = []
    for piece in pieces[len(pieces) - len(numbers) :]:
        np.subtract(piece, total, out=term, dtype=np.float64, casting="unsafe")
        np.multiply(term, term, out=term)
        squares.append(float(term.sum()))
    np.multiply(total, total, out=term)
    tell(numbers, squares, float(term.sum()))


def blame(key: str, names: Sequence[str], pieces: Sequence[Array]) -> None:
    """Raise for the input that is not finite. Finite inputs may still have a sum that is not: that is an overflow."""
    for name, piece in zip(names, pieces, strict=False):
        if not np.isfinite(piece).all():
            what = "NaN" if np.isnan(piece).any() else "an infinity"
            raise NotFiniteError(f"'{key}' holds {what}", path=name, hint="leave the input or, with --exclude, the tensor out")


def alike(blocks: Sequence[Array], sources: Sequence[DType]) -> bool:
    """Whether all hold the same bits of the same dtype."""
    return all(source is sources[0] for source in sources) and all(same_bytes(blocks[0], other) for other in blocks[1:])


def widened(block: Array, source: DType) -> Array:
    """Values that numpy computes with: half types as f32, bool as 0 and 1."""
    if source.floating and source.bits <= 16:
        return Cast(source, _F32)(block, {})
    return block.view(np.uint8) if source.kind == "bool" else block


def narrow(values: Array, out: Array, target: DType) -> None:
    """f64 values rounded once, to nearest and ties to even, into `out`."""
    if target.floating and target.bits <= 16:
        out[:] = Cast(_F64, target)(values, {})
    else:
        np.copyto(out, values, casting="unsafe")
