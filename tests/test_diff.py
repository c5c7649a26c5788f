"""What a diff finds: structure by key and by content, values in any container, dtype and sharding."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Counting, checkpoint_of
from test_memory import sparse

from wtool.analysis.align import align
from wtool.analysis.compare import _RANGE
from wtool.analysis.diff import Diff, Pair, diff
from wtool.analysis.diff_report import Judgement, diff_report
from wtool.api import open_checkpoint, save_checkpoint
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import TruncatedError, UnsupportedError
from wtool.keys import TF_SUFFIX
from wtool.ops.cast import CastTo
from wtool.tensor import LazyTensor

pytest.importorskip("ml_dtypes")

Array = np.ndarray[Any, Any]
NAMES = {"<f8": "f64", "<f4": "f32", "<f2": "f16", "<i8": "i64", "|u1": "u8"}


def checkpoint(tensors: dict[str, Array | LazyTensor], path: str = "m") -> Checkpoint:
    found = {}
    for key, values in tensors.items():
        if isinstance(values, LazyTensor):
            found[key] = values.renamed(key)
        else:
            name = NAMES[values.dtype.str]
            found[key] = LazyTensor.contiguous(key, dtype(name), values.shape, MemoryBytes(values.tobytes(), path), 0)
    return Checkpoint(found, Source(path, "torch", "zip", ()))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def of(a: dict[str, Any], b: dict[str, Any], **options: Any) -> Diff:
    return diff(checkpoint(a), checkpoint(b), **options)


def names(pairs: Any) -> list[tuple[str, str, tuple[int, ...] | None]]:
    return [(pair.a, pair.b, pair.axes) for pair in pairs]


def test_structure() -> None:
    w = normal(4, 3)
    a = {"same": w, "shape": w, "dtype": w, "gone": w + 1, "value": w}
    b = {"value": w + 2, "same": w, "shape": w[:2], "dtype": w.astype("f8"), "new": w + 3}
    found = of(a, b)
    assert (found.only_a, found.only_b) == (("gone",), ("new",))
    assert names(found.shapes) == [("shape", "shape", None)] and names(found.dtypes) == [("dtype", "dtype", None)]
    assert names(found.same) == [("dtype", "dtype", None), ("same", "same", None)]
    assert list(found.values) == [Pair("value", "value")] and found.reordered and found.read
    plain = of(a, b, values=False)
    assert names(plain.same) == [("same", "same", None), ("value", "value", None)] and not plain.values and not plain.read
    assert plain.structure == found.structure == 3


def content(seed: int) -> Array:
    """Of a few shapes and values, so that much is alike."""
    rng = random.Random(seed)
    shape = rng.choice([(2, 3), (3, 2), (3, 3), (4,), (0, 2), ()])
    kind = rng.choice(["<f4", "<f4", "<f2"])
    return np.asarray(rng.choice([np.zeros(shape), normal(*shape, seed=seed % 3)])).reshape(shape).astype(kind)


@given(*[st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 60).map(content)) for _ in "AB"])
def test_every_key_is_told_of_once(a: dict[str, Array], b: dict[str, Array]) -> None:
    found = of(a, b)
    shared = [*found.same, *found.values, *found.renamed, *found.transposed, *found.shapes]
    assert sorted([*found.only_a, *(pair.a for pair in shared)]) == sorted(a)
    assert sorted([*found.only_b, *(pair.b for pair in shared)]) == sorted(b)
    assert all(pair.a == pair.b for pair in shared if pair not in found.renamed)
    for pair in found.renamed + found.transposed:
        turned = a[pair.a] if pair.axes is None else a[pair.a].transpose(pair.axes)
        assert turned.dtype == b[pair.b].dtype and np.array_equal(turned, b[pair.b]) and a[pair.a].size
    for pair in found.same:
        assert np.array_equal(a[pair.a], b[pair.b])
    for pair, value in found.values.items():
        assert not np.array_equal(a[pair.a], b[pair.b]) and value.differing
    back = of(b, a)
    assert len(back.same) == len(found.same) and len(back.renamed) == len(found.renamed)
    assert {(pair.b, pair.a) for pair in back.values} == {(pair.a, pair.b) for pair in found.values}


def test_without_values_nothing_is_read() -> None:
    source = Counting(MemoryBytes(bytes(48)))
    tensor = LazyTensor.contiguous("w", dtype("f32"), (4, 3), source, 0)
    of({"w": tensor, "x": tensor}, {"w": tensor, "y": normal(4, 3)}, values=False)
    assert not source.ranges
    assert not diff(checkpoint({"w": tensor}), checkpoint({"w": tensor})).values
    assert not source.ranges, "the same place on both sides"


def test_renames() -> None:
    w = [normal(4, 3, seed=n) for n in range(3)]
    found = of({"a": w[0], "b": w[1], "c": w[2]}, {"x": w[1], "y": w[0], "c": w[2], "z": w[0] + 1})
    assert names(found.renamed) == [("a", "y", None), ("b", "x", None)]
    assert found.only_a == () and found.only_b == ("z",) and not found.values


def test_several_alike_pair_in_natural_order() -> None:
    zero = np.zeros(5, np.float32)
    found = of({f"a.{n}": zero for n in (10, 9, 1)}, {f"b.{n}": zero for n in (2, 30, 4, 5)})
    assert names(found.renamed) == [("a.1", "b.2", None), ("a.9", "b.4", None), ("a.10", "b.5", None)]
    assert found.only_b == ("b.30",)


def test_what_is_empty_is_never_renamed() -> None:
    found = of({"a": np.zeros((0, 3), np.float32)}, {"b": np.zeros((0, 3), np.float32)})
    assert not found.renamed and found.only_a == ("a",) and found.only_b == ("b",)
    assert not of({"a": np.zeros((0, 3), np.float32)}, {"a": np.zeros((0, 3), np.float32)}).structure


def test_another_dtype_is_no_rename() -> None:
    assert not of({"a": np.zeros(4, np.float32)}, {"b": np.zeros(8, np.float16)}).renamed
    assert not of({"a": np.zeros(4, np.float32)}, {"b": np.zeros((2, 2), np.float32)}).renamed


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((4, 3), (1, 0)),
        ((5, 5), (1, 0)),
        ((100, 700), (1, 0)),
        ((6, 4, 3), (2, 1, 0)),
        ((1, 4, 3), (2, 1, 0)),
        ((8, 4, 3, 3), (2, 3, 1, 0)),
        ((3, 3, 4, 8), (3, 2, 0, 1)),
        ((2, 3, 4, 5, 6), (2, 3, 4, 1, 0)),
    ],
)
@pytest.mark.parametrize("keys", ["kernel", "weight"])
def test_transposes(shape: tuple[int, ...], order: tuple[int, ...], keys: str) -> None:
    w = normal(*shape)
    other = normal(7)
    turned = np.ascontiguousarray(w.transpose(order))
    found = of({"w": other, "weight": w}, {"w": other, keys: turned})
    (pair,) = found.transposed if keys == "weight" else found.renamed
    assert pair.axes is not None
    assert np.array_equal(w.transpose(pair.axes), turned)
    assert (pair.a, pair.b) == ("weight", keys) and not found.values and not found.shapes and len(found.same) == 1


def test_a_transposed_view_of_what_the_other_side_holds() -> None:
    w = normal(5, 5)
    view = LazyTensor.strided("w", dtype("f32"), (5, 5), MemoryBytes(w.tobytes()), 0, (1, 5))
    assert names(of({"w": view}, {"w": w}).transposed) == [("w", "w", (1, 0))]
    assert names(of({"w": w}, {"x": view}).renamed) == [("w", "x", (1, 0))]
    assert len(of({"w": view}, {"w": np.ascontiguousarray(w.T)}).same) == 1


def test_what_is_no_transpose() -> None:
    w = normal(1, 4, 3)
    assert names(of({"w": w}, {"w": w.reshape(4, 1, 3)}).shapes) == [("w", "w", None)], "no value moved"
    symmetric = normal(5, 5)
    symmetric += symmetric.T
    assert not of({"w": symmetric}, {"w": np.ascontiguousarray(symmetric.T)}).transposed, "equal as it is"
    w = normal(6, 4)
    found = of({"w": w}, {"w": w.reshape(4, 6)})
    assert not found.transposed and names(found.shapes) == [("w", "w", None)]
    turned = np.ascontiguousarray(w.T)
    turned[-1, -1] += 1
    assert not of({"w": w}, {"w": turned}).transposed, "all but the last element"
    assert not of({"w": w}, {"x": turned}).renamed
    assert not of({"w": w[:1]}, {"w": np.ascontiguousarray(w[:1].T)}).transposed, "a vector has nothing to turn"
    square = normal(5, 5)
    assert names(of({"w": square}, {"w": square[::-1].copy()}).values) == [("w", "w", None)]


def test_renamed_and_transposed_among_many_alike() -> None:
    w = {f"a.{n}.weight": normal(4, 3, seed=n) for n in range(12)}
    b = {f"b_{n}/kernel": np.ascontiguousarray(w[f"a.{n}.weight"].T) for n in range(12)}
    assert names(of(w, b, jobs=2).renamed) == [(f"a.{n}.weight", f"b_{n}/kernel", (1, 0)) for n in range(12)]


def test_names_without_likes_are_read_once() -> None:
    one, two = (Counting(MemoryBytes(normal(300, 200, seed=seed).tobytes())) for seed in (0, 1))
    a = LazyTensor.contiguous("a", dtype("f32"), (300, 200), one, 0)
    b = LazyTensor.contiguous("b", dtype("f32"), (200, 300), two, 0)
    assert not of({"a": a}, {"b": b}).renamed and one.total < 1000, "turned, a few values tell"
    b = LazyTensor.contiguous("b", dtype("f32"), (300, 200), two, 0)
    assert not of({"a": a}, {"b": b}).renamed and one.total < 242_000
    assert not of({"a": a, "c": a}, {}).renamed and one.total < 242_000, "nothing is there to be alike"


def test_permuted_rows_are_seen() -> None:
    """Minimum, maximum, mean and spread are the same."""
    w = normal(6, 4)
    found = of({"w": w}, {"w": w[[1, 0, 2, 3, 4, 5]]})
    (value,) = found.values.values()
    assert value.differing == 8 and value.rel_l2 is not None and value.rel_l2 > 0.1


def test_nan_in_bf16_is_seen() -> None:
    def bf16(*codes: int) -> LazyTensor:
        return LazyTensor.contiguous("w", dtype("bf16"), (len(codes),), MemoryBytes(np.array(codes, "<u2").tobytes()), 0)

    (value,) = of({"w": bf16(0x3F80, 0x3F80)}, {"w": bf16(0x7FC0, 0x3F80)}).values.values()
    assert (value.nonfinite, value.differing) == (1, 1)
    assert not of({"w": bf16(0x7FC0)}, {"w": bf16(0xFFC1)}).values, "NaN equals NaN"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.module.", "module._orig_mod.", "net.", "any."])
def test_a_prefix_is_hinted(prefix: str) -> None:
    bare = {f"layers.{n}.w": normal(2) for n in range(5)} | {"head": normal(3)}
    wrapped = {prefix + key: value for key, value in bare.items()}
    for side, a, b in (("A", wrapped, bare), ("B", bare, wrapped)):
        found = of(a, b, values=False)
        assert found.hints == (f"6 keys are equal without the '{prefix}' of {side}: --strip-prefix {prefix}",)
    assert not of(bare, bare).hints and not of(bare, {"x": normal(1)}).hints


def test_other_hints() -> None:
    found = of({"a.b": normal(1)}, {"a/b": normal(1)}, values=False)
    assert found.hints == ("1 key is equal but for / and .: --rename '/=>.' renames those of A",)
    a, b = ({f"{prefix}w.{n}": normal(1) for n in range(3)} for prefix in ("module.", "_orig_mod."))
    (hint,) = of(a, b, values=False).hints
    assert hint.endswith(r"--rename '^module\.=>_orig_mod.'")


def test_tensorflow_suffixes_are_left_aside() -> None:
    w = normal(3)
    found = of({"a/b" + TF_SUFFIX: w}, {"a/b": w})
    assert names(found.same) == [("a/b" + TF_SUFFIX, "a/b", None)] and not found.structure
    both = align(checkpoint({"x": w, "x" + TF_SUFFIX: w}), checkpoint({"x": w}))
    assert both.pairs == (("x", "x"),) and both.only_a == ("x" + TF_SUFFIX,), "neither of two is lost"


FORMATS = ["m.pth", "m.safetensors", "m.ckpt", "sharded"]


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    given = checkpoint_of(3, count=6, elements=5000)
    for name in FORMATS[:3]:
        save_checkpoint(given, folder / name)
    save_checkpoint(given, folder / "sharded", max_shard=50_000)
    save_checkpoint(checkpoint_of(4, count=6, elements=5000), folder / "other.pth")
    return {path.name.removesuffix(".index"): path for path in folder.iterdir()}


@pytest.mark.parametrize("one", FORMATS)
@pytest.mark.parametrize("two", FORMATS)
def test_formats_and_shardings(everywhere: dict[str, Path], one: str, two: str) -> None:
    a, b = (open_checkpoint(everywhere[name]) for name in (one, two))
    found = diff(a, b, jobs=2)
    assert len(found.same) == 6 and not found.structure and not found.values
    narrow = diff(a, CastTo(dtype("bf16"))(b))
    assert len(narrow.dtypes) == 6 and all(value.cast for value in narrow.values.values())
    other = diff(a, open_checkpoint(everywhere["other.pth"]))
    assert len(other.values) == 6 and all(value.differing == 5000 for value in other.values.values())


@pytest.mark.parametrize("kind", ["torch", "tensorflow"])
def test_of_the_frameworks_themselves(tmp_path: Path, kind: str) -> None:
    values = {f"w.{n}": normal(30, 20, seed=n) for n in range(3)}
    if kind == "torch":
        torch = pytest.importorskip("torch")
        torch.save({key: torch.from_numpy(value.T.copy()).T for key, value in values.items()}, tmp_path / "m.pt")
        path = tmp_path / "m.pt"
    else:
        tf = pytest.importorskip("tensorflow")
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "m.ckpt"),
            tensor_names=list(values),
            shape_and_slices=[""] * 3,
            tensors=[tf.constant(value) for value in values.values()],
        )
        path = tmp_path / "m.ckpt.index"
    save_checkpoint(checkpoint(dict(values)), tmp_path / "m.safetensors")
    found = diff(open_checkpoint(path), open_checkpoint(tmp_path / "m.safetensors"))
    assert len(found.same) == 3 and not found.structure and not found.values


def report(found: Diff) -> str:
    return json.dumps(diff_report(found, Judgement()).data, allow_nan=False)


def test_the_order_is_the_same_for_any_number_of_threads() -> None:
    keys = [f"l.{n}.{what}" for n in range(30) for what in ("w", "b", "moved", "turned")]
    random.Random(0).shuffle(keys)
    a: dict[str, Any] = {}
    b: dict[str, Any] = {}
    for place, key in enumerate(keys):
        a[key] = normal(20, 30, seed=place)
        other = a[key] + (place % 3 == 0)
        b[key.replace("moved", "put")] = np.ascontiguousarray(other.T) if "turned" in key else other
    first = report(of(a, b))
    for jobs in (2, 7):
        assert report(of(a, b, jobs=jobs)) == first
    assert report(of(dict(reversed(a.items())), dict(reversed(b.items())))) == first


def test_numbers_that_do_not_exist_are_null() -> None:
    a = {"nan": np.float32([np.nan] * 2), "huge": np.float64([1e300, 1]), "zero": np.zeros(2), "tiny": np.float64([1e-300])}
    b = {"nan": np.float32([1, 2]), "huge": np.float64([-1e300, 1]), "zero": np.ones(2), "tiny": np.float64([2e-300])}
    data = json.loads(report(of(a, b)))
    assert [value["key"] for value in data["values"]] == ["huge", "nan", "tiny", "zero"]
    assert all(value["rel_l2"] is None and value["cosine"] is None for value in data["values"])
    assert data["totals"]["moved"]["cosine"] is None


def test_a_truncated_side_is_named() -> None:
    whole = checkpoint({"w": normal(4, 4), "x": normal(3)}, "whole.pth")
    short = LazyTensor.contiguous("w", dtype("f32"), (4, 4), MemoryBytes(bytes(20), "short.pth"), 0)
    for key in ("w", "y"):
        with pytest.raises(TruncatedError) as caught:
            diff(whole if key == "w" else checkpoint({"w": normal(4, 4)}), checkpoint({key: short}), jobs=2)
        assert caught.value.path == "short.pth"


def test_what_cannot_be_decoded_names_the_tensor() -> None:
    one, two = (LazyTensor.contiguous("w", dtype("f6_e3m2"), (4,), MemoryBytes(data), 0) for data in (b"abc", b"xyz"))
    with pytest.raises(UnsupportedError, match="'w'"):
        of({"w": one}, {"w": two})


def test_tied_tensors_are_read_once() -> None:
    values = normal(100, 10)
    sources = [Counting(MemoryBytes(values.tobytes())) for _ in range(2)]
    one, two = (LazyTensor.contiguous("w", dtype("f32"), (100, 10), source, 0) for source in sources)
    found = of({"embed": one, "head": one}, {"embed": two, "head": two})
    assert len(found.same) == 2 and [source.total for source in sources] == [4000, 4000]
    found = of({"embed": one, "head": one}, {"e": two, "h": two})
    assert len(found.renamed) == 2 and [source.total for source in sources] == [8000, 8000]


def test_progress_is_told_of_all_of_a() -> None:
    w = normal(100, 10)
    told: list[int] = []
    of({"a": w, "b": w, "c": w}, {"a": w, "b": w + 1, "c": w.astype("f8")}, progress=told.append)
    assert sum(told) == 3 * w.nbytes


def test_many_small_tensors() -> None:
    """Time is for the benchmarks; memory grows by less than 2 KB a tensor, their own headers not counted."""
    count = 4000
    a, b = (
        {f"layers.{n}.w": LazyTensor.contiguous(f"layers.{n}.w", dtype("f32"), (4,), source, 16 * n) for n in range(count)}
        for source in (MemoryBytes(bytes(16 * count)), MemoryBytes(bytes(range(1, 17)) * count))
    )
    one, two = (Checkpoint(side, Source("m", "torch", "zip", ())) for side in (a, b))
    tracemalloc.start()
    try:
        found = diff(one, two)
        assert len(found.values) == count
        assert tracemalloc.get_traced_memory()[1] < 2000 * count
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("how", ["equal", "last", "cast", "turned"])
def test_memory_is_bounded(tmp_path: Path, how: str) -> None:
    shape = [5000, 4000] if how == "turned" else [10_000, 5000]
    sparse(tmp_path / "a.safetensors", {"w": ("F32", shape)})
    sparse(tmp_path / "b.safetensors", {"w": ("F32", shape[::-1] if how == "turned" else shape)})
    if how == "last":
        with open(tmp_path / "b.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x40")
    a, b = (open_checkpoint(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    if how == "cast":
        b = CastTo(dtype("bf16"))(b)
    assert a.nbytes > 2 * _RANGE and a.nbytes > 60 << 20
    tracemalloc.start()
    try:
        found = diff(a, b, jobs=2)
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()
    assert (len(found.same), len(found.values), len(found.transposed)) == {
        "equal": (1, 0, 0),
        "last": (0, 1, 0),
        "cast": (1, 0, 0),
        "turned": (0, 0, 1),
    }[how]
    if how == "last":
        (value,) = found.values.values()
        assert (value.differing, value.max_abs, value.rel_l2) == (1, 2, None)
