"""transformers loads what `wtool quantize` writes as compressed-tensors, and computes what the decoded weights would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_cli_contract import answer
from test_compressed_tensors import Captured, quantized

from wtool.api import open_checkpoint


def model(path: Path, kind: str) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", "5.0")
    common = {
        "vocab_size": 96,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 32,
    }
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**common)
    elif kind == "llama4":
        config = transformers.Llama4TextConfig(**common, num_local_experts=4, num_experts_per_tok=1)
    elif kind == "mixtral":
        config = transformers.MixtralConfig(**common, num_local_experts=4, num_experts_per_tok=2)
    else:
        config = transformers.Qwen3MoeConfig(**common, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)


def logits(path: Path, **more: Any) -> Any:
    import torch
    import transformers

    found = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **more).eval()
    with torch.no_grad():
        return found(torch.arange(24).reshape(2, 12) * 3 % 96).logits


@pytest.mark.parametrize(
    ("kind", "scheme", "bound"),
    [
        ("llama", "int8", 0.03),
        ("llama", "int4", 0.3),
        ("llama", "int4:asym", 0.3),
        ("llama", "f8-e4m3", 0.1),
        ("llama", "nvfp4", 0.25),
        ("llama", "mxfp4", 0.3),
        ("qwen3-moe", "int8", 0.06),
        ("qwen3-moe", "int4", 0.4),
        ("mixtral", "f8-e4m3", 0.2),
    ],
)
def test_transformers_loads_it(tmp_path: Path, capsys: Captured, kind: str, scheme: str, bound: float) -> None:
    """Its logits are those of the decoded weights, to the rounding of nvfp4 to bf16, and near those of the original ones."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", "5.0")
    pytest.importorskip("compressed_tensors")
    model(tmp_path / "in", kind)
    target = quantized(capsys, tmp_path / "in", tmp_path / "out", scheme)
    code, _, err = answer(capsys, "convert", "--dequantize", "--dtype", "f32", target, tmp_path / "dense", "--quiet")
    assert code == 0, err
    meant, first = logits(tmp_path / "dense"), logits(tmp_path / "in")
    config = transformers.CompressedTensorsConfig(dequantize=True)
    found = logits(target, quantization_config=config)
    torch.testing.assert_close(found, meant, rtol=0, atol=2e-2 if scheme == "nvfp4" else 1e-5)
    if scheme in (
        "int8",
        "int4",
        "f8-e4m3",
    ):  # zero points fail so, as llm-compressor's do; 4-bit floats ask for bf16 (transformers 5.23)
        torch.testing.assert_close(logits(target), meant, rtol=0, atol=1e-5)
    error = float((found - first).norm() / first.norm())
    assert 0 < error < bound


def test_transformers_finds_experts_that_were_stacked(tmp_path: Path, capsys: Captured) -> None:
    """Llama 4 is saved as stacks [E, in, out], and loaded as a matrix for each expert where it is quantized."""
    pytest.importorskip("compressed_tensors")
    model(tmp_path / "in", "llama4")
    target = quantized(capsys, tmp_path / "in", tmp_path / "out", "int8")
    assert "model.layers.0.feed_forward.experts.3.up_proj.weight_packed" in open_checkpoint(str(target))
    meant, found = logits(tmp_path / "in"), logits(target)
    assert float((found - meant).norm() / meant.norm()) < 0.05


def test_transformers_loads_a_mix(tmp_path: Path, capsys: Captured) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", "5.0")
    pytest.importorskip("compressed_tensors")
    model(tmp_path / "in", "qwen3-moe")
    argv = ("quantize", tmp_path / "in", tmp_path / "out", "--scheme", "int8", "--scheme-for", "**.experts.**=int4")
    assert answer(capsys, *argv, "--quiet")[0] == 0
    assert answer(capsys, "convert", "--dequantize", "--dtype", "f32", tmp_path / "out", tmp_path / "dense")[0] == 0
    meant = logits(tmp_path / "dense")
    for config in ({}, {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}):
        torch.testing.assert_close(logits(tmp_path / "out", **config), meant, rtol=0, atol=1e-5)
