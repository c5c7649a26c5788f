"""Values that are made rather than read: a byte source that computes, from one tensor or several, when it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wtool.boxes import Shape
from wtool.bytesource import MemoryBytes
from wtool.dtypes import DType
from wtool.errors import DtypeError, UnsupportedError
from wtool.tensor import BLOCK, STRIPE, LazyTensor

if TYPE_CHECKING:
    from wtool.boxes import Array

_ROOM = 2 << 20  # bytes of all inputs that are worked on at once: they stay in the cache
_RUN = 1 << 16  # elements: kernels work on so many at a time, and would be left with odd ends


class _Rooms(threading.local):
    """Arrays to read into, used again: fresh ones would cost more in page faults than most functions take.

    Entered, it hands them out; what is computed of computed values enters it again and gets others.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._kept: dict[tuple[int, int], Array] = {}

    def __enter__(self) -> Callable[[int, int, DType], Array]:
        self._depth += 1
        return self._room

    def __exit__(self, *_: object) -> None:
        self._depth -= 1

    def _room(self, at: int, count: int, dtype: DType) -> Array:
        import numpy as np

        unit = dtype.numpy()
        nbytes = count * unit.itemsize
        kept = self._kept.get((self._depth, at))
        if kept is None or kept.size < nbytes:
            kept = self._kept[self._depth, at] = np.empty(nbytes, np.uint8)
        return kept[:nbytes].view(unit)


_rooms = _Rooms()


@dataclass(frozen=True)
class Values:
    """A ByteSource of values that are computed: `function` of the equal ranges of `tensors`, which have one shape.

    Without a function it is the one tensor, through its kernels, in C order. The function gets flat arrays that are used
    again, and answers with one of the first tensor's dtype (or of `dtype`). One that has a true attribute `placed` is told
    first where, in C order, the arrays begin.
    """

    tensors: tuple[LazyTensor, ...]
    function: Callable[..., Array] | None = None
    dtype: DType | None = None

    @property
    def name(self) -> str:
        return next((box.source.name for tensor in self.tensors for box in tensor.boxes), "memory")

    @property
    def size(self) -> int:
        return self._dtype.nbytes(self.tensors[0].elements)

    @property
    def direct(self) -> bool:
        """Whether any range can be had at the cost of its length; else values are better streamed from first to last."""
        return all(tensor.span is not None or (tensor.kernels and _plain(tensor)) for tensor in self.tensors)

    @property
    def _dtype(self) -> DType:
        return self.dtype or self.tensors[0].dtype

    def pread(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        import numpy as np

        item = self._dtype.numpy().itemsize
        end = offset + len(buffer)
        first, last = offset // item, -(-end // item)
        step = max(_ROOM // (len(self.tensors) * item), 1)
        step = step // _RUN * _RUN or step
        with _rooms as room:
            rooms = [room(at, min(step, last - first), tensor.stored) for at, tensor in enumerate(self.tensors)]
            for low in range(first, last, step):
                high = min(low + step, last)
                parts = [tensor.flat(low, high, room) for tensor, room in zip(self.tensors, rooms, strict=True)]
                found = self._made(low, parts).view(np.uint8)
                start, stop = max(low * item, offset), min(high * item, end)
                buffer[start - offset : stop - offset] = found[start - low * item : stop - low * item].data

    def stream(self, nbytes: int, stripe: int) -> Iterator[Array]:
        """All values in turn, as LazyTensor.blocks; each tensor that must be gathered is in stripes of its own."""
        for start, parts in together(self.tensors, nbytes, stripe):
            yield self._made(start, parts)

    def _made(self, start: int, parts: list[Array]) -> Array:
        if self.function is None:
            return parts[0]
        return self.function(start, *parts) if getattr(self.function, "placed", False) else self.function(*parts)


def together(tensors: Sequence[LazyTensor], nbytes: int = BLOCK, stripe: int = STRIPE) -> Iterator[tuple[int, list[Array]]]:
    """Tensors of one shape side by side, in C order: where a run begins, and that run of each. Valid until the next one."""
    count = max(nbytes // max(tensor.dtype.numpy().itemsize for tensor in tensors), 1)
    share = max(stripe // len(tensors), 1)
    streams = [t.blocks(count * t.dtype.numpy().itemsize, stripe=share) for t in tensors]
    held: list[Array | None] = [None] * len(streams)
    start = 0
    while True:
        for at, stream in enumerate(streams):
            if held[at] is None or not len(held[at]):  # type: ignore[arg-type]
                held[at] = next(stream, None)
        if any(block is None for block in held):
            return
        blocks = [block for block in held if block is not None]
        some = min(map(len, blocks))
        yield start, [block[:some] for block in blocks]
        held = [block[some:] for block in blocks]
        start += some


def _plain(tensor: LazyTensor) -> bool:
    """Whether the stored values, without kernels, lie as one run."""
    return replace(tensor, kernels=()).span is not None


def computed(
    key: str, tensors: Sequence[LazyTensor], function: Callable[..., Array], dtype: DType | None = None
) -> LazyTensor:
    """An elementwise `function` of tensors of one shape; picklable if the function is. `dtype` of the outcome: the first's."""
    first = tensors[0]
    odd = next((tensor for tensor in tensors if not tensor.dtype.itemsize), None)
    if odd is not None:
        hint = "--dtype f32 (or bf16, f16) decodes blocks" if odd.dtype.block else None
        raise UnsupportedError(f"'{odd.key}' is {odd.dtype}, packed: it cannot be computed with", hint=hint)
    return LazyTensor.contiguous(key, dtype or first.dtype, first.shape, Values(tuple(tensors), function, dtype), 0)


def filled(key: str, dtype: DType, shape: Shape, value: float) -> LazyTensor:
    """A tensor of one value, which takes no room. DtypeError for a dtype narrower than a byte."""
    import numpy as np

    if not dtype.itemsize:
        raise DtypeError(f"a tensor of {dtype} cannot be filled with a value")
    source = MemoryBytes(np.asarray(value).astype(dtype.numpy()).tobytes(), f"{value:g}")
    return LazyTensor.strided(key, dtype, shape, source, 0, (0,) * len(shape))
