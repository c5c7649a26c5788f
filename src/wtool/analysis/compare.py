"""Two tensors against each other: bytes first, values only where bytes differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from wtool.tensor import BLOCK, LazyTensor

if TYPE_CHECKING:
    from wtool.kernels.difference import Difference
    from wtool.tensor import Array

Progress = Callable[[int], None]

_STRIPE = 8 << 20  # bytes gathered at once of a tensor that is no plain run; there are two, in each thread


@dataclass(frozen=True, slots=True)
class Comparison:
    """What lies between the values of A and of B; counts are of elements, sums in f64.

    `max_abs`, `mean_abs` (over all elements), `rel_l2` (the norm of the difference over that of A) and `cosine` are of the
    finite pairs, None where they do not exist. `nonfinite` counts the pairs that differ and are not both finite. `cast` says
    that B is what casting A to B's dtype gives, bit for bit. The last three are sums for the measures of several tensors.
    """

    elements: int
    differing: int
    nonfinite: int
    max_abs: float | None
    mean_abs: float | None
    rel_l2: float | None
    cosine: float | None
    cast: bool
    squares_a: float
    squares_b: float
    squares_d: float


def compare(
    a: LazyTensor, b: LazyTensor, *, rtol: float = 0.0, atol: float = 0.0, progress: Progress | None = None
) -> Comparison | None:
    """None if they are equal: the same bits for equal dtypes, else the same values, or values within the tolerance.

    Both have one shape. NaN equals NaN. `progress` is told of bytes of A. UnsupportedError for values that cannot be decoded
    and whose bytes differ.
    """
    if a.dtype is b.dtype:
        if a.identity is not None and a.identity == b.identity:
            _tell(progress, a.nbytes)
            return None
        equal = _equal_bytes(a, b, progress)
        if equal is None:
            return None
    else:
        equal = 0
    return _measure(a, b, equal, rtol, atol, progress)


def equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors hold the same bits; reads no further than the first difference."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and (
        (a.identity is not None and a.identity == b.identity) or _equal_bytes(a, b, None) is None
    )


def _equal_bytes(a: LazyTensor, b: LazyTensor, progress: Progress | None) -> int | None:
    """How many leading elements (bytes, if packed) are the same; None if all are."""
    from wtool.kernels.difference import same_bytes

    done = 0
    for one, two in _pairs(a, b):
        if not same_bytes(one, two):
            return done
        done += len(one)
        _tell(progress, one.nbytes)
    return None


def _measure(
    a: LazyTensor, b: LazyTensor, equal: int, rtol: float, atol: float, progress: Progress | None
) -> Comparison | None:
    from wtool.kernels.cast import Cast
    from wtool.kernels.difference import Difference, same_bytes

    measure = Difference(a.dtype, b.dtype, rtol=rtol, atol=atol)
    casting = Cast(a.dtype, b.dtype) if _castable(a, b) else None
    done = 0
    for one, two in _pairs(a, b):
        if done < equal:  # read again for its norm: rare, since tensors that differ do so from their first block on
            measure.add_same(one)
        elif a.dtype is b.dtype and same_bytes(one, two):
            measure.add_same(one)
            _tell(progress, one.nbytes)
        else:
            if casting is not None and not same_bytes(casting(one, {}), two):
                casting = None
            measure.add(one, two)
            _tell(progress, one.nbytes)
        done += len(one)
    if not measure.differing:
        return None
    return _comparison(measure, cast=casting is not None)


def _comparison(measure: Difference, *, cast: bool) -> Comparison:
    finite = measure.elements > 0 and isfinite(measure.squares_d)
    return Comparison(
        measure.elements,
        measure.differing,
        measure.nonfinite,
        measure.max_abs if finite else None,
        measure.mean_abs if finite else None,
        measure.rel_l2 if finite else None,
        measure.cosine if finite and isfinite(measure.squares_a + measure.squares_b) else None,
        cast,
        measure.squares_a,
        measure.squares_b,
        measure.squares_d,
    )


def _castable(a: LazyTensor, b: LazyTensor) -> bool:
    return a.dtype is not b.dtype and a.dtype.floating and b.dtype.floating and min(a.dtype.bits, b.dtype.bits) >= 8


def _pairs(a: LazyTensor, b: LazyTensor) -> Iterator[tuple[Array, Array]]:
    """Blocks of equal numbers of elements, both valid until the next are asked for."""
    sizes = (max(a.dtype.bits, 1), max(b.dtype.bits, 1))
    count = BLOCK * 8 // max(sizes)  # elements
    ones = a.blocks(count * sizes[0] // 8, stripe=_STRIPE)
    twos = b.blocks(count * sizes[1] // 8, stripe=_STRIPE)
    one = two = None
    while True:
        one = next(ones, None) if one is None or not len(one) else one
        two = next(twos, None) if two is None or not len(two) else two
        if one is None or two is None:
            return
        some = min(len(one), len(two))
        yield one[:some], two[:some]
        one, two = one[some:], two[some:]


def _tell(progress: Progress | None, nbytes: int) -> None:
    if progress is not None:
        progress(nbytes)
