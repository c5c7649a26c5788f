"""A tensor that has not been read: what its header says, and where its values lie.

There is one mechanism for where values lie. A tensor is a set of boxes that partition its shape, and each box is a strided
view of a ByteSource. One box with C-order strides is the common case and is called a span: its bytes can be copied without
being looked at. One box with other strides is a view of a storage (transposed, sliced, expanded). Several boxes are the
pieces of a partitioned or sharded tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from wtool.bytesource import ByteSource
from wtool.dtypes import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Shape = tuple[int, ...]
Tally = dict[str, int]

BLOCK = 1 << 20  # bytes of a block: fits a core's cache, large enough that Python does not count
STRIPE = 32 << 20  # bytes gathered at once from a strided view or from pieces
_SCRATCH = 2 << 20  # bytes read at once while gathering
_GAP = 8 << 10  # a hole in a view smaller than this is cheaper to read than to jump over


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of one tensor."""

    key: str
    dtype: DType
    shape: Shape

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values in C order, packed."""
        return self.dtype.nbytes(prod(self.shape))


class Span(NamedTuple):
    """`nbytes` raw little-endian bytes in C order, at `offset` of `source`."""

    source: ByteSource
    offset: int
    nbytes: int


class Box(NamedTuple):
    """A strided view that fills the part of a tensor beginning at index `start`.

    `offset` is in bytes, `strides` in elements; for dtypes narrower than a byte the unit is the byte and the tensor one flat
    run of packed bytes. `shape` has the rank of `start` and `strides`.
    """

    start: Shape
    shape: Shape
    source: ByteSource
    offset: int
    strides: Shape


class Kernel(Protocol):
    """An elementwise change of values, applied block by block. Frozen data, so that it can be pickled and compared."""

    def dtype(self, stored: DType) -> DType:
        """The dtype of what comes out."""
        ...

    def __call__(self, block: Array, tally: Tally) -> Array:
        """The changed block: flat, any length, possibly in a buffer that the next call uses again.

        What must be said afterwards, such as the number of values that overflowed, is added to `tally`.
        """
        ...


def c_strides(shape: Shape) -> Shape:
    """Strides, in elements, of a C-order array."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A spec, the boxes its values lie in, the dtype they are stored in, and the kernels between stored and seen values."""

    spec: TensorSpec
    boxes: tuple[Box, ...]
    stored: DType
    kernels: tuple[Kernel, ...] = ()

    @staticmethod
    def contiguous(key: str, dtype: DType, shape: Shape, source: ByteSource, offset: int) -> LazyTensor:
        """A tensor whose values lie as one span."""
        grid = _grid(dtype, shape)
        box = Box((0,) * len(grid), grid, source, offset, c_strides(grid))
        return LazyTensor(TensorSpec(key, dtype, shape), (box,), dtype)

    @staticmethod
    def strided(key: str, dtype: DType, shape: Shape, source: ByteSource, offset: int, strides: Shape) -> LazyTensor:
        """A view of a storage: `offset` in bytes of its first element, `strides` in elements, none negative."""
        box = Box((0,) * len(shape), shape, source, offset, strides)
        return LazyTensor(TensorSpec(key, dtype, shape), (box,), dtype)

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def dtype(self) -> DType:
        return self.spec.dtype

    @property
    def shape(self) -> Shape:
        return self.spec.shape

    @property
    def elements(self) -> int:
        return self.spec.elements

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes

    @property
    def span(self) -> Span | None:
        """Where the bytes can be copied from verbatim; None if they must be gathered or computed."""
        if self.kernels or len(self.boxes) != 1:
            return None
        box = self.boxes[0]
        if not _c_ordered(box.shape, box.strides):
            return None
        return Span(box.source, box.offset, self.stored.nbytes(prod(self.spec.shape)))

    @property
    def identity(self) -> object | None:
        """Equal and not None for two tensors exactly if they are tied: the same values at the same place."""
        if not prod(self.spec.shape):
            return None
        return (self.boxes, self.stored.name, self.kernels, self.spec.shape)

    def renamed(self, key: str) -> LazyTensor:
        return replace(self, spec=replace(self.spec, key=key))

    def map(self, kernel: Kernel) -> LazyTensor:
        """The same tensor seen through a kernel."""
        dtype = kernel.dtype(self.spec.dtype)
        return replace(self, spec=replace(self.spec, dtype=dtype), kernels=(*self.kernels, kernel))

    def blocks(self, nbytes: int = BLOCK, tally: Tally | None = None, stripe: int = STRIPE) -> Iterator[Array]:
        """The values as consecutive flat arrays in C order, each at most `nbytes` long before the kernels.

        A block is valid until the next one is asked for. Packed dtypes come as raw `uint8`. Raises TruncatedError or
        UnreadableError when the source fails. At most about `nbytes` (a span) or `stripe` + 3 MiB (anything else) is held.
        """
        tally = {} if tally is None else tally
        for block in self._stored_blocks(nbytes, stripe):
            for kernel in self.kernels:
                block = kernel(block, tally)
            yield block

    def array(self) -> Array:
        """All values at once, in a new array of this tensor's shape (flat bytes for packed dtypes)."""
        import numpy as np

        grid = _grid(self.dtype, self.shape)
        out = np.empty(prod(grid), self.dtype.numpy())
        done = 0
        for block in self.blocks():
            out[done : done + block.size] = block
            done += block.size
        return out.reshape(grid)

    def rows(self, start: int, stop: int) -> Array:
        """The values of `[start:stop]` along the first axis, in a new array."""
        import numpy as np

        grid = _grid(self.stored, self.shape)
        start, stop, _ = slice(start, stop).indices(grid[0])
        shape = (max(stop - start, 0), *grid[1:])
        block: Array = np.empty(prod(shape), self.stored.numpy())
        self._gather((start,) + (0,) * (len(grid) - 1), block.reshape(shape))
        tally: Tally = {}
        for kernel in self.kernels:
            block = kernel(block, tally)
        return block.reshape(shape).copy()

    def _stored_blocks(self, nbytes: int, stripe: int) -> Iterator[Array]:
        import numpy as np

        unit = self.stored.numpy()
        grid = _grid(self.stored, self.spec.shape)
        total = prod(grid)
        step = max(nbytes // unit.itemsize, 1)
        box = self.boxes[0] if len(self.boxes) == 1 else None
        if box is not None and _c_ordered(box.shape, box.strides):
            buffer = np.empty(min(step, total), unit)
            view = buffer.view(np.uint8).data
            for first in range(0, total, step):
                count = min(step, total - first)
                box.source.readinto(box.offset + first * unit.itemsize, view[: count * unit.itemsize])
                yield buffer[:count]
            return
        room: Array | None = None  # the first slab is the largest; one room for all, or two stripes would be held at once
        for start, shape in _slabs(grid, max(stripe // unit.itemsize, step)):
            room = np.empty(prod(shape), unit) if room is None else room
            flat = room[: prod(shape)]
            self._gather(start, flat.reshape(shape))
            for first in range(0, flat.size, step):
                yield flat[first : first + step]

    def _gather(self, start: Shape, out: Array) -> None:
        """Fill `out` with the stored values of the box of its shape that begins at `start`."""
        import numpy as np

        unit, shape = out.dtype, out.shape
        if not out.size:
            return
        scratch = np.empty(_SCRATCH // unit.itemsize, unit)
        for box in self.boxes:
            low = tuple(map(max, start, box.start))
            high = tuple(min(a + n, b + m) for a, n, b, m in zip(start, shape, box.start, box.shape, strict=True))
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            where = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            inside = sum((a - s) * stride for a, s, stride in zip(low, box.start, box.strides, strict=True))
            _fill(out[where], box.source, box.offset + inside * unit.itemsize, box.strides, scratch)


def _grid(dtype: DType, shape: Shape) -> Shape:
    """The shape in units that have an address: the tensor's own, or its packed bytes."""
    return shape if dtype.itemsize else (dtype.nbytes(prod(shape)),)


def _c_ordered(shape: Shape, strides: Shape) -> bool:
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _slabs(shape: Shape, most: int) -> Iterator[tuple[Shape, Shape]]:
    """Boxes (start, shape) of at most about `most` elements that cover `shape` in C order."""
    axis, inner = 0, prod(shape)
    if not inner:
        return
    while axis < len(shape) and inner > most:
        inner //= shape[axis]
        axis += 1
    if axis == 0:
        yield (0,) * len(shape), shape
        return
    axis -= 1  # the axis that is cut; all axes behind it stay whole
    step = max(most // inner, 1)
    tail = shape[axis + 1 :]
    for number in range(prod(shape[:axis])):
        outer = []
        for size in reversed(shape[:axis]):
            number, index = divmod(number, size)
            outer.append(index)
        outer.reverse()
        for first in range(0, shape[axis], step):
            start = (*outer, first, *(0 for _ in tail))
            yield start, (*(1 for _ in outer), min(step, shape[axis] - first), *tail)


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
        out[...] = np.ndarray(out.shape, out.dtype, scratch, 0, tuple(stride * item for stride in strides))
        return
    stride, size, axis = axes[0]
    inner = _extent(axes[1:])
    before = (slice(None),) * axis
    if inner <= scratch.size and _dense(axes[1:], gap):
        group = min(max(scratch.size // inner, 1), size)
        steps = tuple((inner if a == axis else t) * item for a, t in enumerate(strides))
        for first in range(0, size, group):
            count = min(group, size - first)
            for index in range(count):
                at = index * inner * item
                source.readinto(offset + (first + index) * stride * item, raw[at : at + inner * item])
            part = out[(*before, slice(first, first + count))]
            part[...] = np.ndarray(part.shape, part.dtype, scratch, 0, steps)
        return
    half = size // 2
    _fill(out[(*before, slice(0, half))], source, offset, strides, scratch)
    _fill(out[(*before, slice(half, size))], source, offset + half * stride * item, strides, scratch)
