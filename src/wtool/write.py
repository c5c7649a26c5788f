"""Run a plan: bytes that do not change in large pieces, everything else block by block, several jobs at once.

Measured against `cp` and `sync` of the same bytes (1.4 GB): two threads that pread and pwrite 1 MiB take 0.9 times, and 0.5
times when the kernel is told after each piece to begin bringing it to the disk, so that nothing is left to do at the end.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from wtool.adapter import TensorSink
from wtool.bytesource import ByteSource
from wtool.plan import CopyJob, EncodeJob, Job, Patch, TensorJob, TileJob, WritePlan, tiled
from wtool.quantized import raw
from wtool.slots import Out, Stopped, Turned, pwrite
from wtool.slots import Progress as Progress
from wtool.stage import Stage
from wtool.tensor import BLOCK, STRIPE, Tally
from wtool.values import Values
from wtool.workers import Collector, available, forked

_MEMORY = 2 * (STRIPE + 8 * BLOCK)  # bytes of blocks, however many threads there are, unless the caller says
_MUCH = 256 << 20  # bytes to compute that are worth a process
_BATCH = 4 << 20  # bytes of jobs that are handed to a thread together
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Written:
    """What happened: bytes of the files, what the kernels counted for each key, and the checksum over each slot."""

    nbytes: int
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    checksums: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Filled:
    """The result of one job: what its kernels counted, and the checksums over slots that it filled, by key."""

    tally: Tally
    sums: Mapping[str, int]


class _Gate:
    """Who is at work. The files are closed after `shut`, so it returns when the last one has left, and nobody enters any more.

    Futures cannot tell this: Ctrl-C may strike between handing a batch to an executor and learning of its future.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._inside = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            if self.stop.is_set():
                raise Stopped
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def shut(self) -> None:
        self.stop.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)


