"""MLX's layout: mlx itself quantizes and dequantizes the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import layout_contract as contract
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wtool.errors import CorruptError, DtypeError, NotFiniteError, UnsupportedError, UsageError
from wtool.layout import parse_scheme
from wtool.layouts import registry

MLX = registry.layout("mlx")
BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


def told(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quantization": {"bits": bits, "group_size": group, **more}}


def to_mlx(values: Any) -> Any:
    mx = pytest.importorskip("mlx.core")
    if values.dtype == ml_dtypes.bfloat16:
        return mx.array(values.astype(np.float32)).astype(mx.bfloat16)
    return mx.array(values)


def of_mlx(values: Any) -> Any:
    import mlx.core as mx

    return np.array(values.astype(mx.float32)).astype(ml_dtypes.bfloat16) if values.dtype == mx.bfloat16 else np.array(values)


def plain(parts: dict[str, Any], bits: int, group: int) -> Any:
    """code * scale + bias in f32: code j of a row at bit j * bits."""
    words = parts["m.weight"]
    flat = np.unpackbits(words.reshape(-1, words.shape[-1]).view(np.uint8), axis=1, bitorder="little")
    codes = (flat.reshape(len(flat), -1, bits) @ (1 << np.arange(bits))).astype(np.float32)
    scales, biases = (parts[name].reshape(len(codes), -1).repeat(group, axis=1) for name in ("m.scales", "m.biases"))
    return (codes * scales + biases).reshape(*words.shape[:-1], -1)


@pytest.mark.parametrize("scheme", ["int4", "int4:g32:rtn", "int8:g128", "int3:g64", "int2:g32:rtn"])
@pytest.mark.parametrize("shape", [(64, 256), (1, 128), (3, 16, 128)])
def test_parts_decode_as_they_are_told(scheme: str, shape: tuple[int, ...]) -> None:
    bits, group = BITS[scheme.partition(":")[0]], MLX.settle(parse_scheme(scheme)).group

    def check(values: Any, row: str) -> None:
        parts = contract.arrays("mlx", scheme, values)
        assert parts["m.weight"].dtype == np.uint32
        assert parts["m.weight"].shape == (*shape[:-1], shape[-1] * bits // 32)
        for name in ("m.scales", "m.biases"):
            assert parts[name].shape == (*shape[:-1], shape[-1] // group)
            assert parts[name].dtype == (np.float32 if row == "f64" else values.dtype)
        decoded = contract.dense(parts, told(bits, group))
        near = plain(parts, bits, group)
        assert np.array_equal(decoded, near) if row in ("f32", "f64") else np.allclose(decoded, near, atol=1e-2)
        assert contract.sqnr(values, decoded) > {8: 33, 4: 16, 3: 10, 2: 3}[bits]

    contract.each_dtype(check, shape)


@pytest.mark.parametrize("scheme", ["int4:g64", "int4:g32", "int8:g128", "int3:g64", "int2:g32"])
def test_mlx_quantizes_and_dequantizes_the_same(scheme: str) -> None:
    mx = pytest.importorskip("mlx.core")
    bits, group = BITS[scheme.partition(":")[0]], MLX.settle(parse_scheme(scheme)).group
    for row in ("f32", "f16", "bf16"):
        values = contract.weights((48, 256), row)
        values[5], values[6], values[7] = abs(values[5]), -abs(values[6]), 0.5
        parts = contract.arrays("mlx", f"{scheme}:rtn", values)
        theirs = mx.quantize(to_mlx(values), group_size=group, bits=bits)
        for name, one in zip(("m.weight", "m.scales", "m.biases"), theirs, strict=True):
            assert parts[name].tobytes() == of_mlx(one).tobytes(), (row, name)
        for method in ("rtn", "mse"):
            parts = contract.arrays("mlx", f"{scheme}:{method}", values)
            dense = mx.dequantize(*map(to_mlx, parts.values()), group_size=group, bits=bits)
            ours = contract.dense(parts, told(bits, group)).astype(values.dtype)
            assert ours.tobytes() == of_mlx(dense).tobytes()


def test_searching_pays() -> None:
    values = contract.weights((64, 512))
    worth = [
        contract.sqnr(values, contract.dense(contract.arrays("mlx", f"int3:{way}", values), told(3, 64)))
        for way in ("rtn", "mse")
    ]
    assert worth[1] > worth[0] + 0.4


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_modes_of_small_floats(mode: str) -> None:
    mx = pytest.importorskip("mlx.core")
    words, scales = mx.quantize(to_mlx(contract.weights((16, 128))), mode=mode)
    parts = {"m.weight": np.array(words), "m.scales": np.array(scales)}
    ours = contract.dense(parts).astype(ml_dtypes.bfloat16)
    assert ours.tobytes() == of_mlx(mx.dequantize(words, scales, mode=mode)).tobytes()


def test_mxfp4_is_written() -> None:
    mx = pytest.importorskip("mlx.core")
    parts = contract.arrays("mlx", "mxfp4", contract.weights((2, 8, 64)))
    assert {key: (part.dtype.name, part.shape) for key, part in parts.items()} == {
        "m.weight": ("uint32", (2, 8, 8)),
        "m.scales": ("uint8", (2, 8, 2)),
    }
    theirs = mx.dequantize(*map(mx.array, parts.values()), mode="mxfp4")
    assert contract.dense(parts).astype(ml_dtypes.bfloat16).tobytes() == of_mlx(theirs).tobytes()


def test_bits_are_told_or_asked_for() -> None:
    values = contract.weights((64, 256))
    parts = contract.arrays("mlx", "int4:g64", values)
    expected = plain(parts, 4, 64)
    assert np.array_equal(contract.dense(parts, told(4, 64)), expected)
    assert np.array_equal(contract.dense(parts, told(8, 32, m={"bits": 4, "group_size": 64})), expected)
    assert np.array_equal(contract.dense(parts, {"quantization_config": {"bits": 4, "group_size": 64}}), expected)
    said = {"wtool.quantized": json.dumps({"layout": "mlx", "schemes": {"int4:g64:asym": 1}})}
    assert np.array_equal(contract.dense(parts, None, said), expected)
    with pytest.raises(UnsupportedError, match="may be 4 bits in groups of 64, 8 bits"):
        contract.dense(parts)
    with pytest.raises(CorruptError):
        contract.dense(parts, told(4, 128))
    sure = contract.arrays("mlx", "int8:g128", values)  # 1,024 bits in a group are no other pair's
    assert np.array_equal(contract.dense(sure), plain(sure, 8, 128))


def test_config() -> None:
    four, eight, mx = (MLX.settle(parse_scheme(text)) for text in ("int4", "int8:g32", "mxfp4"))
    chosen = {"a.q.weight": four, "a.k.weight": four, "a.o.weight": eight, "a.e.weight": mx}
    found = MLX.config(chosen, ["head.weight"])
    assert found["quantization"] == found["quantization_config"]
    assert found["quantization"] == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "a.o": {"group_size": 32, "bits": 8},
        "a.e": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        "head": False,
    }
    assert MLX.metadata(chosen) == {"format": "mlx"}


def test_a_model_of_mlx_takes_the_file(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    nn = pytest.importorskip("mlx.nn")

    class Model(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(128, 64), nn.Linear(64, 128), nn.Linear(128, 32)

        def __call__(self, x: Any) -> Any:
            return self.head(self.two(nn.relu(self.one(x))))

    model = Model()
    mx.save_safetensors(
        str(tmp_path / "in.safetensors"),
        {f"{name}.{leaf}": one for name in ("one", "two", "head") for leaf, one in model[name].parameters().items()},
    )
    from wtool.api import open_checkpoint

    whole = open_checkpoint(str(tmp_path / "in.safetensors"))
    only = ("one.weight", "two.weight")
    made = contract.quantize("mlx", "int8:g64", whole.tensors, only)
    settled = contract.settled("mlx", "int8:g64")
    file = tmp_path / "model.safetensors"
    contract.written(made, file, metadata=MLX.metadata(dict.fromkeys(only, settled)))
    config = MLX.config(dict.fromkeys(only, settled), ["head.weight"])["quantization"]
    weights, metadata = mx.load(str(file), return_metadata=True)
    assert metadata["format"] == "mlx"
    loaded = Model()
    nn.quantize(  # as mlx-lm's load_model does
        loaded,
        group_size=config["group_size"],
        bits=config["bits"],
        mode=config["mode"],
        class_predicate=lambda path, one: config.get(path, f"{path}.scales" in weights),
    )
    loaded.load_weights(list(weights.items()), strict=True)
    x = mx.random.normal((4, 128))
    one, two = np.array(model(x)), np.array(loaded(x))
    assert np.abs(one - two).max() < 0.02 * np.abs(one).max()


def test_one_thread_or_three_straight_or_turned(tmp_path: Path) -> None:
    contract.same_for_any_arrangement("mlx", "int4:g32", (96, 160), tmp_path)
    contract.same_for_any_arrangement("mlx", "int3:g64", (3, 40, 128), tmp_path)


def test_ties(tmp_path: Path) -> None:
    contract.ties_once("mlx", "int4:g64", tmp_path)


def test_what_is_refused() -> None:
    def why(scheme: str, shape: tuple[int, ...], key: str = "m.weight") -> str | None:
        return MLX.refuses(MLX.settle(parse_scheme(scheme)), contract.lazy(key, np.zeros(shape, np.float32)))

    assert why("int4", (1, 64)) is None
    assert why("int4", (64, 200)) == "rows of 200 are no groups of 64"
    assert why("int4", (2, 2, 2, 64)) == "of more than three axes"
    assert why("int4", (0, 64)) == "empty"
    assert why("int4", (8, 64), "m/kernel") == "its key does not end in .weight"
    for scheme in ("f8", "int4:channel", "int4:g16", "mxfp4:g64", "nvfp4"):
        with pytest.raises(UsageError):
            MLX.settle(parse_scheme(scheme))


def test_values_that_cannot_be_coded() -> None:
    values = contract.weights((64, 128))
    for odd in (np.nan, np.inf):
        values[5, 7] = odd
        with pytest.raises(NotFiniteError, match=r"m\.weight"):
            contract.arrays("mlx", "int4", values)
    values[5, 7], values[5, 8] = 3e38, -3e38
    with pytest.raises(DtypeError, match=r"m\.weight"):
        contract.arrays("mlx", "int4:rtn", values)


def test_zeros_stay_zeros() -> None:
    for scheme in ("int4:g32", "int4:g32:rtn", "mxfp4"):
        assert not contract.dense(contract.arrays("mlx", scheme, np.zeros((8, 128), np.float32)), told(4, 32)).any()


PARTS = contract.arrays("mlx", "int4:g32", contract.weights((32, 64)))
CONFIGS = [None, told(4, 32), {"quantization": {"bits": [4], "m": 3}}, {"quantization": 5}, told(8, 128, m={"bits": None})]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contract.damages(PARTS), st.sampled_from(CONFIGS))
def test_damaged_parts(parts: dict[str, Any], config: dict[str, Any] | None) -> None:
    try:
        contract.survives(parts, config, {"wtool.quantized": "[1]"})
    except UnsupportedError as error:  # nothing tells how many bits
        assert "m.weight" in str(error)


@pytest.mark.parametrize(
    "text", ["[]", "3", "{", '{"layout":"mlx"}', '{"layout":"mlx","schemes":[5]}', '{"layout":"mlx","schemes":{"x":1}}']
)
def test_damaged_metadata(text: str) -> None:
    with pytest.raises(UnsupportedError):
        contract.dense(contract.arrays("mlx", "int4", contract.weights((8, 64))), None, {"wtool.quantized": text})


@pytest.mark.skipif("WTOOL_PEERS" not in os.environ, reason="WTOOL_PEERS names no folder with bin/python that has mlx-lm")
@pytest.mark.parametrize("layout", ["mlx", "awq"])
def test_mlx_lm_loads_the_folder(layout: str, tmp_path: Path) -> None:
    """Its logits are those of the dequantized weights; AWQ's layout it takes as well."""
    transformers = pytest.importorskip("transformers")
    from thinned import peer

    from wtool.cli.app import run

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 96, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2))
    model.save_pretrained(tmp_path / "model")
    folders = [str(tmp_path / name) for name in ("model", "out", "dense")]
    assert run(["quantize", *folders[:2], "--scheme", "int4", "--layout", layout, "-q"]) == 0
    assert run(["convert", folders[1], f"{folders[2]}/", "--dequantize", "--dtype", "f32", "-q"]) == 0
    script = f"""
import mlx.core as mx
from pathlib import Path
from mlx_lm.utils import load_model
for folder in {folders}:
    logits = load_model(Path(folder))[0](mx.arange(12)[None])
    out[Path(folder).name] = np.array(logits.astype(mx.float32))
"""
    found = peer(script, tmp_path)
    original, coded, dense = (found[Path(folder).name] for folder in folders)
    assert np.linalg.norm(coded - dense) < 0.02 * np.linalg.norm(original)
    assert np.linalg.norm(coded - original) < 0.4 * np.linalg.norm(original)
