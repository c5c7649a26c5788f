from __future__ import annotations

import itertools
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.dtypes import DType, dtype
from wtool.errors import DtypeError, UnsupportedError
from wtool.kernels.cast import _WITHIN, Cast, census

ml_dtypes = pytest.importorskip("ml_dtypes")

WHOLE = [dtype(name) for name in ["f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz", "f8_e8m0"]]
NARROW = [row for row in WHOLE if row.bits <= 16]


def astype(values: np.ndarray[Any, Any], target: DType) -> np.ndarray[Any, Any]:
    """The oracle. ml_dtypes has no casts between f8_e8m0 and the other f8 kinds; f32 holds both."""
    with np.errstate(all="ignore"):
        if values.dtype.itemsize == target.itemsize == 1 and values.dtype != target.numpy():
            values = values.astype(np.float32)
        return values.astype(target.numpy())


def same_bits(source: DType, values: np.ndarray[Any, Any], target: DType) -> None:
    tally: dict[str, int] = {}
    got = Cast(source, target)(values, tally)
    expected = astype(values, target)
    unit = f"u{target.itemsize}"
    wrong = np.flatnonzero(got.view(unit) != expected.view(unit))
    assert not len(wrong), (source, target, [(values[i], got[i], expected[i]) for i in wrong[:3]])
    with np.errstate(all="ignore"):
        before, after = values.astype(np.float64), expected.astype(np.float64)
    overflow = np.count_nonzero(np.isfinite(before) & ~np.isfinite(after))
    underflow = np.count_nonzero((before != 0) & (after == 0))
    assert (tally.get("overflow", 0), tally.get("underflow", 0)) == (overflow, underflow)


