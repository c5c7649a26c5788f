"""N of every M, and whole groups: against plain numpy and torch."""

from __future__ import annotations

import pickle
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from wtool.bytesource import MemoryBytes
from wtool.dtypes import dtype
from wtool.errors import NotFiniteError, UsageError
from wtool.kernels.masks import Pruned
from wtool.kernels.patterns import (
    ByGroups,
    Geometry,
    Structure,
    parse_pattern,
    parse_structure,
    pattern_mask,
)
from wtool.tensor import LazyTensor
from wtool.views import computed

UNITS = {"f32": "f4", "f64": "f8", "f16": "f2", "bf16": ml_dtypes.bfloat16, "f8_e4m3": ml_dtypes.float8_e4m3fn}
SHAPES = [(4, 8), (1, 16), (16, 4, 3), (8, 4, 3, 3), (0, 8), (8, 0)]


def tensor(values: Any, key: str = "w") -> LazyTensor:
    array = np.asarray(values)
    row = dtype(array.dtype.name)
    return LazyTensor.contiguous(key, row, array.shape, MemoryBytes(array.tobytes()), 0)


def oracle(values: Any, n: int, m: int) -> Any:
    """By sorting each group with a loop."""
    flat = np.abs(values.astype("f8")).reshape(-1)
    kept = np.zeros(flat.size, bool)
    for at in range(0, flat.size, m):
        best = sorted(range(m), key=lambda one: (-flat[at + one], one))[:n]
        kept[[at + one for one in best]] = True
    return kept.reshape(values.shape)


def random(shape: tuple[int, ...], unit: Any = "f4", seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(unit)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4), (1, 3), (2, 6), (4, 8), (1, 8), (1, 12), (5, 24)])
def test_pattern_is_the_oracles(shape: tuple[int, ...], n: int, m: int, unit: str) -> None:
    values = random(shape, UNITS[unit])
    if prod(shape[1:]) % m:
        with pytest.raises(UsageError, match=f"'w' is .*no multiple of {m}"):
            pattern_mask(tensor(values), n, m)
        return
    mask = pattern_mask(tensor(values), n, m)
    expected = oracle(values, n, m)
    assert np.array_equal(mask.keeps(0, values.reshape(-1)), expected.reshape(-1))
    made = computed("w", [tensor(values)], Pruned(mask)).array()
    assert made.tobytes() == np.where(expected, values, np.zeros_like(values)).tobytes()


