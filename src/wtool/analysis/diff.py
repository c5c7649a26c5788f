"""What lies between two checkpoints: structure first, then the values of what both have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import permutations

from wtool import views
from wtool.analysis.align import Alignment, align, candidates, renames
from wtool.analysis.compare import Comparison, compare, equal
from wtool.analysis.digest import tensor_digest
from wtool.analysis.parallel import each
from wtool.checkpoint import Checkpoint
from wtool.keys import short_key
from wtool.tensor import LazyTensor

Progress = Callable[[int], None]

_RANK = 5  # axes of a tensor whose permutations are tried


@dataclass(frozen=True)
class Pair:
    """A key of A and the key of B that is its like. `axes`: A's axes in this order are B; None where no axis moved."""

    a: str
    b: str
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Diff:
    """`same` pairs are equal; `values` are those that are not, with what lies between them.

    `renamed` (and perhaps transposed) were found by what they hold, `transposed` have one key. `read` is False where values
    were not looked at: then `same` counts those of equal dtype and shape.
    """

    a: Checkpoint
    b: Checkpoint
    same: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    renamed: tuple[Pair, ...]
    transposed: tuple[Pair, ...]
    shapes: tuple[Pair, ...]
    dtypes: tuple[Pair, ...]
    values: Mapping[Pair, Comparison]
    read: bool
    reordered: bool
    hints: tuple[str, ...] = field(default=())

    @property
    def structure(self) -> int:
        """How many keys differ in more than dtype and values."""
        return len(self.only_a) + len(self.only_b) + len(self.renamed) + len(self.transposed) + len(self.shapes)


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    values: bool = True,
    rtol: float = 0.0,
    atol: float = 0.0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Diff:
    """Compare two checkpoints by key. Without `values` nothing is read, so that renames and transposes are not looked for.

    Memory is bounded by a few blocks for each of `jobs`. `progress` is told of bytes of A that have been compared.
    """
    found = align(a, b)
    pairs = [Pair(*keys) for keys in found.pairs]
    unlike = [pair for pair in pairs if a[pair.a].shape != b[pair.b].shape]
    alike = [pair for pair in pairs if a[pair.a].shape == b[pair.b].shape]
    moved: list[Pair] = []
    named: list[Pair] = []
    differing: dict[Pair, Comparison] = {}
    if values:
        done = each(alike, lambda pair: compare(a[pair.a], b[pair.b], rtol=rtol, atol=atol, progress=progress), jobs)
        differing = {pair: comparison for pair, comparison in zip(alike, done, strict=True) if comparison is not None}
        turned = each([*unlike, *differing], lambda pair: _turned(a[pair.a], b[pair.b]), jobs)
        moved = [Pair(pair.a, pair.b, axes) for pair, axes in zip([*unlike, *differing], turned, strict=True) if axes]
        gone = {pair.a for pair in moved}
        unlike = [pair for pair in unlike if pair.a not in gone]
        differing = {pair: comparison for pair, comparison in differing.items() if pair.a not in gone}
        named = _renamed(a, b, found, jobs)
    placed = ({pair.a for pair in named}, {pair.b for pair in named})
    not_same = {pair.a for pair in (*moved, *differing)}
    kept = [pair for pair in alike if pair.a not in not_same and (values or a[pair.a].dtype is b[pair.b].dtype)]
    return Diff(
        a,
        b,
        tuple(kept),
        tuple(key for key in found.only_a if key not in placed[0]),
        tuple(key for key in found.only_b if key not in placed[1]),
        tuple(named),
        tuple(moved),
        tuple(unlike),
        tuple(pair for pair in alike if a[pair.a].dtype is not b[pair.b].dtype),
        differing,
        values,
        _reordered(a, b),
        found.hints,
    )


def _turned(a: LazyTensor, b: LazyTensor) -> tuple[int, ...] | None:
    """The order in which A's axes are B bit for bit, if there is one that moves an axis."""
    rank = len(a.shape)
    if not 2 <= rank <= _RANK or a.dtype is not b.dtype or sorted(a.shape) != sorted(b.shape) or not a.dtype.itemsize:
        return None
    if max(a.shape, default=0) == a.elements:  # a vector with axes of one: nothing to turn
        return None
    for order in permutations(range(rank)):
        if order != tuple(range(rank)) and tuple(a.shape[axis] for axis in order) == b.shape:
            turned = views.transpose(a, order)
            if turned.span is None and equal(turned, b):
                return order
    return None


def _renamed(a: Checkpoint, b: Checkpoint, found: Alignment, jobs: int) -> list[Pair]:
    """Pairs of one content among the keys that stand alone, as they are or as a transposed matrix."""
    ones = {key: a[key] for key in found.only_a}
    twos = {key: b[key] for key in found.only_b}
    pairs = [Pair(*keys) for keys in _by_digest(ones, twos, jobs)]
    taken = ({pair.a for pair in pairs}, {pair.b for pair in pairs})
    turned = {key: views.transpose(t, (1, 0)) for key, t in ones.items() if key not in taken[0] and _matrix(t)}
    rest = {key: t for key, t in twos.items() if key not in taken[1] and _matrix(t)}
    return pairs + [Pair(*keys, (1, 0)) for keys in _by_digest(turned, rest, jobs)]


def _by_digest(ones: Mapping[str, LazyTensor], twos: Mapping[str, LazyTensor], jobs: int) -> list[tuple[str, str]]:
    some = candidates(ones, twos)
    digests = [
        dict(zip(keys, each(keys, lambda key, side=side: tensor_digest(side[key]), jobs), strict=True))  # type: ignore[misc]
        for keys, side in zip(some, (ones, twos), strict=True)
    ]
    return renames(digests[0], digests[1])


def _matrix(tensor: LazyTensor) -> bool:
    return len(tensor.shape) == 2 and min(tensor.shape) > 1 and tensor.dtype.itemsize > 0


def _reordered(a: Checkpoint, b: Checkpoint) -> bool:
    ones, twos = ([short_key(key) for key in side] for side in (a, b))
    shared = set(ones) & set(twos)
    return [key for key in ones if key in shared] != [key for key in twos if key in shared]
