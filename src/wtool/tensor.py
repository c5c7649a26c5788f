"""A tensor that has not been read: what its header says, and where its values lie.

There is one mechanism for where values lie. A tensor is a set of boxes that partition its grid, and each box is a strided
view of a ByteSource. The grid is the shape itself, or, where a tensor has been rearranged, the shape with axes cut into
factors or joined, in the same C order: so a matrix whose rows were permuted head by head is still one box.

One box with C-order strides is the common case and is called a span: its bytes can be copied without being looked at. One box
with other strides is a view of a storage (transposed, sliced, expanded). Several boxes are the pieces of a partitioned or
sharded tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol

from wtool.boxes import Box as Box
from wtool.boxes import Shape as Shape
from wtool.boxes import c_ordered, gather, ranges, run_of, run_starts, slab_of, tile_of, tiles
from wtool.boxes import c_strides as c_strides
from wtool.bytesource import ByteSource, LocalFile, MemoryBytes
from wtool.dtypes import DType

if TYPE_CHECKING:
    from wtool.boxes import Array as Array

Tally = dict[str, int]

BLOCK = 1 << 20  # bytes of a block: fits a core's cache, large enough that Python does not count
STRIPE = 32 << 20  # bytes gathered at once from a strided view or from pieces


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


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A spec, the boxes its values lie in, the dtype they are stored in, and the kernels between stored and seen values.

    `cut` is the grid that the boxes partition where it is not the shape.
    """

    spec: TensorSpec
    boxes: tuple[Box, ...]
    stored: DType
    kernels: tuple[Kernel, ...] = ()
    cut: Shape | None = None

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
    def grid(self) -> Shape:
        """What the boxes partition: the shape, its C order cut otherwise, or (narrower than a byte) its packed bytes."""
        return _grid(self.stored, self.spec.shape) if self.cut is None else self.cut

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
        if not c_ordered(box.shape, box.strides) or not getattr(box.source, "direct", True):
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

        A block is valid until the next one is asked for. Packed dtypes come as raw `uint8`, whole runs of them (`DType.run`);
        where kernels unpack them, it is what comes out that has `nbytes`. Raises TruncatedError or UnreadableError when the
        source fails. At most about `nbytes` (a span) or `stripe` + 3 MiB (anything else) is held.
        """
        tally = {} if tally is None else tally
        if self.dtype.itemsize and not self.stored.itemsize:
            nbytes = int(nbytes * self.stored.bits_each / self.dtype.bits)
        for block in self._stored_blocks(nbytes, stripe):
            for kernel in self.kernels:
                block = kernel(block, tally)
            yield block

    def tile(self, nbytes: int, again: int, alone: bool) -> Shape | None:
        """The shape of tiles of the grid, of at most `nbytes`, for `runs`.

        None where `blocks` does as well: `again` bytes more must be worth it, and slabs in C order are not unless `alone`.
        """
        if not (self.stored.itemsize and self.dtype.itemsize) or any(hasattr(box.source, "stream") for box in self.boxes):
            return None
        if len(self.boxes) == 1 and c_ordered(self.boxes[0].shape, self.boxes[0].strides):
            return None
        item, grid = self.stored.itemsize, self.grid
        most = max(nbytes // item, 1)
        return tile_of(grid, self.boxes, item, most, again) or (slab_of(grid, most) if alone else None)

    def runs(self, tile: Shape, first: int, last: int, nbytes: int, tally: Tally) -> Iterator[tuple[list[int], Array]]:
        """The values of tiles number `first` to `last`, each gathered at once.

        As places in C order where runs of equal length begin, and these runs one behind the other.

        A block of runs is at most `nbytes` long before the kernels, and valid until the next one is asked for.
        """
        import numpy as np

        unit, grid = self.stored.numpy(), self.grid
        step = max(nbytes // unit.itemsize, 1)
        room: Array = np.empty(prod(tile), unit)
        for start, shape in islice(tiles(grid, tile), first, last):
            flat = room[: prod(shape)]
            gather(self.boxes, start, flat.reshape(shape))
            run, places = run_of(grid, shape), run_starts(grid, start, shape)
            for number in range(0, len(places), max(step // run, 1)):
                some = places[number : number + max(step // run, 1)]
                many = flat[number * run : (number + len(some)) * run]
                for at in range(0, many.size, step):  # once, unless a single run is longer
                    block = many[at : at + step]
                    for kernel in self.kernels:
                        block = kernel(block, tally)
                    yield [place + at for place in some], block

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
        shape = _grid(self.dtype, self.shape)
        start, stop, _ = slice(start, stop).indices(shape[0])
        inner = prod(shape[1:])
        return self.flat(start * inner, max(stop, start) * inner).reshape((max(stop - start, 0), *shape[1:]))

    @property
    def computed(self) -> bool:
        """Whether values are made, not read: by kernels, or by a source that computes."""
        return bool(self.kernels) or any(hasattr(box.source, "stream") for box in self.boxes)

    @property
    def near(self) -> bool:
        """Whether any few values can be had without the others: they lie in files or in memory, neither packed nor made."""
        return not self.kernels and all(isinstance(box.source, LocalFile | MemoryBytes) for box in self.boxes)

    def flat(self, first: int, last: int, room: Array | None = None) -> Array:
        """The elements `first` to `last` in C order (bytes, for packed dtypes).

        In a new array, or in `room`, an array of at least as many stored elements, if no kernel needs another.
        """
        import numpy as np

        if self.dtype.itemsize and not self.stored.itemsize:  # a kernel unpacks: several values from a byte
            many, size = self.stored.run
            unpacked = replace(self, spec=replace(self.spec, dtype=self.stored)).flat(
                first // many * size, -(-last // many) * size
            )
            return unpacked[first % many :][: last - first]
        count = max(last - first, 0)
        block: Array = np.empty(count, self.stored.numpy()) if room is None else room[:count]
        box = self.boxes[0]
        if len(self.boxes) == 1 and c_ordered(box.shape, box.strides):
            if count:
                box.source.readinto(box.offset + first * block.itemsize, block.view(np.uint8).data)
        else:
            done = 0
            for start, shape in ranges(self.grid, first, last):
                some = prod(shape)
                gather(self.boxes, start, block[done : done + some].reshape(shape))
                done += some
        tally: Tally = {}
        for kernel in self.kernels:
            block = kernel(block, tally)
        return block.copy() if self.kernels and room is None else block

    def _stored_blocks(self, nbytes: int, stripe: int) -> Iterator[Array]:
        import numpy as np

        unit, grid = self.stored.numpy(), self.grid
        total = prod(grid)
        step = max(nbytes // unit.itemsize, 1)
        if not self.stored.itemsize:
            step = max(step // self.stored.run[1], 1) * self.stored.run[1]
        box = self.boxes[0] if len(self.boxes) == 1 else None
        if box is not None and c_ordered(box.shape, box.strides):
            whole = not box.offset and box.source.size == total * unit.itemsize
            if whole and not getattr(box.source, "direct", True):
                yield from box.source.stream(nbytes, stripe)  # type: ignore[attr-defined]
                return
            buffer = np.empty(min(step, total), unit)
            view = buffer.view(np.uint8).data
            for first in range(0, total, step):
                count = min(step, total - first)
                box.source.readinto(box.offset + first * unit.itemsize, view[: count * unit.itemsize])
                yield buffer[:count]
            return
        room: Array | None = None  # the first slab is the largest; one room for all, or two stripes would be held at once
        for start, shape in tiles(grid, slab_of(grid, max(stripe // unit.itemsize // step, 1) * step)):
            room = np.empty(prod(shape), unit) if room is None else room
            flat = room[: prod(shape)]
            gather(self.boxes, start, flat.reshape(shape))
            for first in range(0, flat.size, step):
                yield flat[first : first + step]


def _grid(dtype: DType, shape: Shape) -> Shape:
    """The shape in units that have an address: the tensor's own, or its packed bytes."""
    return shape if dtype.itemsize else (dtype.nbytes(prod(shape)),)
