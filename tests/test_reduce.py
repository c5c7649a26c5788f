from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.dtypes import BY_NAME, dtype
from wtool.errors import UnsupportedError
from wtool.kernels.moments import Moments

Array = np.ndarray[Any, Any]


def moments(name: str, values: Array, pieces: int = 3) -> Moments:
    found = Moments(dtype(name))
    for block in np.array_split(values, pieces):
        found.add(block)
    return found


def check(found: Moments, wide: Array) -> None:
    finite = wide[np.isfinite(wide)]
    assert found.count == len(finite)
    assert found.nan == np.count_nonzero(np.isnan(wide))
    assert found.inf == np.count_nonzero(np.isinf(wide))
    assert found.zeros == np.count_nonzero(finite == 0)
    if len(finite):
        assert (found.low, found.high) == (finite.min(), finite.max())
        exact = finite.astype(np.longdouble)
        scale = float(np.abs(exact).max())
        assert found.mean == pytest.approx(float(exact.mean()), rel=1e-13, abs=1e-13 * scale)
        assert found.std == pytest.approx(float(exact.std()), rel=1e-10, abs=1e-13 * scale)
        assert found.norm == pytest.approx(float(np.sqrt((exact**2).sum())), rel=1e-12)
        assert abs(sum(found.histogram()) - len(finite)) <= 16 + len(finite)


NAMES = [name for name, row in BY_NAME.items() if row.itemsize and name not in ("c32", "f8_e8m0")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 1000, 150_001])
def test_every_dtype(name: str, count: int) -> None:
    pytest.importorskip("ml_dtypes")
    source = np.random.default_rng(1).standard_normal(count) * 20
    source[::7] = 0
    if name == "bool" or name.startswith("u"):
        source = np.abs(source)
    row = dtype(name)
    values = source.astype(row.numpy())
    if row.kind == "complex":
        values = (source + 1j * source[::-1]).astype(row.numpy())
        check(moments(name, values), np.abs(values).astype(np.float64))
    else:
        check(moments(name, values), values.astype(np.float64))


@pytest.mark.parametrize("name", ["f64", "f32", "f16", "bf16", "f8_e5m2"])
def test_nan_and_inf_are_counted_and_left_out(name: str) -> None:
    values = np.array([np.nan, 1, -np.inf, 0, -0.0, 3, np.inf, np.nan, np.nan]).astype(dtype(name).numpy())
    found = moments(name, values)
    assert (found.nan, found.inf, found.zeros, found.low, found.high, found.mean) == (3, 2, 2, 0, 3, 1)
    alone = moments(name, values[:1])
    assert (alone.count, alone.nan, alone.mean, alone.std, alone.norm, alone.histogram()) == (0, 1, 0, 0, 0, ())


def test_packed_and_strange_dtypes() -> None:
    found = moments("f4", np.array([0x21, 0x7F, 0x80], np.uint8))  # 0.5 1, -6 6, 0 -0
    assert (found.count, found.low, found.high, found.zeros) == (6, -6, 6, 2)
    halves = np.array([3, 4, 0, 0], np.float16).view(np.dtype((np.void, 4)))
    assert (moments("c32", halves, 1).high, moments("c32", halves, 1).zeros) == (5, 1)
    exponents = moments("f8_e8m0", np.array([127, 128, 255], np.uint8).view(dtype("f8_e8m0").numpy()))
    assert (exponents.low, exponents.high, exponents.nan) == (1, 2, 1)
    with pytest.raises(UnsupportedError):
        Moments(dtype("f6_e2m3"))


def test_wide_integers_have_an_exact_range() -> None:
    found = moments("i64", np.array([2**63 - 1, -(2**63), 2**53 + 1]))
    assert (found.low, found.high) == (-(2**63), 2**63 - 1)
    assert moments("u64", np.array([2**64 - 1], np.uint64), 1).high == 2**64 - 1


def test_a_large_mean_does_not_eat_the_spread() -> None:
    noise = np.random.default_rng(2).standard_normal(1_000_000)
    found = moments("f64", 1e9 + noise, 10)
    assert found.std == pytest.approx((1e9 + noise - 1e9).std(), rel=1e-9)
    same = moments("f32", np.full(1_000_000, 16777216, np.float32), 10)
    assert (same.mean, same.std) == (16777216, 0)


def test_a_hundred_million_values() -> None:
    found, block = Moments(dtype("f32")), (np.arange(1 << 18) % 1000).astype(np.float32) + 1e6
    for _ in range(400):
        found.add(block)
    assert found.mean == pytest.approx(block.astype(np.float64).mean(), rel=1e-14)
    assert found.std == pytest.approx(block.astype(np.float64).std(), rel=1e-12)


@given(st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=60), st.integers(1, 5))
def test_any_values_in_any_blocks(values: list[float], pieces: int) -> None:
    wide = np.array(values, np.float64)
    found = moments("f32", wide.astype(np.float32), pieces)
    assert (found.nan, found.zeros) == (np.isnan(wide).sum(), (wide == 0).sum())
    finite = wide[np.isfinite(wide)]
    if len(finite):
        assert (found.low, found.high) == (finite.min(), finite.max())
        assert found.norm == pytest.approx(math.sqrt(math.fsum(finite**2)), rel=1e-9, abs=1e-300)
        assert abs(sum(found.histogram()) - len(finite)) <= 16


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_no_f64_breaks_the_histogram(values: list[float]) -> None:
    found = moments("f64", np.array(values), 2)
    assert len(found.histogram()) == 16
    assert min(found.histogram()) >= 0


def test_the_histogram_shows_the_shape() -> None:
    bell = moments("f32", np.random.default_rng(3).standard_normal(1_000_000).astype(np.float32) * 0.01 + 1).histogram()
    peak = bell.index(max(bell))
    assert 5 <= peak <= 10
    assert list(bell[2 : peak + 1]) == sorted(bell[2 : peak + 1])
    assert list(bell[peak:-2]) == sorted(bell[peak:-2], reverse=True)
    flat = moments("f32", np.linspace(-3, 5, 160_000, dtype=np.float32), 40).histogram()
    assert max(flat) < 1.3 * min(flat)
    constant = moments("f32", np.ones(10, np.float32), 1).histogram()
    assert sum(constant) == 10 and max(constant) == 10
