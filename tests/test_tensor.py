"""Lazy tensors against numpy: spans, views and pieces give the values numpy gives, within their memory."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from support import Counting, covered_once

from wtool import boxes
from wtool.bytesource import LocalFile, MemoryBytes
from wtool.dtypes import BY_NAME, dtype
from wtool.errors import TruncatedError
from wtool.tensor import Box, LazyTensor, TensorSpec, c_strides

MIB = 1 << 20
NAMES = ("u8", "i16", "f32", "f64", "c64", "bf16", "f8_e4m3", "bool")


def check(tensor: LazyTensor, expected: np.ndarray[Any, Any], nbytes: int = 64, stripe: int = 256) -> None:
    """Blocks, array and rows of a tensor are the bytes of `expected`."""
    want = np.ascontiguousarray(expected).tobytes()
    assert tensor.nbytes == len(want)
    blocks = []
    for block in tensor.blocks(nbytes, None, stripe):
        assert block.ndim == 1 and block.nbytes <= max(nbytes, block.itemsize) and block.size
        blocks.append(block.tobytes())
    assert b"".join(blocks) == want
    assert tensor.array().tobytes() == want
    assert tensor.array().shape == expected.shape
    if expected.ndim:
        for start, stop in ((0, 1), (1, 3), (0, expected.shape[0]), (2, 2), (5, 1), (-1, 1000)):
            assert tensor.rows(start, stop).tobytes() == np.ascontiguousarray(expected[start:stop]).tobytes()


@st.composite
def views(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
    """dtype, shape, strides (in elements, any, 0 and overlapping too) and the offset of the first element."""
    shape = draw(st.lists(st.integers(0, 6), max_size=4).map(tuple))
    strides = tuple(draw(st.integers(0, 40)) for _ in shape)
    return draw(st.sampled_from(NAMES)), shape, strides, draw(st.integers(0, 9))


def bytes_for(count: int, kind: np.dtype[Any]) -> bytes:
    values = np.random.default_rng(count).integers(0, 2 if kind.kind == "b" else 256, count * kind.itemsize, dtype="u1")
    return values.tobytes()


@given(view=views(), small=st.booleans(), nbytes=st.integers(1, 200), stripe=st.integers(1, 400))
@settings(max_examples=400, deadline=None)
def test_strided_views(view: tuple[str, tuple[int, ...], tuple[int, ...], int], small: bool, nbytes: int, stripe: int) -> None:
    name, shape, strides, first = view
    kind = dtype(name).numpy()
    count = first + 1 + sum(max(n - 1, 0) * t for n, t in zip(shape, strides, strict=True))
    data = bytes_for(count, kind)
    expected = as_strided(np.frombuffer(data, kind)[first:], shape, tuple(t * kind.itemsize for t in strides))
    tensor = LazyTensor.strided("x", dtype(name), shape, MemoryBytes(data), first * kind.itemsize, strides)
    with pytest.MonkeyPatch.context() as patch:
        if small:  # the same code on what would be a large tensor: runs, jumps and halves
            patch.setattr(boxes, "_SCRATCH", 64)
            patch.setattr(boxes, "_GAP", 8)
            patch.setattr(boxes, "_LINE", 8)
            patch.setattr(boxes, "_STEP", 8)
        check(tensor, expected, nbytes, stripe)


@st.composite
def pieces(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]]]:
    """A shape and, for each axis, where it is cut."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))
    cuts = [sorted(draw(st.sets(st.integers(1, n - 1), max_size=3))) if n > 1 else [] for n in shape]
    return shape, cuts


