from __future__ import annotations

import numpy as np
import pytest

from wtool.analysis.stats import sparkline, stats
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.tensor import LazyTensor


def checkpoint(*rows: tuple[str, tuple[int, ...], bytes]) -> Checkpoint:
    tensors = {
        str(number): LazyTensor.contiguous(str(number), dtype(name), shape, MemoryBytes(data), 0)
        for number, (name, shape, data) in enumerate(rows)
    }
    return Checkpoint(tensors, Source("m", "torch", "zip", ()))


@pytest.mark.parametrize("jobs", [1, 2])
def test_stats_over_several_blocks(jobs: int) -> None:
    values = np.random.default_rng(0).standard_normal(700_000).astype(np.float32) * 3 + 1
    values[5], values[6:9] = np.inf, 0
    found = stats(checkpoint(("f32", (700, 1000), values.tobytes()), ("i64", (2,), np.int64([-5, 7]).tobytes())), jobs)
    assert list(found) == ["0", "1"]
    first, finite = found["0"], np.delete(values, 5).astype(np.float64)
    assert (first.min, first.max, first.inf, first.nan, first.zeros) == (finite.min(), finite.max(), 1, 0, 3)
    assert (first.mean, first.std, first.l2) == pytest.approx((finite.mean(), finite.std(), np.linalg.norm(finite)), rel=1e-10)
    assert len(first.histogram) == 16
    assert (found["1"].min, found["1"].max, found["1"].mean, found["1"].std) == (-5, 7, 1, 6)


def test_no_values_no_numbers() -> None:
    empty, nan = stats(checkpoint(("f32", (0, 4), b""), ("f16", (1,), b"\x00\x7e"))).values()
    for found in (empty, nan):
        assert (found.min, found.max, found.mean, found.std, found.l2, found.histogram) == (None,) * 5 + ((),)
    assert (empty.nan, nan.nan) == (0, 1)


def test_packed_tensors() -> None:
    found = stats(checkpoint(("f4", (4,), b"\x21\xf7"), ("f4", (3,), b"\x21\x07"), ("f6_e2m3", (4,), b"abc")))
    assert list(found) == ["0"]
    assert (found["0"].min, found["0"].max) == (-6, 6)


def test_a_scalar_and_a_bool() -> None:
    scalar, bits = stats(checkpoint(("f64", (), np.float64(2.5).tobytes()), ("bool", (4,), b"\1\0\1\1"))).values()
    assert (scalar.min, scalar.max, scalar.std, scalar.l2) == (2.5, 2.5, 0, 2.5)
    assert (bits.mean, bits.zeros, bits.max) == (0.75, 1, 1)


def test_sparkline() -> None:
    assert sparkline((0, 1, 50, 100)) == " ▁▄█"
    assert sparkline(()) == ""
    assert sparkline((0, 0)) == "  "
