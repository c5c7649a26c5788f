"""Layouts that are only read: quanto's, torchao's, DeepSeek's and ModelOpt's tensors, held against these themselves."""

from __future__ import annotations

from typing import Any

import layout_contract as contract
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from wtool.errors import UnsupportedError, UsageError
from wtool.layout import Quantized, parse_scheme
from wtool.layouts import registry

F8 = ml_dtypes.float8_e4m3fn


def array_of(tensor: Any) -> Any:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(F8)
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def find(arrays: dict[str, Any]) -> dict[str, Quantized]:
    return registry.find({key: contract.lazy(key, values) for key, values in arrays.items()}, None, {})


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["qint8", "qint4", "qint2", "qfloat8"])
def test_quanto(name: str) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.Linear(64, 32, bias=False))
    quanto.quantize(model, weights=getattr(quanto, name), exclude=["1"] if name in ("qint4", "qint2") else None)
    quanto.freeze(model)
    arrays = {key: array_of(value) for key, value in model.state_dict().items()}
    found = find(arrays)
    assert {one.layout for one in found.values()} == {"quanto"}
    for key, one in found.items():
        theirs = model[int(key[0])].weight.dequantize().detach().numpy()
        assert np.array_equal(one.dense().array(), theirs)
    left = set(arrays).difference(*(one.parts for one in found.values()))
    assert not any("scale" in key or "_data" in key for key in left)


@pytest.mark.frameworks
def test_quanto_in_four_bits_without_a_bias_has_no_shape() -> None:
    quanto = pytest.importorskip("optimum.quanto")
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(256, 64, bias=False))
    quanto.quantize(model, weights=quanto.qint4)
    quanto.freeze(model)
    with pytest.raises(UnsupportedError, match=r"'0\.weight'.*without its shape"):
        find({key: array_of(value) for key, value in model.state_dict().items()})


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["int8", "int4", "float8"])
def test_torchao(name: str) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    import torch
    from torchao.quantization.granularity import PerGroup

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 64).bfloat16())
    config = {
        "int8": torchao.Int8WeightOnlyConfig,
        "int4": lambda: torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
        "float8": torchao.Float8WeightOnlyConfig,
    }[name]()
    torchao.quantize_(model, config)
    tensors, _ = support.flatten_tensor_state_dict(model.state_dict())
    ((key, one),) = find({key: array_of(value) for key, value in tensors.items()}).items()
    assert (key, one.layout) == ("0.weight", "torchao")
    theirs = model[0].weight.dequantize().float().numpy()
    ours = one.dense().array().astype(ml_dtypes.bfloat16).astype("f4")
    assert np.abs(ours - theirs).max() <= np.abs(theirs).max() * (0 if name != "float8" else 2**-8)


def blocks_of(rows: int, columns: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    codes = random.standard_normal((rows, columns)).astype(F8)
    return codes, random.uniform(0.01, 1, (-(-rows // 128), -(-columns // 128))).astype("f4")


@pytest.mark.parametrize("shape", [(128, 128), (300, 200), (1, 500), (257, 1)])
def test_deepseek(shape: tuple[int, int]) -> None:
    """The formula of DeepSeek V3's inference/kernel.py: each block of 128 x 128 times its scale_inv."""
    codes, scales = blocks_of(*shape)
    parts = {"m.weight": codes, "m.weight_scale_inv": scales, "m.input_scale": np.ones((), "f4")}
    (one,) = find(parts).values()
    assert (one.layout, one.dtype.name, set(one.parts)) == ("fp8", "bf16", set(parts))
    assert one.scheme == ("f8-e4m3:tensor" if scales.size == 1 else "f8-e4m3:block")
    wide = scales.repeat(128, 0)[: shape[0]].repeat(128, 1)[:, : shape[1]]
    assert np.array_equal(one.dense().array(), codes.astype("f4") * wide)


@pytest.mark.parametrize("scale", [(), (1,), (64,), (64, 1)])
def test_scales_of_a_tensor_and_of_rows(scale: tuple[int, ...]) -> None:
    codes, _ = blocks_of(64, 96)
    factor = np.random.default_rng(1).uniform(0.1, 1, scale).astype("f4")
    (one,) = find({"m.weight": codes, "m.weight_scale": factor}).values()
    assert np.array_equal(one.dense().array(), codes.astype("f4") * factor.reshape(-1, 1))


def test_modelopt_has_the_reciprocal() -> None:
    """The same codes and block scales, once with compressed-tensors' global scale and once with one over it."""
    parts = contract.arrays("compressed-tensors", "nvfp4", contract.weights((64, 256)))
    expected = contract.dense(parts)
    theirs = {
        "m.weight": parts["m.weight_packed"],
        "m.weight_scale": parts["m.weight_scale"],
        "m.weight_scale_2": (1 / parts["m.weight_global_scale"]).astype("f4").reshape(()),
    }
    (one,) = find(theirs).values()
    assert (one.layout, one.shape) == ("modelopt", (64, 256))
    assert np.allclose(one.dense().array(), expected, rtol=1e-6, atol=0)


def test_an_order_of_columns_is_refused() -> None:
    parts = contract.arrays("compressed-tensors", "int4:g32", contract.weights((8, 64)))
    assert find({**parts, "m.weight_g_idx": np.repeat(np.arange(2), 32).astype("i4")})
    with pytest.raises(UnsupportedError, match=r"'m\.weight'.*g_idx"):
        find({**parts, "m.weight_g_idx": np.tile(np.arange(2), 32).astype("i4")})


def test_they_are_only_read() -> None:
    for name in ("fp8", "quanto", "torchao"):
        assert name not in registry.names()
        with pytest.raises(UsageError, match="only read"):
            registry.layout(name).settle(parse_scheme("int8"))


WILD: dict[str, dict[str, Any]] = {
    "deepseek": {"m.weight": blocks_of(130, 140)[0], "m.weight_scale_inv": blocks_of(130, 140)[1]},
    "row": {"m.weight": blocks_of(30, 40)[0], "m.weight_scale": np.ones((30, 1), "f4")},
    "modelopt": {
        "m.weight": np.zeros((8, 32), "u1"),
        "m.weight_scale": np.ones((8, 4), F8),
        "m.weight_scale_2": np.ones((), "f4"),
    },
    "quanto": {"m.weight._data": np.zeros((8, 32), "i1"), "m.weight._scale": np.ones((8, 1), "f4")},
    "quanto4": {
        "m.weight._data._data": np.zeros((8, 32), "u1"),
        "m.weight._scale": np.ones((16, 1), "f4"),
        "m.weight._shift": np.ones((16, 1), "f4"),
        "m.bias": np.ones(8, "f4"),
    },
    "torchao": {
        "m._weight_qdata": np.zeros((8, 32), "i1"),
        "m._weight_scale": np.ones((8, 2), "f4"),
        "m._weight_zero_point": np.zeros((8, 2), "i1"),
    },
}


@pytest.mark.parametrize("name", WILD)
def test_damaged_parts(name: str) -> None:
    assert len(find(WILD[name])) == 1

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(contract.damages(WILD[name]))
    def check(damaged: dict[str, Any]) -> None:
        try:
            contract.survives(damaged, None, {})
        except UnsupportedError as error:
            assert "m." in str(error)

    check()