@given(layout=pieces(), turned=st.booleans(), nbytes=st.integers(1, 100), stripe=st.integers(1, 300), seed=st.randoms())
@settings(max_examples=200, deadline=None)
def test_pieces(layout: tuple[tuple[int, ...], list[list[int]]], turned: bool, nbytes: int, stripe: int, seed: Any) -> None:
    shape, cuts = layout
    whole = np.arange(prod(shape), dtype="i4").reshape(shape)
    parts = [list(itertools.pairwise([0, *cut, n])) for cut, n in zip(cuts, shape, strict=True)]
    boxes = []
    for ranges in itertools.product(*parts):
        part = whole[tuple(slice(a, b) for a, b in ranges)]
        stored = np.asfortranarray(part) if turned else np.ascontiguousarray(part)
        strides = tuple(t // 4 for t in stored.strides)
        data = b"pad!" + stored.tobytes(order="A")
        boxes.append(Box(tuple(a for a, _ in ranges), part.shape, MemoryBytes(data), 4, strides))
    seed.shuffle(boxes)
    check(LazyTensor(TensorSpec("x", dtype("i32"), shape), tuple(boxes), dtype("i32")), whole, nbytes, stripe)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (5,), (2, 3, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_spans(name: str, shape: tuple[int, ...]) -> None:
    kind = dtype(name).numpy()
    data = bytes_for(prod(shape) + 3, kind)
    source = Counting(MemoryBytes(data))
    tensor = LazyTensor.contiguous("x", dtype(name), shape, source, 3 * kind.itemsize)
    assert tensor.span is not None
    assert tensor.span[1:] == (3 * kind.itemsize, prod(shape) * kind.itemsize)
    check(tensor, np.frombuffer(data, kind)[3:].reshape(shape))
    source.ranges.clear()
    list(tensor.blocks(7))
    assert covered_once([(offset - 3 * kind.itemsize, nbytes) for offset, nbytes in source.ranges], tensor.nbytes)


@given(view=views())
def test_a_span_is_what_numpy_calls_contiguous(view: tuple[str, tuple[int, ...], tuple[int, ...], int]) -> None:
    _, shape, strides, first = view
    tensor = LazyTensor.strided("x", dtype("u8"), shape, MemoryBytes(b""), first, strides)
    room = np.lib.stride_tricks.as_strided(np.empty(5000, "u1"), shape, strides)
    assert (tensor.span is not None) == room.flags.c_contiguous
    plain = LazyTensor.strided("x", dtype("u8"), shape, MemoryBytes(b""), first, c_strides(shape))
    assert plain.span is not None


def test_a_source_that_ends(tmp_path: Any) -> None:
    for tensor in (
        LazyTensor.contiguous("x", dtype("f32"), (100,), MemoryBytes(bytes(399)), 0),
        LazyTensor.strided("x", dtype("f32"), (10, 10), MemoryBytes(bytes(399)), 0, (1, 10)),
        LazyTensor.strided("x", dtype("f32"), (2, 2), MemoryBytes(bytes(100)), 0, (1 << 61, 1)),
    ):
        with pytest.raises(TruncatedError):
            tensor.array()


def test_ties() -> None:
    source = MemoryBytes(bytes(400))
    one = LazyTensor.contiguous("a", dtype("f32"), (10, 10), source, 0)
    assert one.identity == one.renamed("b").identity is not None
    for other in (
        LazyTensor.contiguous("a", dtype("i32"), (10, 10), source, 0),
        LazyTensor.contiguous("a", dtype("f32"), (100,), source, 0),
        LazyTensor.contiguous("a", dtype("f32"), (10, 9), source, 0),
        LazyTensor.contiguous("a", dtype("f32"), (9, 10), source, 40),
        LazyTensor.strided("a", dtype("f32"), (10, 10), source, 0, (1, 10)),
        LazyTensor.contiguous("a", dtype("f32"), (10, 10), MemoryBytes(bytes(400)), 0),
        one.map(Plus(1)),
    ):
        assert other.identity != one.identity
    assert one.map(Plus(1)).identity == one.map(Plus(1)).identity
    empty = LazyTensor.contiguous("a", dtype("f32"), (0,), source, 0)
    assert empty.identity is None


class Plus:
    """A kernel: adds a number, in f64."""

    def __init__(self, number: float) -> None:
        self.number = number

    def dtype(self, stored: Any) -> Any:
        return dtype("f64")

    def __call__(self, block: Any, tally: dict[str, int]) -> Any:
        tally["blocks"] = tally.get("blocks", 0) + 1
        return block + np.float64(self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plus) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


@pytest.mark.parametrize("strides", [(10, 1), (1, 10)])
def test_kernels(strides: tuple[int, int]) -> None:
    data = np.arange(100, dtype="f4")
    expected = as_strided(data, (10, 10), tuple(4 * t for t in strides)) + 3.0
    tensor = LazyTensor.strided("x", dtype("f32"), (10, 10), MemoryBytes(data.tobytes()), 0, strides).map(Plus(1)).map(Plus(2))
    assert tensor.span is None and tensor.dtype.name == "f64" and tensor.nbytes == 800
    tally: dict[str, int] = {}
    got = np.concatenate([block.copy() for block in tensor.blocks(40, tally, 80)])
    assert np.array_equal(got, expected.ravel())
    assert tally == {"blocks": 20}
    assert np.array_equal(tensor.array(), expected)
    assert np.array_equal(tensor.rows(2, 5), expected[2:5])


def test_pickled(tmp_path: Any) -> None:
    data = np.arange(100, dtype="f4")
    (tmp_path / "x").write_bytes(data.tobytes())
    source = LocalFile(tmp_path / "x")
    for tensor in (
        LazyTensor.contiguous("x", dtype("f32"), (10, 10), source, 0),
        LazyTensor.strided("x", dtype("f32"), (10, 10), source, 0, (1, 10)).map(Plus(1)),
    ):
        again = pickle.loads(pickle.dumps(tensor))
        assert again == tensor and again.identity == tensor.identity
        assert np.array_equal(again.array(), tensor.array())


def test_packed_dtypes_are_bytes() -> None:
    for row in (row for row in BY_NAME.values() if not row.itemsize):
        data = bytes(at % 251 for at in range(row.nbytes(200)))
        tensor = LazyTensor.contiguous("x", row, (10, 20), MemoryBytes(data), 0)
        assert tensor.nbytes == len(data) == tensor.span.nbytes  # type: ignore[union-attr]
        assert tensor.array().tobytes() == data


class Summing(Counting):
    """Keeps no list, which would be measured too."""

    read = 0

    def _note(self, offset: int, nbytes: int) -> None:
        self.read += nbytes


@pytest.mark.parametrize("kind", ["transposed", "channels last", "expanded", "columns", "pieces"])
def test_memory_while_gathering(tmp_path: Any, kind: str) -> None:
    """At most one stripe, a scratch of 2 MiB and a little, whatever the size: 64 MiB of values through 8 MiB."""
    path = tmp_path / "x"
    path.touch()
    with open(path, "r+b") as file:
        file.truncate(128 * MIB)
    source = LocalFile(path)
    name = dtype("f32")
    tensor = {
        "transposed": LazyTensor.strided("x", name, (4096, 4096), source, 0, (1, 4096)),
        "channels last": LazyTensor.strided("x", name, (64, 512, 512), source, 0, (1, 512 * 64, 64)),
        "expanded": LazyTensor.strided("x", name, (4096, 4096), source, 0, (0, 1)),
        "columns": LazyTensor.strided("x", name, (4096, 4096), source, 0, (8192, 1)),
        "pieces": LazyTensor(
            TensorSpec("x", name, (4096, 4096)),
            tuple(Box((n * 1024, 0), (1024, 4096), source, n * 16 * MIB, (4096, 1)) for n in range(4)),
            name,
        ),
    }[kind]
    counted = Summing(source)
    tensor = LazyTensor(tensor.spec, tuple(box._replace(source=counted) for box in tensor.boxes), name)
    tracemalloc.start()
    try:
        total = sum(block.nbytes for block in tensor.blocks(MIB, None, 8 * MIB))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 64 * MIB
    assert peak < 8 * MIB + 2 * MIB + 2 * MIB
    stripes = 8 if kind == "channels last" else 1  # its values are so mixed that each stripe reads through all of them
    assert counted.read <= 1.2 * stripes * 64 * MIB


@given(view=views(), nbytes=st.integers(1, 200), stripe=st.integers(1, 400), data=st.data())
@settings(max_examples=300, deadline=None)
def test_tiles_in_any_order(
    view: tuple[str, tuple[int, ...], tuple[int, ...], int], nbytes: int, stripe: int, data: st.DataObject
) -> None:
    """Whatever shape they have, and whoever takes which: each value once, at its place."""
    name, shape, strides, first = view
    kind = dtype(name).numpy()
    count = first + 1 + sum(max(n - 1, 0) * t for n, t in zip(shape, strides, strict=True))
    stored = bytes_for(count, kind)
    expected = as_strided(np.frombuffer(stored, kind)[first:], shape, tuple(t * kind.itemsize for t in strides))
    tensor = LazyTensor.strided("x", dtype(name), shape, MemoryBytes(stored), first * kind.itemsize, strides)
    if not tensor.elements:
        return
    tile = data.draw(st.tuples(*(st.integers(1, size) for size in shape)) | st.just(tensor.tile(stripe, 0, True) or shape))
    many = boxes.count_tiles(shape, tile)
    cut = data.draw(st.integers(0, many))
    out = np.zeros(tensor.elements, kind)
    seen = np.zeros(tensor.elements, int)
    for low, high in ((cut, many), (0, cut)):
        for places, block in tensor.runs(tile, low, high, nbytes, {}):
            assert block.nbytes <= max(nbytes, block.itemsize) and block.size % len(places) == 0
            for place, run in zip(places, block.reshape(len(places), -1), strict=True):
                out[place : place + run.size] = run
                seen[place : place + run.size] += 1
    assert (seen == 1).all()
    assert out.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((7, 7, 512, 4096), (7, 1, 49, 25088)),  # a dense layer behind Flatten
        ((4096, 512, 7, 7), (1, 4096, 14680064, 2097152)),  # and back
        ((4096, 128256), (1, 4096)),  # an embedding
        ((3, 3, 2048, 2048), (3, 1, 9, 18432)),  # OIHW -> HWIO
    ],
)
def test_tiles_are_chosen_by_cost(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    tensor = LazyTensor.strided("x", dtype("f32"), shape, MemoryBytes(b""), 0, strides)
    tile = tensor.tile(32 * MIB, 0, False)
    assert tile is not None and prod(tile) <= 8 * MIB
    assert boxes.run_of(shape, tile) * 4 >= 4096  # nothing is written in small pieces
    # nor read: what lies together in the source, from its innermost axis on
    run = 1
    for axis in sorted(range(len(shape)), key=lambda axis: strides[axis]):
        run *= tile[axis]
        if tile[axis] != shape[axis]:
            break
    assert run * 4 >= 4096


def test_slabs_do_where_tiles_win_nothing() -> None:
    def tile(*shape: int, nbytes: int = 32 * MIB, again: int = 0) -> tuple[int, ...] | None:
        return LazyTensor.strided("x", dtype("f32"), shape, MemoryBytes(b""), 0, (1, shape[0])).tile(nbytes, again, False)

    assert tile(4096, 4096) is None  # written in whole rows, read in pieces of 8 KiB
    assert tile(100, 100) is None  # fits as it is
    assert tile(4096, 128256) is not None
    assert LazyTensor.contiguous("x", dtype("f32"), (1 << 14, 1 << 14), MemoryBytes(b""), 0).tile(MIB, 0, True) is None
