"""Where values lie: boxes, each a strided view of a ByteSource, and how they are gathered into C order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from wtool.bytesource import ByteSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Shape = tuple[int, ...]

_SCRATCH = 2 << 20  # bytes read at once while gathering
_GAP = 8 << 10  # bytes as dear as one more call: a smaller hole in a view is cheaper to read than to jump over
_LINE = 64  # bytes of a cache line
_RUN = 64  # elements of the shortest run that is written by itself
_STEP = 32 << 10  # bytes that are worth a call of numpy


class Box(NamedTuple):
    """A strided view that fills the part of a grid beginning at index `start`.

    `offset` is in bytes and of the first element; `strides` are in elements and may be zero or negative. For dtypes narrower
    than a byte the unit is the byte and the grid one flat run of packed bytes. `shape` has the rank of `start` and `strides`.
    """

    start: Shape
    shape: Shape
    source: ByteSource
    offset: int
    strides: Shape


def c_strides(shape: Shape) -> Shape:
    """Strides, in elements, of a C-order array."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def gather(boxes: Sequence[Box], start: Shape, out: Array) -> None:
    """Fill `out` with the stored values of the part of its shape that begins at `start` of the grid.

    Raises TruncatedError or UnreadableError when a source fails. Reads at most 2 MiB at once.
    """
    import numpy as np

    unit, shape = out.dtype, out.shape
    if not out.size:
        return
    scratch = np.empty(_SCRATCH // unit.itemsize, unit)
    for box in boxes:
        low = tuple(map(max, start, box.start))
        high = tuple(min(a + n, b + m) for a, n, b, m in zip(start, shape, box.start, box.shape, strict=True))
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        where = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        inside = sum((a - s) * stride for a, s, stride in zip(low, box.start, box.strides, strict=True))
        index: tuple[Any, ...] = (*where, ...)  # the ellipsis: of no axes, a view and not the number
        part, strides = out[index], box.strides
        if min(strides, default=0) < 0:  # read it forwards
            inside += sum((n - 1) * stride for n, stride in zip(part.shape, strides, strict=True) if stride < 0)
            part = part[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in strides)]
            strides = tuple(map(abs, strides))
        _fill(part, box.source, box.offset + inside * unit.itemsize, strides, scratch)


