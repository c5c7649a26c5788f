"""Means of half types in f32: the bits of f64 and one rounding, or left to another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.dtypes import dtype
from wtool.kernels.combine import WeightedSum
from wtool.kernels.halfmean import MOST, mean
from wtool.kernels.rounding import narrow

HALVES = ("f16", "bf16")


def blocks_of(name: str, codes: Any) -> list[Any]:
    """Codes without the sign of values that are not finite made small ones."""
    codes = np.array(codes, np.uint16)
    first = 0x7C00 if name == "f16" else 0x7F80
    codes[codes & 0x7FFF >= first] &= 0x83FF
    return [one.view(dtype(name).numpy()) for one in codes]


def by_f64(name: str, blocks: list[Any]) -> Any:
    total = np.zeros(len(blocks[0])) - 0.0
    for number, block in enumerate(blocks):
        total = block.astype("f8") if not number else total + block.astype("f8")
    out = np.empty(len(total), dtype(name).numpy())
    narrow(total / len(blocks), out, dtype(name))
    return out


def summed(name: str, blocks: list[Any]) -> tuple[Any, list[Any]]:
    """The mean, by way of the kernel that may leave runs to f64, and what it told."""
    told: list[Any] = []
    count = len(blocks)
    function = WeightedSum(
        "k",
        tuple(map(str, range(count))),
        (dtype(name),) * count,
        dtype(name),
        (1.0,) * count,
        float(count),
        tell=lambda *words: told.append(words),
        numbers=tuple(range(count)),
    )
    return function(*blocks), told


@pytest.mark.parametrize("name", HALVES)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.integers(0, 14), st.integers(1, 300))
def test_codes_near_and_far(name: str, count: int, seed: int, binades: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 0x6000)
    codes = low + rng.integers(0, (binades << (10 if name == "f16" else 7)) + 2, (count, length))
    codes |= rng.integers(0, 2, codes.shape) << 15
    codes[rng.random(codes.shape) < 0.05] = 0
    blocks = blocks_of(name, codes)
    assert summed(name, blocks)[0].tobytes() == by_f64(name, blocks).tobytes()


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 16, 33, MOST])
def test_normal_values_of_many_sizes(name: str, count: int) -> None:
    rng = np.random.default_rng(count)
    for size in (70_001, 4_096, 3):
        scales = np.exp2(rng.integers(-24, 12, size))
        for spread in (1.0, scales):
            raw = [(rng.standard_normal(size) * spread).astype(dtype(name).numpy()) for _ in range(count)]
            made, told = summed(name, raw)
            assert made.tobytes() == by_f64(name, raw).tobytes()
            wide = [one.astype("f8") for one in raw]
            exact = sum(wide) / count
            ((_, squares, norm),) = told
            assert np.isclose(norm, np.sum(exact**2), rtol=1e-5)
            assert np.allclose(squares, [np.sum((one - exact) ** 2) for one in wide], rtol=1e-5)


@pytest.mark.parametrize("name", HALVES)
def test_sums_half_way_between_two(name: str) -> None:
    """(x + y + z) / 3 is a tie, or off one by the last place of a much smaller value."""
    one = 0x3C00 if name == "f16" else 0x3F80
    fraction = 10 if name == "f16" else 7
    tie = 1.5 * 2.0 ** (-fraction)  # three halves of a last place: a third of it is half of one
    for exponent in range(20):
        for nudge in (0.0, 2.0**-exponent, -(2.0**-exponent)):
            values = [1.0, 1.0, 1.0 + 2.0 * tie / 2, nudge * 2.0**-fraction]
            blocks = [np.full(4096, value).astype(dtype(name).numpy()) for value in values]
            assert blocks[0].view("u2")[0] == one
            for some in (blocks[:3], blocks, [*blocks[1:], blocks[0]], [blocks[3], blocks[2], blocks[0]]):
                assert summed(name, some)[0].tobytes() == by_f64(name, some).tobytes()


@pytest.mark.parametrize("name", HALVES)
def test_what_is_left_to_f64(name: str) -> None:
    row = dtype(name)
    good = [np.ones(4096, row.numpy()) for _ in range(3)]
    out = np.empty(4096, row.numpy())
    assert mean(row, good, out, None) == (4096.0, []) and (out == 1).all()
    assert mean(row, [one[:4095] for one in good], out[:4095], None)[1] == [slice(4094, 4095)]
    assert mean(row, [one[1:] for one in good], out[1:], None)[1] == [slice(0, 4095)]  # not aligned
    for bad in (np.inf, np.nan, *((3e38, 1e-30) if name == "bf16" else ())):
        odd = [good[0], good[1], np.full(4096, bad).astype(row.numpy())]
        some = odd if not 0 < bad < 1 else [odd[2]] * 3
        assert mean(row, some, out, None)[1] == [slice(0, 4096)]
    pruned = [np.where(np.arange(4096) % 3 == number, 0, 1000).astype(row.numpy()) for number in range(3)]
    assert mean(row, pruned, out, None)[1] == [slice(0, 4096)]
    assert summed(name, pruned)[0].tobytes() == by_f64(name, pruned).tobytes()


@pytest.mark.parametrize("name", HALVES)
def test_large_and_subnormal_values(name: str) -> None:
    top = 0x7BFF if name == "f16" else 0x7F7F
    rng = np.random.default_rng(5)
    for low, high in ((0, 3), (0, 0x900), (top - 5, top + 1)):
        codes = rng.integers(low, high, (5, 8192)) | rng.integers(0, 2, (5, 8192)) << 15
        for count in (2, 3, 5):
            blocks = blocks_of(name, codes[:count])
            assert summed(name, blocks)[0].tobytes() == by_f64(name, blocks).tobytes()