def run(
    plan: WritePlan,
    sink: TensorSink,
    stage: Stage,
    *,
    jobs: int = 2,
    memory: int | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    collectors: Sequence[Collector] | None = None,
) -> Written:
    """Write every job of the plan into the staged files, then what the sink can only know at the end.

    `memory` bounds the bytes of blocks that all threads hold together. Raises the reader's errors as they are, and WriteError
    for those of the output. Nothing is published. `collectors` are all that learns while values are computed; if they are
    given, much to compute is shared among processes, whose threads would mostly wait for one another.
    """
    gate = _Gate()
    checksum = plan.layout.checksum
    share = (memory or _MEMORY) // max(jobs, 1)
    block = max(min(BLOCK, share // 4), 64 << 10) & -64  # whole elements, or what is computed would be so twice
    stripe = max(min(STRIPE, share - 4 * block), block)

    todo = list(tiled(plan.jobs, max(jobs, 1), stripe, checksum is not None))
    left = Counter((job.file, job.at) for job in todo if isinstance(job, TileJob))
    lock = threading.Lock()

    def make(stop: Any, progress: Progress | None) -> Callable[[Sequence[Job]], list[Filled]]:
        def one(job: Job) -> Filled:
            tally: Tally = {}
            if isinstance(job, EncodeJob):
                return Filled(tally, encode(job))
            out = Out(stage, job.file, job.at, checksum, progress, stop)
            if isinstance(job, CopyJob):
                _copy(job.source, job.offset, job.nbytes, block, out)
            elif isinstance(job, TileJob):
                item = job.tensor.dtype.itemsize
                for places, values in job.tensor.runs(job.tile, job.first, job.last, block, tally):
                    out.scatter([place * item for place in places], values.view("u1").data)
                with lock:
                    left[job.file, job.at] -= 1
                    last = not left[job.file, job.at]
                if not last:
                    return Filled(tally, {})
                out.finish(job.tensor.nbytes, block)
            else:
                for values in job.tensor.blocks(block, tally, stripe):
                    out.write(values.view("u1").data)
            return Filled(tally, dict.fromkeys(job.keys, out.sum) if checksum else {})

        def encode(job: EncodeJob) -> dict[str, int]:
            outs: list[Out | Turned] = []
            for place in job.places:
                low = job.bounds(place)[0]
                out = Out(stage, place.file, place.at + (0 if place.turned else low), checksum, progress, stop)
                outs.append(Turned(out, job.encoding.parts[place.number], low, stripe // 4) if place.turned else out)
            turned = any(place.turned for place in job.places)  # they take as much as is read at once
            for _, parts in job.encoding.runs(job.first, job.last, stripe // 2 if turned else stripe):
                for place, one in zip(job.places, outs, strict=True):
                    one.write(raw(parts[place.number]).data)
            for one in outs:
                one.flush()
            return {place.key: one.sum for place, one in zip(job.places, outs, strict=True)} if checksum else {}

        return lambda batch: [one(job) for job in batch]

    def patch(patches: Iterable[Patch]) -> None:
        for file, at, data in patches:
            pwrite(stage.fds[file], memoryview(data), at, stage.paths[file])

    patch(plan.layout.patches)
    batches = list(_batches(todo, whole=checksum is not None))
    if collectors is not None and executor is None and jobs > 1 and available() and _computed(todo) >= _MUCH:
        weights = [sum(_bytes(job) for job in batch) for batch in batches]
        found = forked(batches, weights, min(jobs, len(batches)), make, gate.stop, collectors, progress)
    else:
        found = _run_all(make(gate.stop, progress), batches, jobs, executor, gate)
    results = [pair for batch, filled in zip(batches, found, strict=True) for pair in zip(batch, filled, strict=True)]
    sums = {key: value for _, one in results for key, value in one.sums.items()}
    sums = {slot.key: 0 for slot in plan.layout.slots if not slot.nbytes} | sums
    patch(sink.finish(sums))
    tallies: dict[str, Counter[str]] = {}
    for job, one in results:
        if one.tally:  # of each part of a tensor
            tallies.setdefault(job.keys[0], Counter()).update(one.tally)
    return Written(plan.nbytes, tallies, sums)


def _computed(jobs: Iterable[Job]) -> int:
    """Bytes that are computed, not copied."""
    return sum(_bytes(job) for job in jobs if not isinstance(job, CopyJob) or hasattr(job.source, "stream"))


def _bytes(job: Job) -> int:
    """About how much there is to do: bytes to read for it, and to write."""
    if isinstance(job, TensorJob) and isinstance(source := job.tensor.boxes[0].source, Values):
        return job.nbytes + sum(tensor.nbytes for tensor in source.tensors)
    return job.nbytes


def _batches(jobs: Sequence[Job], *, whole: bool) -> Iterator[Sequence[Job]]:
    """Small jobs together, so that 100,000 tensors do not cost 100,000 hand-overs between threads.

    With `whole` the tiles of one tensor, too: who has the last one sums up all of them.
    """
    batch: list[Job] = []
    nbytes = 0
    for job in jobs:
        last = batch[-1] if batch else None
        tiles = whole and isinstance(job, TileJob) and isinstance(last, TileJob) and (job.file, job.at) == (last.file, last.at)
        if nbytes >= _BATCH and not tiles:
            yield batch
            batch, nbytes = [], 0
        batch.append(job)
        nbytes += job.nbytes
    if batch:
        yield batch


def _run_all(
    work: Callable[[Sequence[Job]], list[Filled]],
    batches: Sequence[Sequence[Job]],
    count: int,
    executor: Executor | None,
    gate: _Gate,
) -> list[list[Filled]]:
    def inside(batch: Sequence[Job]) -> list[Filled]:
        with gate:
            return work(batch)

    if count <= 1 and executor is None:
        return [inside(batch) for batch in batches]
    pool = executor or ThreadPoolExecutor(count, thread_name_prefix="wtool")
    futures: list[Future[list[Filled]]] = []
    try:
        futures.extend(pool.submit(inside, batch) for batch in batches)
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and (error := future.exception()) is not None:
                raise error
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        gate.shut()
        if executor is None:
            pool.shutdown(cancel_futures=True)


def _copy(source: ByteSource, offset: int, nbytes: int, block: int, out: Out) -> None:
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) != block:
        buffer = _local.buffer = memoryview(bytearray(block))
    done = 0
    while done < nbytes:
        piece = buffer[: min(block, nbytes - done)]
        source.readinto(offset + done, piece)
        out.write(piece)
        done += len(piece)
    if nbytes >= _BATCH:
        out.flush()
