"""Odd weights through `wtool quantize`: NaN, shapes that do not fit, strided and tied tensors, stacks of experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_contract import answer

from wtool.api import open_checkpoint


def folder(path: Path, tensors: dict[str, Any], **config: Any) -> Path:
    from safetensors.numpy import save_file

    path.mkdir()
    save_file(tensors, str(path / "model.safetensors"))
    (path / "config.json").write_text(json.dumps({"model_type": "x", **config}))
    return path


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


Captured = pytest.CaptureFixture[str]


def quantize(capsys: Captured, *argv: object) -> dict[str, dict[str, Any]]:
    code, out, err = answer(capsys, "quantize", *argv, "--json")
    assert code == 0, err
    return {row["key"]: row for row in json.loads(out)["tensors"]}


def dense(capsys: Captured, source: object, target: Path) -> dict[str, Any]:
    code, _, err = answer(capsys, "convert", "--dequantize", source, target)
    assert code == 0, err
    return {key: one.array() for key, one in open_checkpoint(str(target)).items()}


@pytest.mark.parametrize("turned", [False, True])
def test_stacks_through_the_command_line(tmp_path: Path, capsys: Captured, turned: bool) -> None:
    e, i, h = 3, 64, 128
    both, down = random(0, e, 2 * i, h), random(1, e, h, i)
    keys = ("m.experts.gate_up_proj", "m.experts.down_proj")
    put = [np.ascontiguousarray(one.transpose(0, 2, 1)) if turned else one for one in (both, down)]
    router = {"m.router.weight": random(2, e, 2048)}
    source = folder(tmp_path / "in", {**dict(zip(keys, put, strict=True)), **router}, num_local_experts=e)
    rows = quantize(capsys, source, tmp_path / "out", "--scheme", "int8")
    assert rows["m.experts.2.up_proj.weight"]["scheme"] == "int8:channel" and rows["m.router.weight"]["why"] == "a router"
    found = dense(capsys, tmp_path / "out", tmp_path / "dense.safetensors")
    for n in range(e):
        for name, meant in (("gate", both[n, :i]), ("up", both[n, i:]), ("down", down[n])):
            got = found[f"m.experts.{n}.{name}_proj.weight"]
            assert np.linalg.norm(got - meant) < 0.01 * np.linalg.norm(meant)
    rows = quantize(
        capsys, source, tmp_path / "skip", "--scheme", "int8", "--only", "**.router.**"
    )  # nothing else: stacks stay
    assert rows[keys[0]]["why"] == "not of --only" and set(rows) == {*keys, *router}
    config = json.loads((tmp_path / "skip" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == [r"re:m\.experts[.].*"]


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("scheme", ["int4", "f8-e4m3:tensor"])
def test_nan(tmp_path: Path, capsys: Captured, odd: float, scheme: str) -> None:
    values = random(0, 64, 128)
    values[5, 7] = odd
    source = folder(tmp_path / "in", {"a.x.weight": values, "b.x.weight": random(1, 64, 128)})
    code, out, err = answer(capsys, "quantize", source, tmp_path / "out", "--scheme", scheme, "--json")
    assert (code, out) == (2, "") and "'a.x.weight' holds" in json.loads(err)["message"] and not (tmp_path / "out").exists()
    rows = quantize(capsys, source, tmp_path / "out", "--scheme", scheme, "--on-nan", "keep")
    assert rows["a.x.weight"]["why"] == "holds NaN or an infinity" and rows["b.x.weight"]["scheme"]
    np.testing.assert_array_equal(open_checkpoint(str(tmp_path / "out"))["a.x.weight"].array(), values)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["a.x"]


def test_nan_of_one_that_is_fused_leaves_all_of_them(tmp_path: Path, capsys: Captured) -> None:
    values = {f"a.{name}_proj.weight": random(at, 64, 128) for at, name in enumerate("qkvo")}
    values["a.k_proj.weight"][0, 0] = np.nan
    source = folder(tmp_path / "in", values)
    rows = quantize(capsys, source, tmp_path / "out", "--scheme", "int4", "--on-nan", "keep")
    assert [bool(rows[f"a.{name}_proj.weight"]["scheme"]) for name in "qkvo"] == [False, False, False, True]
    assert rows["a.q_proj.weight"]["why"] == "fused with a.k_proj.weight, which is not"


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4:channel:asym", "int3:g32", "f8-e4m3:block", "nvfp4", "mxfp4"])
def test_odd_shapes(tmp_path: Path, capsys: Captured, scheme: str) -> None:
    values = {
        "row.x.weight": random(0, 1, 8192),
        "odd.x.weight": random(1, 61, 131),
        "none.x.weight": np.zeros((0, 128), "f4"),
        "zeros.x.weight": np.zeros((64, 128), "f4"),
        "one.x.weight": random(2, 8192, 1),
        "few.x.weight": random(3, 1024, 32),
    }
    source = folder(tmp_path / "in", values)
    rows = quantize(capsys, source, tmp_path / "out", "--scheme", scheme)
    grouped = scheme in ("int4", "int3:g32", "nvfp4", "mxfp4")
    assert rows["none.x.weight"]["why"] == "empty" and rows["row.x.weight"]["scheme"] and rows["zeros.x.weight"]["scheme"]
    assert ("are no groups of" in (rows["odd.x.weight"]["why"] or "")) == grouped
    found = dense(capsys, tmp_path / "out", tmp_path / "dense.safetensors")
    assert {key: one.shape for key, one in found.items()} == {key: one.shape for key, one in values.items()}
    if "int" in scheme:
        assert rows["one.x.weight"]["why"] == "rows shorter than 32"
    assert not found["zeros.x.weight"].any()
    for key, meant in values.items():
        assert np.linalg.norm(found[key] - meant) <= 0.4 * np.linalg.norm(meant), key


def test_strided_views(tmp_path: Path, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    values = torch.from_numpy(random(0, 128, 96))
    whole = torch.from_numpy(random(1, 64, 512))
    torch.save({"t.x.weight": values.t(), "cut.x.weight": whole[:, 128:384]}, tmp_path / "in.pt")
    torch.save({"t.x.weight": values.t().contiguous(), "cut.x.weight": whole[:, 128:384].contiguous()}, tmp_path / "plain.pt")
    for name in ("in", "plain"):
        quantize(capsys, tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors", "--scheme", "int4")
    assert (tmp_path / "in.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


def test_tied_weights(tmp_path: Path, capsys: Captured) -> None:
    torch = pytest.importorskip("torch")
    both, twin = (torch.from_numpy(random(n, 64, 128)) for n in (0, 1))
    tensors = {"model.embed_tokens.weight": both, "lm_head.weight": both, "a.x.weight": twin, "b.x.weight": twin}
    tensors["c.x.weight"] = torch.from_numpy(random(2, 64, 128))
    torch.save(tensors, tmp_path / "in.pt")
    rows = quantize(capsys, tmp_path / "in.pt", tmp_path / "out.safetensors", "--scheme", "int8")
    assert rows["lm_head.weight"]["why"] == "an output layer"
    assert rows["a.x.weight"]["scheme"] == rows["b.x.weight"]["scheme"] == "int8:channel"
    rows = quantize(capsys, tmp_path / "in.pt", tmp_path / "two.safetensors", "--scheme", "int8", "--scheme-for", "b.**=none")
    assert rows["a.x.weight"]["why"] == "tied to b.x.weight"
    rows = quantize(
        capsys, tmp_path / "in.pt", tmp_path / "head.safetensors", "--scheme", "int8", "--scheme-for", "lm_head.**=int8"
    )
    assert rows["lm_head.weight"]["why"] == "tied to model.embed_tokens.weight"


@pytest.mark.parametrize("said", [True, False])
def test_tie_word_embeddings_is_left_as_it_was(tmp_path: Path, capsys: Captured, said: bool) -> None:
    head = {} if said else {"lm_head.weight": random(3, 64, 128)}
    values = {"model.embed_tokens.weight": random(0, 64, 128), "a.x.weight": random(1, 64, 128), **head}
    source = folder(tmp_path / "in", values, tie_word_embeddings=said)
    quantize(capsys, source, tmp_path / "out", "--scheme", "int8")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is said
    assert config["quantization_config"]["ignore"] == [*([] if said else ["lm_head"]), "model.embed_tokens"]


def test_rows_too_short_to_tell_how_many_bits(tmp_path: Path, capsys: Captured) -> None:
    """A word holds a row of 4 codes whatever their bits: only config.json tells."""
    from safetensors.numpy import save_file

    packed = np.full((64, 1), sum((value + 8) << 4 * at for at, value in enumerate((-8, 3, 0, 7))), "i4")
    parts = {"packed": packed, "scale": np.full((64, 1), 0.5, "f4"), "shape": np.array([64, 4])}
    save_file({f"a.weight_{name}": one for name, one in parts.items()}, str(tmp_path / "model.safetensors"))
    code, _, err = answer(capsys, "convert", "--dequantize", tmp_path / "model.safetensors", tmp_path / "o.safetensors")
    assert code == 2 and "2 or 3 or 4 or 5 or 6 or 7 or 8 bits" in err
    groups = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": groups}))
    found = dense(capsys, tmp_path / "model.safetensors", tmp_path / "o.safetensors")
    np.testing.assert_array_equal(found["a.weight"][0], [-4, 1.5, 0, 3.5])
