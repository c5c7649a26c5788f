"""What will be written, as plain data, before the first byte: so that a dry run and the tests see the truth.

A format answers with a Layout: which files of which size, which fixed bytes in them, and a slot for the values of each
tensor. `plan_write` turns layout and tensors into jobs. Neighbouring slots whose sources are neighbours too become one copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from wtool.boxes import Shape, c_ordered, count_tiles
from wtool.bytesource import ByteSource
from wtool.quantized import Coded, Encoding
from wtool.tensor import BLOCK, STRIPE, LazyTensor

ENCODE_PIECE = 8 << 20  # elements of the largest piece that one thread encodes
COPY_PIECE = 64 << 20  # bytes of the largest single copy job, so that threads share one large tensor


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of the output: its name beside (or, for a folder, inside) the target, and its final size."""

    name: str
    size: int


class Patch(NamedTuple):
    """Fixed bytes at a place of file number `file`."""

    file: int
    offset: int
    data: bytes


class Slot(NamedTuple):
    """The place of one tensor's values: C order, little-endian, packed."""

    key: str
    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything a format knows before the values are there.

    `files` stand in the order in which they may appear: an index last. `folder` says that the target is a folder of them.
    `checksum` names a sum over each slot's bytes that the sink wants before it can finish: "crc32" or "crc32c".
    """

    files: tuple[OutputFile, ...]
    patches: tuple[Patch, ...]
    slots: tuple[Slot, ...]
    folder: bool = False
    checksum: str | None = None


class CopyJob(NamedTuple):
    """Move `nbytes` from `offset` of `source` to `at` in a file, without looking at them."""

    source: ByteSource
    offset: int
    nbytes: int
    file: int
    at: int
    keys: tuple[str, ...]  # one key when its checksum is wanted


class TensorJob(NamedTuple):
    """Gather or compute a tensor block by block and write it at `at` in a file."""

    tensor: LazyTensor
    file: int
    at: int

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def gathered(self) -> int:
        """Bytes before the kernels."""
        return self.tensor.stored.nbytes(self.tensor.elements)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.tensor.key,)


class TileJob(NamedTuple):
    """Gather tiles number `first` to `last` of a tensor's grid, and write their values to their places in the slot at `at`."""

    tensor: LazyTensor
    tile: Shape
    first: int
    last: int
    file: int
    at: int

    @property
    def nbytes(self) -> int:
        return self.tensor.dtype.nbytes((self.last - self.first) * prod(self.tile))

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.tensor.key,)


class PartPlace(NamedTuple):
    """Where part number `number` of an encoding goes; if `turned`, as its transpose."""

    number: int
    key: str
    file: int
    at: int
    turned: bool = False


class EncodeJob(NamedTuple):
    """Make rows `first` to `last` of all parts of an encoding in one pass, and write them to their places."""

    encoding: Encoding
    first: int
    last: int
    places: tuple[PartPlace, ...]

    @property
    def nbytes(self) -> int:
        return sum(high - low for low, high in map(self.bounds, self.places))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(place.key for place in self.places)

    def bounds(self, place: PartPlace) -> tuple[int, int]:
        """Which bytes of a part these rows are."""
        part, step = self.encoding.parts[place.number], self.encoding.codec.step
        return self.first // step * part.chunk, min(-(-self.last // step) * part.chunk, part.nbytes)


Job = CopyJob | TensorJob | TileJob | EncodeJob


@dataclass(frozen=True, slots=True)
class WritePlan:
    """A layout and the jobs that fill it. `memory` is an upper bound on the bytes of blocks held at once by one thread."""

    layout: Layout
    jobs: tuple[Job, ...]
    memory: int

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.layout.files)

    @property
    def copied(self) -> int:
        """Bytes that are moved without being looked at."""
        return sum(job.nbytes for job in self.jobs if isinstance(job, CopyJob) and not hasattr(job.source, "stream"))

    def threads(self, most: int) -> int:
        """How many of so many threads have something to do."""
        shared = any(isinstance(job, TensorJob) and job.gathered > STRIPE for job in self.jobs)
        return most if shared else min(most, max(len(self.jobs), 1))