@pytest.mark.parametrize("m", [3, 4, 8, 20])
def test_ties_keep_the_first(m: int) -> None:
    values = np.ones((2, 120), "f4") * np.where(np.arange(120) % 2, -1, 1).astype("f4")
    kept = pattern_mask(tensor(values), 2, m).keeps(0, values.reshape(-1))
    assert np.array_equal(kept.reshape(-1, m), np.broadcast_to(np.arange(m) < 2, (240 // m, m)))


@pytest.mark.parametrize("m", [4, 6, 8, 20])
def test_runs_that_cut_groups(m: int) -> None:
    values = random((4, 120))
    mask = pattern_mask(tensor(values), 2, m)
    whole = mask.keeps(0, values.reshape(-1))
    for start, stop in [(0, 1), (1, 2), (5, 7), (3, 480), (0, 479), (7, 401), (119, 121), (10, 10)]:
        assert np.array_equal(mask.keeps(start, values.reshape(-1)[start:stop]), whole[start:stop])


def test_large_and_strided_tensors() -> None:
    """Runs of the writer begin anywhere; M = 3 and 6 divide none of their lengths."""
    values = random((300, 1200))
    turned = LazyTensor.strided("w", dtype("f32"), (1200, 300), MemoryBytes(values.tobytes()), 0, (1, 1200))
    for lazy, plain in ((tensor(values), values), (turned, np.ascontiguousarray(values.T))):
        for m in (3, 4, 6):
            made = computed("w", [lazy], Pruned(pattern_mask(lazy, 1, m)))
            expected = np.where(oracle(plain, 1, m), plain, np.float32(0))
            assert made.array().tobytes() == expected.tobytes()
            assert b"".join(block.tobytes() for block in made.blocks(1000, stripe=5000)) == expected.tobytes()
            assert made.flat(1001, 70001).tobytes() == expected.reshape(-1)[1001:70001].tobytes()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("unit", ["f4", "f2", ml_dtypes.bfloat16])
def test_what_is_not_finite(bad: float, unit: Any) -> None:
    values = np.arange(1, 9, dtype="f4").astype(unit).reshape(1, 8)
    values[0, 0] = bad
    with pytest.raises(NotFiniteError, match="'w' holds") as caught:
        pattern_mask(tensor(values), 2, 4, name="a.pth").keeps(0, values.reshape(-1))
    assert caught.value.path == "a.pth"
    kept = pattern_mask(tensor(values), 2, 4, odd=True).keeps(0, values.reshape(-1))
    assert kept.tolist() == [True, False, False, True, False, False, True, True]
    values[0, :3] = bad  # more than N: none of them is pruned
    kept = pattern_mask(tensor(values), 2, 4, odd=True).keeps(0, values.reshape(-1))
    assert kept.tolist() == [True, True, True, False, False, False, True, True]


def test_two_of_four_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    values = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    top = values.abs().reshape(-1, 4).topk(2, dim=1).indices
    expected = torch.zeros(values.numel() // 4, 4, dtype=torch.bool).scatter_(1, top, True)
    mask = pattern_mask(tensor(values.numpy()), 2, 4)
    assert np.array_equal(mask.keeps(0, values.numpy().reshape(-1)).reshape(-1, 4), expected.numpy())


@pytest.mark.parametrize("text", ["4:2", "2:2", "0:4", "2-4", "", "2:4:8", "-1:4", "99999:100000"])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(UsageError, match="is no pattern"):
        parse_pattern(text)
    assert parse_pattern(" 2:4 ") == (2, 4)


@pytest.mark.parametrize("text", ["rows", "block", "block:16", "block:0x4", "block:4x0", "block:-1x4", ""])
def test_bad_structures(text: str) -> None:
    with pytest.raises(UsageError, match="unknown structure"):
        parse_structure(text)


def test_structures() -> None:
    assert [str(parse_structure(text)) for text in ("Row", "column", "filter", "block:4x16", "block:4*16")] == [
        "row",
        "column",
        "filter",
        "block:4x16",
        "block:4x16",
    ]
    assert not parse_structure("row").fits((4,)) and not parse_structure("filter").fits((4, 4))
    assert parse_structure("filter").fits((4, 4, 3))


@pytest.mark.parametrize(
    "text", ["row", "column", "filter", "block:2x3", "block:4x4", "block:1x1", "block:100x100", "block:3x1"]
)
@pytest.mark.parametrize("shape", [(6, 9), (7, 10), (1, 12), (12, 1), (4, 3, 2, 2), (5, 3, 3), (0, 4), (4, 0)])
def test_groups_are_the_plain_ones(text: str, shape: tuple[int, ...]) -> None:
    geometry = Geometry.of(parse_structure(text), shape)
    row, column = np.divmod(np.arange(prod(shape)), max(geometry.columns, 1))
    numbers = row // geometry.height * geometry.across + column // geometry.width
    if prod(shape):
        assert sorted(set(numbers.tolist())) == list(range(geometry.count))
        assert np.array_equal(geometry.sizes(), np.bincount(numbers))
        assert geometry.even == (geometry.sizes()[0] if len(set(geometry.sizes().tolist())) == 1 else 0) or (
            geometry.even == 0
        )
    kept = np.random.default_rng(1).random(geometry.count) < 0.5
    mask = ByGroups(np.packbits(kept, bitorder="little").tobytes(), geometry)
    values = random((prod(shape),), "f8")
    total = np.zeros(geometry.count)
    for length in (1, 5, 12, 1000):
        total[:] = 0
        for start in range(0, len(values), length):
            run = values[start : start + length]
            assert np.array_equal(mask.keeps(start, run), kept[numbers[start : start + length]])
            geometry.add_up(total, start, run)
        assert np.allclose(total, np.bincount(numbers, values, geometry.count), rtol=1e-12, atol=1e-12)


def test_masks_travel() -> None:
    mask = ByGroups(b"\x05", Geometry.of(Structure("row"), (4, 4)))
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert hash(mask) == hash(ByGroups(b"\x05", Geometry(4, 4, 1, 4)))
