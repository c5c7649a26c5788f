"""Kernels of averages: sums in f64 against exact arithmetic, and rounding once."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.dtypes import DType, dtype
from wtool.errors import DtypeError, NotFiniteError
from wtool.kernels.combine import WeightedSum
from wtool.kernels.rounding import narrow

NARROW = ("f16", "bf16", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz")


def rounded(values: Any, name: str) -> Any:
    out = np.empty(len(values), dtype(name).numpy())
    narrow(np.asarray(values, "f8"), out, dtype(name))
    return out


def finite_codes(row: DType) -> Any:
    """Every finite value that is not negative, as f64, in rising order."""
    unit = f"u{row.itemsize}"
    with np.errstate(invalid="ignore"):
        values = np.arange(1 << (row.bits - 1), dtype=unit).view(row.numpy()).astype("f8")
    return values[np.isfinite(values)]


@pytest.mark.parametrize("name", NARROW)
def test_every_half_way_and_its_neighbours(name: str) -> None:
    values = finite_codes(dtype(name))
    low, high = values[:-1], values[1:]
    half = (low + high) / 2  # exact: of one bit more
    even = np.where(np.arange(len(low)) % 2 == 0, low, high)
    for sign in (1.0, -1.0):
        for nudge in (2.0**-52, 2.0**-40, 2.0**-26, 2.0**-24):
            up, down = half * (1 + nudge), half * (1 - nudge)
            assert np.array_equal(rounded(sign * up, name).astype("f8"), sign * high)
            assert np.array_equal(rounded(sign * down, name).astype("f8"), sign * low)
        assert np.array_equal(rounded(sign * half, name).astype("f8"), sign * even)
        assert np.array_equal(rounded(sign * values, name).astype("f8"), sign * values)


@pytest.mark.parametrize("name", NARROW)
@given(st.lists(st.floats(width=64), min_size=1, max_size=50), st.integers(-160, 20))
def test_rounding_once(name: str, values: list[float], power: int) -> None:
    row = dtype(name)
    with np.errstate(all="ignore"):
        given = np.asarray(values) * 2.0**power
        found = rounded(given, name)
        by_f32 = given.astype("f4").astype(row.numpy())
    known = finite_codes(row)
    for value, code, twice in zip(given, found, by_f32, strict=True):
        if not np.isfinite(value) or not np.isfinite(float(twice)):
            if abs(float(value)) > 1.01 * known[-1] * (1 + 2.0**-3) or np.isnan(value):
                assert not np.isfinite(float(code)) or name.endswith("fnuz")
            continue
        exact = Fraction(abs(float(value)))
        at = int(np.searchsorted(known, abs(float(value))))
        near = {float(known[place]) for place in (at - 1, at) if 0 <= place < len(known)}
        best = min(abs(Fraction(one) - exact) for one in near)
        assert abs(Fraction(abs(float(code))) - exact) == best
        assert np.signbit(float(code)) == np.signbit(value) or (name.endswith("fnuz") and float(code) == 0.0)


def test_f16_is_numpys() -> None:
    values = np.random.default_rng(0).standard_normal(200_000) * 10.0 ** np.random.default_rng(1).integers(-9, 5, 200_000)
    with np.errstate(over="ignore"):
        assert np.array_equal(rounded(values, "f16").view("u2"), values.astype("f2").view("u2"))


def test_ml_dtypes_rounds_twice() -> None:
    value = np.array([1 + 2.0**-8 + 2.0**-40])
    assert float(rounded(value, "bf16")[0]) == 1 + 2.0**-7
    assert float(value.astype(ml_dtypes.bfloat16)[0]) in (1.0, 1 + 2.0**-7)  # 1.0 up to 0.5, at least


REAL = ("f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2")
COMPLEX = ("c128", "c64", "c32")
PARTS = {"c128": "f64", "c64": "f32", "c32": "f16"}


def block(values: Any, name: str) -> Any:
    """Values as a block of that dtype; of a complex one, as pairs of parts."""
    part = dtype(PARTS.get(name, name))
    narrowed = rounded(values, part.name)
    return narrowed.view(dtype(name).numpy())


def plain(made: Any, name: str) -> Any:
    return made.view(dtype(PARTS.get(name, name)).numpy()).astype("f8")


def oracle(inputs: list[Any], weights: list[float], divisor: float) -> Any:
    """What float64 gives, in order, before the one rounding."""
    total = inputs[0] * weights[0]
    for values, weight in zip(inputs[1:], weights[1:], strict=True):
        total = total + values * weight
    return total / divisor


SMALL = st.floats(-200, 200, width=32)


@given(st.data())
def test_a_weighted_sum_is_f64_and_one_rounding(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from([REAL, COMPLEX]))
    count, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6)) * 2
    names = data.draw(st.lists(st.sampled_from(family), min_size=count, max_size=count))
    target = data.draw(st.sampled_from(family))
    weights = data.draw(st.lists(st.floats(0.0625, 2), min_size=count, max_size=count))
    divisor = data.draw(st.sampled_from([1.0, sum(weights)]))
    rows = [data.draw(st.lists(SMALL, min_size=length, max_size=length)) for _ in names]
    blocks = [block(row, name) for row, name in zip(rows, names, strict=True)]
    function = WeightedSum(
        "k",
        tuple(map(str, range(count))),
        tuple(map(dtype, names)),
        dtype(target),
        tuple(weights),
        divisor,
        mean=False,
    )
    exact = oracle([plain(one, name) for one, name in zip(blocks, names, strict=True)], weights, divisor)
    meant = block(exact, target)
    if np.isfinite(plain(meant, target)).all():
        assert function(*blocks).tobytes() == meant.tobytes()
    else:
        with pytest.raises(DtypeError, match="too large"):
            function(*blocks)


@pytest.mark.parametrize("name", [*REAL, *COMPLEX])
@given(values=st.lists(SMALL, min_size=2, max_size=2), count=st.integers(1, 7), weight=st.floats(0.01, 3))
def test_the_mean_of_what_is_equal_is_that(name: str, values: list[float], count: int, weight: float) -> None:
    blocks = [block(values, name) for _ in range(count)]
    rows = (dtype(name),) * count
    weights = tuple(weight * (number + 1) for number in range(count))
    function = WeightedSum("k", ("",) * count, rows, dtype(name), weights, sum(weights))
    assert function(*blocks).tobytes() == blocks[0].tobytes()
    mixed = [block(values, "f32"), *(block(block(values, "f32").astype("f8"), "f64") for _ in range(count))]
    rows = (dtype("f32"), *(dtype("f64") for _ in range(count)))
    weights = (*weights, 0.3)
    function = WeightedSum("k", ("",) * len(rows), rows, dtype("f64"), weights, sum(weights))
    assert np.array_equal(function(*mixed), mixed[1])


@pytest.mark.parametrize("name", [*REAL, *COMPLEX])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("same", [True, False])
def test_what_is_not_finite_is_named(name: str, bad: float, same: bool) -> None:
    if name == "f8_e4m3" and not np.isnan(bad):
        return  # it has no infinity
    good = np.arange(4.0)
    odd = good.copy()
    odd[2] = bad
    blocks = [block(odd if same else good, name), block(odd, name)]
    function = WeightedSum("a.b", ("one", "two"), (dtype(name),) * 2, dtype(name), (1.0, 1.0), 2.0)
    with pytest.raises(NotFiniteError, match=r"'a\.b' holds (NaN|an infinity)") as error:
        function(*blocks)
    assert error.value.path == ("one" if same else "two")


@pytest.mark.parametrize("source", REAL)
@pytest.mark.parametrize("target", REAL)
def test_large_runs_and_distances(source: str, target: str) -> None:
    rng = np.random.default_rng(7)
    blocks = [block(rng.standard_normal(100_001), source) for _ in range(3)]
    told: list[Any] = []
    function = WeightedSum(
        "k",
        ("a", "b", "c"),
        (dtype(source),) * 3,
        dtype(target),
        (1.0, 1.0, 1.0),
        3.0,
        tell=lambda *words: told.append(words),
        numbers=(0, 1, 2),
    )
    made = function(*blocks)
    inputs = [plain(one, source) for one in blocks]
    exact = oracle(inputs, [1.0] * 3, 3.0)
    assert made.tobytes() == block(exact, target).tobytes()
    (numbers, squares, norm), *more = told
    assert numbers == (0, 1, 2) and not more
    good = 1e-12 if source == "f64" else 1e-6  # f32 does for what is told of narrower ones
    assert np.allclose(squares, [np.sum((one - exact) ** 2) for one in inputs], rtol=good)
    assert np.isclose(norm, np.sum(exact**2), rtol=good)


def test_two_large_squares_are_no_infinity() -> None:
    blocks = [np.array([1e300, 1.0]), np.array([1e300, 3.0])]
    function = WeightedSum("k", ("a", "b"), (dtype("f64"),) * 2, dtype("f64"), (1.0, 1.0), 2.0)
    assert function(*blocks).tolist() == [1e300, 2.0]
    far = [np.array([1.7e308]), np.array([1.6e308])]
    with pytest.raises(DtypeError, match="too large for f64"):
        function(*far)


def test_means_of_integers() -> None:
    def mean(name: str, *values: list[int]) -> list[int]:
        row = dtype(name)
        blocks = [np.array(one, row.numpy()) for one in values]
        count = len(values)
        found: list[int] = WeightedSum("k", ("",) * count, (row,) * count, row, (1.0,) * count, float(count))(*blocks).tolist()
        return found

    assert mean("i64", [1, 2, -3], [2, 4, -4]) == [2, 3, -4]  # halves to the even one
    assert mean("u8", [255, 0, 1], [255, 1, 1], [255, 1, 1]) == [255, 1, 1]
    with pytest.raises(DtypeError, match="53 bits"):
        mean("i64", [2**60], [2**60 + 2])
    row = dtype("u8")
    with pytest.raises(DtypeError, match="too large for u8"):
        WeightedSum("k", ("", ""), (row, row), row, (1.0, -1.0), 1.0, mean=False)(np.array([1], "u1"), np.array([2], "u1"))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40))
def test_any_bits_become_the_nearest_bf16(bits: list[int]) -> None:
    values = np.array(bits, "u8").view("f8")
    with np.errstate(all="ignore"):
        near = np.array([1e-38 * (number % 997) * 2.0 ** -(number % 23) for number in bits])
    for row in (values, near, -near):
        for value, code in zip(row, rounded(row, "bf16").view("u2"), strict=True):
            assert int(code) == bf16_code(float(value)) or (np.isnan(value) and code & 0x7FFF > 0x7F80)


def bf16_code(value: float) -> int:
    """By whole numbers: |value| in units of the last place, rounded, ties to even."""
    if value != value:
        return 0x7FC0
    sign = 0x8000 if np.signbit(value) else 0
    if not value:
        return sign
    if abs(value) == np.inf:
        return sign | 0x7F80
    exact = Fraction(abs(value))
    exponent = max(int(np.frexp(abs(value))[1]) - 1, -126)
    steps = round(exact / Fraction(2) ** (exponent - 7))  # Fraction rounds halves to even
    return int(min(sign + 0x7F80, sign + ((exponent + 126) << 7) + steps))
