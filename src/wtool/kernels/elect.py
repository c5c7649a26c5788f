"""Differences from a base, thinned out, become one: added up, or the mean of those whose sign wins a vote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wtool.dtypes import DType
from wtool.errors import DtypeError
from wtool.kernels.buffers import block, scratch
from wtool.kernels.combine import Tell, alike, blame, wide
from wtool.kernels.rounding import narrow
from wtool.kernels.squares import product as dot

Array = NDArray[Any]

VOTES = ("mass", "frequency")
DIVISORS = ("weights", "count", "none")
_PAD = 24
PIECE = 1 << 14  # elements worked on at a time
_ROOM = 1 << 18  # those of all inputs together: they stay in the second cache
_BASE, _INPUT, _VOTE, _TOTAL, _NONE, _SHARES = range(70, 76)  # scratch arrays
_SAFE = 240.0**2  # the square of the least of all largest values, that of f8_e4m3fnuz


class Thin(Protocol):
    """Sets some of the values to zero and may scale the others, in place; `start` is the flat index of the first."""

    def __call__(self, start: int, values: Array) -> None: ...


@dataclass(frozen=True, slots=True)
class Unready:
    """Stands for what a first pass has still to find."""

    def __call__(self, start: int, values: Array) -> None:
        raise RuntimeError("values were asked for before the first pass")


@dataclass(frozen=True, slots=True)
class Election:
    """How the sign of each value is found (TIES, Yadav et al. 2023, arXiv 2306.01708, sections 3.2 and 3.3), and the mean.

    `vote`: the sign is that of the sum of the thinned differences (mass) or of that of their signs (frequency). `weighted`:
    of the differences times their weights. `zero`: the sign where the vote is 0; 0 leaves the base. The outcome is the
    weighted sum of the differences of that sign, divided by their number (count), the sum of their weights or nothing.
    """

    vote: str = "mass"
    weighted: bool = True
    zero: int = 0
    divisor: str = "weights"


@dataclass(frozen=True, slots=True)
class Elected:
    """base + scale * merged(x_i - base), elementwise in f64, one rounding at the end; the first block is the base.

    The first of `names` and `sources` are those of the base. Without an `election`, merged is the weighted sum. Where it is 0
    the outcome has the bits of the base. NotFiniteError names an input that has a NaN or an infinity; DtypeError says that a
    value of the outcome is too large for its dtype. `tell` learns how far the inputs called `numbers` lie from the outcome.
    """

    key: str
    names: tuple[str, ...]
    sources: tuple[DType, ...]
    target: DType
    weights: tuple[float, ...]
    thin: tuple[Thin, ...]
    election: Election | None
    scale: float = 1.0
    tell: Tell | None = field(default=None, compare=False)
    numbers: tuple[int, ...] = ()
    placed = True

    def __call__(self, start: int, *blocks: Array) -> Array:
        if self.sources[0] is self.target and alike(blocks, self.sources):
            self._settled(blocks[0])
            return blocks[0]
        out = np.empty(len(blocks[0]), self.target.numpy())
        squares, norm = [0.0] * len(self.weights), 0.0
        room = _rows(blocks)
        with np.errstate(all="ignore"):
            for at, pieces in _pieces(blocks):
                base, deltas = self._thinned(start + at, pieces, room)
                total = self._merged(deltas)
                if self.scale != 1.0:
                    np.multiply(total, self.scale, out=total)
                np.add(total, base, out=total)
                nothing = total == 0.0
                if nothing.any():  # 0.0 added to -0.0 is 0.0
                    np.copyto(total, base, where=nothing & (base == 0.0))
                norm += self._write(total, out[at : at + len(total)], pieces)
                if self.tell is not None:
                    for place, (piece, source) in enumerate(zip(pieces[1:], self.sources[1:], strict=True)):
                        values = wide(piece, source, _INPUT)
                        np.subtract(values, total, out=values)
                        squares[place] += dot(values, values)
        if self.tell is not None:
            self.tell(self.numbers, squares, norm)
        return out

    def signs(self, start: int, *blocks: Array) -> int:
        """The sum of the signs that win the vote."""
        total = 0
        room = _rows(blocks)
        with np.errstate(all="ignore"):
            for at, pieces in _pieces(blocks):
                vote = self._vote(self._thinned(start + at, pieces, room)[1])
                total += int(np.count_nonzero(vote > 0)) - int(np.count_nonzero(vote < 0))
        return total

    def _settled(self, block: Array) -> None:
        """All inputs hold what the base holds."""
        norm = 0.0
        for _, (piece,) in _pieces([block]):
            values = wide(piece, self.target, _INPUT)
            blame(self.key, self.names, [values])
            norm += dot(values, values)
        if self.tell is not None:
            self.tell(self.numbers, (0.0,) * len(self.numbers), norm)

    def _thinned(self, start: int, pieces: Sequence[Array], room: Array) -> tuple[Array, Array]:
        """The base, and a row of thinned differences from it for each input, weighted if the vote is."""
        base = wide(pieces[0], self.sources[0], _BASE)
        deltas = room[:, : len(base)]
        for place, (delta, thin, weight) in enumerate(zip(deltas, self.thin, self.weights, strict=True), 1):
            np.subtract(wide(pieces[place], self.sources[place], _INPUT), base, out=delta)
            thin(start, delta)
            if weight != 1.0 and (self.election is None or self.election.weighted):
                np.multiply(delta, weight, out=delta)
        return base, deltas

    def _vote(self, deltas: Array) -> Array:
        if self.election is not None and self.election.vote == "frequency":
            signs = np.zeros(deltas.shape[1], np.int32)
            for delta in deltas:
                np.add(signs, delta > 0.0, out=signs)
                np.subtract(signs, delta < 0.0, out=signs, casting="unsafe", dtype=np.int32)
            return signs
        vote = scratch("f8", deltas.shape[1], _VOTE)
        np.copyto(vote, deltas[0])
        for delta in deltas[1:]:
            np.add(vote, delta, out=vote)
        return vote

    def _sign(self, vote: Array, election: Election) -> Array:
        """1, 0 or -1 in f64, in the place of the vote."""
        sign = np.greater_equal(vote, 0) if election.zero > 0 else np.greater(vote, 0)
        whole = sign.view(np.int8)
        if election.zero:
            np.add(whole, whole, out=whole)
            np.subtract(whole, 1, out=whole)
        else:
            np.subtract(whole, (vote < 0).view(np.int8), out=whole)
        found = scratch("f8", len(vote), _VOTE)
        np.copyto(found, whole)
        return found

    def _merged(self, deltas: Array) -> Array:
        election = self.election
        vote = self._vote(deltas)
        if election is None:
            return vote
        sign = self._sign(vote, election)
        number = election.divisor == "count" or all(weight == 1.0 for weight in self.weights)
        total, none, shares = (scratch("f8", len(sign), slot) for slot in (_TOTAL, _NONE, _SHARES))
        count = np.zeros(len(sign), np.uint8 if len(deltas) < 256 else np.uint32)
        none.fill(0.0)
        shares.fill(0.0)
        for place, (delta, weight) in enumerate(zip(deltas, self.weights, strict=True)):
            np.multiply(delta, sign, out=delta)
            if election.divisor != "none":
                with_us = delta > 0.0
                if number:
                    np.add(count, with_us.view(np.uint8), out=count)
                else:
                    np.add(shares, with_us * weight, out=shares)
            into = delta if place else total
            np.maximum(delta, none, out=into)  # by an array: numpy is slow where one side is a single value
            if weight != 1.0 and not election.weighted:
                np.multiply(into, weight, out=into)
            if place:
                np.add(total, delta, out=total)
        if election.divisor != "none":
            if number:
                np.maximum(count, 1, out=count)
                np.copyto(shares, count)
            else:
                np.add(shares, shares == 0.0, out=shares)
            np.divide(total, shares, out=total)
        np.multiply(total, sign, out=total)
        return total

    def _write(self, total: Array, out: Array, pieces: Sequence[Array]) -> float:
        """Round into `out`; the square of the norm."""
        square = dot(total, total)
        if not square < np.inf:
            _blame(self.key, self.names, self.sources, pieces)
        narrow(total, out, self.target)
        if not square < _SAFE and not np.isfinite(out.astype(np.float64)).all():
            raise DtypeError(
                f"'{self.key}' gets a value that is too large for {self.target}", hint="--dtype f32 or bf16, or other weights"
            )
        return square


@dataclass(frozen=True, slots=True)
class Deltas:
    """Differences from the first block, in f64, piece by piece. NotFiniteError names an input with NaN or Inf."""

    key: str
    names: tuple[str, ...]
    sources: tuple[DType, ...]

    def __call__(self, start: int, blocks: Sequence[Array]) -> Iterator[tuple[int, Array]]:
        """Where a piece begins, and a row for each block but the first. Valid until the next one."""
        room = _rows(blocks)
        for at, pieces in _pieces(blocks):
            base = wide(pieces[0], self.sources[0], _BASE)
            deltas = room[:, : len(base)]
            with np.errstate(all="ignore"):
                for place, delta in enumerate(deltas, 1):
                    np.subtract(wide(pieces[place], self.sources[place], _INPUT), base, out=delta)
                    if not dot(delta, delta) < np.inf and not np.isfinite(delta).all():
                        _blame(self.key, self.names, self.sources, pieces)
                        raise DtypeError(f"the differences of '{self.key}' from the base are too large for f64")
            yield start + at, deltas


def _blame(key: str, names: Sequence[str], sources: Sequence[DType], pieces: Sequence[Array]) -> None:
    """Raise for the first that is not finite, if one is."""
    for name, source, piece in zip(names, sources, pieces, strict=True):
        blame(key, [name], [wide(piece, source, _INPUT)])


def _rows(blocks: Sequence[Array]) -> Array:
    """A row for a piece of each block but the first. Rows that began a power of two apart would share lines of the cache."""
    count = min(len(blocks[0]), _step(blocks)) + _PAD
    return block(np.dtype(np.float64), (len(blocks) - 1) * count).reshape(-1, count)


def _step(blocks: Sequence[Array]) -> int:
    return max(min(PIECE, _ROOM // len(blocks)), 1 << 10)


def _pieces(blocks: Sequence[Array]) -> Iterator[tuple[int, list[Array]]]:
    step = _step(blocks)
    for at in range(0, len(blocks[0]), step):
        yield at, [values[at : at + step] for values in blocks]
