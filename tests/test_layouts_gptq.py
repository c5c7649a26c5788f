"""GPTQ's layout against a plain reading of AutoGPTQ's unpacking, and files as others write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layout_contract as contract
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wtool.api import open_checkpoint, plan_save, save
from wtool.errors import CorruptError, DtypeError, NotFiniteError, UsageError
from wtool.layout import parse_scheme
from wtool.layouts import registry
from wtool.plan import EncodeJob

GPTQ = registry.layout("gptq")
BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


def codes_of(words: Any, bits: int) -> Any:
    """[n * bits / 32, m] words -> [n, m] codes: element j of a column at bit j * bits."""
    flat = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1, bitorder="little")
    codes = flat.reshape(len(flat), -1, bits) @ (1 << np.arange(bits))
    return codes.T


def plain(parts: dict[str, Any], bits: int, less: int = 1) -> Any:
    """As AutoGPTQ computes it: (code - ((zero + 1) & mask)) * scale, by the group that g_idx names."""
    codes = codes_of(parts["m.qweight"], bits)
    zeros = (codes_of(parts["m.qzeros"].T, bits).T + less) & ((1 << bits) - 1)
    index = parts["m.g_idx"]
    return ((codes - zeros[index]).astype(np.float32) * parts["m.scales"].astype(np.float32)[index]).T


@pytest.mark.parametrize("scheme", ["int4:g128", "int4:g32:rtn", "int8:g64", "int3:g32", "int2:g128"])
@pytest.mark.parametrize("shape", [(64, 256), (32, 128), (96, 384)])
def test_parts_decode_as_autogptq_does(scheme: str, shape: tuple[int, int]) -> None:
    bits = BITS[scheme.partition(":")[0]]

    def check(values: Any, row: str) -> None:
        parts = contract.arrays("gptq", scheme, values)
        group = GPTQ.settle(parse_scheme(scheme)).group
        assert parts["m.qweight"].shape == (shape[1] * bits // 32, shape[0])
        assert parts["m.qzeros"].shape == (shape[1] // group, shape[0] * bits // 32)
        assert parts["m.scales"].shape == (shape[1] // group, shape[0])
        assert np.array_equal(parts["m.g_idx"], np.arange(shape[1]) // group)
        assert parts["m.scales"].dtype.name == ("bfloat16" if row == "bf16" else "float16")
        decoded = contract.dense(parts)
        assert np.array_equal(decoded, plain(parts, bits))
        assert contract.sqnr(values, decoded) > {8: 35, 4: 16, 3: 10, 2: 3}[bits]
        assert not decoded.reshape(-1)[:200].any()

    contract.each_dtype(check, shape)


def test_stored_zero_points_are_those_of_version_1() -> None:
    words = {4: 0x77777777, 8: 0x7F7F7F7F, 2: 0x55555555}
    for bits, word in words.items():
        parts = contract.arrays("gptq", f"int{bits}:g32", contract.weights((32, 64)))
        assert (parts["m.qzeros"].view(np.uint32) == word).all()


def test_versions_are_told_apart() -> None:
    values = contract.weights((64, 256))
    parts = contract.arrays("gptq", "int4:g64", values)
    first = contract.dense(parts)
    second = {**parts, "m.qzeros": np.full_like(parts["m.qzeros"], 0x88888888 - (1 << 32))}
    told = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}
    for claim in ("gptq", "gptq_v2", None):  # there are files that claim the other version
        config = {"quantization_config": {**told, **({"checkpoint_format": claim} if claim else {})}}
        assert np.array_equal(contract.dense(second, config), first)
        assert np.array_equal(contract.dense(parts, config), first)
    # Of asymmetric ones the claim is all there is.
    odd = {**parts, "m.qzeros": np.random.default_rng(0).integers(-(2**31), 2**31, parts["m.qzeros"].shape, np.int32)}
    for claim, less in (("gptq", 1), ("gptq_v2", 0)):
        config = {"quantization_config": {"checkpoint_format": claim, "sym": False}}
        assert np.array_equal(contract.dense(odd, config), plain(odd, 4, less))
    assert np.array_equal(contract.dense(odd), plain(odd, 4, 1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_columns_in_the_order_of_activations(bits: int) -> None:
    rng = np.random.default_rng(bits)
    parts = contract.arrays("gptq", f"int{bits}:g32", contract.weights((64, 256)))
    parts["m.g_idx"] = rng.permutation(parts["m.g_idx"])
    parts["m.qzeros"] = rng.integers(-(2**31), 2**31, parts["m.qzeros"].shape, np.int32)
    assert np.array_equal(contract.dense(parts), plain(parts, bits))


def test_the_last_group_may_be_short_and_g_idx_missing() -> None:
    parts = contract.arrays("gptq", "int4:g32", contract.weights((64, 160)))
    short = {
        **parts,
        "m.scales": parts["m.scales"][:2],
        "m.qzeros": parts["m.qzeros"][:2],
        "m.g_idx": np.arange(160, dtype="i4") // 128,
    }
    assert np.array_equal(contract.dense(short), plain(short, 4))
    without = {key: value for key, value in short.items() if key != "m.g_idx"}
    config = {"quantization_config": {"group_size": 128}}
    assert np.array_equal(contract.dense(without, config), plain(short, 4))
    one = {**without, "m.scales": without["m.scales"][:1], "m.qzeros": without["m.qzeros"][:1]}
    told = {"quantization_config": {"group_size": -1}}
    assert np.array_equal(contract.dense(one, told), plain({**one, "m.g_idx": np.zeros(160, "i4")}, 4))


def test_one_thread_or_three_straight_or_turned(tmp_path: Path) -> None:
    contract.same_for_any_arrangement("gptq", "int4:g32", (96, 160), tmp_path)
    contract.same_for_any_arrangement("gptq", "int3:g128", (64, 256), tmp_path)


def test_ties(tmp_path: Path) -> None:
    contract.ties_once("gptq", "int4:g64", tmp_path)


def test_a_matrix_of_many_slabs(tmp_path: Path) -> None:
    values = contract.weights((1024, 4096))
    values[:, 17] *= 30
    tensors = {"m.weight": contract.lazy("m.weight", values), "m.bias": contract.lazy("m.bias", values[0, :1024])}
    made = contract.written(contract.quantize("gptq", "int4:g128", tensors), tmp_path / "o.safetensors")
    assert set(made.tensors) == {"m.qweight", "m.qzeros", "m.scales", "m.g_idx", "m.bias"}
    assert np.array_equal(made["m.bias"].array(), values[0, :1024])
    (one,) = registry.find(made.tensors, None, {}).values()
    parts = {key: made[key].array() for key in one.parts}
    decoded = one.dense()
    assert np.array_equal(decoded.array(), plain(parts, 4))
    streamed = np.concatenate([block.copy() for block in decoded.blocks(1 << 18, stripe=1 << 20)])
    assert np.array_equal(streamed.reshape(decoded.shape), plain(parts, 4))


def test_parts_are_turned_while_they_are_written(tmp_path: Path) -> None:
    """In one pass, piece by piece; where slots have checksums, one after the other."""
    tensors = {
        "m.weight": contract.lazy("m.weight", contract.weights((264, 4096))),
        "n.weight": contract.lazy("n.weight", contract.weights((8, 64), seed=1)),
    }
    made = contract.quantize("gptq", "int4:g64", tensors)
    expected = {key: one.array().tobytes() for key, one in made.tensors.items()}
    plan = plan_save(made, str(tmp_path / "one.safetensors"))
    encoded = [job for job in plan.plan.jobs if isinstance(job, EncodeJob)]
    assert {key for job in encoded for key in job.keys} == {
        f"{name}.{part}" for name in "mn" for part in ("qweight", "scales")
    }
    for name, options in (
        ("one.safetensors", {}),
        ("two.safetensors", {"memory": 1 << 18}),
        ("three.index", {}),
        ("four.pth", {}),
    ):
        save(plan_save(made, str(tmp_path / name)), jobs=2, **options)
        again = open_checkpoint(str(tmp_path / name))
        assert {key: one.array().tobytes() for key, one in again.tensors.items()} == expected


def test_what_is_refused() -> None:
    def why(scheme: str, shape: tuple[int, ...], key: str = "m.weight") -> str | None:
        return GPTQ.refuses(GPTQ.settle(parse_scheme(scheme)), contract.lazy(key, np.zeros(shape, np.float32)))

    assert why("int4:g128", (64, 256)) is None
    assert why("int4:g128", (64, 200)) == "rows of 200 are no groups of 128"
    assert why("int4:g32", (1, 64)) == "1 rows are no multiple of 8"
    assert why("int8:g32", (4, 64)) is None
    assert why("int3:g32", (48, 64)) == "48 rows are no multiple of 32"
    assert why("int4", (8, 64, 128)) == "no matrix"
    assert why("int4", (0, 128)) == "empty"
    assert why("int4", (8, 128), "m/kernel") == "its key does not end in .weight"
    for scheme in ("f8", "int4:channel", "int4:g16", "int4:asym", "nf4"):
        with pytest.raises(UsageError):
            GPTQ.settle(parse_scheme(scheme))


def test_values_that_cannot_be_coded() -> None:
    values = contract.weights((64, 128))
    for odd, error in ((np.nan, NotFiniteError), (np.inf, NotFiniteError), (3e38, DtypeError)):
        values[5, 7] = odd
        with pytest.raises(error, match=r"m\.weight"):
            contract.arrays("gptq", "int4", values)


def test_zeros_stay_zeros() -> None:
    assert not contract.dense(contract.arrays("gptq", "int4", np.zeros((8, 128), np.float32))).any()


def test_config() -> None:
    four, eight = (GPTQ.settle(parse_scheme(text)) for text in ("int4:g64", "int8:g32"))
    chosen = {"model.layers.0.q.weight": four, "model.layers.1.q.weight": four, "model.layers.1.o.weight": eight}
    found = GPTQ.config(chosen, ["model.embed.weight"])["quantization_config"]
    assert {name: found[name] for name in ("quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format")} == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 64,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }
    assert found["dynamic"] == {
        r"-:^model\.embed$": {},
        r"+:^model\.layers\.1\.o$": {"bits": 8, "group_size": 32},
    }
    assert "modules_in_block_to_quantize" not in found
    inside = GPTQ.config(chosen, ["model.layers.1.k.weight"])["quantization_config"]
    assert inside["modules_in_block_to_quantize"] == [["model.layers.0.q", "model.layers.1.q", "model.layers.1.o"]]


def test_transformers_takes_the_config() -> None:
    config = pytest.importorskip("transformers.utils.quantization_config")
    told = GPTQ.config({"a.weight": GPTQ.settle(parse_scheme("int4"))}, [])["quantization_config"]
    read = config.GPTQConfig.from_dict(told)
    assert (read.bits, read.group_size, read.desc_act, read.sym, read.format) == (4, 128, False, True, "gptq")


PARTS = contract.arrays("gptq", "int4:g32", contract.weights((32, 64)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    contract.damages(PARTS),
    st.sampled_from([None, {"quantization_config": {"group_size": "x", "sym": False}}, {"quantization_config": 3}]),
)
def test_damaged_parts(parts: dict[str, Any], config: dict[str, Any] | None) -> None:
    contract.survives(parts, config, {})


def test_damage_is_named() -> None:
    for name, values in {
        "m.scales": PARTS["m.scales"].astype(np.int32),
        "m.qzeros": PARTS["m.qzeros"][:1],
        "m.g_idx": PARTS["m.g_idx"][:5],
    }.items():
        with pytest.raises(CorruptError, match=r"m\.weight"):
            contract.dense({**PARTS, name: values})
    with pytest.raises(CorruptError, match="g_idx"):
        contract.dense({**PARTS, "m.g_idx": PARTS["m.g_idx"] + 1})
