"""Two tensors block by block: what is read, how often, and that cuts and threads change nothing."""

from __future__ import annotations

from dataclasses import astuple
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Counting

from wtool import views
from wtool.analysis import compare as module
from wtool.analysis.compare import Comparison, compare, compare_all, equal, pooled
from wtool.boxes import Box
from wtool.bytesource import MemoryBytes
from wtool.dtypes import BY_NAME, dtype
from wtool.errors import TruncatedError, UnsupportedError
from wtool.kernels.cast import Cast
from wtool.tensor import LazyTensor, TensorSpec

pytest.importorskip("ml_dtypes")

Array = np.ndarray[Any, Any]
NAMES = {"<f8": "f64", "<f4": "f32", "<f2": "f16", "<i8": "i64", "|u1": "u8", "<c8": "c64", "|b1": "bool"}


def tensor(values: Array, name: str | None = None, source: Any = None) -> LazyTensor:
    name = name or NAMES[values.dtype.str]
    return LazyTensor.contiguous("k", dtype(name), values.shape, source or MemoryBytes(values.tobytes()), 0)


def counted(values: Array, name: str | None = None) -> tuple[LazyTensor, Counting]:
    source = Counting(MemoryBytes(values.tobytes()))
    return tensor(values, name, source), source


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def some(found: Comparison | None) -> Comparison:
    assert found is not None
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 bytes, ranges of 256, so that little data meets all the boundaries."""
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "_RANGE", 256)
    monkeypatch.setattr(module, "_STRIPE", 200)


def check(found: Comparison | None, a: Array, b: Array) -> None:
    wide, other = a.astype("f8").ravel(), b.astype("f8").ravel()
    apart = wide - other
    assert found is not None
    assert (found.elements, found.finite, found.nonfinite) == (a.size, a.size, 0)
    assert found.differing == np.count_nonzero(apart)
    assert found.max_abs == np.abs(apart).max()
    assert found.mean_abs == pytest.approx(np.abs(apart).mean(), rel=1e-12)
    assert found.rel_l2 == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(wide), rel=1e-12)
    assert found.cosine == pytest.approx(wide @ other / np.linalg.norm(wide) / np.linalg.norm(other), abs=1e-12)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000])
@pytest.mark.parametrize("where", ["first", "last", "all", "middle"])
def test_boundaries_of_blocks_and_ranges(count: int, where: str) -> None:
    a = normal(count) + 2
    b = a.copy()
    index = {"first": 0, "last": -1, "middle": count // 2, "all": slice(None)}[where]
    b[index] += np.float32(0.5)
    check(compare(tensor(a), tensor(b)), a, b)
    assert compare(tensor(a), tensor(a.copy())) is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("names", [("f32", "bf16"), ("f16", "f64"), ("f64", "f32"), ("i64", "f32"), ("f8_e4m3", "f32")])
def test_unlike_dtypes_meet_at_the_same_places(names: tuple[str, str]) -> None:
    whole = np.arange(301) % 7 + 1
    a, b = (whole.astype(dtype(name).numpy()) for name in names)
    assert compare(tensor(a, names[0]), tensor(b, names[1])) is None
    b = b.copy()
    b[[16, 300]] = 15
    check(compare(tensor(a, names[0]), tensor(b, names[1])), a.astype("f4"), b.astype("f4"))


@pytest.mark.usefixtures("small")
@given(st.data())
def test_any_two_arrangements(data: Any) -> None:
    rows, columns = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    a = normal(rows, columns)
    b = a.copy()
    if data.draw(st.booleans()):
        b[data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))] += 1
    ways = st.sampled_from([tensor, transposed, sliced, partitioned, cast])
    found = compare(data.draw(ways)(a), data.draw(ways)(b), progress=(told := []).append)
    assert sum(told) == a.nbytes
    if (a == b).all():
        assert found is None
    else:
        check(found, a, b)


def transposed(values: Array) -> LazyTensor:
    """A view of a storage that holds the transpose."""
    storage = MemoryBytes(np.ascontiguousarray(values.T).tobytes())
    return LazyTensor.strided("k", dtype("f32"), values.shape, storage, 0, (1, values.shape[0]))


def sliced(values: Array) -> LazyTensor:
    wide = np.repeat(np.repeat(values, 2, 0), 3, 1)
    return LazyTensor.strided("k", dtype("f32"), values.shape, MemoryBytes(wide.tobytes()), 0, (2 * wide.shape[1], 3))


def partitioned(values: Array) -> LazyTensor:
    cut = values.shape[0] // 2
    parts = [(0, values[:cut]), (cut, values[cut:])]
    boxes = tuple(
        Box((first, 0), part.shape, MemoryBytes(part.tobytes()), 0, (part.shape[1], 1)) for first, part in parts if len(part)
    )
    return LazyTensor(TensorSpec("k", dtype("f32"), values.shape), boxes, dtype("f32"))


def cast(values: Array) -> LazyTensor:
    return tensor(values.astype("f8")).map(Cast(dtype("f64"), dtype("f32")))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(module, "_RANGE", 1 << 16)
    monkeypatch.setattr(module, "BLOCK", 1 << 12)
    a, b = normal(300_000), normal(300_000, seed=1)
    b[40_000:90_000] = a[40_000:90_000]
    pairs = [(tensor(a), tensor(b)), (tensor(a[:5]), tensor(b[:5])), (tensor(a), tensor(a.copy()))]
    found = compare_all(pairs, jobs=jobs)
    assert [value and astuple(value) for value in found] == [value and astuple(value) for value in compare_all(pairs)]
    check(found[0], a, b)
    assert found[2] is None


@pytest.mark.usefixtures("small")
def test_equal_tensors_are_read_once() -> None:
    values = normal(1000)
    (one, first), (two, second) = counted(values), counted(values)
    assert compare(one, two) is None
    assert (first.total, second.total) == (values.nbytes, values.nbytes)


@pytest.mark.usefixtures("small")
def test_what_differs_at_its_beginning_is_read_once_too() -> None:
    values, other = normal(60), normal(60, seed=1)
    (one, first), (two, second) = counted(values), counted(other)
    check(compare(one, two), values, other)
    assert (first.total, second.total) == (values.nbytes, values.nbytes)


@pytest.mark.usefixtures("small")
def test_the_norm_of_what_is_equal_is_read_of_one_side() -> None:
    values = normal(1000)
    other = values.copy()
    other[-1] += 1
    (one, first), (two, second) = counted(values), counted(other)
    check(compare(one, two), values, other)
    assert values.nbytes < first.total <= 2 * values.nbytes and second.total == values.nbytes


def test_one_file_on_both_sides_is_not_read() -> None:
    one, source = counted(normal(100))
    told: list[int] = []
    assert compare(one, one.renamed("other"), progress=told.append) is None
    assert equal(one, one) and not source.ranges and sum(told) == 400


def test_tied_tensors_are_compared_once() -> None:
    (one, first), (two, second) = counted(normal(100)), counted(normal(100, seed=1))
    told: list[int] = []
    found = compare_all([(one, two), (one.renamed("x"), two.renamed("y")), (two, one)], progress=told.append)
    assert found[0] is found[1] is not None and found[2] is not None
    assert first.total == second.total == 800 and sum(told) == 1200


def test_equal_stops_at_the_first_difference() -> None:
    values = np.zeros(1 << 20, np.float32)
    other = values.copy()
    other[3] = 1
    (one, first), (two, _) = counted(values), counted(other)
    assert not equal(one, two) and first.total <= 1 << 20
    assert not equal(tensor(normal(4, 2)), tensor(normal(2, 4))), "shapes are part of it"


@pytest.mark.parametrize("narrow", ["bf16", "f16", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz"])
def test_a_cast_is_seen_from_either_side(narrow: str) -> None:
    wide = normal(5000)
    wide[7] = np.nan
    few = Cast(dtype("f32"), dtype(narrow))(wide, {}).copy()
    one, two = tensor(wide), tensor(few, narrow)
    assert some(compare(one, two)).cast and some(compare(two, one)).cast
    few.view("u1")[-1] ^= 1
    two = tensor(few, narrow)
    assert not some(compare(one, two)).cast and not some(compare(two, one)).cast
    back = few.astype(np.float32)
    assert compare(two, tensor(back)) is None and compare(tensor(back), two) is None


def test_a_cast_between_dtypes_of_one_width() -> None:
    half = normal(100).astype(np.float16)
    other = Cast(dtype("f16"), dtype("bf16"))(half, {}).copy()
    assert some(compare(tensor(half), tensor(other, "bf16"))).cast
    assert some(compare(tensor(other, "bf16"), tensor(half))).cast
    assert not some(compare(tensor(half), tensor(half + np.float16(1)))).cast, "of one dtype nothing was cast"


@pytest.mark.usefixtures("small")
def test_packed_dtypes() -> None:
    data = np.random.default_rng(0).integers(0, 256, 333, np.uint8)
    other = data.copy()
    other[-1] ^= 0x10

    def packed(data: Array, name: str = "f4", elements: int = 666) -> LazyTensor:
        return LazyTensor.contiguous("k", dtype(name), (elements,), MemoryBytes(data.tobytes()), 0)

    assert compare(packed(data), packed(data.copy())) is None
    found = some(compare(packed(data), packed(other)))
    assert (found.elements, found.differing) == (666, 1)
    assert compare(packed(data, elements=665), packed(other, elements=665)) is None, "what pads a byte is no value"
    wide = Cast(dtype("f4"), dtype("f32"))(data, {}).copy()
    told: list[int] = []
    assert compare(packed(data), tensor(wide), progress=told.append) is None and sum(told) == 333
    assert compare(tensor(wide), packed(data)) is None
    wide[5] += 1
    assert some(compare(packed(data), tensor(wide))).differing == 1
    signs = np.uint8([0x80, 0x00])
    assert some(compare(packed(signs, elements=4), packed(np.uint8([0, 0]), elements=4))).differing == 1
    assert compare(packed(signs, elements=4), tensor(np.zeros(4, np.float32))) is None, "of unlike dtypes -0 is 0"


def test_what_cannot_be_decoded_says_which_tensor() -> None:
    one, two = (LazyTensor.contiguous("layer.w", dtype("f6_e2m3"), (4,), MemoryBytes(data), 0) for data in (b"abc", b"abd"))
    assert compare(one, LazyTensor.contiguous("layer.w", dtype("f6_e2m3"), (4,), MemoryBytes(b"abc"), 0)) is None
    with pytest.raises(UnsupportedError, match=r"layer\.w.*packing") as caught:
        compare(one, two)
    assert caught.value.hint and "--exclude" in caught.value.hint


def test_numbers_without_values() -> None:
    assert compare(tensor(normal(0, 3)), tensor(normal(0, 3))) is None
    assert compare(tensor(normal(0)), tensor(np.zeros(0))) is None
    zero, one = np.zeros(3), np.ones(3)
    found = some(compare(tensor(zero), tensor(one)))
    assert (found.rel_l2, found.cosine, found.max_abs) == (None, None, 1)
    found = some(compare(tensor(one), tensor(zero)))
    assert (found.rel_l2, found.cosine) == (1, None)
    nan = np.full(3, np.nan)
    found = some(compare(tensor(nan), tensor(one)))
    assert (found.max_abs, found.mean_abs, found.rel_l2, found.cosine, found.nonfinite) == (None, None, None, None, 3)
    found = some(compare(tensor(np.float64([np.nan, 2])), tensor(np.float64([0, 2]))))
    assert (found.max_abs, found.rel_l2, found.cosine, found.differing) == (0, 0, pytest.approx(1), 1)


def test_what_f64_cannot_square() -> None:
    found = some(compare(tensor(np.float64([1e200, 1])), tensor(np.float64([1e200, 2]))))
    assert (found.max_abs, found.mean_abs, found.rel_l2, found.cosine) == (1, 0.5, None, None)
    found = some(compare(tensor(np.float64([1.7e308])), tensor(np.float64([-1.7e308]))))
    assert (found.max_abs, found.mean_abs, found.rel_l2, found.cosine) == (None, None, None, None)
    found = some(compare(tensor(np.float64([1e-200])), tensor(np.float64([2e-200]))))
    assert (found.max_abs, found.rel_l2, found.cosine) == (1e-200, None, None), "0 would be wrong"


def test_pooled_is_the_whole() -> None:
    a, b = normal(1000), normal(1000, seed=1)
    parts = [some(compare(tensor(a[:300]), tensor(b[:300]))), some(compare(tensor(a[300:]), tensor(b[300:])))]
    check(pooled(parts), a, b)
    nothing = pooled([])
    assert (nothing.max_abs, nothing.mean_abs, nothing.rel_l2, nothing.cosine, nothing.cast) == (None, None, None, None, False)


def test_a_tolerance() -> None:
    a = normal(1000)
    b = a * np.float32(1 + 1e-4)
    assert compare(tensor(a), tensor(b), rtol=2e-4) is None
    assert some(compare(tensor(a), tensor(b), rtol=0.5e-4)).differing == 1000
    assert compare(tensor(np.float32([0])), tensor(np.float32([-0.0])), atol=1e-9) is None
    assert some(compare(tensor(np.float32([0])), tensor(np.float32([-0.0])))).max_abs == 0


def test_a_truncated_side_is_named() -> None:
    whole = tensor(normal(100))
    short = LazyTensor.contiguous("k", dtype("f32"), (100,), MemoryBytes(bytes(300), "short.bin"), 0)
    for pair in ((whole, short), (short, whole)):
        with pytest.raises(TruncatedError) as caught:
            compare(*pair)
        assert caught.value.path == "short.bin"


def test_a_turned_tensor_equals_itself_turned() -> None:
    values = normal(30, 40)
    assert equal(views.transpose(tensor(values), (1, 0)), tensor(np.ascontiguousarray(values.T)))
    assert sqrt(some(compare(tensor(values), tensor(-values))).squares_d) == pytest.approx(2 * np.linalg.norm(values))


def test_every_pair_of_dtypes() -> None:
    rows = [row for row in BY_NAME.values() if row.bits != 6 or row.block]
    rng = np.random.default_rng(0)
    for one in rows:
        for two in rows:
            a, b = (
                LazyTensor.contiguous(
                    "k",
                    row,
                    (256,),
                    MemoryBytes((rng.integers(0, 2 if row.kind == "bool" else 256, 4096, np.uint8)).tobytes()),
                    0,
                )
                for row in (one, two)
            )
            found = some(compare(a, b))
            assert found.elements == 256 and 0 < found.differing <= 256, (one, two)
            assert found.differing >= found.nonfinite and found.finite + found.nonfinite <= 256
            assert found.cosine is None or -1 <= found.cosine <= 1
            assert compare(a, a.renamed("x")) is None


@pytest.mark.parametrize("narrow", [row.name for row in BY_NAME.values() if row.floating and row.itemsize and row.bits <= 16])
def test_every_cast_is_seen(narrow: str) -> None:
    for wide in ("f64", "f32", "bf16", "f16"):
        if wide == narrow:
            continue
        values = np.abs(normal(300)).astype(dtype(wide).numpy())
        few = Cast(dtype(wide), dtype(narrow))(values, {}).copy()
        one, two = tensor(values, wide), tensor(few, narrow)
        for found in (compare(one, two), compare(two, one)):
            assert found is None or found.cast, (wide, narrow)
