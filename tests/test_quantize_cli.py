"""`wtool quantize` and `convert --dequantize` as people and scripts use them."""

from __future__ import annotations

import json
from math import log10
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_cli_contract import answer
from test_prune_cli import arrays, bad, good, random, write

from wtool.api import open_checkpoint

Captured = pytest.CaptureFixture[str]
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "torch_dtype": "bfloat16"}
SCHEMES = {
    "compressed-tensors": [
        "int8",
        "int4",
        "int4:asym",
        "int3:g32",
        "f8-e4m3",
        "f8-e4m3:tensor",
        "f8-e4m3:block",
        "nvfp4",
        "mxfp4",
    ],
    "bnb": ["nf4", "nf4-nested", "fp4", "int8"],
    "gguf": ["q8_0", "q4_0", "q5_1", "q4_k", "q6_k"],
    "gptq": ["int4:g64", "int8:g32"],
    "awq": ["int4:g64"],
    "mlx": ["int4", "int3:g32", "int8:g32:rtn", "mxfp4"],
    "plain": ["int8", "int4:g32:asym", "int3:g64", "int8:tensor", "f8-e4m3", "f8-e5m2:block"],
}


def half(seed: int, *shape: int) -> Any:
    return (random(seed, *shape) * 0.02).astype(ml_dtypes.bfloat16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face folder of a tiny model in bf16."""
    monkeypatch.chdir(tmp_path)
    values = {}
    for n in range(2):
        stem = f"model.layers.{n}."
        values |= {f"{stem}self_attn.{name}_proj.weight": half(n, 256, 256) for name in "qkvo"}
        values |= {f"{stem}mlp.{name}_proj.weight": half(n, 512, 256) for name in ("gate", "up")}
        values[f"{stem}mlp.down_proj.weight"] = half(n, 256, 512)
        values[f"{stem}input_layernorm.weight"] = np.ones(256, ml_dtypes.bfloat16)
    values |= {"model.embed_tokens.weight": half(8, 300, 256), "lm_head.weight": half(9, 300, 256)}
    (tmp_path / "model").mkdir()
    write(tmp_path / "model" / "model.safetensors", values)
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


def error_of(before: Any, after: Any) -> dict[str, float]:
    """The report's numbers from values in f64."""
    x, y = before.astype("f8"), after.astype("f8")
    noise, energy = ((x - y) ** 2).sum(), (x**2).sum()
    return {
        "sqnr": 10 * log10(energy / noise),
        "rel_error": float(np.sqrt(noise / energy)),
        "max_error": float(np.abs(x - y).max()),
    }


@pytest.mark.parametrize(("layout", "scheme"), [(layout, scheme) for layout, some in SCHEMES.items() for scheme in some])
def test_there_and_back(folder: Path, capsys: Captured, layout: str, scheme: str) -> None:
    """The errors in the report are those of what `convert --dequantize` gives, in f64."""
    target = "o.gguf" if layout == "gguf" else "out"
    found = good(capsys, "quantize", folder, target, "--scheme", scheme, "--layout", layout, "-j", "2")
    good(capsys, "convert", target, "back.safetensors", "--dequantize", "--dtype", "f32")
    before, after = arrays(folder), arrays("back.safetensors")
    assert set(before) == set(after)
    coded = [row for row in found["tensors"] if row["scheme"]]
    assert len(coded) == 14
    for row in found["tensors"]:
        one, two = before[row["key"]], after[row["key"]]
        assert one.shape == two.shape
        if row["scheme"] is None:
            assert row["why"] and row["sqnr"] is None and np.array_equal(one.astype("f4"), two)
            continue
        for name, value in error_of(one, two).items():
            assert row[name] == pytest.approx(value, rel=2e-4), (row["key"], name)
        assert row["bits"] == pytest.approx(8 * row["bytes"] / row["elements"], abs=1e-5)
    whole = np.concatenate([before[row["key"]].astype("f8").ravel() for row in coded])
    lossy = np.concatenate([after[row["key"]].astype("f8").ravel() for row in coded])
    assert found["totals"]["sqnr"] == pytest.approx(error_of(whole, lossy)["sqnr"], rel=1e-4)
    assert found["bytes"] == sum(Path(file["path"]).stat().st_size for file in found["files"])
    shown = good(capsys, "inspect", target)
    assert {row["key"]: row["shape"] for row in shown["quantized"]} == {row["key"]: row["shape"] for row in coded}
    assert {row["layout"] for row in shown["quantized"]} == {layout}
    assert shown["totals"]["parameters"] == sum(array.size for array in before.values())


def test_a_folder_gives_a_folder(folder: Path, capsys: Captured) -> None:
    found = good(capsys, "quantize", folder, "out", "--scheme", "int4")
    assert sorted(path.name for path in Path("out").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert found["beside"] == ["config.json", "tokenizer.json"]
    config = json.loads(Path("out/config.json").read_text())
    told = config.pop("quantization_config")
    assert config == CONFIG
    assert told["quant_method"] == "compressed-tensors" and told["format"] == "pack-quantized"
    assert sorted(told["ignore"]) == ["lm_head", "model.embed_tokens"]
    assert told["config_groups"]["group_0"]["weights"]["group_size"] == 128
    good(capsys, "convert", "out", "plain/", "--dequantize")
    assert json.loads(Path("plain/config.json").read_text()) == CONFIG
    assert Path("plain/tokenizer.json").exists()
    assert open_checkpoint("plain")["model.layers.0.mlp.up_proj.weight"].dtype.name == "bf16"
    assert "wtool.quantized" not in open_checkpoint("plain").metadata


def test_the_same_bytes_for_any_number_of_threads_and_any_source(folder: Path, capsys: Captured) -> None:
    good(capsys, "convert", folder, "shards/", "--max-shard", "300KB")
    for source, target, jobs in ((folder, "a", "1"), (folder, "b", "3"), ("shards", "c", "2")):
        good(capsys, "quantize", source, target, "--scheme", "int4:asym", "-j", jobs)
    assert len({Path(name, "model.safetensors").read_bytes() for name in "abc"}) == 1


def test_a_dry_run_says_the_very_sizes_and_writes_nothing(folder: Path, capsys: Captured) -> None:
    planned = good(capsys, "quantize", folder, "out", "--scheme", "nvfp4", "-n")
    assert not Path("out").exists() and planned["dry_run"] and not planned["measured"]
    done = good(capsys, "quantize", folder, "out", "--scheme", "nvfp4")
    assert planned["bytes"] == done["bytes"] and planned["totals"]["bits"] == done["totals"]["bits"]


def test_a_check_that_holds_is_exit_1(folder: Path, capsys: Captured) -> None:
    found = good(capsys, "quantize", folder, "a", "--scheme", "int4", "--fail-if", "sqnr<30", "--fail-if", "bits>16", code=1)
    assert found["failed"] == ["sqnr<30"] and Path("a").exists()
    good(capsys, "quantize", folder, "b", "--scheme", "int8", "--fail-if", "sqnr<30", "--fail-if", "total.rel_error>5%")
    assert bad(capsys, "quantize", folder, "c", "--scheme", "int8", "--fail-if", "sqnr~3")["code"] == "usage"
    assert bad(capsys, "quantize", folder, "c", "--scheme", "int8", "--fail-if", "sqnr<3", "--no-measure")["code"] == "usage"


def test_a_quantized_source_is_refused(folder: Path, capsys: Captured) -> None:
    good(capsys, "quantize", folder, "out", "--scheme", "int8")
    said = bad(capsys, "quantize", "out", "again", "--scheme", "int4")
    assert said["code"] == "quantized" and "int8:channel" in said["message"]
    found = good(capsys, "quantize", "out", "again", "--scheme", "int4", "--requantize")
    assert found["totals"]["tensors"] == 14
    good(capsys, "quantize", "out", "out", "--scheme", "int4", "--requantize", "--force")
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    good(capsys, "quantize", folder, "o.gguf", "--scheme", "q4_0")
    assert bad(capsys, "quantize", "o.gguf", "p.gguf", "--scheme", "q8_0")["code"] == "quantized"


def test_a_config_that_says_so_without_parts_is_refused(folder: Path, capsys: Captured) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "strange"}}))
    assert bad(capsys, "quantize", folder, "out", "--scheme", "int4")["code"] == "quantized"
    assert bad(capsys, "quantize", folder, "out", "--scheme", "int4", "--requantize")["code"] == "quantized"


