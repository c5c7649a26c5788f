"""Plans: every byte of every file is written once, whatever the tensors; and a plan is plain data."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkpoint_on, covered_once

from wtool import plan as plans
from wtool.adapter import SaveRequest
from wtool.api import plan_save
from wtool.bytesource import LocalFile, MemoryBytes
from wtool.checkpoint import Checkpoint
from wtool.dtypes import dtype
from wtool.formats import registry
from wtool.kernels.cast import Cast
from wtool.plan import CopyJob, Layout, OutputFile, Slot, TensorJob, plan_write
from wtool.tensor import BLOCK, STRIPE, LazyTensor

FORMATS = {"safetensors": "m.safetensors", "tensorflow": "m.ckpt", "torch": "m.pth"}
DTYPES = ("f32", "f16", "bf16", "i64", "u8", "bool", "c64", "f8_e4m3")

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
keys = st.text("abcxyz._0123456789äñ", min_size=1, max_size=12).filter(lambda key: key.strip("."))
tables = st.dictionaries(keys, st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=12)


def uncovered(layout: Layout, late: tuple[Any, ...]) -> list[str]:
    """The files whose bytes are not each written exactly once by a patch, a late patch or a slot."""
    wrong = []
    for number, file in enumerate(layout.files):
        ranges = [(patch.offset, len(patch.data)) for patch in (*layout.patches, *late) if patch.file == number]
        ranges += [(slot.offset, slot.nbytes) for slot in layout.slots if slot.file == number and slot.nbytes]
        if not covered_once(ranges, file.size):
            wrong.append(f"{file.name}: {sorted(ranges)} of {file.size}")
    return wrong


@pytest.mark.parametrize("name", FORMATS)
@given(table=tables, shard=st.none() | st.integers(1, 2000), folder=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_byte_once(name: str, table: dict[str, tuple[str, tuple[int, ...]]], shard: int | None, folder: bool) -> None:
    adapter = registry.by_name(name)
    table = {key: row for key, row in table.items() if row[0] in adapter.capabilities.dtypes} or {"k": ("f32", (2,))}
    given = checkpoint_on(MemoryBytes(bytes(100_000)), table)
    request = SaveRequest(
        "out" if folder else FORMATS[name],
        tuple(given.specs),
        max_shard=shard if adapter.capabilities.sharded else None,
        folder=folder and adapter.capabilities.sharded,
    )
    sink = adapter.create(request)
    layout = sink.layout
    sums = {slot.key: 0 for slot in layout.slots}
    assert uncovered(layout, tuple(sink.finish(sums))) == []
    assert sorted(slot.key for slot in layout.slots) == sorted(table)
    assert len({file.name for file in layout.files}) == len(layout.files)
    plan = plan_write(layout, given.tensors)
    moved: dict[int, list[tuple[int, int]]] = {}
    for job in plan.jobs:
        moved.setdefault(job.file, []).append((job.at, job.nbytes))
    for number in range(len(layout.files)):
        slots = sum(slot.nbytes for slot in layout.slots if slot.file == number)
        assert sum(nbytes for _, nbytes in moved.get(number, [])) == slots
    again = pickle.loads(pickle.dumps((sink, plan)))
    assert again[0].layout == layout
    assert [job[1:] for job in again[1].jobs] == [job[1:] for job in plan.jobs]


def simple(given: Checkpoint, checksum: str | None = None) -> Layout:
    """All tensors one behind the other in one file."""
    slots, at = [], 10
    for tensor in given.tensors.values():
        slots.append(Slot(tensor.key, 0, at, tensor.nbytes))
        at += tensor.nbytes
    return Layout((OutputFile("x", at),), (), tuple(slots), checksum=checksum)


@st.composite
def scattered(draw: st.DrawFn) -> Checkpoint:
    """Tensors at any places of two sources: neighbours, overlapping, strided, through a kernel."""
    sources = [MemoryBytes(bytes(5000)), MemoryBytes(bytes(5000))]
    found = {}
    at = 0
    for number in range(draw(st.integers(1, 12))):
        source = sources[draw(st.integers(0, 1)) if draw(st.booleans()) else 0]
        elements = draw(st.integers(0, 60))
        at = draw(st.sampled_from([at, at, 0, 17, 400]))
        tensor = LazyTensor.contiguous(f"k{number}", dtype("f32"), (elements,), source, at)
        at += tensor.nbytes
        if draw(st.integers(0, 4)) == 0:
            tensor = LazyTensor.strided(f"k{number}", dtype("f32"), (elements,), source, at, (2,))
        found[tensor.key] = tensor
    return replace(checkpoint_on(sources[0], {}), tensors=found, sections=())


@given(given=scattered(), piece=st.integers(1, 600), checksum=st.sampled_from([None, "crc32c"]))
@settings(max_examples=300, deadline=None)
def test_jobs_read_and_write_the_right_places(given: Checkpoint, piece: int, checksum: str | None) -> None:
    layout = simple(given, checksum)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "COPY_PIECE", piece)
        plan = plan_write(layout, given.tensors)
    assert covered_once([(job.at - 10, job.nbytes) for job in plan.jobs], layout.files[0].size - 10)
    wanted: dict[int, tuple[object, int]] = {}
    for slot in layout.slots:
        span = given.tensors[slot.key].span
        for byte in range(slot.nbytes if span else 0):
            assert span is not None
            wanted[slot.offset + byte] = (span.source, span.offset + byte)
    for job in plan.jobs:
        if isinstance(job, CopyJob):
            assert checksum or job.nbytes <= piece
            for byte in range(job.nbytes):
                assert wanted.pop(job.at + byte) == (job.source, job.offset + byte)
        else:
            assert job.tensor is given.tensors[job.keys[0]]
    assert wanted == {}
    if checksum:
        assert all(len(job.keys) == 1 for job in plan.jobs)
        assert len(plan.jobs) == sum(1 for slot in layout.slots if slot.nbytes)
    assert plan.nbytes == layout.files[0].size
    assert plan.copied == sum(t.nbytes for t in given.tensors.values() if t.span)


def test_neighbours_become_one_copy() -> None:
    given = checkpoint_on(MemoryBytes(bytes(40_000)), {f"k{n}": ("f32", (10,)) for n in range(1000)})
    plan = plan_write(simple(given), given.tensors)
    assert len(plan.jobs) == 1 and plan.jobs[0].nbytes == 40_000 == plan.copied


def test_a_large_tensor_is_shared_among_threads() -> None:
    class Huge(MemoryBytes):
        size = 1 << 40  # never read

    given = checkpoint_on(Huge(b""), {"k": ("u8", (1 << 40,))})
    plan = plan_write(simple(given), given.tensors)
    assert len(plan.jobs) == (1 << 40) // plans.COPY_PIECE
    assert covered_once([(job.at - 10, job.nbytes) for job in plan.jobs], 1 << 40)


def test_memory_is_said_before() -> None:
    source = MemoryBytes(bytes(4000))
    span = LazyTensor.contiguous("a", dtype("f32"), (10, 10), source, 0)
    view = LazyTensor.strided("a", dtype("f32"), (10, 10), source, 0, (1, 10))
    cast = Cast(dtype("f32"), dtype("bf16"))
    for tensor, least, most in (
        (span, BLOCK, BLOCK),
        (span.map(cast), BLOCK, 4 * BLOCK),
        (view, STRIPE, STRIPE + 4 * BLOCK),
        (view.map(cast), STRIPE, STRIPE + 4 * BLOCK),
    ):
        given = replace(checkpoint_on(source, {}), tensors={"a": tensor}, sections=())
        assert least <= plan_write(simple(given), given.tensors).memory <= most


def test_a_plan_can_travel(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(4000))
    source = LocalFile(tmp_path / "x")
    given = checkpoint_on(source, {"a": ("f32", (10, 10)), "b": ("f32", (100,))})
    view = LazyTensor.strided("b", dtype("f32"), (10, 10), source, 0, (1, 10))
    given = given.with_tensors([given["a"], view])
    plan = plan_save(given, tmp_path / "m.safetensors").plan
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert {type(job) for job in again.jobs} == {CopyJob, TensorJob}
