"""Quantized tensors: a matrix that lies in several parts, made from it together and read together.

A `Codec` knows how rows of values become rows of parts (codes, scales, zero points), and back. `Encoding` is a matrix seen
through one: its parts are lazy tensors like others, and the writer makes all of them in one pass over the matrix. `decoded`
is the way back: one lazy tensor of f32 from the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Protocol

from wtool.boxes import Shape, c_ordered
from wtool.dtypes import DType, dtype
from wtool.errors import CorruptError, DtypeError, NotFiniteError
from wtool.tensor import STRIPE, LazyTensor, Tally

if TYPE_CHECKING:
    from wtool.boxes import Array

SLAB = 1 << 18  # elements that are worked on at once: with what a codec needs beside them they stay in the cache
LONGEST = 1 << 24  # elements of the longest row that is read whole


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of those that a matrix becomes.

    `name` tells it from its siblings; its key is the layout's to choose. Each `Codec.step` rows of the matrix, the last ones
    perhaps fewer, take `chunk` bytes of it, in turn.
    """

    name: str
    dtype: DType
    shape: Shape
    chunk: int

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(prod(self.shape))


class Codec(Protocol):
    """How rows of f32 become parts, and parts rows. Frozen data: equal options make equal parts."""

    @property
    def step(self) -> int:
        """Rows that belong together: a slab begins at a multiple of it."""
        ...

    def parts(self, rows: int, columns: int) -> tuple[Part, ...]: ...

    def encode(self, x: Array, row: int) -> Sequence[Array]:
        """The parts' arrays (any shape, C order, of the parts' bytes) for f32 `x` [n, columns], whose first row is `row`."""
        ...

    def decode(self, parts: Sequence[Array], row: int, columns: int) -> Array:
        """f32 [n, columns] of flat arrays of the parts' dtypes, which are those of whole rows from `row` on.

        The parts may end with padding: rows beyond the matrix are cut off by the caller. A codec may also have `ends`, of the
        same arguments: the lowest and highest values that the codes of each group reach, half a step beyond, f32 [n, groups].
        """
        ...