def tiled(jobs: Iterable[Job], threads: int, stripe: int, checksum: bool) -> Iterator[Job]:
    """The jobs, but those of tensors that must be gathered and are longer than `stripe` bytes cut, one part for each thread.

    Where there is a `checksum` the slot is read again for it, so much must be won.
    """
    for job in jobs:
        tile = None
        if isinstance(job, TensorJob) and job.gathered > stripe:
            tile = job.tensor.tile(stripe, again=job.nbytes if checksum else 0, alone=not checksum)
        if isinstance(job, TensorJob) and tile is not None:
            count = count_tiles(job.tensor.grid, tile)
            share = -(-count // threads)
            for first in range(0, count, share):
                yield TileJob(job.tensor, tile, first, min(first + share, count), job.file, job.at)
        else:
            yield job


def plan_write(layout: Layout, tensors: Mapping[str, LazyTensor]) -> WritePlan:
    """Jobs for every slot, in the order of the files."""
    jobs: list[Job] = []
    memory = 0
    run: CopyJob | None = None
    encodings: dict[int, list[PartPlace]] = {}
    for slot in sorted(layout.slots, key=lambda slot: (slot.file, slot.offset)):
        tensor = tensors[slot.key]
        assert tensor.nbytes == slot.nbytes, slot
        if not slot.nbytes:
            continue
        span = tensor.span
        made, turned = _whole_part(tensor, layout.checksum is None)
        if made is not None:
            place = PartPlace(made.number, slot.key, slot.file, slot.offset, turned)
            if id(made.encoding) not in encodings:
                jobs.append(EncodeJob(made.encoding, 0, made.encoding.rows, ()))
                plain = made.encoding.tensor.span is not None or not _gathered(made.encoding.tensor)
                memory = max(memory, 8 * BLOCK if plain and not turned else STRIPE + 8 * BLOCK)
            encodings.setdefault(id(made.encoding), []).append(place)
            continue
        if span is None:
            memory = max(memory, 4 * BLOCK if len(tensor.boxes) == 1 and not _gathered(tensor) else STRIPE + 4 * BLOCK)
            jobs.append(TensorJob(tensor, slot.file, slot.offset))
            continue
        memory = max(memory, BLOCK)
        if (
            run is not None
            and layout.checksum is None
            and run.file == slot.file
            and run.at + run.nbytes == slot.offset
            and run.offset + run.nbytes == span.offset
            and run.source == span.source
            and run.nbytes + span.nbytes <= COPY_PIECE
        ):
            run = run._replace(nbytes=run.nbytes + span.nbytes, keys=(*run.keys, slot.key))
            jobs[-1] = run
            continue
        for done in range(0, span.nbytes, COPY_PIECE if layout.checksum is None else span.nbytes):
            count = min(COPY_PIECE, span.nbytes - done) if layout.checksum is None else span.nbytes
            run = CopyJob(span.source, span.offset + done, count, slot.file, slot.offset + done, (slot.key,))
            jobs.append(run)
    whole = layout.checksum is not None  # of which each part has one, from its first byte to its last
    return WritePlan(layout, tuple(part for job in jobs for part in _shared(job, encodings, whole)), memory)


def _shared(job: Job, encodings: Mapping[int, Sequence[PartPlace]], whole: bool) -> Iterator[Job]:
    """A job that encodes, with its places, cut so that threads share one large tensor."""
    if not isinstance(job, EncodeJob):
        yield job
        return
    encoding, step = job.encoding, job.encoding.codec.step
    places = tuple(encodings[id(encoding)])
    piece = ENCODE_PIECE * (4 if any(place.turned for place in places) else 1)  # the more rows, the longer are the runs
    many = max(piece // max(encoding.columns, 1) // step, 1) * step if not whole else max(encoding.rows, 1)
    for first in range(0, encoding.rows, many):
        yield EncodeJob(encoding, first, min(first + many, encoding.rows), places)


def _whole_part(tensor: LazyTensor, turn: bool) -> tuple[Coded | None, bool]:
    """The part of an encoding that a tensor is, as it is or (if it may be) transposed, and whether it is."""
    box = tensor.boxes[0]
    if tensor.kernels or not isinstance(box.source, Coded) or tensor.nbytes != box.source.size:
        return None, False
    if c_ordered(box.shape, box.strides):
        return box.source, False
    shape = box.source.encoding.parts[box.source.number].shape
    turned = len(shape) == 2 and box.shape == shape[::-1] and box.strides == (1, shape[1])
    return (box.source, True) if turn and turned and len(tensor.boxes) == 1 else (None, False)


def _gathered(tensor: LazyTensor) -> bool:
    """Whether values must be collected from several places (or a stride) rather than read straight on."""
    from dataclasses import replace

    return replace(tensor, kernels=()).span is None
