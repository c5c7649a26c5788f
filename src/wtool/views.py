"""The same values in another arrangement: functions on lazy tensors that move no byte.

Everything here answers at once and reads nothing: the result is a tensor of other boxes. What cannot be said in boxes (parts
of unlike kernels, cuts that do not divide one another) goes through Values, which computes bytes when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

from wtool.boxes import Box, Shape, c_strides
from wtool.bytesource import MemoryBytes
from wtool.errors import DtypeError, UnsupportedError
from wtool.tensor import LazyTensor, TensorSpec
from wtool.values import Values as Values
from wtool.values import computed as computed
from wtool.values import filled as filled
from wtool.values import together as together


def settled(tensor: LazyTensor) -> LazyTensor:
    """The same values as one plain run of bytes, computed when asked for; for what boxes cannot say."""
    return LazyTensor.contiguous(tensor.key, tensor.dtype, tensor.shape, Values((tensor,)), 0)


def reshape(tensor: LazyTensor, shape: Shape) -> LazyTensor:
    """The same C order read as another shape of as many elements."""
    assert prod(shape) == tensor.elements, (tensor.shape, shape)
    if shape == tensor.shape:
        return tensor
    return _of(tensor, tensor.boxes, tensor.grid, shape)


def arrange(tensor: LazyTensor, sizes: Shape, order: Sequence[int], shape: Shape) -> LazyTensor:
    """C order cut into axes of `sizes`, these put in another `order`, and the result read as `shape`.

    A transpose is `arrange(t, t.shape, (1, 0), swapped)`. Keeps boxes, spans and ties wherever the order allows.
    """
    if not tensor.elements:
        return replace(tensor, spec=replace(tensor.spec, shape=shape), cut=None, boxes=_empty(tensor, shape))
    if [axis for axis in order if sizes[axis] != 1] == [axis for axis in range(len(sizes)) if sizes[axis] != 1]:
        return reshape(tensor, shape)
    tensor, axes = _cut(tensor, sizes)
    moved = [axis for old in order for axis in axes[old]]
    boxes = [
        Box(_take(box.start, moved), _take(box.shape, moved), box.source, box.offset, _take(box.strides, moved))
        for box in tensor.boxes
    ]
    return _of(tensor, boxes, _take(tensor.grid, moved), shape)


def transpose(tensor: LazyTensor, order: Sequence[int]) -> LazyTensor:
    """The axes in another order."""
    return arrange(tensor, tensor.shape, order, _take(tensor.shape, order))


def narrow(tensor: LazyTensor, axis: int, start: int, stop: int) -> LazyTensor:
    """The part `[start:stop]` along an axis."""
    shape = (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :])
    if shape == tensor.shape:
        return tensor
    if not prod(shape):
        return replace(tensor, spec=replace(tensor.spec, shape=shape), cut=None, boxes=_empty(tensor, shape))
    tensor, axes = _cut(tensor, tensor.shape)
    inner = prod(tensor.grid[at] for at in axes[axis][1:])
    if start % inner or stop % inner:
        tensor, axes = _cut(settled(tensor), tensor.shape)
        inner = 1
    at = axes[axis][0]
    first, last = start // inner, stop // inner
    boxes = []
    for box in tensor.boxes:
        low, high = max(box.start[at], first), min(box.start[at] + box.shape[at], last)
        if low < high:
            offset = box.offset + (low - box.start[at]) * box.strides[at] * tensor.stored.numpy().itemsize
            boxes.append(
                Box(_put(box.start, at, low - first), _put(box.shape, at, high - low), box.source, offset, box.strides)
            )
    return _of(tensor, boxes, _put(tensor.grid, at, last - first), shape)


def flip(tensor: LazyTensor, axis: int) -> LazyTensor:
    """The values along an axis in reverse."""
    if tensor.shape[axis] < 2 or not tensor.elements:
        return tensor
    tensor, axes = _cut(tensor, tensor.shape)
    item = tensor.stored.numpy().itemsize
    boxes = tensor.boxes
    for at in axes[axis]:
        boxes = tuple(
            Box(
                _put(box.start, at, tensor.grid[at] - box.start[at] - box.shape[at]),
                box.shape,
                box.source,
                box.offset + (box.shape[at] - 1) * box.strides[at] * item,
                _put(box.strides, at, -box.strides[at]),
            )
            for box in boxes
        )
    return _of(tensor, boxes, tensor.grid, tensor.shape)


def concat(key: str, tensors: Sequence[LazyTensor], axis: int) -> LazyTensor:
    """Tensors of one dtype, equal in all but one axis, one behind the other along it. DtypeError for unlike dtypes."""
    first = tensors[0]
    unlike = next((tensor for tensor in tensors if tensor.dtype is not first.dtype), None)
    if unlike is not None:
        raise DtypeError(
            f"'{first.key}' is {first.dtype} and '{unlike.key}' is {unlike.dtype}: they cannot become one tensor",
            hint="convert with --dtype first",
        )
    if len(tensors) == 1:
        return first.renamed(key)
    shape = _put(first.shape, axis, sum(tensor.shape[axis] for tensor in tensors))
    parts = [tensor for tensor in tensors if tensor.elements]
    if not parts:
        return replace(first, spec=TensorSpec(key, first.dtype, shape), cut=None, boxes=_empty(first, shape))
    if any((part.kernels, part.stored) != (parts[0].kernels, parts[0].stored) for part in parts):
        parts = [settled(part) if part.kernels else part for part in parts]
    sizes = [(prod(shape[:axis]), part.shape[axis], prod(shape[axis + 1 :])) for part in parts]
    parts = [_cut(part, cut)[0] for part, cut in zip(parts, sizes, strict=True)]
    chains = _joint(parts, sizes)
    if chains is None:
        parts = [_cut(settled(part), cut)[0] for part, cut in zip(parts, sizes, strict=True)]
        chains = _joint(parts, sizes)
        assert chains is not None
    above, inside, below = chains
    boxes: list[Box] = []
    at, done = len(above), 0
    for part, (_, length, _) in zip(parts, sizes, strict=True):
        count = length // prod(inside)
        part = _refined(part, (*above, count, *inside, *below), keep=at)
        boxes += [box._replace(start=_put(box.start, at, box.start[at] + done)) for box in part.boxes]
        done += count
    return _of(parts[0].renamed(key), boxes, (*above, done, *inside, *below), shape)


def _joint(parts: Sequence[LazyTensor], sizes: Sequence[tuple[int, int, int]]) -> tuple[Shape, Shape, Shape] | None:
    """For parts seen as (outer, length, inner): cuts of outer, of the end of every length, and of inner, that fit all."""
    groups: list[list[set[int]]] = [[], [], []]
    for part, cut in zip(parts, sizes, strict=True):
        part, axes = _cut(part, cut)
        for group, members in zip(groups, axes, strict=True):
            inner = [part.grid[at] for at in members]
            group.append({prod(inner[i:]) for i in range(1, len(inner))})
    outer, _, below = sizes[0]
    above, ends, under = (sorted(set().union(*group)) for group in groups)
    ends = [1, *ends]
    if any(length % ends[-1] for _, length, _ in sizes):
        return None
    found = [_factors([1, *above, outer]), _factors(ends), _factors([1, *under, below])]
    return None if None in found else (found[0], found[1], found[2])  # type: ignore[return-value]


def _factors(products: Sequence[int]) -> Shape | None:
    """The sizes, outermost first, whose products from the end are these (rising) numbers; None if they do not divide."""
    if any(b % a for a, b in pairwise(products)):
        return None
    return tuple(b // a for a, b in reversed(list(pairwise(products))) if b != a)


def _cut(tensor: LazyTensor, sizes: Shape) -> tuple[LazyTensor, list[list[int]]]:
    """The tensor on a grid that cuts C order where `sizes` does, and the axes of the grid that make up each of them."""
    if not tensor.stored.itemsize:
        if not tensor.dtype.itemsize:
            raise UnsupportedError(f"'{tensor.key}' is {tensor.dtype}, packed: its values cannot be rearranged")
        tensor = settled(tensor)
    wanted = [prod(sizes[i:]) for i in range(len(sizes) + 1)]
    grid = _factors(sorted({*wanted, *(prod(tensor.grid[i:]) for i in range(len(tensor.grid) + 1))}))
    if grid is None:
        tensor = settled(tensor)
        grid = _factors(sorted({*wanted, *(prod(tensor.shape[i:]) for i in range(len(tensor.shape) + 1))}))
        if grid is None:
            tensor = replace(tensor, spec=replace(tensor.spec, shape=sizes), boxes=_packed(tensor, sizes))
            grid = _factors(sorted(set(wanted)))
            assert grid is not None
    tensor = _refined(tensor, grid)
    axes: list[list[int]] = []
    at = 0
    for size in sizes:
        first = at
        while size > 1:
            size //= grid[at]
            at += 1
        axes.append(list(range(first, at)))
    return tensor, axes


def _refined(tensor: LazyTensor, grid: Shape, keep: int | None = None) -> LazyTensor:
    """The tensor on a grid that cuts wherever its own does, and elsewhere too. Of axes of size 1 only `keep` is there."""
    boxes = list(tensor.boxes)
    real = [axis for axis, size in enumerate(tensor.grid) if size != 1]
    boxes = [
        Box(_take(box.start, real), _take(box.shape, real), box.source, box.offset, _take(box.strides, real)) for box in boxes
    ]
    item = tensor.stored.numpy().itemsize
    sizes = [tensor.grid[axis] for axis in real]
    for at, size in enumerate(grid):
        if size == 1 and at == keep:
            sizes.insert(at, 1)
            boxes = [
                Box(
                    (*box.start[:at], 0, *box.start[at:]),
                    (*box.shape[:at], 1, *box.shape[at:]),
                    box.source,
                    box.offset,
                    (*box.strides[:at], 0, *box.strides[at:]),
                )
                for box in boxes
            ]
        elif sizes[at] != size:
            inner = sizes[at] // size
            sizes[at : at + 1] = [size, inner]
            boxes = [part for box in boxes for part in _split(box, at, inner, item)]
    return replace(tensor, boxes=tuple(boxes), cut=grid)


def _split(box: Box, at: int, inner: int, item: int) -> list[Box]:
    """A box whose axis `at` is cut into rows of `inner`: one box, or up to three where it does not begin or end with one."""
    first, last, stride = box.start[at], box.start[at] + box.shape[at], box.strides[at]
    head, tail = -(-first // inner) * inner, last // inner * inner
    cuts = [first, last] if head > tail else sorted({first, head, tail, last})
    found = []
    for low, high in pairwise(cuts):
        whole = low % inner == 0 and high % inner == 0
        start = (low // inner, 0 if whole else low % inner)
        shape = ((high - low) // inner, inner) if whole else (1, high - low)
        found.append(
            Box(
                (*box.start[:at], *start, *box.start[at + 1 :]),
                (*box.shape[:at], *shape, *box.shape[at + 1 :]),
                box.source,
                box.offset + (low - first) * stride * item,
                (*box.strides[:at], stride * inner, stride, *box.strides[at + 1 :]),
            )
        )
    return found


def _packed(tensor: LazyTensor, shape: Shape) -> tuple[Box, ...]:
    """The one box of a settled tensor, read as another shape."""
    box = tensor.boxes[0]
    return (Box((0,) * len(shape), shape, box.source, box.offset, c_strides(shape)),)


def _empty(tensor: LazyTensor, shape: Shape) -> tuple[Box, ...]:
    source = tensor.boxes[0].source if tensor.boxes else MemoryBytes(b"")
    return (Box((0,) * len(shape), shape, source, 0, c_strides(shape)),)


def _take(values: Sequence[int], order: Iterable[int]) -> Shape:
    return tuple(values[axis] for axis in order)


def _put(values: Sequence[int], at: int, value: int) -> Shape:
    return (*values[:at], value, *values[at + 1 :])


def _of(tensor: LazyTensor, boxes: Iterable[Box], grid: Shape, shape: Shape) -> LazyTensor:
    spec = replace(tensor.spec, shape=shape)
    return replace(tensor, spec=spec, boxes=tuple(boxes), cut=None if grid == shape and tensor.stored.itemsize else grid)
