"""The plain layout against its own description, in every format, and back."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import layout_contract as contract
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wtool import views
from wtool.errors import CorruptError, NotFiniteError, UsageError
from wtool.layout import Scheme, Seen, parse_scheme
from wtool.layouts import registry
from wtool.ops.dequantize import Dequantize

PLAIN = registry.layout("plain")
BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
SCHEMES = (
    *("int8", "int8:tensor", "int8:g32", "int8:channel:asym", "int8:g32:asym", "int4:g32", "int4:channel:rtn", "int4:tensor"),
    *("int3:g32:asym:rtn", "int2:g32", "f8-e4m3", "f8-e5m2:tensor"),
)
SHAPES = {
    "m.weight": [(48, 160), (1, 64), (3, 16, 96), (33, 32)],
    "m/kernel": [(160, 48), (64, 3), (3, 96, 17), (32, 33)],
    "m/kernel/.ATTRIBUTES/VARIABLE_VALUE": [(64, 40)],
}
ARRANGED = [(key, shape) for key, shapes in SHAPES.items() for shape in shapes]


def plain(parts: dict[str, Any], key: str) -> Any:
    """As the layout is described: (code - zero point) * scale, each axis of the scale cut into equal groups."""
    codes, scale = parts[key], parts[f"{key}.scale"].astype(np.float32)
    shape = codes.shape
    if f"{key}.shape" in parts:
        shape = tuple(int(size) for size in parts[f"{key}.shape"])
        columns = shape[-1] if codes.shape[:-1] == shape[:-1] else prod(shape[1:])
        bits = next(b for b in (2, 3, 4) if -(-columns * b // 8) == codes.shape[-1])
        flat = np.unpackbits(codes.reshape(-1, codes.shape[-1]), axis=1, bitorder="little")[:, : columns * bits]
        codes = (flat.reshape(len(flat), columns, bits) @ (1 << np.arange(bits))).reshape(shape) - (1 << bits - 1)

    def spread(one: Any) -> Any:
        for axis, size in enumerate(one.shape):
            one = one.repeat(shape[axis] // size, axis=axis)
        return one

    zero = parts.get(f"{key}.zero_point")
    values = codes.astype(np.float32)
    return (values if zero is None else values - spread(zero).astype(np.float32)) * spread(scale)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("key", "shape"), ARRANGED)
def test_parts_decode_as_described(scheme: str, key: str, shape: tuple[int, ...]) -> None:
    settled = PLAIN.settle(parse_scheme(scheme))
    if PLAIN.refuses(settled, contract.lazy(key, np.zeros(shape, np.float32))):
        return  # see test_what_is_refused

    def check(values: Any, row: str) -> None:
        parts = contract.arrays("plain", scheme, values, key)
        assert parts[f"{key}.scale"].dtype == (np.float32 if row == "f64" else values.dtype)
        decoded = contract.dense(parts)
        assert np.array_equal(decoded, plain(parts, key))
        bits = BITS.get(settled.name, 7 if "e4m3" in scheme else 5)
        assert contract.sqnr(values, decoded) > {8: 30, 7: 25, 5: 18, 4: 12, 3: 9, 2: 3}[bits]
        assert parts[key].shape == (shape if bits not in (4, 3, 2) else (*shape[:-1], -(-shape[-1] * bits // 8)))

    contract.each_dtype(check, shape)


def test_scales_follow_the_outputs() -> None:
    values = contract.weights((64, 96))
    for scheme, key, shape in (
        ("int8", "m.weight", (64, 1)),
        ("int8", "m.kernel", (1, 96)),
        ("int4:g32", "m.weight", (64, 3)),
        ("int4:g32", "m.kernel", (2, 96)),
        ("f8", "m.kernel", (1, 96)),
        ("f8:block", "m.kernel", (1, 1)),
        ("int8:tensor", "m.kernel", ()),
    ):
        assert contract.arrays("plain", scheme, values, key)[f"{key}.scale"].shape == shape
    one = contract.arrays("plain", "int8:rtn", values)
    two = contract.arrays("plain", "int8:rtn", np.ascontiguousarray(values.T), "m.kernel")
    assert np.array_equal(contract.dense(one), contract.dense(two).T)
    one = contract.arrays("plain", "int4:g32:asym", values)
    two = contract.arrays("plain", "int4:g32:asym", np.ascontiguousarray(values.T), "m.kernel")
    assert np.array_equal(contract.dense(one), contract.dense(two).T)


@pytest.mark.parametrize("key", ["m.weight", "m.kernel"])
@pytest.mark.parametrize("shape", [(200, 300), (128, 128), (256, 130)])
def test_f8_in_blocks(key: str, shape: tuple[int, int]) -> None:
    values = contract.weights(shape)
    parts = contract.arrays("plain", "f8:block", values, key)
    scale = parts[f"{key}.scale"]
    assert scale.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    wide = scale.repeat(128, axis=0)[: shape[0]].repeat(128, axis=1)[:, : shape[1]]
    assert np.array_equal(contract.dense(parts), parts[key].astype(np.float32) * wide)


@pytest.mark.parametrize(("key", "scales"), [("m.weight", (16, 1, 1, 1)), ("m/kernel", (1, 1, 1, 16))])
@pytest.mark.parametrize("scheme", ["int8", "int4:channel:rtn", "f8", "int8:channel:asym"])
def test_convolutions_have_a_scale_for_each_output(key: str, scales: tuple[int, ...], scheme: str) -> None:
    values = contract.weights((16, 8, 3, 3) if key == "m.weight" else (3, 3, 8, 16))
    parts = contract.arrays("plain", scheme, values, key)
    assert parts[f"{key}.scale"].shape == scales
    assert np.array_equal(contract.dense(parts), plain(parts, key))


@pytest.mark.parametrize("row", contract.DTYPES)
@pytest.mark.parametrize("name", ["o.safetensors", "o.pth", "o.index"])
def test_every_format_comes_back(name: str, row: str, tmp_path: Path) -> None:
    keys = {"a.weight": (64, 160), "b/kernel": (96, 33), "c.weight": (2, 24, 64), "d.weight": (8, 4, 3, 3), "e.bias": (64,)}
    tensors = {key: contract.lazy(key, contract.weights(shape, row)) for key, shape in keys.items()}
    for scheme in ("int8", "int4:channel:rtn", "int8:tensor", "f8"):
        made = contract.quantize("plain", scheme, tensors)
        again = contract.written(made, tmp_path / name)
        found = registry.find(again.tensors, None, again.metadata)
        assert {one.key: (one.shape, one.layout, one.scheme) for one in found.values()} == {
            key: (shape, "plain", str(PLAIN.settle(parse_scheme(scheme)))) for key, shape in keys.items() if len(shape) > 1
        }
        back = contract.written(Dequantize(found)(again), tmp_path / f"back-{name}")
        assert set(back.tensors) == set(keys)
        for key, shape in keys.items():
            values = tensors[key].array()
            assert back[key].shape == shape
            if len(shape) == 1:
                assert back[key].dtype.name == row
                assert np.array_equal(back[key].array(), values)
            else:
                assert back[key].dtype.name == ("f32" if row == "f64" else row)
                assert contract.sqnr(values, back[key].array()) > (9 if scheme.startswith("int4") else 24)


def test_torch_reads_what_is_described(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = contract.weights((64, 96))
    contract.written(contract.quantize("plain", "int8", {"m.weight": contract.lazy("m.weight", values)}), tmp_path / "o.pth")
    state = torch.load(tmp_path / "o.pth", weights_only=True)
    assert {key: (one.dtype, tuple(one.shape)) for key, one in state.items()} == {
        "m.weight": (torch.int8, (64, 96)),
        "m.weight.scale": (torch.float32, (64, 1)),
    }
    assert float((state["m.weight"] * state["m.weight.scale"] - torch.from_numpy(values)).abs().max()) < 0.002


def test_one_thread_or_three_straight_or_turned(tmp_path: Path) -> None:
    for scheme, shape, key in (
        ("int4:g32", (96, 160), "m.weight"),
        ("int8", (96, 160), "m.kernel"),
        ("int4:g32:asym", (96, 160), "m.kernel"),
        ("int8:channel:asym", (3, 40, 96), "m.kernel"),
        ("f8:block", (200, 300), "m.weight"),
        ("int8:tensor", (3, 40, 96), "m.weight"),
    ):
        contract.same_for_any_arrangement("plain", scheme, shape, tmp_path, key)


def test_large_kernels_are_measured_in_pieces() -> None:
    values = contract.weights((1200, 700))
    values[1100, 5], values[3, 6] = 3, -4
    turned = views.transpose(contract.lazy("m.kernel", np.ascontiguousarray(values.T)), (1, 0))
    for tensor in (contract.lazy("m.kernel", values), turned):
        made = contract.quantize("plain", "int8:channel:asym", {"m.kernel": tensor})
        parts = {key: one.array().reshape(one.shape) for key, one in made.tensors.items()}
        assert np.array_equal(contract.dense(parts), plain(parts, "m.kernel"))
        assert np.abs(contract.dense(parts) - values).max(axis=0).max() < 4.2 / 255


def test_ties(tmp_path: Path) -> None:
    for scheme in ("int8", "int4:g32", "int8:tensor", "f8"):
        contract.ties_once("plain", scheme, tmp_path)


def test_what_is_refused() -> None:
    def why(scheme: str, shape: tuple[int, ...], key: str = "m.weight") -> str | None:
        return PLAIN.refuses(PLAIN.settle(parse_scheme(scheme)), contract.lazy(key, np.zeros(shape, np.float32)))

    assert why("int8", (1, 1)) is None
    assert why("int4:g32", (8, 100)) == "rows of 100 are no groups of 32"
    assert why("int4:g32", (100, 64), "m.kernel") == "columns of 100 are no groups of 32"
    assert why("int4:g32", (8, 8, 3, 32)) == "of more than three axes"
    assert why("f8:block", (2, 128, 128)) == "no matrix"
    assert why("int4:tensor", (64, 7)) == "rows of fewer than 8"
    assert why("int8", (0, 8)) == "empty"
    assert why("int4:channel", (64, 64), "m.kernel") == "scales of columns are not searched for: --method rtn"
    assert why("int4:channel:rtn", (64, 64), "m.kernel") is None
    for scheme in ("nf4", "int8:block", "f8:g32", "f8:asym", "int8:tensor:asym", "f8:mse", "int8:tensor:mse", "mxfp4"):
        with pytest.raises(UsageError):
            PLAIN.settle(parse_scheme(scheme))


@pytest.mark.parametrize("scheme", ["int8", "int4:g32", "f8"])
@pytest.mark.parametrize("key", ["m.weight", "m.kernel"])
def test_values_that_cannot_be_coded(scheme: str, key: str) -> None:
    values = contract.weights((64, 64))
    for odd in (np.nan, np.inf, -np.inf):
        values[5, 7] = odd
        with pytest.raises(NotFiniteError, match=key):
            contract.arrays("plain", scheme, values, key)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zeros(scheme: str) -> None:
    for key in ("m.weight", "m.kernel"):
        tensor = contract.lazy(key, np.zeros((64, 64), np.float32))
        settled = PLAIN.settle(parse_scheme(scheme))
        if PLAIN.refuses(settled, tensor) is None:
            assert not contract.dense(contract.arrays("plain", scheme, np.zeros((64, 64), np.float32), key)).any()


def test_what_looks_alike_is_left_alone() -> None:
    odd = {"m.weight": np.zeros((4, 6), np.int8), "m.weight.scale": np.zeros((5,), np.float32)}
    lazy = {key: contract.lazy(key, values) for key, values in odd.items()}
    assert registry.find(lazy, None, {}) == {}
    with pytest.raises(CorruptError, match=r"m\.weight"):
        registry.find(lazy, None, {"wtool.quantized": json.dumps({"layout": "plain", "schemes": {"int8:channel": 1}})})


PARTS = [
    contract.arrays("plain", scheme, contract.weights((32, 64)), key)
    for scheme in ("int8", "int4:g32:asym", "f8:block", "int8:tensor")
    for key in ("m.weight", "m/kernel")
]
SURE = {"wtool.quantized": '{"layout":"plain"}'}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PARTS).flatmap(contract.damages), st.sampled_from([{}, SURE, {"wtool.quantized": "[3"}]))
def test_damaged_parts(parts: dict[str, Any], metadata: dict[str, str]) -> None:
    contract.survives(parts, None, metadata)


def test_one_scale_is_that_of_the_first_pass() -> None:
    tensor = contract.lazy("m.weight", contract.weights((8, 32)))
    codes, scale = PLAIN.parts(tensor, PLAIN.settle(Scheme("int8", "tensor")), Seen(12.75))
    assert float(scale.array()) == pytest.approx(0.1)
    assert np.abs(codes.array()).max() <= 3
    bf16 = contract.arrays("plain", "int8", contract.weights((8, 32), "bf16"))
    assert bf16["m.weight.scale"].dtype == ml_dtypes.bfloat16
