"""AWQ's layout against a plain reading of AutoAWQ's unpacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layout_contract as contract
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from wtool.errors import CorruptError, DtypeError, NotFiniteError, UnsupportedError, UsageError
from wtool.layout import parse_scheme
from wtool.layouts import registry

AWQ = registry.layout("awq")
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def nibbles(words: Any) -> Any:
    """[n, m / 8] words -> [n, m]: nibble i of a word is output ORDER[i] of eight."""
    found = np.empty((len(words), words.shape[1] * 8), np.int32)
    for place, output in enumerate(ORDER):
        found[:, output::8] = (words.view(np.uint32) >> np.uint32(4 * place)) & 15
    return found


def plain(parts: dict[str, Any]) -> Any:
    """As AutoAWQ's dequantize_gemm: (code - zero) * scale."""
    codes, zeros, scales = nibbles(parts["m.qweight"]), nibbles(parts["m.qzeros"]), parts["m.scales"].astype(np.float32)
    each = len(codes) // len(scales)
    return ((codes - zeros.repeat(each, axis=0)) * scales.repeat(each, axis=0)).T.astype(np.float32)


@pytest.mark.parametrize("scheme", ["int4:g128", "int4:g32:rtn"])
@pytest.mark.parametrize("shape", [(64, 256), (8, 128), (24, 384)])
def test_parts_decode_as_autoawq_does(scheme: str, shape: tuple[int, int]) -> None:
    def check(values: Any, row: str) -> None:
        parts = contract.arrays("awq", scheme, values)
        group = AWQ.settle(parse_scheme(scheme)).group
        assert parts["m.qweight"].shape == (shape[1], shape[0] // 8)
        assert parts["m.qzeros"].shape == (shape[1] // group, shape[0] // 8)
        assert parts["m.scales"].shape == (shape[1] // group, shape[0])
        assert parts["m.scales"].dtype == np.float16
        decoded = contract.dense(parts)
        assert np.array_equal(decoded, plain(parts))
        assert contract.sqnr(values, decoded) > 17
        assert not decoded.reshape(-1)[:200].any()

    contract.each_dtype(check, shape)


def test_one_thread_or_three_straight_or_turned(tmp_path: Path) -> None:
    contract.same_for_any_arrangement("awq", "int4:g32", (96, 160), tmp_path)


def test_ties(tmp_path: Path) -> None:
    contract.ties_once("awq", "int4:g64", tmp_path)


def test_a_matrix_of_many_slabs(tmp_path: Path) -> None:
    values = contract.weights((1024, 4096))
    values[:, 17] *= 30
    made = contract.written(contract.quantize("awq", "int4", {"m.weight": contract.lazy("m.weight", values)}), tmp_path / "o")
    (one,) = registry.find(made.tensors, None, {}).values()
    parts = {key: made[key].array() for key in one.parts}
    decoded = one.dense()
    assert np.array_equal(decoded.array(), plain(parts))
    streamed = np.concatenate([block.copy() for block in decoded.blocks(1 << 18, stripe=1 << 20)])
    assert np.array_equal(streamed.reshape(decoded.shape), plain(parts))


def test_what_is_refused() -> None:
    def why(scheme: str, shape: tuple[int, ...], key: str = "m.weight") -> str | None:
        return AWQ.refuses(AWQ.settle(parse_scheme(scheme)), contract.lazy(key, np.zeros(shape, np.float32)))

    assert why("int4", (64, 256)) is None
    assert why("int4", (64, 200)) == "rows of 200 are no groups of 128"
    assert why("int4", (12, 128)) == "12 rows are no multiple of 8"
    assert why("int4", (8, 8, 128)) == "no matrix"
    assert why("int4", (0, 128)) == "empty"
    assert why("int4", (8, 128), "kernel") == "its key does not end in .weight"
    for scheme in ("int8", "int3", "f8", "int4:channel", "int4:g16"):
        with pytest.raises(UsageError):
            AWQ.settle(parse_scheme(scheme))


def test_values_that_cannot_be_coded() -> None:
    values = contract.weights((64, 128))
    for odd, error in ((np.nan, NotFiniteError), (np.inf, NotFiniteError), (3e38, DtypeError)):
        values[5, 7] = odd
        with pytest.raises(error, match=r"m\.weight"):
            contract.arrays("awq", "int4", values)


def test_zeros_stay_zeros() -> None:
    assert not contract.dense(contract.arrays("awq", "int4", np.zeros((8, 128), np.float32))).any()


def test_config() -> None:
    four = AWQ.settle(parse_scheme("int4:g64"))
    found = AWQ.config({"a.weight": four}, ["lm_head.weight", "model.gate.weight"])["quantization_config"]
    assert found == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head", "model.gate"],
    }
    with pytest.raises(UsageError, match="one size of groups"):
        AWQ.config({"a.weight": four, "b.weight": AWQ.settle(parse_scheme("int4"))}, [])


def test_transformers_takes_the_config() -> None:
    config = pytest.importorskip("transformers.utils.quantization_config")
    told = AWQ.config({"a.weight": AWQ.settle(parse_scheme("int4"))}, ["lm_head.weight"])["quantization_config"]
    read = config.AwqConfig.from_dict(told)
    assert (read.bits, read.group_size, read.zero_point, str(read.format)) == (4, 128, True, "gemm")
    assert read.modules_to_not_convert == ["lm_head"]


PARTS = contract.arrays("awq", "int4:g32", contract.weights((32, 64)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contract.damages(PARTS))
def test_damaged_parts(parts: dict[str, Any]) -> None:
    contract.survives(parts, None, {})


def test_what_is_neither_this_nor_gptq_is_said() -> None:
    gone = {key: values for key, values in PARTS.items() if key != "m.scales"}
    with pytest.raises(CorruptError, match="no scales"):
        contract.dense(gone)
    gemv = {
        "m.qweight": np.zeros((32, 8), np.int32),
        "m.qzeros": np.zeros((32, 1), np.int32),
        "m.scales": np.zeros((32, 4), np.float16),
    }
    with pytest.raises(UnsupportedError, match="gemv"):
        contract.dense(gemv, {"quantization_config": {"quant_method": "awq", "version": "gemv"}})
    with pytest.raises(CorruptError, match=r"m\.weight"):
        contract.dense(gemv)


def test_damage_is_named() -> None:
    for name, values in {"m.scales": PARTS["m.scales"].astype(np.int32), "m.qzeros": PARTS["m.qzeros"][:1]}.items():
        with pytest.raises(CorruptError, match=r"m\.weight"):
            contract.dense({**PARTS, name: values})