def c_ordered(shape: Shape, strides: Shape) -> bool:
    """Whether the values of a box lie packed in C order."""
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def slab_of(shape: Shape, most: int) -> Shape:
    """The shape of tiles of at most about `most` elements that cover `shape` in C order: whole but for the leading axes."""
    axis, inner = 0, prod(shape)
    while axis < len(shape) and inner > most:
        inner //= shape[axis]
        axis += 1
    if axis == 0:
        return shape
    axis -= 1  # the axis that is cut; all axes behind it stay whole
    return (*(1 for _ in shape[:axis]), max(most // inner, 1), *shape[axis + 1 :])


def tiles(shape: Shape, tile: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Boxes (start, shape) of the shape `tile`, or less at the ends, that cover `shape`."""
    if 0 in shape:
        return
    for start in product(*(range(0, size, step) for size, step in zip(shape, tile, strict=True))):
        yield start, tuple(min(step, size - at) for at, size, step in zip(start, shape, tile, strict=True))


def count_tiles(shape: Shape, tile: Shape) -> int:
    return prod(-(-size // step) for size, step in zip(shape, tile, strict=True)) if 0 not in shape else 0


def tile_of(shape: Shape, boxes: Sequence[Box], item: int, most: int, again: int = 0) -> Shape | None:
    """The shape of tiles of at most `most` elements by which to copy `boxes` into C order, if the order is free.

    None if slabs in C order are as good: consecutive writes must be worth `again` bytes more. Rows of a matrix that is
    written transposed are short pieces of each column; when memory holds only few rows, every column is read in tiny pieces,
    or, where such pieces lie close together, everything is read again and again. A tile that is as long in both directions
    as memory allows needs fewer and longer reads and writes.
    """
    if prod(shape) <= most:
        return None
    box = max(boxes, key=lambda box: prod(box.shape))
    strides = tuple(map(abs, box.strides))
    rising = sorted((axis for axis, size in enumerate(shape) if size > 1), key=lambda axis: strides[axis])

    def cost(tile: Shape) -> int:
        inside = tuple(map(min, tile, box.shape))
        reads, extent = len(boxes), 1
        for axis in rising:
            if reads == len(boxes) and strides[axis] - extent <= _GAP // item:
                extent += (inside[axis] - 1) * strides[axis]
            else:
                reads *= inside[axis]
        reads *= count_tiles(box.shape, inside)
        writes = count_tiles(shape, tile) * (prod(tile) // run_of(shape, tile))
        return reads * extent * item + (reads + writes) * _GAP

    def better(tile: Shape) -> tuple[int, Shape]:
        found = cost(tile), tile
        while True:
            last = found
            for less in rising:
                for more in rising:
                    if less != more and last[1][less] > 1:
                        new = list(last[1])
                        new[less] = -(-new[less] // 2)
                        new[more] = 1
                        new[more] = min(shape[more], most // prod(new))
                        found = min(found, (cost(tuple(new)), tuple(new)))
            if found == last:
                return found

    slab = slab_of(shape, most)
    packed = [1] * len(shape)
    for axis in rising:
        packed[axis] = min(shape[axis], max(most // prod(packed), 1))
    price, tile = min(better(slab), better(tuple(packed)))
    # Numbers that are close are as good as equal, and one long write after the other is simplest. Where shorter runs begin
    # would be a list that takes more memory than is given.
    return None if (price + again) * 4 > cost(slab) * 3 or run_of(shape, tile) < _RUN else tile


def run_of(shape: Shape, tile: Shape) -> int:
    """How many elements of a tile lie together in the C order of `shape`."""
    run = 1
    for size, part in zip(reversed(shape), reversed(tile), strict=True):
        run *= part
        if part != size:
            break
    return run


def run_starts(shape: Shape, start: Shape, tile: Shape) -> list[int]:
    """Where, in the C order of `shape`, the runs of the tile at `start` begin, in the C order of the tile."""
    import numpy as np

    found = np.zeros(1, np.int64)
    rest, run = prod(tile), run_of(shape, tile)
    for first, size, stride in zip(start, tile, c_strides(shape), strict=True):
        rest //= size
        # An axis within the runs counts by its first element alone.
        steps = np.arange(first, first + size if rest * size > run else first + 1, dtype=np.int64)
        found = np.add.outer(found, steps * stride).ravel()
    places: list[int] = found.tolist()
    return places


def ranges(shape: Shape, first: int, last: int) -> Iterator[tuple[Shape, Shape]]:
    """Boxes (start, shape) that cover the elements `first` to `last` of the C order of `shape`, in this order."""
    while first < last:
        start, size = [], []
        rest, inner = first, prod(shape)
        for axis, length in enumerate(shape):
            inner //= length
            index, rest = divmod(rest, inner)
            start.append(index)
            if not rest and last - first >= inner:  # from here on whole
                size = [1] * axis + [min((last - first) // inner, length - index), *shape[axis + 1 :]]
                start += [0] * (len(shape) - axis - 1)
                break
        else:
            size = [1] * len(shape)
        yield tuple(start), tuple(size)
        first += prod(size)


def _extent(axes: list[tuple[int, int, int]]) -> int:
    return 1 + sum((size - 1) * stride for stride, size, _ in axes)


def _dense(axes: list[tuple[int, int, int]], gap: int) -> bool:
    """Whether reading straight through the view wastes little: no hole is longer than `gap` elements."""
    inner = 1
    for stride, size, _ in reversed(axes):
        if stride - inner > gap:
            return False
        inner += (size - 1) * stride
    return True


def _fill(out: Array, source: ByteSource, offset: int, strides: Shape, scratch: Array) -> None:
    """Copy a strided view of `source` into `out`, reading runs of at most `scratch` and jumping over large holes."""
    import numpy as np

    item = out.itemsize
    # Axes by falling stride: the first is the one to cut, since what is behind it lies together.
    axes = sorted(((t, n, a) for a, (n, t) in enumerate(zip(out.shape, strides, strict=True)) if n > 1), reverse=True)
    extent, gap = _extent(axes), _GAP // item
    raw = scratch.view(np.uint8).data
    if extent <= scratch.size and _dense(axes, gap):
        source.readinto(offset, raw[: extent * item])
        _copy(out, np.ndarray(out.shape, out.dtype, scratch, 0, tuple(stride * item for stride in strides)))
        return
    stride, size, axis = axes[0]
    inner = _extent(axes[1:])
    before = (slice(None),) * axis
    if stride and inner <= scratch.size and _dense(axes, gap):  # straight on, as many of the first axis as there is room for
        group = (scratch.size - inner) // stride + 1
        steps = tuple(t * item for t in strides)
        for first in range(0, size, group):
            count = min(group, size - first)
            source.readinto(offset + first * stride * item, raw[: ((count - 1) * stride + inner) * item])
            part = out[(*before, slice(first, first + count))]
            _copy(part, np.ndarray(part.shape, part.dtype, scratch, 0, steps))
        return
    if inner <= scratch.size and _dense(axes[1:], gap):
        group = min(max(scratch.size // inner, 1), size)
        steps = tuple((inner if a == axis else t) * item for a, t in enumerate(strides))
        for first in range(0, size, group):
            count = min(group, size - first)
            for index in range(count):
                at = index * inner * item
                source.readinto(offset + (first + index) * stride * item, raw[at : at + inner * item])
            part = out[(*before, slice(first, first + count))]
            _copy(part, np.ndarray(part.shape, part.dtype, scratch, 0, steps))
        return
    half = size // 2
    _fill(out[(*before, slice(0, half))], source, offset, strides, scratch)
    _fill(out[(*before, slice(half, size))], source, offset + half * stride * item, strides, scratch)


def _copy(out: Array, view: Array) -> None:
    """Copy a view into `out`, of which it may be a transpose, by whole cache lines of `out`.

    A column of a matrix touches as many cache lines as there are rows, mostly more than a core can keep. Sixteen columns at
    once touch the same lines: a transpose of f32 is four times as fast.
    """
    axes = [axis for axis, size in enumerate(out.shape) if size > 1]
    axis = min(axes, key=lambda axis: abs(out.strides[axis]), default=0)
    if not axes or view.strides[axis] == min(view.strides[one] for one in axes):
        out[...] = view
        return
    size = out.shape[axis]
    step = max(_LINE, _STEP * size // out.size) // out.itemsize or 1
    before = (slice(None),) * axis
    for first in range(0, size, step):
        some = (*before, slice(first, first + step))
        out[some] = view[some]