def test_nothing_quantized_cannot_be_dequantized(folder: Path, capsys: Captured) -> None:
    assert bad(capsys, "convert", folder, "o.safetensors", "--dequantize")["code"] == "no-tensors"


@pytest.mark.parametrize("how", [["--fit", "1050KB"], ["--bits", "6.9"]])
def test_a_budget_is_kept_and_used(folder: Path, capsys: Captured, how: list[str]) -> None:
    found = good(capsys, "quantize", folder, "out", *how)
    if how[0] == "--fit":
        assert 0.97 * 1_050_000 < found["bytes"] <= 1_050_000
    else:
        assert 0.97 * 6.9 < found["totals"]["bits"] <= 6.9
    for group in (["q", "k", "v"], ["gate", "up"]):
        for n in range(2):
            rows = {
                row["scheme"]
                for row in found["tensors"]
                for name in group
                if f"layers.{n}." in row["key"] and f".{name}_proj" in row["key"]
            }
            assert len(rows) == 1
    said = bad(capsys, "quantize", folder, "no", how[0], "200KB" if how[0] == "--fit" else "2")
    assert said["code"] == "budget" and "smallest" in said["message"] and not Path("no").exists()


def test_the_smallest_that_is_told_is_possible(folder: Path, capsys: Captured) -> None:
    said = bad(capsys, "quantize", folder, "no", "--fit", "200KB")["message"]
    smallest = int(said.rpartition("(")[2].partition(" bytes")[0].replace(",", ""))
    assert good(capsys, "quantize", folder, "out", "--fit", f"{smallest}B")["bytes"] == smallest
    assert bad(capsys, "quantize", folder, "no", "--fit", f"{smallest - 1}B")["code"] == "budget"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--scheme", "int5"],
        ["--scheme", "int4:g77"],
        ["--scheme", "int4", "--fit", "1GB"],
        ["--scheme", "int4", "--method", "magic"],
        ["--scheme", "int4", "--group", "none"],
        ["--scheme", "int4", "--layout", "none"],
        ["--scheme", "q4_0", "--layout", "compressed-tensors"],
        ["--scheme", "int4", "--layout", "gguf"],
        ["--scheme", "int4", "--only", "nothing"],
        ["--scheme", "int4", "--scheme-for", "lm_head"],
        ["--scheme", "int4", "--rest", "f32"],
        ["--scheme", "int4", "--on-nan", "drop"],
        ["--scheme", "int4", "--candidates", "int8"],
        ["--scheme", "int4", "--scheme-for", "**.q_proj.weight=int8"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_usage(folder: Path, capsys: Captured, argv: list[str]) -> None:
    said = bad(capsys, "quantize", folder, "out", *argv)
    assert said["code"] == "usage" and said["hint"] and not Path("out").exists()


def test_text_at_80_columns(folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = answer(capsys, "quantize", folder, "out", "--scheme", "int4")
    assert code == 0 and err == ""
    assert "quantized  14 of 18 tensors" in out and "an output layer" in out and "SQNR" in out
    assert "model.layers.{0-1}.mlp.down_proj.weight" in out


def test_what_is_left_can_be_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.safetensors", {"a.weight": random(0, 128, 128), "wte.weight": random(1, 50, 128), "n": np.arange(3)})
    found = good(capsys, "quantize", "m.safetensors", "o.safetensors", "--scheme", "int4", "--rest", "bf16")
    rows = {row["key"]: row for row in found["tensors"]}
    assert rows["wte.weight"]["bits"] == 16 and rows["n"]["bits"] == 64
    there = open_checkpoint("o.safetensors")
    assert there["wte.weight"].dtype.name == "bf16" and there["n"].dtype.name == "i64"


def test_codes_are_no_weights(folder: Path, capsys: Captured) -> None:
    """What would work on codes and scales as if they were weights refuses, or says so."""
    good(capsys, "quantize", folder, "q", "--scheme", "int4")
    good(capsys, "quantize", folder, "q.gguf", "--scheme", "q4_0")
    for argv in (
        ["prune", "q", "o.safetensors", "--sparsity", "0.5"],
        ["prune", "q.gguf", "o.safetensors", "--sparsity", "0.5"],
        ["average", "q", "q", "-o", "o.safetensors"],
        ["convert", "q", "o.safetensors", "--dtype", "f32"],
    ):
        said = bad(capsys, *argv)
        assert said["code"] == "quantized" and said["path"].startswith("q") and "--dequantize" in said["hint"], argv
        assert not Path("o.safetensors").exists()
    code, _, err = answer(capsys, "convert", "q", "copy/")
    assert code == 0 and "parts are copied, without its config.json; --dequantize" in err
    code, _, err = answer(capsys, "diff", folder, "q")
    assert code == 1 and "q is stored quantized (compressed-tensors int4:g128, 14 tensors)" in err
    assert "--dtype f32" in bad(capsys, "average", "q.gguf", "q.gguf", "-o", "o.gguf")["hint"]
    good(capsys, "convert", "q.gguf", "o.safetensors", "--dtype", "f32")  # a cast of blocks decodes them
    spared = ["--exclude", "**.weight_*"]
    assert good(capsys, "prune", "q", "rest.safetensors", "--sparsity", "0.5", *spared, "--include", "lm_head.weight")["zeros"]
    good(capsys, "average", "q.gguf", "q.gguf", "-o", "mean.safetensors", "--dtype", "f32")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e30, 1e-25, 1e-38])
