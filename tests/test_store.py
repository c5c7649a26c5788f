"""Tensors stored sparse: exact sizes, the layout as compressed-tensors reads it, and the same bits back."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool.analysis.counts import count
from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import BY_NAME, dtype
from wtool.errors import CorruptError, KeyClashError, WtoolError
from wtool.kernels import bitmask
from wtool.ops.densify import Densify
from wtool.ops.store import MARGIN, Store, packed_bytes
from wtool.sparse import stored_sparse
from wtool.tensor import LazyTensor

WIDE = [name for name, row in BY_NAME.items() if row.itemsize]


def lazy(key: str, array: np.ndarray, name: str | None = None) -> LazyTensor:
    row = dtype(name or str(array.dtype))
    return LazyTensor.contiguous(key, row, array.shape, MemoryBytes(array.tobytes()), 0)


def checkpoint(*tensors: LazyTensor, **more: object) -> Checkpoint:
    return Checkpoint({tensor.key: tensor for tensor in tensors}, Source("memory", "safetensors", "single", ()), **more)  # type: ignore[arg-type]


def store(given: Checkpoint, layout: str = "auto", margin: int = -(1 << 40), jobs: int = 1) -> Checkpoint:
    return Store(layout, count(given.tensors, jobs), margin)(given)


def same(one: LazyTensor, two: LazyTensor) -> None:
    assert one.spec == two.spec
    assert one.array().tobytes() == two.array().tobytes()


def sparse(shape: tuple[int, ...], share: float, unit: str = "<f4", seed: int = 0) -> np.ndarray:
    """Random bits of which a share is zero, whole values at a time."""
    rng = np.random.default_rng(seed)
    array = np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(unit).itemsize), unit).reshape(shape).copy()
    array[rng.random(shape) < share] = 0
    return array


def oracle(shape: tuple[int, ...], values: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """compressed-tensors 0.10.2, utils/helpers.py and sparse_bitmask.py: unpack_bitmasks, then the masked places in order."""
    mask = np.unpackbits(bits, axis=-1, count=shape[-1], bitorder="little").astype(bool).reshape(shape)
    out = np.zeros(shape, values.dtype)
    out[mask] = values
    return out


@pytest.mark.parametrize("shape", [(1, 1), (4, 8), (5, 13), (64, 100), (1, 1000), (1000, 1), (3, 131072 + 5)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_bitmask_is_what_compressed_tensors_reads(shape: tuple[int, int], share: float) -> None:
    array = sparse(shape, share, "<i4")
    found = store(checkpoint(lazy("a.w", array)), "bitmask")
    assert list(found) == ["a.w.shape", "a.w.compressed", "a.w.bitmask", "a.w.row_offsets"]
    parts = {key.removeprefix("a.w."): tensor.array() for key, tensor in found.items()}
    assert parts["bitmask"].shape == (shape[0], -(-shape[1] // 8)) and parts["bitmask"].dtype == np.uint8
    assert np.array_equal(oracle(tuple(parts["shape"]), parts["compressed"], parts["bitmask"]), array)
    rows = (array != 0).sum(axis=1)
    assert np.array_equal(parts["row_offsets"], np.cumsum(rows) - rows)
    assert np.array_equal(parts["bitmask"], np.packbits(array != 0, axis=1, bitorder="little"))


@pytest.mark.parametrize("shape", [(1, 1), (5, 13), (7, 70000), (400, 300)])
def test_csr_is_that_of_scipy_and_torch(shape: tuple[int, int]) -> None:
    array = sparse(shape, 0.8, "<i2")
    found = {key.removeprefix("w."): tensor.array() for key, tensor in store(checkpoint(lazy("w", array)), "csr").items()}
    rows, columns = np.nonzero(array)
    assert np.array_equal(found["col_indices"], columns) and np.array_equal(found["values"], array[rows, columns])
    assert np.array_equal(found["crow_indices"], np.searchsorted(rows, np.arange(shape[0] + 1)))
    assert found["col_indices"].dtype == found["crow_indices"].dtype == np.int32


@pytest.mark.parametrize("layout", ["bitmask", "csr"])
@pytest.mark.parametrize("name", WIDE)
def test_all_bits_of_all_dtypes_come_back(name: str, layout: str) -> None:
    item = dtype(name).itemsize
    array = sparse((9, 21 * item), 0.0, "u1", 3)
    array.reshape(9, 21, item)[np.random.default_rng(1).random((9, 21)) < 0.6] = 0
    given = checkpoint(LazyTensor.contiguous("w", dtype(name), (9, 21), MemoryBytes(array.tobytes()), 0))
    same(Densify()(store(given, layout))["w"], given["w"])


@pytest.mark.parametrize("layout", ["bitmask", "csr"])
def test_negative_zeros_and_payloads_are_values(layout: str) -> None:
    bits = np.array([[0, 0x80000000, 0x7FC00001, 0xFFFFFFFF, 0x7F800000, 1, 0, 0]], "<u4").view("<f4")
    found = store(checkpoint(lazy("w", bits)), layout)
    values = found["w.compressed" if layout == "bitmask" else "w.values"]
    assert values.elements == 5
    same(Densify()(found)["w"], lazy("w", bits))


shapes = st.one_of(
    st.tuples(),
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)


@settings(max_examples=150, deadline=None)
@given(st.data(), shapes, st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]), st.sampled_from(["bitmask", "csr", "auto"]))
def test_any_shape_comes_back(data: st.DataObject, shape: tuple[int, ...], share: float, layout: str) -> None:
    array = sparse(shape, share, data.draw(st.sampled_from(["u1", "<u2", "<f4", "<i8", "<c16"])), data.draw(st.integers(0, 9)))
    given = checkpoint(lazy("w", array))
    found = store(given, layout)
    for tensor in found.values():
        assert tensor.nbytes == tensor.array().nbytes == sum(block.nbytes for block in tensor.blocks())
        whole = tensor.array().tobytes()
        first = data.draw(st.integers(0, len(whole)))
        last = data.draw(st.integers(first, len(whole)))
        source = tensor.boxes[0].source
        assert source.pread(first, last - first) == whole[first:last]
    dense = Densify()(found)
    assert list(dense) == ["w"]
    same(dense["w"], given["w"])
    whole = array.tobytes()
    first = data.draw(st.integers(0, len(whole)))
    last = data.draw(st.integers(first, len(whole)))
    assert dense["w"].boxes[0].source.pread(first, last - first) == whole[first:last]


@pytest.mark.parametrize("layout", ["bitmask", "csr"])
@pytest.mark.parametrize("columns", [7, 64, 1000, 1001, 30_000])
def test_runs_that_end_inside_rows(monkeypatch: pytest.MonkeyPatch, columns: int, layout: str) -> None:
    """Small blocks, few marks, rows longer and shorter than both."""
    import wtool.ops.densify
    import wtool.ops.packed

    monkeypatch.setattr(wtool.ops.packed, "BLOCK", 10_000)
    monkeypatch.setattr(wtool.ops.densify, "BLOCK", 10_004)
    rows = 60_000 // columns
    given = checkpoint(lazy("w", sparse((max(rows, 2), columns), 0.7, "<i2")))
    if columns < 7000:
        found = store(given, layout, jobs=2)
        for key, tensor in found.items():
            source = tensor.boxes[0].source
            assert (
                b"".join(source.pread(at, min(29989, source.size - at)) for at in range(0, source.size, 29989))
                == tensor.array().tobytes()
            ), key
    else:
        found = store(given, layout)
    dense = Densify()(found)["w"]
    same(dense, given["w"])
    assert b"".join(block.tobytes() for block in dense.blocks(1 << 10)) == given["w"].array().tobytes()


def test_views_and_tied_tensors() -> None:
    array = sparse((30, 47), 0.8)
    data = MemoryBytes(array.tobytes())
    turned = LazyTensor.strided("t", dtype("f32"), (47, 30), data, 0, (1, 47))
    tied = [LazyTensor.contiguous(key, dtype("f32"), (30, 47), data, 0) for key in ("a", "b")]
    given = checkpoint(turned, *tied)
    for layout in ("bitmask", "csr"):
        found = store(given, layout)
        assert sorted(map(len, found.tied())) == [2, 2, 2, 2]
        dense = Densify()(found)
        assert list(dense) == ["t", "a", "b"] and dense.tied() == [["a", "b"]]
        for key in given:
            same(dense[key], given[key])
            for one, two in zip(found.values(), pickle.loads(pickle.dumps(list(found.values()))), strict=True):
                same(one, two)


def test_nothing_grows() -> None:
    given = checkpoint(
        lazy("dense", sparse((64, 64), 0.0)),
        lazy("norm", sparse((64,), 1.0)),
        lazy("empty", np.empty((0, 5), "<f4")),
        lazy("column", sparse((4000, 1), 1.0)),
        lazy("sparse", sparse((64, 640), 0.9)),
        lazy("emptier", sparse((64, 640), 0.999)),
        LazyTensor.contiguous("packed", dtype("f4"), (64, 640), MemoryBytes(bytes(64 * 320)), 0),
    )
    step = Store("auto", count(given.tensors))
    assert step.layouts(given) == {"column": "csr", "sparse": "bitmask", "emptier": "csr"} or step.layouts(given) == {
        "sparse": "bitmask",
        "emptier": "csr",
    }
    assert json.loads(step.metadata(given)) == {"bitmask": 1, "csr": list(step.layouts(given).values()).count("csr")}
    found = step(given)
    assert found.nbytes + MARGIN <= given.nbytes
    assert Store("dense", step.marks)(given).tensors == given.tensors
    for key, tensor in Densify()(found).items():
        same(tensor, given[key])


def test_sizes_are_exact_and_ninety_percent_is_a_seventh() -> None:
    array = np.where(np.arange(1024 * 1024).reshape(1024, 1024) % 10 == 0, 1.0, 0.0).astype("<f4")
    given = checkpoint(lazy("w", array))
    total = count(given.tensors)["w"].total
    for layout in ("bitmask", "csr"):
        assert store(given, layout).nbytes == packed_bytes(given["w"], total, layout)
    assert store(given, "bitmask").nbytes <= 0.14 * array.nbytes


def test_taken_keys_stay_dense() -> None:
    given = checkpoint(lazy("w", sparse((64, 640), 0.9)), lazy("w.shape", np.zeros(3, "<f4")))
    assert next(iter(store(given, "bitmask"))) == "w"
    packed = store(checkpoint(lazy("w", sparse((64, 640), 0.9))))
    with pytest.raises(KeyClashError):
        Densify()(checkpoint(*packed.values(), lazy("w", np.zeros(3, "<f4"))))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@pytest.mark.parametrize("layout", ["bitmask", "csr"])
def test_every_format_carries_it(tmp_path: Path, suffix: str, layout: str) -> None:
    given = checkpoint(
        lazy("x.w", sparse((64, 640), 0.9)), lazy("x.b", sparse((64,), 0.0)), lazy("y", sparse((3, 4, 70, 5), 0.8))
    )
    packed = store(given, layout, margin=MARGIN)
    save_checkpoint(packed, tmp_path / f"small{suffix}")
    back = open_checkpoint(tmp_path / f"small{suffix}")
    assert len(stored_sparse(back.tensors, back.extras)) == 2
    save_checkpoint(Densify()(back), tmp_path / f"dense{suffix}")
    dense = open_checkpoint(tmp_path / f"dense{suffix}")
    assert set(dense) == set(given)
    for key in given:
        same(dense[key], given[key])


def test_sections_and_order_stay() -> None:
    from wtool.checkpoint import Section

    tensors = [lazy("m.a", sparse((64, 640), 0.9)), lazy("m.b", sparse((4,), 0.0)), lazy("o.a", sparse((64, 640), 0.9))]
    given = checkpoint(
        *tensors, sections=(Section("m", "model", ("m.a", "m.b"), "m."), Section("o", "optimizer", ("o.a",), "o."))
    )
    found = store(given, margin=MARGIN)
    assert [len(section.keys) for section in found.sections] == [5, 4]
    dense = Densify()(found)
    assert dense.sections == given.sections and list(dense) == list(given)


def damage(found: Checkpoint, key: str, change: object) -> Checkpoint:
    array = found[key].array().copy()
    change(array)  # type: ignore[operator]
    return checkpoint(*(lazy(key, array) if tensor.key == key else tensor for tensor in found.values()))


def _set(place: object, value: int) -> object:
    def change(array: np.ndarray) -> None:
        array[place] = value

    return change


@pytest.mark.parametrize(
    ("layout", "key", "place", "value"),
    [
        ("bitmask", "w.shape", 0, 6),
        ("bitmask", "w.shape", 0, -1),
        ("bitmask", "w.shape", 1, 1 << 61),
        ("bitmask", "w.row_offsets", 1, 1 << 40),
        ("bitmask", "w.row_offsets", 2, -1),
        ("bitmask", "w.bitmask", (2, 0), 0),
        ("bitmask", "w.bitmask", slice(None), 255),
        ("csr", "w.shape", 1, 2),
        ("csr", "w.crow_indices", 2, -1),
        ("csr", "w.crow_indices", 0, 1),
        ("csr", "w.crow_indices", -1, 3),
        ("csr", "w.crow_indices", 1, 1 << 30),
        ("csr", "w.col_indices", 0, -1),
        ("csr", "w.col_indices", 5, 1 << 30),
        ("csr", "w.col_indices", 4, 0),
    ],
)
def test_damage_is_an_error(layout: str, key: str, place: object, value: int) -> None:
    found = store(checkpoint(lazy("w", sparse((5, 13), 0.3, "<i4"))), layout)
    with pytest.raises(CorruptError, match="'w'"):
        Densify()(damage(found, key, _set(place, value)))["w"].array()


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["bitmask", "csr"]))
def test_any_damage_is_an_error_or_a_tensor(data: st.DataObject, layout: str) -> None:
    found = store(checkpoint(lazy("w", sparse((5, 13), 0.5, "<i4"))), layout)
    key = data.draw(st.sampled_from(sorted(found)))
    array = found[key].array().copy().reshape(-1)
    array[data.draw(st.integers(0, len(array) - 1))] = data.draw(
        st.integers(*(lambda i: (i.min, i.max))(np.iinfo(array.dtype)))
    )
    spoilt = LazyTensor.contiguous(key, found[key].dtype, found[key].shape, MemoryBytes(array.tobytes()), 0)
    try:
        dense = Densify()(checkpoint(*(spoilt if tensor.key == key else tensor for tensor in found.values())))["w"]
        if dense.nbytes < 1 << 20:
            dense.array()
    except WtoolError:
        pass


def test_missing_parts_are_plain_tensors() -> None:
    found = store(checkpoint(lazy("w", sparse((5, 13), 0.3, "<i4"))), "bitmask")
    some = checkpoint(*(tensor for tensor in found.values() if tensor.key != "w.shape"))
    assert list(Densify()(some)) == list(some)


def test_counts_know_rows_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import wtool.analysis.counts as counts

    monkeypatch.setattr(counts, "_PIECE", 2 * bitmask.RUN)
    array = sparse((300, 1500), 0.5, "<i2")
    marks = count({"w": lazy("w", array)}, jobs=3)["w"]
    flat = np.cumsum(array.reshape(-1) != 0)
    assert marks.total == flat[-1]
    assert np.array_equal(marks.before[1:-1], flat[bitmask.RUN - 1 :: bitmask.RUN])
    assert marks.rows is not None and np.array_equal(marks.rows[1:], flat[1499:-1:1500])


def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wtool.cli.app import run

    given = checkpoint(lazy("x.w", sparse((64, 640), 0.9)), lazy("x.b", sparse((64,), 0.0)))
    paths = [str(tmp_path / name) for name in ("dense.safetensors", "small.safetensors", "small.pth", "back.safetensors")]
    save_checkpoint(given, paths[0])
    assert run(["convert", paths[0], paths[1], "--store", "auto", "--verify", "--json"]) == 0
    assert "1 of 2 tensors are stored sparse" in capsys.readouterr().err
    assert open_checkpoint(paths[1]).metadata["wtool.sparse"] == '{"bitmask": 1}'
    assert run(["inspect", paths[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sparse"] == 1
    assert run(["convert", paths[0], paths[2], "--store", "csr", "--strict", "-q"]) == 0
    for path in paths[1:3]:
        assert run(["convert", path, paths[3], "--densify", "--verify", "--force", "-q"]) == 0
        assert Path(paths[3]).read_bytes() == Path(paths[0]).read_bytes()
    assert run(["convert", paths[0], paths[3], "--store", "zip", "--force", "-q"]) == 2
