"""The kernel against plain arithmetic of Python's fractions and numpy's f64."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import hypot, isfinite, isnan, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.dtypes import BY_NAME, DType, dtype
from wtool.errors import UnsupportedError, UsageError
from wtool.kernels import difference
from wtool.kernels.difference import Difference, same_bytes, same_values

pytest.importorskip("ml_dtypes")

Array = np.ndarray[Any, Any]
WHOLE = [row for row in BY_NAME.values() if row.itemsize]
F4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def numbers(row: DType, block: Array) -> list[Any]:
    """The exact values: ints and floats of Python, complex as pairs of floats."""
    if row.name == "f4":
        return [float(F4[code]) for byte in block.tolist() for code in (byte & 15, byte >> 4)]
    if row.name == "c32":
        parts = block.view(np.float16).astype(float).tolist()
        return list(zip(parts[::2], parts[1::2], strict=True))
    if row.kind == "complex":
        return [(value.real, value.imag) for value in block.tolist()]
    if row.kind == "float":
        with np.errstate(all="ignore"):
            return [float(value) for value in block.astype(np.float64)]
    return [int(value) for value in (block.view(np.uint8) if row.kind == "bool" else block)]


def parts(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, 0)


def expected(one: DType, two: DType, a: Array, b: Array, rtol: float, atol: float) -> dict[str, Any]:
    """Pair by pair, differences as fractions."""
    unit = a.nbytes // len(a) if len(a) and one.itemsize else 1
    codes = (a.tobytes(), b.tobytes())
    found: dict[str, Any] = {"elements": 0, "finite": 0, "differing": 0, "nonfinite": 0}
    kept: list[tuple[Any, Any, float, float]] = []
    for place, (x, y) in enumerate(zip(numbers(one, a), numbers(two, b), strict=True)):
        found["elements"] += 1
        x, y = parts(x), parts(y)
        nan = any(map(isnan, x)) and any(map(isnan, y))
        finite = all(map(isfinite, (*x, *y)))
        if one is two and not rtol and not atol:
            if one.name == "f4":
                same = np.signbit([*x, *y])[::2].tolist().count(True) != 1 and x == y
            else:
                same = codes[0][place * unit : (place + 1) * unit] == codes[1][place * unit : (place + 1) * unit]
        elif finite:
            apart = hypot(*(float(Fraction(p) - Fraction(q)) for p, q in zip(x, y, strict=True)))
            same = apart <= atol + rtol * hypot(*map(float, y))
        else:
            same = x == y
        found["differing"] += not (same or nan)
        if finite:
            found["finite"] += 1
            deltas = [Fraction(p) - Fraction(q) for p, q in zip(x, y, strict=True)]
            kept.append((x, y, float(deltas[0]), float(deltas[1])))
        else:
            found["nonfinite"] += not (nan or x == y)
    sizes = [hypot(p, q) for _, _, p, q in kept]
    found["max_abs"], found["sum_abs"] = max(sizes, default=0.0), sum(sizes)
    found["squares_a"] = sum(float(v) * float(v) for x, _, _, _ in kept for v in x)
    found["squares_b"] = sum(float(v) * float(v) for _, y, _, _ in kept for v in y)
    found["squares_d"] = sum(p * p + q * q for _, _, p, q in kept)
    found["products"] = sum(float(p) * float(q) for x, y, _, _ in kept for p, q in zip(x, y, strict=True))
    return found


def check(one: DType, two: DType, a: Array, b: Array, rtol: float = 0.0, atol: float = 0.0) -> Difference:
    measure = Difference(one, two, rtol=rtol, atol=atol)
    measure.add(a, b)
    oracle = expected(one, two, a, b, rtol, atol)
    for name in ("elements", "finite", "differing", "nonfinite"):
        assert getattr(measure, name) == oracle[name], (name, one, two, a, b)
    for name in ("max_abs", "sum_abs", "squares_a", "squares_b", "squares_d"):
        if isfinite(oracle[name]):
            assert getattr(measure, name) == pytest.approx(oracle[name], rel=1e-12, abs=1e-300), (name, one, two, a, b)
        else:
            assert not isfinite(getattr(measure, name))
    if isfinite(oracle["squares_a"] + oracle["squares_b"]):
        scale = sqrt(oracle["squares_a"]) * sqrt(oracle["squares_b"])
        assert abs(measure.products - oracle["products"]) <= 1e-12 * scale + 1e-300
    return measure


def block(row: DType, data: bytes) -> Array:
    """Any bytes as values; bools as 0 and 1."""
    if row.kind == "bool":
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, row.numpy())


SPECIAL: dict[str, list[Any]] = {
    "f64": [0.0, -0.0, 1.5, np.nan, np.inf, -np.inf, 5e-324, 1e200, -1e200, 1.7e308, 1e-200],
    "f32": [0.0, -0.0, 1.5, np.nan, np.inf, -np.inf, 1e-45, 3e38, -3e38],
    "i64": [0, 1, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63 - 2, -(2**63), 2**62 + 1],
    "u64": [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2],
    "c64": [0j, complex(-0.0, 0.0), 1 + 2j, complex(np.nan, 1), complex(1, np.nan), complex(np.inf, 0), 1e-45j],
    "c128": [0j, 1 + 2j, complex(np.nan, 1), complex(1, np.nan), complex(np.inf, 0), 1e200j],
}


def values(row: DType, draw: Any, count: int) -> Array:
    """Half of them bits at random, half such as are hard."""
    raw = draw(st.binary(min_size=count * row.itemsize, max_size=count * row.itemsize))
    out = block(row, raw).copy()
    hard = SPECIAL.get(row.name)
    if hard is not None:
        for place in range(0, count, 2):
            out[place] = draw(st.sampled_from(hard))
    elif row.itemsize <= 2 and row.kind == "float":
        for place in range(0, count, 2):
            out[place] = np.float32(draw(st.sampled_from([0.0, -0.0, 1.0, 1.5, np.nan, np.inf, -np.inf, 2.0**-14])))
    return out


@st.composite
def pairs(draw: Any, one: DType, two: DType) -> tuple[Array, Array]:
    count = draw(st.integers(0, 9))
    a, b = values(one, draw, count), values(two, draw, count)
    if one is two and count:  # some of them alike
        for place in draw(st.lists(st.integers(0, count - 1), max_size=count)):
            b[place] = a[place]
    return a, b


TOLERANCES = [(0.0, 0.0), (1e-3, 0.0), (0.0, 0.5), (0.25, 1e-9)]


@pytest.mark.parametrize("row", WHOLE, ids=str)
@given(data=st.data())
def test_one_dtype(row: DType, data: Any) -> None:
    with np.errstate(all="ignore"):
        a, b = data.draw(pairs(row, row))
        check(row, row, a, b, *data.draw(st.sampled_from(TOLERANCES)))


UNLIKE = [
    ("f32", "bf16"),
    ("bf16", "f32"),
    ("f16", "f64"),
    ("i32", "i64"),
    ("i64", "i32"),
    ("bool", "u8"),
    ("f32", "i32"),
    ("c64", "f32"),
    ("f64", "c128"),
    ("c32", "c64"),
    ("i64", "u64"),
    ("u64", "i64"),
    ("i64", "f64"),
    ("f32", "u64"),
    ("i64", "c128"),
    ("f8_e4m3", "f16"),
    ("f8_e5m2", "f8_e4m3fnuz"),
    ("f8_e8m0", "f32"),
    ("bool", "f64"),
]


@pytest.mark.parametrize(("one", "two"), UNLIKE)
@given(data=st.data())
def test_unlike_dtypes(one: str, two: str, data: Any) -> None:
    with np.errstate(all="ignore"):
        a, b = data.draw(pairs(dtype(one), dtype(two)))
        check(dtype(one), dtype(two), a, b, *data.draw(st.sampled_from(TOLERANCES)))


def test_every_pair_of_dtypes_takes_one() -> None:
    for one, two in itertools.product(WHOLE, WHOLE):
        a, b = (np.ones(5, row.numpy()) if row.name != "c32" else c32([1, 0] * 5) for row in (one, two))
        measure = check(one, two, a, b)
        assert measure.differing == 0 and measure.squares_a == 5


def c32(values: list[float]) -> Array:
    return np.array(values, np.float16).view(dtype("c32").numpy())


def test_packed_halves() -> None:
    codes = np.arange(256, dtype=np.uint8)
    f4 = dtype("f4")
    assert check(f4, f4, codes, codes).differing == 0
    assert check(f4, f4, codes, codes[::-1].copy()).differing == 512
    assert check(f4, f4, np.uint8([0x80]), np.uint8([0x08])).differing == 2, "-0 is not 0"
    assert check(f4, dtype("f32"), np.uint8([0x80]), np.float32([0, 0])).differing == 0
    for name in ("f6_e2m3", "f6_e3m2"):
        with pytest.raises(UnsupportedError, match="packing"):
            Difference(dtype(name), dtype("f32"))


@given(
    st.lists(st.tuples(st.floats(), st.floats()), max_size=12),
    st.sampled_from([0.0, 1e-5, 0.1, 1.0, 3.0]),
    st.sampled_from([0.0, 1e-8, 1e-300, 2.0, 1e300]),
    st.booleans(),
)
def test_a_tolerance_is_numpys(both: list[tuple[float, float]], rtol: float, atol: float, near: bool) -> None:
    with np.errstate(all="ignore"):
        table = np.array(both, np.float64).reshape(-1, 2)
        a, b = table[:, 0].copy(), table[:, 1].copy()
        if near:  # on the very edge, and beside it
            a = b + (atol + rtol * np.abs(b))
        measure = Difference(dtype("f64"), dtype("f64"), rtol=rtol, atol=atol)
        measure.add(a, b)
        if rtol or atol:
            close = np.isclose(a, b, rtol, atol, equal_nan=True)
            close &= np.isinf(a) == np.isinf(b)  # numpy has Inf close to a number whose bound overflows; it is not
            assert measure.differing == np.count_nonzero(~close)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_no_tolerance_at_all(bad: float) -> None:
    for name in ("rtol", "atol"):
        with pytest.raises(UsageError, match="tolerance"):
            Difference(dtype("f32"), dtype("f32"), **{name: bad})


def test_nans_of_other_payloads_are_equal() -> None:
    for row, first in (("f64", 0x7FF8 << 48), ("f32", 0x7FC00000), ("f16", 0x7E00), ("bf16", 0x7FC0)):
        unit = f"u{dtype(row).itemsize}"
        a = np.array([first, first + 1, first], unit).view(dtype(row).numpy())
        b = np.array([first + 1, first | 1 << (dtype(row).bits - 1), first], unit).view(dtype(row).numpy())
        measure = check(dtype(row), dtype(row), a, b)
        assert (measure.differing, measure.nonfinite, measure.finite) == (0, 0, 0)
        assert check(dtype(row), dtype(row), a, np.ones_like(b)).nonfinite == 3


def test_zeros_of_two_signs() -> None:
    for row in ("f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"):
        one, two = np.array([0.0, 1.0], np.float32), np.array([-0.0, 1.0], np.float32)
        a, b = one.astype(dtype(row).numpy()), two.astype(dtype(row).numpy())
        measure = check(dtype(row), dtype(row), a, b)
        assert (measure.differing, measure.max_abs) == (1, 0)
        assert check(dtype(row), dtype(row), a, b, 0.0, 1e-9).differing == 0
        assert (
            check(dtype(row), dtype("f64" if row != "f64" else "f32"), a, two.astype("f8" if row != "f64" else "f4")).differing
            == 0
        )


def test_integers_beyond_f64() -> None:
    i64, u64, f64 = map(dtype, ("i64", "u64", "f64"))
    a, b = np.int64([2**53 + 1, 2**63 - 1, -(2**63)]), np.int64([2**53, 2**63 - 2, -(2**63) + 1])
    for rtol, atol, differing in ((0.0, 0.0, 3), (0.0, 0.5, 3), (0.0, 1.0, 0)):
        measure = check(i64, i64, a, b, rtol, atol)
        assert (measure.differing, measure.max_abs, measure.squares_d) == (differing, 1, 3)
    assert check(i64, u64, a[:2], b[:2].view("u8")).differing == 2
    assert check(i64, f64, np.int64([2**53 + 1, 2**53]), np.float64([2**53, 2**53])).differing == 1
    assert check(u64, f64, np.uint64([2**64 - 1, 2**63]), np.float64([2.0**64, 2.0**63])).differing == 1


def measured(a: Array, b: Array) -> Difference:
    name = {"f4": "f32", "f8": "f64"}[a.dtype.str[1:]]
    measure = Difference(dtype(name), dtype(name))
    for first in range(0, len(a), 1 << 18):
        measure.add(a[first : first + (1 << 18)], b[first : first + (1 << 18)])
    return measure


def cosine(measure: Difference) -> float:
    return measure.products / (sqrt(measure.squares_a) * sqrt(measure.squares_b))


def test_fourteen_million_neighbours() -> None:
    """Of which a dot product in f32 says a cosine above 1."""
    a = np.random.default_rng(0).standard_normal(14_000_000, np.float32)
    b = a + np.float32(1e-4)
    measure = measured(a, b)
    wide, other = a.astype("f8"), b.astype("f8")
    oracle = float(wide @ other) / sqrt(float(wide @ wide)) / sqrt(float(other @ other))
    assert cosine(measure) == pytest.approx(oracle, abs=1e-12) and cosine(measure) <= 1 + 1e-15
    assert measure.squares_d == pytest.approx(float(((wide - other) ** 2).sum()), rel=1e-12)
    assert measure.sum_abs == pytest.approx(float(np.abs(wide - other).sum()), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8, 1e30])
def test_directions(scale: float) -> None:
    rng = np.random.default_rng(1)
    a = rng.standard_normal(100_000)
    b = rng.standard_normal(100_000)
    b -= a * (a @ b) / (a @ a)
    assert cosine(measured(a, a * scale)) == pytest.approx(1, abs=1e-12)
    assert cosine(measured(a, -a * scale)) == pytest.approx(-1, abs=1e-12)
    assert cosine(measured(a, b * scale)) == pytest.approx(0, abs=1e-12)
    assert cosine(measured(a * scale, a + b)) == pytest.approx(
        float(a @ (a + b)) / np.linalg.norm(a) / np.linalg.norm(a + b), abs=1e-12
    )


def test_what_nearly_cancels() -> None:
    a = np.random.default_rng(2).standard_normal(100_000)
    b = np.nextafter(a, np.inf)
    measure = measured(a, b)
    assert measure.differing == len(a)
    assert measure.squares_d == pytest.approx(float(((a - b) ** 2).sum()), rel=1e-12, abs=0)


@pytest.mark.parametrize("row", ["f32", "bf16", "c64", "i64", "f4"])
def test_same_is_as_good_as_twice_the_block(row: str) -> None:
    of = dtype(row)
    data = np.random.default_rng(3).integers(0, 256, 99_200, np.uint8).tobytes()
    a = np.frombuffer(data, of.numpy())
    both, same = Difference(of, of), Difference(of, of)
    both.add(a, a)
    same.add_same(a)
    assert (both.elements, both.finite, both.differing) == (same.elements, same.finite, 0)
    for name in ("squares_a", "squares_b", "squares_d", "products", "max_abs", "sum_abs"):
        assert getattr(both, name) == pytest.approx(getattr(same, name), rel=1e-13)
    huge = Difference(dtype("f64"), dtype("f64"))
    huge.add_same(np.float64([1e200, np.nan, np.inf]))
    assert (huge.squares_a, huge.finite, huge.elements) == (np.inf, 1, 3), "not left out, though its square is"


@pytest.mark.parametrize("count", [0, 1, 8191, 8192, 8193, 32767, 32768, 32769, 70_001])
@pytest.mark.parametrize("names", [("f32", "f32"), ("bf16", "f32"), ("c64", "c64"), ("f32", "c64")])
def test_lengths_around_the_pieces(count: int, names: tuple[str, str]) -> None:
    rng = np.random.default_rng(count)
    blocks = []
    for name in names:
        real = rng.standard_normal(count).astype("f4")
        blocks.append(
            (real + 1j * rng.standard_normal(count)).astype("c8") if name == "c64" else real.astype(dtype(name).numpy())
        )
    a, b = blocks
    measure = Difference(*map(dtype, names))
    measure.add(a, b)
    wide, other = (x.astype("f4").astype("c16") if x.dtype.kind == "V" else x.astype("c16") for x in blocks)
    assert (measure.elements, measure.differing) == (count, np.count_nonzero(wide != other))
    assert measure.squares_d == pytest.approx(float((np.abs(wide - other) ** 2).sum()), rel=1e-12)
    assert measure.products == pytest.approx(float((wide * other.conj()).real.sum()), rel=1e-9, abs=1e-9)


def test_cuts_do_not_change_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.random.default_rng(4).standard_normal(1000, np.float32)
    b = a.copy()
    b[::7] += 1
    a[3], b[5], a[6], b[6] = np.nan, np.inf, -np.inf, -np.inf
    whole = check(dtype("f32"), dtype("f32"), a, b)
    monkeypatch.setattr(difference, "_PIECE", 16)
    monkeypatch.setattr(difference, "_ROW", 5)
    cut = check(dtype("f32"), dtype("f32"), a, b)
    assert (cut.differing, cut.nonfinite, cut.max_abs) == (whole.differing, whole.nonfinite, whole.max_abs)


@given(st.binary(max_size=1100), st.integers(0, 1100))
def test_same_bytes(data: bytes, place: int) -> None:
    one, two = np.frombuffer(data, "u1"), np.frombuffer(data, "u1").copy()
    assert same_bytes(one, two)
    if place < len(data):
        two[place] ^= 1
        assert not same_bytes(one, two)


def test_same_values() -> None:
    nan, other = np.array([1.0, np.nan], "f4"), np.array([0x3F800000, 0x7FC00001], "u4").view("f4")
    assert same_values(nan, other)
    assert not same_values(np.float32([0.0]), np.float32([-0.0]))