def test_errors_of_very_large_and_small_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, size: float
) -> None:
    monkeypatch.chdir(tmp_path)
    values = (random(0, 64, 128).astype("f8") * size).astype("f4")
    write(tmp_path / "m.safetensors", {"a.weight": values})
    (row,) = good(capsys, "quantize", "m.safetensors", "o.safetensors", "--scheme", "int8")["tensors"]
    good(capsys, "convert", "o.safetensors", "back.safetensors", "--dequantize")
    expected = error_of(values, arrays("back.safetensors")["a.weight"])
    assert row["sqnr"] == pytest.approx(expected["sqnr"], rel=2e-4) and row["sqnr"] < 60


def test_nothing_to_quantize_says_why(folder: Path, capsys: Captured) -> None:
    said = bad(capsys, "quantize", folder, "o", "--scheme", "int4", "--skip", "**_proj.weight")
    assert said["code"] == "no-tensors" and "--skip (14)" in said["message"]


@pytest.mark.parametrize("layout", ["compressed-tensors", "bnb", "gptq", "mlx"])
def test_a_cast_is_no_quantization(folder: Path, capsys: Captured, layout: str) -> None:
    """config.json and the metadata say nothing of it, and it may be quantized afterwards."""
    good(capsys, "quantize", folder, "half", "--scheme", "f16", "--layout", layout)
    assert json.loads(Path("half/config.json").read_text()) == CONFIG
    assert "wtool.quantized" not in open_checkpoint("half").metadata
    good(capsys, "quantize", "half", "out", "--scheme", "int8")
