"""What lies between two checkpoints: structure first, then the values of what both have."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import permutations

from wtool import views
from wtool.analysis.align import Alignment, align, candidates, renames
from wtool.analysis.compare import Comparison, compare_all, equal
from wtool.analysis.digest import tensor_digest
from wtool.analysis.parallel import ask, each
from wtool.checkpoint import Checkpoint
from wtool.keys import short_key
from wtool.tensor import LazyTensor, c_strides

Progress = Callable[[int], None]

_RANK = 5  # axes of a tensor whose permutations are tried
_GLANCE = 64  # elements at the beginning
_DIAGONAL = 16  # elements
_TRIES = 8  # tensors of one diagonal


@dataclass(frozen=True, slots=True)
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
        tensors = [(a[pair.a], b[pair.b]) for pair in alike]
        done = compare_all(tensors, rtol=rtol, atol=atol, jobs=jobs, progress=progress)
        differing = {pair: comparison for pair, comparison in zip(alike, done, strict=True) if comparison is not None}
        odd = [pair for pair in pairs if pair in differing or a[pair.a].shape != b[pair.b].shape]
        turned = each(odd, lambda pair: _turned(a[pair.a], b[pair.b]), jobs)
        moved = [Pair(pair.a, pair.b, axes) for pair, axes in zip(odd, turned, strict=True) if axes]
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
    """The order in which A's axes are B bit for bit, if there is one that moves an axis longer than one."""
    if a.dtype is not b.dtype or (a.shape == b.shape and len(set(a.shape)) == len(a.shape)):
        return None
    if _turnable(a) is None or _turnable(a) != _turnable(b):
        return None
    for order in permutations(range(len(a.shape))):
        real = [axis for axis in order if a.shape[axis] != 1]
        if real != sorted(real) and tuple(a.shape[axis] for axis in order) == b.shape:
            turned = views.transpose(a, order)
            # A glance first: to gather a transposed tensor is to read most of it.
            if _begin_alike(turned, b) and equal(turned, b):
                return order
    return None


def _turnable(tensor: LazyTensor) -> Hashable:
    """What transposing keeps; None if there is nothing to transpose, as of a vector with axes of one."""
    if not 2 <= len(tensor.shape) <= _RANK or not tensor.dtype.itemsize or max(tensor.shape) == tensor.elements:
        return None
    return (tensor.dtype.name, *sorted(tensor.shape)) if tensor.elements else None


def _begin_alike(a: LazyTensor, b: LazyTensor) -> bool:
    from wtool.kernels.difference import same_bytes

    count = min(a.elements, _GLANCE)
    return same_bytes(a.flat(0, count), b.flat(0, count))


def _renamed(a: Checkpoint, b: Checkpoint, found: Alignment, jobs: int) -> list[Pair]:
    """Pairs of one content among the keys that stand alone, as they are or transposed."""
    ones = {key: a[key] for key in found.only_a}
    twos = {key: b[key] for key in found.only_b}
    digests = [ask(side, tensor_digest, jobs) for side in candidates(ones, twos, _plain)]
    pairs = {key: Pair(key, other) for key, other in renames(*digests)}
    taken = {pair.b for pair in pairs.values()}
    ones = {key: tensor for key, tensor in ones.items() if key not in pairs}
    twos = {key: tensor for key, tensor in twos.items() if key not in taken}
    rest, others = candidates(ones, twos, _turnable)
    fixed = [ask(side, _fixed, jobs) for side in (rest, others)]
    there: dict[Hashable, list[str]] = {}
    for key, tensor in others.items():
        there.setdefault((_turnable(tensor), fixed[1][key]), []).append(key)
    for key, tensor in rest.items():
        same = there.get((_turnable(tensor), fixed[0][key]), [])
        for other in same[:_TRIES]:
            axes = _turned(tensor, others[other])
            if axes is not None:
                pairs[key] = Pair(key, other, axes)
                same.remove(other)
                break
    return [pairs[key] for key in found.only_a if key in pairs]


def _plain(tensor: LazyTensor) -> Hashable:
    return (tensor.dtype.name, tensor.shape) if tensor.elements else None


def _fixed(tensor: LazyTensor) -> bytes:
    """The values that stay at their index however axes are turned: the beginning of the diagonal, and the last."""
    step = sum(c_strides(tensor.shape))
    places = [*(step * n for n in range(min(_DIAGONAL, *tensor.shape))), tensor.elements - 1]
    return b"".join(tensor.flat(place, place + 1).tobytes() for place in places)


def _reordered(a: Checkpoint, b: Checkpoint) -> bool:
    ones, twos = ([short_key(key) for key in side] for side in (a, b))
    shared = set(ones) & set(twos)
    return [key for key in ones if key in shared] != [key for key in twos if key in shared]
