"""Two tensors against each other: bytes first, values only where bytes differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING, NamedTuple

from wtool.analysis.parallel import each
from wtool.dtypes import dtype
from wtool.errors import UnsupportedError
from wtool.tensor import BLOCK, LazyTensor

if TYPE_CHECKING:
    from wtool.kernels.cast import Cast
    from wtool.kernels.difference import Difference
    from wtool.tensor import Array

Progress = Callable[[int], None]
Two = tuple[LazyTensor, LazyTensor]

_STRIPE = 8 << 20  # bytes gathered at once of a tensor that is no plain run; there are two, in each thread
_RANGE = 32 << 20  # bytes of a tensor that one thread takes: a large one is shared out
_FADED = 2.0**-900  # a sum of squares below has lost terms that f64 cannot hold


@dataclass(frozen=True, slots=True)
class Comparison:
    """What lies between the values of A and of B; counts are of elements, sums in f64.

    `max_abs`, `mean_abs` (over all elements), `rel_l2` (the norm of the difference over that of A) and `cosine` are of the
    `finite` pairs, None where they do not exist or are beyond f64. `nonfinite` counts the pairs that differ and are not both
    finite. `cast` says that one is what casting the other to its dtype gives, bit for bit (NaN being NaN). The rest are sums
    by which comparisons of several tensors are `pooled`.
    """

    elements: int
    finite: int
    differing: int
    nonfinite: int
    cast: bool
    largest: float
    sum_abs: float
    squares_a: float
    squares_b: float
    squares_d: float
    products: float

    @property
    def max_abs(self) -> float | None:
        return self.largest if self.finite and self.largest < inf else None

    @property
    def mean_abs(self) -> float | None:
        return self.sum_abs / self.elements if self.finite and self.sum_abs < inf else None

    @property
    def rel_l2(self) -> float | None:
        """None where A is zero and B is not."""
        if not self.finite:
            return None
        if not self.largest:
            return 0.0
        return sqrt(self.squares_d / self.squares_a) if _sound(self.squares_d) and _sound(self.squares_a) else None

    @property
    def cosine(self) -> float | None:
        """Of the angle between A and B; None where one of them is zero."""
        a, b, d = self.squares_a, self.squares_b, self.squares_d
        if not (_sound(a) and _sound(b) and isfinite(self.products)):
            return None
        # For neighbours by way of the difference, which is itself near zero: so 1 is said only of what is as good as parallel.
        dot = (a + b - d) / 2 if 4 * d < a + b else self.products
        return max(-1.0, min(1.0, dot / (sqrt(a) * sqrt(b))))


def _sound(squares: float) -> bool:
    return _FADED < squares < inf


def pooled(comparisons: Iterable[Comparison]) -> Comparison:
    """The comparison of all the values together; of none, it has no measures."""
    some = list(comparisons)
    if len(some) == 1:
        return some[0]
    sums = ("elements", "finite", "differing", "nonfinite", "sum_abs", "squares_a", "squares_b", "squares_d", "products")
    return Comparison(
        cast=bool(some) and all(one.cast for one in some),
        largest=max((one.largest for one in some), default=0.0),
        **{name: sum(getattr(one, name) for one in some) for name in sums},
    )


def compare(
    a: LazyTensor, b: LazyTensor, *, rtol: float = 0.0, atol: float = 0.0, progress: Progress | None = None
) -> Comparison | None:
    """None if they are equal: the same bits for equal dtypes, else the same values, or values within the tolerance.

    Both have one shape. NaN equals NaN. `progress` is told of bytes of A. UnsupportedError for values that cannot be decoded
    and whose bytes differ.
    """
    return compare_all([(a, b)], rtol=rtol, atol=atol, progress=progress)[0]


def compare_all(
    pairs: Sequence[Two],
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Comparison | None]:
    """`compare` of each pair, by `jobs` threads: the same to the last bit for any number of them.

    Both sides are read once at most where they are equal; an equal beginning or range of a tensor that differs elsewhere is
    read once more for its norm. Pairs that are tied on both sides are compared once.
    """
    answers: list[Comparison | None] = [None] * len(pairs)
    seen: dict[object, int] = {}
    again: list[tuple[int, int]] = []  # (place, where the same two tensors stood before)
    work: list[tuple[int, Two]] = []
    for place, (a, b) in enumerate(pairs):
        one, two = a.identity, b.identity
        earlier = seen.setdefault((one, two), place) if a.elements else place
        if not a.elements or (one == two and a.dtype is b.dtype):
            _tell(progress, a.nbytes)
        elif earlier != place:
            again.append((place, earlier))
            _tell(progress, a.nbytes)
        else:
            work += [(place, part) for part in _ranges(a, b)]
    found = each(work, lambda item: _measure(*item[1], rtol, atol, progress), jobs)
    differing = {place for (place, _), part in zip(work, found, strict=True) if part is not None and part.differing}
    bare = [at for at, part in enumerate(found) if part is None and work[at][0] in differing]
    for at, norms in zip(bare, each(bare, lambda at: _norms(work[at][1][0]), jobs), strict=True):
        found[at] = norms
    parts: dict[int, list[Comparison]] = {}
    for (place, _), part in zip(work, found, strict=True):
        if place in differing and part is not None:
            parts.setdefault(place, []).append(part)
    for place, some in parts.items():
        answers[place] = pooled(some)
    for place, earlier in again:
        answers[place] = answers[earlier]
    return answers


def equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors hold the same bits; reads no further than the first difference."""
    from wtool.kernels.difference import same_bytes

    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return (a.identity is not None and a.identity == b.identity) or all(same_bytes(*blocks) for blocks in _pairs(a, b))


