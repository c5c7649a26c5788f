"""Which scheme for which tensor, so that all fit and the least is lost: without data, from the weights alone.

The loss of a tensor is the sum of squared errors of its weights, measured on a sample of its rows for every scheme that may
be had. Least is the sum over all tensors, so that the SQNR of the whole is the greatest. That is a multiple-choice knapsack:
of each tensor only the schemes on the lower convex hull of (bytes, loss) count, and going down the hulls in the order of loss
saved for a byte is what a Lagrange multiplier for the bytes would choose (Shoham and Gersho 1988, Efficient bit allocation
for an arbitrary set of quantizers, IEEE Trans. ASSP 36). What is left at the end goes to the best step that still fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wtool.analysis.parallel import each
from wtool.layout import Layout, Scheme, Seen
from wtool.quantized import Coded, Encoding, raw
from wtool.tensor import LazyTensor

Array = NDArray[Any]

SAMPLE = 1 << 17  # weights of a tensor that are looked at
_PLACES = 8  # from where in it they are taken


@dataclass(frozen=True, slots=True)
class Choice:
    """What may become of a set of tensors: a scheme (None: as they are), all their bytes, and what is lost."""

    scheme: Scheme | None
    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that must be of one scheme, and what they may become."""

    keys: tuple[str, ...]
    choices: tuple[Choice, ...]


class TooSmall(Exception):
    """Nothing fits. `nbytes` are the fewest that all units take together."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.nbytes = nbytes


def best(units: Sequence[Unit], budget: int) -> list[Choice]:
    """For each unit a choice; all together at most `budget` bytes, with the least loss on the convex hulls. TooSmall."""
    hulls = [hull(unit.choices) for unit in units]
    at = [0] * len(units)
    left = budget - sum(one[0].nbytes for one in hulls)
    if left < 0:
        raise TooSmall(budget - left)
    steps = sorted(
        ((b.loss - a.loss) / (b.nbytes - a.nbytes), number, place)
        for number, one in enumerate(hulls)
        for place, (a, b) in enumerate(pairwise(one), 1)
    )
    blocked: set[int] = set()
    for _, number, place in steps:  # the steepest first; a hull's own steps come in its order
        cost = hulls[number][place].nbytes - hulls[number][place - 1].nbytes
        if number in blocked or cost > left:
            blocked.add(number)
            continue
        at[number], left = place, left - cost
    found = [one[place] for one, place in zip(hulls, at, strict=True)]
    return _filled(units, found, left)


def _filled(units: Sequence[Unit], found: list[Choice], left: int) -> list[Choice]:
    """Spend what is left on the single changes that save most, whether or not they lie on a hull."""
    while True:
        better = [
            (now.loss - one.loss, -(one.nbytes - now.nbytes), -number, one)
            for number, (unit, now) in enumerate(zip(units, found, strict=True))
            for one in unit.choices
            if one.loss < now.loss and one.nbytes - now.nbytes <= left
        ]
        if not better:
            return found
        _, cost, number, one = max(better, key=lambda row: row[:3])
        found[-number] = one
        left += cost


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull: from the fewest bytes on, each with less loss, and ever less of it for a byte."""
    found: list[Choice] = []
    for one in sorted(choices, key=lambda one: (one.nbytes, one.loss)):
        if found and one.loss >= found[-1].loss:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-2], one):
            found.pop()
        if found and found[-1].nbytes == one.nbytes:
            found.pop()
        found.append(one)
    return found


def _slope(a: Choice, b: Choice) -> float:
    return (b.loss - a.loss) / (b.nbytes - a.nbytes) if b.nbytes > a.nbytes else -np.inf


def measured(
    tensors: Mapping[str, LazyTensor],
    sets: Sequence[Sequence[str]],
    allowed: Mapping[str, Sequence[Scheme]],
    kept: Mapping[str, int],
    layout: Layout,
    seen: Mapping[str, Seen],
    jobs: int,
    progress: Callable[[int], None] | None = None,
) -> list[Unit]:
    """The units of these sets of keys: what is lost by the schemes that all of a set allow, by a sample of each tensor.

    `kept` are the bytes that a tensor takes which is not quantized, and loses nothing.
    """

    def loss(task: tuple[str, Scheme]) -> tuple[int, float]:
        key, scheme = task
        parts = layout.parts(tensors[key], scheme, seen.get(key))
        found = sum(part.nbytes for part in parts), sampled(parts)
        if progress is not None:
            progress(1)
        return found

    common = [[one for one in allowed[keys[0]] if all(one in allowed[key] for key in keys)] for keys in sets]
    tasks = [(key, scheme) for keys, schemes in zip(sets, common, strict=True) for scheme in schemes for key in keys]
    found = dict(zip(tasks, each(tasks, loss, jobs), strict=True))
    units = []
    for keys, schemes in zip(sets, common, strict=True):
        choices = [Choice(None, sum(kept[key] for key in keys), 0.0)]
        for scheme in schemes:
            pairs = [found[key, scheme] for key in keys]
            choices.append(Choice(scheme, sum(nbytes for nbytes, _ in pairs), sum(lost for _, lost in pairs)))
        units.append(Unit(tuple(keys), tuple(choices)))
    return units


def sampled(parts: Sequence[LazyTensor]) -> float:
    """The sum of squared errors of a tensor that becomes these parts, from that of a sample of its rows."""
    encodings = {id(one): one for part in parts if (one := _encoding(part)) is not None}
    return sum(map(_loss, encodings.values()))


def _encoding(part: LazyTensor) -> Encoding | None:
    source = part.boxes[0].source
    return source.encoding if isinstance(source, Coded) else None


def _loss(encoding: Encoding) -> float:
    rows, columns, step = encoding.rows, encoding.columns, encoding.codec.step
    total = noise = 0.0
    some = -(-SAMPLE // _PLACES // columns // step) * step
    starts = range(0, rows, some)
    if len(starts) > _PLACES:
        starts = [int(place * (len(starts) - 1) / (_PLACES - 1)) * some for place in range(_PLACES)]  # type: ignore[assignment]
    for first in starts:
        last = min(first + some, rows)
        for row, arrays in encoding.runs(first, last):
            y = encoding.codec.decode([_flat(encoding, number, array) for number, array in enumerate(arrays)], row, columns)
            end = min(row + len(y), last)  # a codec may decode the padding of its last step, too
            error = encoding.tensor.flat(row * columns, end * columns).astype(np.float64)
            error -= y[: end - row].reshape(-1)
            noise += float(np.add.reduce(error * error))
            total += len(error)
    return noise * (rows * columns) / total if total else 0.0


def _flat(encoding: Encoding, number: int, array: Array) -> Array:
    return raw(array).view(encoding.parts[number].dtype.numpy())
