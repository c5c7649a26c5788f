"""bitsandbytes' layouts: bitsandbytes itself quantizes and dequantizes the same, and transformers loads the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layout_contract as contract
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from wtool.errors import CorruptError, UnsupportedError, UsageError
from wtool.layout import parse_scheme
from wtool.layouts import registry

BNB = registry.layout("bnb")
FOURS = ("nf4:rtn", "fp4:rtn", "nf4-nested:rtn")


def functional() -> Any:
    pytest.importorskip("bitsandbytes")
    return pytest.importorskip("bitsandbytes.functional")


def tensor_of(values: Any) -> Any:
    import torch

    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(values))


@pytest.mark.frameworks
@pytest.mark.parametrize("row", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("scheme", FOURS)
def test_bitsandbytes_reads_the_same(scheme: str, row: str) -> None:
    bnb = functional()
    parts = contract.arrays("bnb", scheme, contract.weights((48, 192), row))
    stats = {key.removeprefix("m.weight."): tensor_of(values) for key, values in parts.items() if key != "m.weight"}
    state = bnb.QuantState.from_dict(dict(stats), device="cpu")
    theirs = bnb.dequantize_4bit(tensor_of(parts["m.weight"]), state)
    ours = contract.dense(parts)
    assert theirs.shape == ours.shape
    import torch

    assert torch.equal(theirs, torch.from_numpy(ours).to(theirs.dtype))


@pytest.mark.frameworks
@pytest.mark.parametrize("book", ["nf4", "fp4"])
@pytest.mark.parametrize("row", ["f32", "f16", "bf16"])
def test_bitsandbytes_writes_the_same(book: str, row: str) -> None:
    bnb = functional()
    values = contract.weights((48, 192), row)
    theirs, state = bnb.quantize_4bit(tensor_of(values), blocksize=64, quant_type=book, compress_statistics=False)
    ours = contract.arrays("bnb", f"{book}:rtn", values)
    assert ours["m.weight"].tobytes() == theirs.numpy().tobytes()
    packed = state.as_dict(packed=True)
    assert set(ours) == {"m.weight"} | {f"m.weight.{name}" for name in packed}
    for name, tensor in packed.items():
        mine = ours[f"m.weight.{name}"]
        if "quant_state" in name:
            assert json.loads(mine.tobytes()) == json.loads(bytes(tensor.numpy()))
        else:
            assert mine.tobytes() == tensor.numpy().tobytes()


@pytest.mark.frameworks
def test_int8_rows_are_bitsandbytes_own() -> None:
    bnb = functional()
    values = contract.weights((48, 192), "f16")
    parts = contract.arrays("bnb", "int8", values)
    codes, scb, _ = bnb.int8_vectorwise_quant(tensor_of(values))
    assert parts["m.SCB"].tobytes() == scb.numpy().tobytes()
    assert parts["m.weight"].tobytes() == codes.numpy().tobytes()
    theirs = bnb.int8_vectorwise_dequant(codes, scb)
    assert np.array_equal(contract.dense(parts), theirs.numpy())


@pytest.mark.frameworks
@pytest.mark.parametrize("scheme", ["nf4", "nf4-nested", "int8"])
def test_transformers_loads_the_folder(tmp_path: Path, scheme: str) -> None:
    """Its logits are those of the model whose weights are the dequantized ones."""
    transformers = pytest.importorskip("transformers")
    functional()
    import torch

    from wtool.cli.app import run

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 96}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    argv = ["quantize", str(tmp_path / "model"), str(tmp_path / "out"), "--scheme", scheme, "--layout", "bnb", "-q"]
    assert run([*argv, "--only", "**_proj.weight"]) == 0
    assert run(["convert", str(tmp_path / "out"), str(tmp_path / "dense/"), "--dequantize", "--dtype", "f32", "-q"]) == 0
    ids = torch.arange(12)[None]
    load = transformers.AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        coded = load(tmp_path / "out", dtype=torch.float32, device_map="cpu")
        assert "bitsandbytes" in type(coded.model.layers[0].mlp.up_proj).__module__
        theirs = coded(ids).logits
        ours = load(tmp_path / "dense", dtype=torch.float32)(ids).logits
        original = model(ids).logits
    # int8 multiplies codes of 8-bit activations, 4 bits in the compute dtype of the config, bf16.
    assert (theirs - ours).norm() < 0.02 * ours.norm()
    assert (ours - original).norm() < (0.05 if scheme == "int8" else 0.4) * original.norm()


@pytest.mark.parametrize("scheme", ["nf4", "nf4-nested", "fp4", "int8"])
def test_the_same_for_any_arrangement(tmp_path: Path, scheme: str) -> None:
    contract.same_for_any_arrangement("bnb", scheme, (96, 128), tmp_path)


@pytest.mark.parametrize("scheme", ["nf4", "nf4-nested", "int8"])
def test_tied_weights_are_coded_once(tmp_path: Path, scheme: str) -> None:
    contract.ties_once("bnb", scheme, tmp_path)


@pytest.mark.parametrize(("scheme", "least"), [("nf4", 21.0), ("nf4-nested", 20.9), ("fp4", 18.5), ("int8", 39)])
@pytest.mark.parametrize("shape", [(1, 64), (300, 64), (64, 1024)])
def test_quality(scheme: str, least: float, shape: tuple[int, ...]) -> None:
    values = contract.weights(shape)
    assert contract.sqnr(values, contract.dense(contract.arrays("bnb", scheme, values))) > least - (2 if shape[0] == 1 else 0)


def test_zeros_stay_zeros() -> None:
    for scheme in (*FOURS, "int8"):
        assert not contract.dense(contract.arrays("bnb", scheme, np.zeros((8, 128), np.float32))).any()


def test_what_does_not_fit() -> None:
    scheme = contract.settled("bnb", "nf4")
    assert "no blocks of 64" in (BNB.refuses(scheme, contract.lazy("m.weight", contract.weights((3, 5)))) or "")
    assert "does not end in" in (BNB.refuses(scheme, contract.lazy("m.kernel", contract.weights((8, 64)))) or "")
    assert "of 3 axes" in (BNB.refuses(scheme, contract.lazy("m.weight", contract.weights((2, 8, 64)))) or "")
    for text in ("int4", "nf4:g32", "nf4:asym", "int8:g64"):
        with pytest.raises(UsageError):
            BNB.settle(parse_scheme(text))
    with pytest.raises(UsageError, match="one scheme"):
        BNB.config({"a": scheme, "b": contract.settled("bnb", "int8")}, [])


def test_other_layouts_of_int8_are_refused() -> None:
    parts = contract.arrays("bnb", "int8", contract.weights((8, 64)))
    with pytest.raises(UnsupportedError, match="weight_format"):
        contract.dense({**parts, "m.weight_format": np.array(2, np.uint8)})


@pytest.mark.parametrize("scheme", ["nf4", "nf4-nested", "int8"])
def test_damaged_parts(scheme: str) -> None:
    parts = contract.arrays("bnb", scheme, contract.weights((8, 128)))

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(contract.damages(parts))
    def check(damaged: dict[str, Any]) -> None:
        try:
            contract.survives(damaged, None, {})
        except UnsupportedError as error:
            assert "m." in str(error)

    check()


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"[]",
        b"{}",
        b'{"shape": [8, -64], "dtype": "float32", "blocksize": 64}',
        b'{"shape": [8, 64], "dtype": "int8", "blocksize": 64}',
        b'{"shape": [8, 64], "dtype": "float32", "blocksize": 7}',
        b'{"shape": [9, 64], "dtype": "float32", "blocksize": 64}',
        b'{"shape": [8, 64], "dtype": "float32", "blocksize": 64, "nested_offset": 1}',
        b'{"shape": [8, 64], "dtype": "float32", "blocksize": 64, "nested_offset": "x", "nested_blocksize": 256}',
        b"[" * 60000,
    ],
)
def test_a_state_that_lies_is_corrupt(state: bytes) -> None:
    parts = contract.arrays("bnb", "nf4", contract.weights((8, 64)))
    with pytest.raises(CorruptError, match=r"m\.weight"):
        contract.dense({**parts, "m.weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8)})