@dataclass(frozen=True)
class Encoding:
    """A matrix (a tensor of f32, its last axis the columns; of another dtype it is cast before) seen through a codec.

    `key` is the name that errors tell.
    """

    key: str
    tensor: LazyTensor
    codec: Codec

    @property
    def columns(self) -> int:
        return self.tensor.shape[-1]

    @property
    def rows(self) -> int:
        return prod(self.tensor.shape[:-1])

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return self.codec.parts(self.rows, self.columns)

    def part(self, number: int, key: str) -> LazyTensor:
        """One of the parts as a tensor."""
        part = self.parts[number]
        return LazyTensor.contiguous(key, part.dtype, part.shape, Coded(self, number), 0)

    def runs(self, first: int, last: int, stripe: int = STRIPE) -> Iterator[tuple[int, Sequence[Array]]]:
        """Rows `first` (a multiple of the step) to `last` as parts: where a slab begins, and its arrays, until the next.

        NotFiniteError for NaN and infinities.
        """
        import numpy as np

        columns, step = self.columns, self.codec.step
        many = max(SLAB // max(columns, 1) // step, 1) * step
        # Kernels unpack what is narrower than a byte; else they wait until a slab is in the cache.
        bare = self.tensor if not self.tensor.stored.itemsize else _bare(self.tensor)
        kernels = self.tensor.kernels if bare is not self.tensor else ()
        wide = columns * max(bare.dtype.numpy().itemsize, 1)
        some = many if bare.span is not None else max(stripe // max(wide, 1) // many, 1) * many
        room = np.empty(min(some, max(last - first, 0)) * columns, bare.stored.numpy()) if bare.stored.itemsize else None
        tally: Tally = {}
        for low in range(first, last, some):
            high = min(low + some, last)
            block = bare.flat(low * columns, high * columns, room)
            for row in range(low, high, many):
                end = min(row + many, high)
                x = block[(row - low) * columns : (end - low) * columns]
                for kernel in kernels:
                    x = kernel(x, tally)
                with np.errstate(over="ignore", invalid="ignore"):
                    odd = not np.isfinite(np.add.reduce(x)) and not np.isfinite(x).all()
                if odd:
                    what = "NaN" if np.isnan(x).any() else "an infinity"
                    raise NotFiniteError(f"'{self.key}' holds {what}", hint="--on-nan keep leaves such tensors as they are")
                try:
                    parts = self.codec.encode(x.reshape(-1, columns), row)
                except DtypeError as error:  # a kernel knows no key
                    raise DtypeError(f"'{self.key}': {error.message}", hint=error.hint) from None
                yield row, parts


def _bare(tensor: LazyTensor) -> LazyTensor:
    return replace(tensor, spec=replace(tensor.spec, dtype=tensor.stored), kernels=())


@dataclass(frozen=True)
class Coded:
    """A ByteSource of one part of an encoding. The writer does not read it, but makes all parts at once."""

    encoding: Encoding
    number: int
    direct = False

    @property
    def name(self) -> str:
        return next((box.source.name for box in self.encoding.tensor.boxes), "memory")

    @property
    def size(self) -> int:
        return self.encoding.parts[self.number].nbytes

    def pread(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if not len(buffer):
            return
        chunk, step = self.encoding.parts[self.number].chunk, self.encoding.codec.step
        first, last = offset // chunk * step, min(-(-end // chunk) * step, self.encoding.rows)
        for row, parts in self.encoding.runs(first, last):
            at, found = row // step * chunk, raw(parts[self.number])
            start, stop = max(at, offset), min(at + len(found), end)
            if start < stop:
                buffer[start - offset : stop - offset] = found[start - at : stop - at].data

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        """All in turn, as LazyTensor.blocks."""
        unit = self.encoding.parts[self.number].dtype.numpy()
        for _, parts in self.encoding.runs(0, self.encoding.rows, stripe):
            found = raw(parts[self.number])
            for start in range(0, len(found), max(nbytes, unit.itemsize)):
                yield found[start : start + nbytes].view(unit)


def raw(array: Array) -> Array:
    """The bytes of an array in C order, flat."""
    import numpy as np

    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@dataclass(frozen=True)
class Decoded:
    """A ByteSource of the f32 values of a matrix that lies in parts (tensors in the order of Codec.parts)."""

    key: str
    tensors: tuple[LazyTensor, ...]
    codec: Codec
    rows: int
    columns: int

    @property
    def name(self) -> str:
        return next((box.source.name for tensor in self.tensors for box in tensor.boxes), "memory")

    @property
    def size(self) -> int:
        return self.rows * self.columns * 4

    @cached_property
    def direct(self) -> bool:
        """Whether any range can be had at about the cost of its length."""
        return self.columns <= SLAB and all(tensor.span is not None for tensor in self.tensors)

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        return self.codec.parts(self.rows, self.columns)

    def pread(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end, wide = offset + len(buffer), 4 * self.columns
        if not len(buffer):
            return
        first = offset // wide // self.codec.step * self.codec.step
        for row, _, values in self.slabs(first, -(-end // wide), SLAB):
            at, found = row * wide, raw(values)
            start, stop = max(at, offset), min(at + len(found), end)
            if start < stop:
                buffer[start - offset : stop - offset] = found[start - at : stop - at].data

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        """All in turn, as LazyTensor.blocks."""
        some = max(nbytes // 4, 1)
        for _, _, values in self.slabs(0, self.rows, self.ahead(stripe)):
            flat = values.reshape(-1)
            for start in range(0, len(flat), some):
                yield flat[start : start + some]

    def ahead(self, stripe: int = STRIPE) -> int:
        """For how many elements parts are best read at once: for more than a slab where they must be gathered."""
        return SLAB if all(tensor.span is not None for tensor in self.tensors) else max(stripe // 4, SLAB)

    def slabs(self, first: int, last: int, elements: int) -> Iterator[tuple[int, list[Array], Array]]:
        """Rows from `first`, a multiple of the step, to `last`: where a slab begins, its parts, and its values.

        Parts are read for so many `elements` at once, and decoded in what the cache holds.
        """
        step = self.codec.step
        many = max(elements // self.columns // step, 1) * step
        inner = max(SLAB // self.columns // step, 1) * step
        for row in range(first, last, many):
            end = min(row + many, last)
            parts = [self.tensors[number].flat(*self._bounds(number, row, end)) for number in range(len(self.tensors))]
            for low in range(row, end, inner):
                high = min(low + inner, end)
                few = [self._cut(number, part, row, low, high) for number, part in enumerate(parts)]
                yield low, few, self.codec.decode(few, low, self.columns)[: high - low]

    def _bounds(self, number: int, low: int, high: int) -> tuple[int, int]:
        part, tensor = self._parts[number], self.tensors[number]
        item, step = tensor.stored.numpy().itemsize, self.codec.step
        start, stop = low // step * part.chunk, min(-(-high // step) * part.chunk, part.nbytes)
        return start // item, stop // item

    def _cut(self, number: int, part: Array, begun: int, low: int, high: int) -> Array:
        base = self._bounds(number, begun, high)[0]
        start, stop = self._bounds(number, low, high)
        return part[start - base : stop - base]


def decoded(key: str, tensors: Sequence[LazyTensor], codec: Codec, shape: Shape) -> LazyTensor:
    """The f32 tensor of `shape` whose rows (its last axis the columns) lie in parts. CorruptError where they do not fit it."""
    rows, columns = prod(shape[:-1]), shape[-1]
    for part, tensor in zip(codec.parts(rows, columns), tensors, strict=True):
        if part.dtype is not tensor.dtype or part.nbytes != tensor.nbytes:
            raise CorruptError(
                f"'{tensor.key}' is {tensor.dtype} {list(tensor.shape)}: for '{key}' {list(shape)} "
                f"it would be {part.dtype} {list(part.shape)}"
            )
    return LazyTensor.contiguous(key, dtype("f32"), shape, Decoded(key, tuple(tensors), codec, rows, columns), 0)


def decoding(tensor: LazyTensor) -> Decoded | None:
    """What a tensor is all the values of, in their order; None if it is none of `decoded`."""
    source = tensor.boxes[0].source if len(tensor.boxes) == 1 and not tensor.kernels else None
    if not isinstance(source, Decoded) or tensor.nbytes != source.size:
        return None
    return source if c_ordered(tensor.boxes[0].shape, tensor.boxes[0].strides) else None
