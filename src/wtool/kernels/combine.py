"""Several runs of values become one: weighted sums in f64, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType, dtype
from wtool.errors import DtypeError, NotFiniteError
from wtool.kernels import halfmean
from wtool.kernels.buffers import scratch
from wtool.kernels.cast import route
from wtool.kernels.difference import same_bytes
from wtool.kernels.rounding import narrow as narrow
from wtool.kernels.squares import product as dot

Array = NDArray[Any]
Tell = Callable[[Sequence[int], Sequence[float], float], None]  # inputs, their squared distances, the square of the outcome

PIECE = 1 << 15  # elements worked on at a time: few enough for the caches, and so many that Python does not count
_ROOM = 1 << 18  # elements of all inputs together
_SLOT = 32  # of the first input's scratch array; the sum and a term lie below
_SINGLE = 400  # the same of the inputs in f32
_OFF = 398
_SMALL, _LARGE = 1e-24, 1e32  # squares that f32 can tell of
_EXACT = 2.0**53
_POWERS = (2.0, 4.0, 8.0, 16.0, 32.0)
_16 = np.array(16, np.uint32)
_F16, _F32, _F64 = dtype("f16"), dtype("f32"), dtype("f64")


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """sum(weight * input) / divisor, elementwise: products and sums in f64 in the order given, one rounding at the end.

    `names` are the inputs', for the error; `sources` their dtypes, `target` that of the outcome. Where all inputs hold the
    same values and `mean` is set, so does the outcome, whatever f64 would round. Complex values are pairs of parts; the mean
    of integers is the nearest one, ties to even.

    NotFiniteError names the first input that has a NaN or an infinity; DtypeError says that a value of the outcome is too
    large for its dtype, or that an integer is too large for f64. `tell` learns how far the inputs called `numbers` lie from
    the outcome; the inputs before these are a base.
    """

    key: str
    names: tuple[str, ...]
    sources: tuple[DType, ...]
    target: DType
    weights: tuple[float, ...]
    divisor: float = 1.0
    mean: bool = True
    tell: Tell | None = field(default=None, compare=False)
    numbers: tuple[int, ...] = ()

    def __call__(self, *blocks: Array) -> Array:
        parts = [block.view(real(source).numpy()) for block, source in zip(blocks, self.sources, strict=True)]
        if self.mean and self.sources[0] is self.target and alike(parts, self.sources):
            self._settled(parts[0])
            return blocks[0]
        out = np.empty(len(parts[0]), real(self.target).numpy())
        step = max(min(PIECE, _ROOM // len(parts)), 1 << 11)
        squares, norm, left = [0.0] * len(parts), 0.0, [slice(0, len(out))]
        with np.errstate(all="ignore"):
            if self._halves:
                norm, left = halfmean.mean(self.target, parts, out, None if self.tell is None else squares)
            for run in left:
                for start in range(run.start, run.stop, step):
                    some = slice(start, min(start + step, run.stop))
                    norm += self._exact([part[some] for part in parts], out[some], squares)
        if self.tell is not None:
            self.tell(self.numbers, squares[len(squares) - len(self.numbers) :], norm)
        return out.view(self.target.numpy())

    @property
    def _halves(self) -> bool:
        """Whether this is the mean of several inputs of f16 or of bf16, in the same dtype."""
        return (
            self.target.name in ("f16", "bf16")
            and 1 < len(self.sources) <= halfmean.MOST
            and self.divisor == len(self.sources)
            and all(source is self.target for source in self.sources)
            and all(weight == 1.0 for weight in self.weights)
        )

    def _exact(self, parts: Sequence[Array], out: Array, squares: list[float]) -> float:
        """A piece through f64 into `out`, and the square of its norm; to `squares` those of the distances are added."""
        rows = [real(source) for source in self.sources]
        singles = [single(part, row, _SINGLE + place) for place, (part, row) in enumerate(zip(parts, rows, strict=True))]
        pieces = [
            wide(part if near is None else near, row if near is None else _F32, _SLOT + place)
            for place, (part, near, row) in enumerate(zip(parts, singles, rows, strict=True))
        ]
        total, near = self._total(pieces), out if self.target is _F32 else scratch("f4", len(out), _SINGLE - 1)
        np.copyto(near, total, casting="same_kind")
        square = dot(near, near)
        if not _SMALL < square < _LARGE or all(one is None for one in singles):
            square, singles = dot(total, total), [None] * len(parts)
        self._write(total, square, out, pieces)
        if self.tell is not None:
            for place, (piece, one) in enumerate(zip(pieces, singles, strict=True)):
                off = (
                    np.subtract(piece, total, piece) if one is None else np.subtract(one, near, scratch("f4", len(one), _OFF))
                )
                squares[place] += dot(off, off)
        return square

    def _total(self, pieces: list[Array]) -> Array:
        total, term = scratch("f8", len(pieces[0]), _SLOT - 1), scratch("f8", len(pieces[0]), _SLOT - 2)
        if len(pieces) > 1 and self.weights[0] == self.weights[1] == 1.0:
            np.add(pieces[0], pieces[1], out=total)
            done = 2
        else:
            np.multiply(pieces[0], self.weights[0], out=total)
            done = 1
        for piece, weight in zip(pieces[done:], self.weights[done:], strict=True):
            np.add(total, piece if weight == 1.0 else np.multiply(piece, weight, out=term), out=total)
        if self.divisor in _POWERS:  # the same, and faster
            np.multiply(total, 1.0 / self.divisor, out=total)
        elif self.divisor != 1.0:
            np.divide(total, self.divisor, out=total)
        if self.mean and len(pieces) > 1 and (self.target.bits >= 64 or self.target.kind in ("int", "uint")):
            same = np.logical_and.reduce([pieces[0] == other for other in pieces[1:]])
            np.copyto(total, pieces[0], where=same & (pieces[0] != 0))
        return total

    def _write(self, total: Array, square: float, out: Array, pieces: list[Array]) -> None:
        """Round into `out`. The norm bounds every value, so that mostly nothing is looked at twice."""
        row = real(self.target)
        if not square < np.inf:
            blame(self.key, self.names, pieces)
        if not row.floating:
            self._integers(total, out, pieces)
            return
        narrow(total, out, row)
        most = _largest(row)
        if not square < most * most and not np.isfinite(out.astype(np.float64)).all():
            raise self._overflow()

    def _integers(self, total: Array, out: Array, pieces: list[Array]) -> None:
        if any(source.bits == 64 for source in self.sources) and any(np.abs(piece).max() >= _EXACT for piece in pieces):
            raise DtypeError(
                f"'{self.key}' has integers of more than 53 bits: no mean of them would be exact",
                hint=f"--rule '{self.key}=first', last or max",
            )
        np.rint(total, out=total)
        bounds = np.iinfo(out.dtype)
        if total.max() > float(min(bounds.max, 2**53)) or total.min() < float(bounds.min):
            raise self._overflow()
        np.copyto(out, total, casting="unsafe")

    def _overflow(self) -> DtypeError:
        return DtypeError(
            f"'{self.key}' gets a value that is too large for {self.target}", hint="--dtype f32 or bf16, or other weights"
        )

    def _settled(self, part: Array) -> None:
        """All inputs hold this."""
        norm = 0.0
        with np.errstate(all="ignore"):
            for start in range(0, len(part), PIECE):
                piece = wide(part[start : start + PIECE], real(self.target), _SLOT)
                square = dot(piece, piece)
                if not square < np.inf:
                    blame(self.key, self.names, [piece])
                norm += square
        if self.tell is not None:
            self.tell(self.numbers, (0.0,) * len(self.numbers), norm)


def blame(key: str, names: Sequence[str], pieces: Sequence[Array]) -> None:
    """Raise for the first input that is not finite. Finite inputs may still have a square or a sum that is not."""
    for name, piece in zip(names, pieces, strict=False):
        if not np.isfinite(piece).all():
            what = "NaN" if np.isnan(piece).any() else "an infinity"
            raise NotFiniteError(f"'{key}' holds {what}", path=name, hint="leave the input or, with --exclude, the tensor out")


@cache
def real(row: DType) -> DType:
    """Of a complex dtype that of its parts, else the dtype itself."""
    return {"c32": _F16, "c64": _F32, "c128": _F64}.get(row.name, row)


def single(block: Array, source: DType, slot: int) -> Array | None:
    """The values (at most buffers.CHUNK) where f32 holds them: as they are, or in this thread's scratch array `slot`."""
    if source is _F32:
        return block
    if not source.floating or source.bits > 16:
        return None
    found = scratch("f4", len(block), slot)
    if source.name == "bf16":  # on integers: ml_dtypes' cast does not let other threads run
        bits = found.view(np.uint32)
        np.copyto(bits, block.view(np.uint16))
        np.left_shift(bits, _16, bits)
    else:
        route(source, _F32)(block, found)
    return found


def wide(block: Array, source: DType, slot: int) -> Array:
    """The values (at most buffers.CHUNK) as f64, in this thread's scratch array `slot`, which the next call may overwrite."""
    found = scratch("f8", len(block), slot)
    near = single(block, source, _SINGLE - 1)
    if near is None:
        near = block.view(np.uint8) if source.kind == "bool" else block
    np.copyto(found, near, casting="unsafe")
    return found


def alike(blocks: Sequence[Array], sources: Sequence[DType]) -> bool:
    """Whether all hold the same bits of the same dtype."""
    return all(source is sources[0] for source in sources) and all(same_bytes(blocks[0], other) for other in blocks[1:])


@cache
def _largest(row: DType) -> float:
    """The largest finite value, as f64 holds it; 0 where it is not known, which is safe."""
    if row.name in ("f64", "f32", "f16"):
        return float(np.finfo(row.numpy()).max)
    return {"bf16": 3.3e38, "f8_e4m3": 448.0, "f8_e5m2": 57344.0}.get(row.name, 0.0)