def hard_f32() -> np.ndarray[Any, Any]:
    """Every exponent and sign with fractions around the ties of every target, and all kinds of NaN."""
    fractions = {0, 1, 2, 3, 0x7FFFFF, 0x400000, 0x2AAAAA}
    for kept in (10, 7, 3, 2, 1, 0):
        unit = 1 << (23 - kept)
        for multiple in (0, 1, 2, 3, (1 << kept) - 1):
            for half in (unit // 2, unit, unit // 4):
                fractions |= {(multiple * unit + half + off) & 0x7FFFFF for off in (-2, -1, 0, 1, 2)}
    # Subnormal outcomes keep fewer bits: all ties of all lengths, and their neighbours.
    fractions |= {((1 << bit) + off) & 0x7FFFFF for bit in range(23) for off in (-1, 0, 1)}
    grid = np.array(sorted(fractions), np.uint32)
    return (np.arange(512, dtype=np.uint32)[:, None] << np.uint32(23) | grid).ravel().view(np.float32)


@pytest.mark.parametrize("target", WHOLE, ids=str)
@pytest.mark.parametrize("source", NARROW, ids=str)
def test_every_code_of_the_narrow_dtypes(source: DType, target: DType) -> None:
    codes = np.arange(1 << source.bits, dtype=f"u{source.itemsize}")
    same_bits(source, codes.view(source.numpy()), target)


@pytest.mark.parametrize("target", WHOLE, ids=str)
def test_the_hard_values_of_f32(target: DType) -> None:
    same_bits(dtype("f32"), hard_f32(), target)


@pytest.mark.parametrize("target", WHOLE, ids=str)
def test_the_hard_values_of_f64(target: DType) -> None:
    with np.errstate(all="ignore"):
        wide = hard_f32().astype(np.float64)
        beyond = np.array([1e300, -1e300, 5e-324, 2.0**-150, 2.0**-149, 3.4028235677973366e38, np.nan, -np.inf])
        same_bits(dtype("f64"), np.concatenate([wide, wide * (1 + 2**-40), beyond]), target)


def random_f32(seed: int, count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("target", WHOLE, ids=str)
def test_random_bits_of_f32(target: DType) -> None:
    for seed in range(5):
        same_bits(dtype("f32"), random_f32(seed, 1_000_000), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [row for row in WHOLE if row.bits < 32], ids=str)
def test_all_bits_of_f32(target: DType) -> None:
    """All 2**32 of them."""
    for first in range(0, 1 << 32, 1 << 22):
        values = (np.arange(1 << 22, dtype=np.uint32) + np.uint32(first)).view(np.float32)
        unit = f"u{target.itemsize}"
        with np.errstate(all="ignore"):
            expected = values.astype(target.numpy()).view(unit)
        assert np.array_equal(Cast(dtype("f32"), target)(values, {}).view(unit), expected), hex(first)


@pytest.mark.parametrize("target", WHOLE, ids=str)
def test_f4_is_two_in_a_byte_the_low_half_first(target: DType) -> None:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    pairs = list(itertools.product(range(16), repeat=2))
    packed = np.array([low | high << 4 for low, high in pairs], np.uint8)
    with np.errstate(all="ignore"):
        expected = np.array([values[code] for pair in pairs for code in pair], np.float32).astype(target.numpy())
    assert Cast(dtype("f4"), target)(packed, {}).tobytes() == expected.tobytes()


@given(st.lists(st.floats(width=32), max_size=40), st.sampled_from(WHOLE))
def test_any_length(values: list[float], target: DType) -> None:
    same_bits(dtype("f32"), np.array(values, np.float32), target)


@pytest.mark.parametrize("count", [0, 1, 65535, 65536, 65537, 200_001])
def test_lengths_around_the_chunks(count: int) -> None:
    for source, target in itertools.product(WHOLE, WHOLE):
        values = (np.arange(count) % 251 - 100).astype(np.float32).astype(source.numpy())
        same_bits(source, values, target)


@pytest.mark.parametrize("source", WHOLE, ids=str)
def test_the_ranges_that_need_no_count(source: DType) -> None:
    if source.bits > 16:
        values = np.array([np.finfo(source.numpy()).max, np.finfo(source.numpy()).smallest_subnormal], source.numpy())
    else:
        values = np.arange(1 << source.bits, dtype=f"u{source.itemsize}").view(source.numpy())
    for target in WHOLE:
        with np.errstate(all="ignore"):
            before, after = values.astype(np.float64), astype(values, target).astype(np.float64)
        lost = (np.isfinite(before) & ~np.isfinite(after)) | ((before != 0) & (after == 0))
        assert source is target or lost.any() != (target.name in _WITHIN.get(source.name, ()))


@pytest.mark.parametrize("of", WHOLE, ids=str)
def test_census(of: DType) -> None:
    values = np.arange(1 << min(of.bits, 16), dtype=f"u{of.itemsize}").view(of.numpy())
    wide = astype(values, dtype("f64"))
    assert census(values, of) == (np.count_nonzero(wide == 0), np.count_nonzero(~np.isfinite(wide)))


def test_what_cannot_be_cast() -> None:
    for source, target, error in (
        ("i32", "f32", DtypeError),
        ("f32", "i8", DtypeError),
        ("c64", "f32", DtypeError),
        ("f32", "f4", UnsupportedError),
        ("f6_e2m3", "f32", UnsupportedError),
    ):
        with pytest.raises(error):
            Cast(dtype(source), dtype(target))


def test_a_cast_is_a_value() -> None:
    cast = Cast(dtype("f32"), dtype("bf16"))
    assert pickle.loads(pickle.dumps(cast)) == cast == Cast(dtype("float32"), dtype("bfloat16"))
    assert cast.dtype(dtype("f32")) is dtype("bf16")


def test_blocks_that_are_held_are_not_overwritten() -> None:
    cast = Cast(dtype("f32"), dtype("f16"))
    held = [cast(np.full(10, number, np.float32), {}) for number in range(20)]
    assert [block[0] for block in held] == list(range(20))


def test_blocks_that_are_let_go_are_used_again() -> None:
    cast = Cast(dtype("f32"), dtype("f16"))
    values = np.ones(1000, np.float32)
    seen = {cast(values, {}).ctypes.data for _ in range(50)}
    assert len(seen) == 1


def test_threads_do_not_share_buffers() -> None:
    cast, values = Cast(dtype("f32"), dtype("f16")), random_f32(3, 300_000)
    expected = cast(values, {}).tobytes()
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(5) if cast(values, {}).tobytes() != expected)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