def _measure(a: LazyTensor, b: LazyTensor, rtol: float, atol: float, progress: Progress | None) -> Comparison | None:
    """None if all bytes are the same."""
    from wtool.kernels.difference import Difference, same_bytes

    if not (a.dtype.itemsize and b.dtype.itemsize):
        _tell(progress, a.nbytes)
        if a.dtype is b.dtype and equal(a, b):
            return None
        a, b, progress = _unpacked(a, b), _unpacked(b, a), None
    measure: Difference | None = None
    casts: list[_Casting] = []
    alike = 0  # elements at the beginning
    for one, two in _pairs(a, b):
        if a.dtype is b.dtype and same_bytes(one, two):
            if measure is None:
                alike += len(one)
            else:
                measure.add_same(one)
        else:
            if measure is None:
                measure = Difference(a.dtype, b.dtype, rtol=rtol, atol=atol)
                casts = _casts(a, b)
            casts = [casting for casting in casts if casting.holds(one, two)]
            measure.add(one, two)
        _tell(progress, one.nbytes)
    if measure is None:
        return None
    if measure.differing and alike:
        _add_norms(measure, a, alike)
    return _comparison(measure, cast=bool(casts))


def _norms(tensor: LazyTensor) -> Comparison:
    """What a tensor that equals its like adds to a comparison."""
    from wtool.kernels.difference import Difference

    measure = Difference(tensor.dtype, tensor.dtype)
    _add_norms(measure, tensor, tensor.elements)
    return _comparison(measure, cast=True)


def _add_norms(measure: Difference, tensor: LazyTensor, count: int) -> None:
    """Of the first `count` elements."""
    for block in tensor.blocks(BLOCK, stripe=_STRIPE):
        measure.add_same(block[:count])
        count -= len(block)
        if count <= 0:
            return


def _comparison(measure: Difference, *, cast: bool) -> Comparison:
    return Comparison(
        measure.elements,
        measure.finite,
        measure.differing,
        measure.nonfinite,
        cast,
        measure.max_abs,
        measure.sum_abs,
        measure.squares_a,
        measure.squares_b,
        measure.squares_d,
        measure.products,
    )


class _Casting(NamedTuple):
    """A cast of A to B's dtype, or `back`, of B to A's."""

    cast: Cast
    back: bool

    def holds(self, one: Array, two: Array) -> bool:
        from wtool.kernels.difference import same_values

        given, made = (two, one) if self.back else (one, two)
        return same_values(self.cast(given, {}), made)


def _casts(a: LazyTensor, b: LazyTensor) -> list[_Casting]:
    """Those that lose something: after any other the values would be the same."""
    from wtool.kernels.cast import Cast

    one, two = a.dtype, b.dtype
    if one is two or not (one.floating and two.floating):
        return []
    found = [_Casting(Cast(one, two), False)] if one.bits >= two.bits else []
    return found + ([_Casting(Cast(two, one), True)] if two.bits >= one.bits else [])


def _unpacked(tensor: LazyTensor, other: LazyTensor) -> LazyTensor:
    """A packed tensor as one of a dtype that holds all its values, and is not the other's unless that is packed too."""
    from wtool.kernels.cast import Cast

    if tensor.dtype.itemsize:
        return tensor
    try:
        return tensor.map(Cast(tensor.dtype, dtype("f64" if other.dtype.name == "f32" else "f32")))
    except UnsupportedError as error:
        hint = f"--exclude '{tensor.key}' leaves it out, --structure compares no values"
        raise UnsupportedError(f"'{tensor.key}': {error.message}", hint=hint) from None


def _ranges(a: LazyTensor, b: LazyTensor) -> list[Two]:
    """The two as pairs of ranges that can be read apart; the two themselves where they are small or must be gathered."""
    count = _RANGE * 8 // max(a.dtype.bits, b.dtype.bits)
    total = a.elements
    if total <= count or not (_run(a) and _run(b)):
        return [(a, b)]
    starts = range(0, total, count)
    return [(_range(a, at, min(at + count, total)), _range(b, at, min(at + count, total))) for at in starts]


def _run(tensor: LazyTensor) -> bool:
    """Whether the stored values lie as one run of whole bytes, of which any part can be read."""
    return bool(tensor.stored.itemsize and tensor.dtype.itemsize) and replace(tensor, kernels=()).span is not None


def _range(tensor: LazyTensor, first: int, last: int) -> LazyTensor:
    box, shape = tensor.boxes[0], (last - first,)
    box = box._replace(start=(0,), shape=shape, offset=box.offset + first * tensor.stored.itemsize, strides=(1,))
    return replace(tensor, spec=replace(tensor.spec, shape=shape), boxes=(box,), cut=None)


def _pairs(a: LazyTensor, b: LazyTensor) -> Iterator[tuple[Array, Array]]:
    """Blocks of equal numbers of elements (bytes, if packed), both valid until the next are asked for."""
    sizes = (max(a.dtype.bits, 1), max(b.dtype.bits, 1))
    count = BLOCK * 8 // max(sizes)  # elements
    left = a.elements if a.dtype.itemsize else a.nbytes  # what pads the last byte of a packed tensor is no value
    ones = a.blocks(count * sizes[0] // 8, stripe=_STRIPE)
    twos = b.blocks(count * sizes[1] // 8, stripe=_STRIPE)
    one = two = None
    while left > 0:
        one = next(ones, None) if one is None or not len(one) else one
        two = next(twos, None) if two is None or not len(two) else two
        assert one is not None and two is not None, (a.key, b.key)
        some = min(len(one), len(two), left)
        yield one[:some], two[:some]
        one, two = one[some:], two[some:]
        left -= some


def _tell(progress: Progress | None, nbytes: int) -> None:
    if progress is not None:
        progress(nbytes)
