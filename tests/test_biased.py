"""mlx's affine codes: bit for bit what mx.quantize gives, read by mx.dequantize."""

from __future__ import annotations

import numpy as np
import pytest

from wtool.dtypes import dtype
from wtool.errors import DtypeError
from wtool.kernels import packing
from wtool.kernels.biased import Biased


def table(name: str, rows: int = 40, columns: int = 384) -> np.ndarray:
    x = (np.random.default_rng(0).standard_t(4, (rows, columns)) * 0.02).astype(np.float32)
    x[0] = 0
    x[1] = np.abs(x[1]) + 0.1
    x[2] = -x[1]
    x[3, :128] = 0
    x[4] *= 1e-6
    x[5] = np.round(x[5] * 100)
    x[6] = -0.0
    x[7] = 0.25
    x[8, ::3] = 1e-7
    return x.astype(dtype(name).numpy()).astype(np.float32)


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_as_mlx_does_it(name: str, bits: int, group: int) -> None:
    mx = pytest.importorskip("mlx.core")
    mx.set_default_device(mx.cpu)
    kind = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}[name]
    x = table(name)
    codec = Biased(bits, group, dtype(name))
    codes, scales, biases = codec.encode(x)
    assert scales.dtype == biases.dtype == dtype(name).numpy() and scales.shape == (len(x), x.shape[1] // group)
    words, *sides = mx.quantize(mx.array(x).astype(kind), group_size=group, bits=bits)
    np.testing.assert_array_equal(packing.pack(codes, bits).view(np.uint32), np.array(words))
    for ours, theirs in zip((scales, biases), sides, strict=True):
        np.testing.assert_array_equal(ours.astype(np.float32), np.array(theirs.astype(mx.float32)))
    read = mx.dequantize(words, *sides, group_size=group, bits=bits).astype(mx.float32)
    np.testing.assert_array_equal(codec.decode(codes, scales, biases), np.array(read))


def loss(x: np.ndarray, codec: Biased) -> float:
    return float(10 * np.log10(np.square(x).sum() / np.square(codec.decode(*codec.encode(x)) - x).sum()))


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(("bits", "gain"), [(2, 0.7), (3, 0.5), (4, 0.25)])
def test_a_search_gains(name: str, bits: int, gain: float) -> None:
    x = np.random.default_rng(3).standard_normal((64, 512)).astype(dtype(name).numpy()).astype(np.float32)
    assert loss(x, Biased(bits, 64, dtype(name), True)) > loss(x, Biased(bits, 64, dtype(name))) + gain


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_zeros_stay_zeros(search: bool, name: str) -> None:
    x = np.zeros((3, 128), np.float32)
    x[1, ::3] = np.linspace(-0.3, 1, 43)
    x = x.astype(dtype(name).numpy()).astype(np.float32)
    codec = Biased(4, 64, dtype(name), search)
    back = codec.decode(*codec.encode(x))
    assert (back[[0, 2]] == 0).all()
    assert np.abs(back[x == 0]).max() < 1e-7
    assert codec.encode(x[:0])[0].shape == (0, 128)


def test_a_scale_beyond_the_dtype() -> None:
    with pytest.raises(DtypeError, match="beyond f16"):
        Biased(2, 32, dtype("f16")).encode(np.full((1, 32), 1e6, np.float32))
