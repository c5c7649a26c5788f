"""Masks as kernels: any run of values gets the same answer as the whole."""

from __future__ import annotations

import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wtool.dtypes import dtype
from wtool.kernels.buffers import CHUNK
from wtool.kernels.masks import (
    Both,
    ByBits,
    ByChance,
    ByMagnitude,
    Everything,
    Finite,
    Mask,
    Pruned,
    codes,
    tickets,
)
from wtool.kernels.trim import ALL, NONE, Keep

UNITS = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f8_e4m3": ml_dtypes.float8_e4m3fn,
    "f8_e5m2": ml_dtypes.float8_e5m2,
    "f8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "f8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}


class Values:
    """What stands for a lazy tensor."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def flat(self, first: int, last: int) -> Any:
        return self.array[first:last]


def random(seed: int, count: int, unit: Any = np.float32) -> Any:
    return (np.random.default_rng(seed).standard_normal(count) * 2).astype(unit)


def every_code(unit: Any) -> Any:
    size = np.dtype(unit).itemsize
    if size > 2:
        return random(3, 1 << 12, unit)
    return np.arange(1 << 8 * size, dtype=f"u{size}").view(unit)


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("threshold", [0.0, 1e-300, 0.25, 0.2500001, 1.0, 3.14159, 60000.0, 1e30])
def test_magnitudes_compare_as_values_do(name: str, threshold: float) -> None:
    values = every_code(UNITS[name])
    with np.errstate(all="ignore"):
        sizes = np.abs(values.astype(np.float64))
    odd = ~np.isfinite(sizes)
    for until in (0, 100, len(values)):
        place = np.arange(len(values))
        expected = (sizes > threshold) | ((sizes == threshold) & (place < until)) | odd
        mask = ByMagnitude(Keep(threshold, until), dtype(name))
        found = np.concatenate([mask.keeps(at, values[at : at + 999]) for at in range(0, len(values), 999)])
        assert (found == expected).all()
    assert ByMagnitude(ALL, dtype(name)).keeps(0, values).all()
    assert (ByMagnitude(NONE, dtype(name)).keeps(0, values) == odd).all()
    assert (Finite(ByMagnitude(Keep(1e300, 0), dtype(name)), dtype(name)).keeps(0, values) == (odd | (sizes > 1e300))).all()


@pytest.mark.parametrize("name", UNITS)
def test_codes_rise_as_magnitudes_do(name: str) -> None:
    values = every_code(UNITS[name])
    with np.errstate(all="ignore"):
        sizes = np.abs(values.astype(np.float64))
    finite = np.isfinite(sizes)
    order = np.argsort(sizes[finite], kind="stable")
    found = codes(values).astype(np.uint64)[finite][order]
    assert (np.diff(found.astype(np.int64)) >= 0).all() and ((np.diff(sizes[finite][order]) > 0) == (np.diff(found) > 0)).all()


def masks(values: Any) -> list[Mask]:
    count = len(values)
    bits = np.packbits(np.random.default_rng(1).random(count) < 0.5, bitorder="little")
    found: list[Mask] = [
        ByMagnitude(Keep(0.5, count // 2), dtype("f32")),
        ByChance(1, "a.key", 1 << 55, 0),
        ByChance(1, "a.key", int(tickets(1, "a.key", 0, count)[0]), count),
        ByBits(Values(bits)),
        Everything(),
    ]
    return [*found, Both(found[0], found[3])]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 800), st.data())
def test_a_run_gets_what_the_whole_gets(count: int, data: st.DataObject) -> None:
    values = random(5, count)
    first = data.draw(st.integers(0, len(values) - 1))
    last = data.draw(st.integers(first + 1, len(values)))
    for mask in masks(values):
        whole = mask.keeps(0, values)
        assert whole.dtype == np.bool_ and (mask.keeps(first, values[first:last]) == whole[first:last]).all(), mask
        assert len(mask.keeps(first, values[:0])) == 0


@pytest.mark.parametrize("name", UNITS)
def test_what_stays_stays_bit_for_bit(name: str) -> None:
    values = np.resize(every_code(UNITS[name]), CHUNK * 2 + 77)
    seen: list[tuple[int, int, int]] = []
    mask = ByChance(4, "k", 1 << 55, 0)
    pruned = Pruned(mask, lambda start, some, kept, left: seen.append((start, len(some), int(kept.sum()))))
    found = pruned(123, values)
    kept = mask.keeps(123, values)
    words = f"u{values.dtype.itemsize}"
    assert (found.view(words) == np.where(kept, values.view(words), 0)).all() and found.dtype == values.dtype
    assert [row[:2] for row in seen] == [(123, CHUNK), (123 + CHUNK, CHUNK), (123 + 2 * CHUNK, 77)]
    assert sum(row[2] for row in seen) == np.count_nonzero(kept)
    others = values[::-1].copy()
    assert (Pruned(mask)(123, values, others).view(words) == np.where(kept, others.view(words), 0)).all()
    assert pruned == Pruned(mask) and pickle.loads(pickle.dumps(Pruned(mask))) == pruned and pruned.placed


def test_tickets_are_those_of_the_written_rule() -> None:
    from hashlib import blake2b

    mask = (1 << 64) - 1
    seed = blake2b(b"wtool prune 1\n7\nlayers.0.weight", digest_size=16).digest()
    state, gamma = int.from_bytes(seed[:8], "little"), int.from_bytes(seed[8:], "little") | 1
    expected = []
    for place in range(1000, 1010):
        z = (state + (place + 1) * gamma) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append((z ^ (z >> 31)) >> 8)
    assert tickets(7, "layers.0.weight", 1000, 10).tolist() == expected
