"""`wtool prune --drop-layers`, `--drop-experts` and `--experts`, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli_contract import answer
from test_drop import NAMES, logits, mixture, tiny
from test_prune_cli import Captured, arrays, bad, good, write

from wtool.api import open_checkpoint


def values(count: int = 4) -> dict[str, Any]:
    layers = {f"model.layers.{n}.{name}": np.full((2, 2), n + 1, "f4") for n in range(count) for name in NAMES}
    return {"model.embed_tokens.weight": np.ones((3, 2), "f4"), **layers}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as Hugging Face's libraries write it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    write(tmp_path / "hf" / "model.safetensors", values())
    config = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "rms_norm_eps": 1e-05}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_with_fewer_layers(folder: Path, capsys: Captured) -> None:
    data = good(capsys, "prune", "hf", "out", "--drop-layers", "1-2")
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config == {"num_hidden_layers": 2, "layer_types": ["a", "b"], "rms_norm_eps": 1e-05}
    assert data["dropped"] == {"layers": {"model.layers.": [1, 2]}, "tensors": 8, "bytes": 128}
    assert data["beside"] == ["config.json", "tokenizer.json"] and data["asked"] == {"drop_layers": "1-2"}
    assert arrays("out")["model.layers.1.attn.weight"].tolist() == [[4, 4], [4, 4]]
    assert json.loads(open_checkpoint("out").metadata["wtool.prune"]) == {"drop_layers": "1-2"}
    code, out, _ = answer(capsys, "prune", "hf", "out2", "--drop-layers", "0,2-3")
    assert code == 0 and "0,2-3 of model.layers" in out and "weights" not in out


def test_a_dry_run_and_force_in_place(folder: Path, capsys: Captured) -> None:
    before = everything(folder)
    assert good(capsys, "prune", "hf", "out", "--drop-layers", "0", "-n")["dropped"]["tensors"] == 4
    assert everything(folder) == before
    good(capsys, "prune", "hf", "hf", "--drop-layers", "0", "--force")
    assert json.loads((folder / "hf" / "config.json").read_text())["num_hidden_layers"] == 3
    assert (folder / "hf" / "tokenizer.json").read_text() == "{}" and len(list((folder / "hf").iterdir())) == 3


def test_a_file_gets_no_config(folder: Path, capsys: Captured) -> None:
    code, _, err = answer(capsys, "prune", "hf", "out.safetensors", "--drop-layers", "3", "--json")
    assert code == 0 and "no config.json is written" in err
    assert sorted(path.name for path in folder.iterdir()) == ["hf", "out.safetensors"]


def test_zeros_and_fewer_layers_together(folder: Path, capsys: Captured) -> None:
    """The share is of what is left."""
    data = good(capsys, "prune", "hf", "out", "--drop-layers", "0", "--sparsity", "0.5", "--include", "**.attn.weight")
    assert (data["weights"], data["zeros"]) == (12, 6)
    assert arrays("out")["model.layers.2.attn.weight"].tolist() == [[4, 4], [4, 4]]
    data = good(capsys, "prune", "hf", "plain", "--sparsity", "0.5")
    assert data["beside"] == ["config.json", "tokenizer.json"] and data["dropped"] is None
    assert (folder / "plain" / "config.json").read_bytes() == (folder / "hf" / "config.json").read_bytes()


@pytest.mark.parametrize("kind", ["apart", "stacked"])
def test_experts(folder: Path, capsys: Captured, kind: str) -> None:
    (folder / "hf" / "model.safetensors").unlink()
    write(folder / "hf" / "model.safetensors", mixture(kind))
    (folder / "hf" / "config.json").write_text('{"num_local_experts": 4, "num_experts_per_tok": 2}')
    data = good(capsys, "prune", "hf", "out", "--experts", "2")
    assert data["dropped"]["experts"] == {"model.layers.0.mlp.": [1, 3], "model.layers.1.mlp.": [0, 2]}
    assert json.loads((folder / "out" / "config.json").read_text())["num_local_experts"] == 2
    good(capsys, "prune", "hf", "out2", "--drop-experts", "3")
    assert arrays("out2")["model.layers.1.mlp.gate.weight"].shape == (3, 3)
    assert "too few" in bad(capsys, "prune", "hf", "out3", "--experts", "1")["message"]
    assert not (folder / "out3").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "how many are to go"),
        (["--drop-layers", "9"], "'model.layers' has no layer 9: it has 0-3"),
        (["--drop-layers", "x"], "is no list of numbers"),
        (["--drop-layers", "0-3"], "no layer of 'model.layers' would be left"),
        (["--layers-of", "model.layers"], "--drop-layers"),
        (["--drop-layers", "1", "--layers-of", "h"], "no list of layers is called 'h'"),
        (["--drop-experts", "1"], "there are no experts"),
        (["--drop-experts", "1", "--experts", "2"], "contradict"),
        (["--drop-layers", "1", "--mask", "m"], "--mask does not go with"),
        (["--drop-layers", "1", "--rewind", "m"], "--rewind does not go with"),
        (["--drop-layers", "1", "--include", "**"], "--include does not go with"),
        (["--drop-layers", "1", "--mask-out", "m"], "--mask-out does not go with"),
    ],
)
def test_what_is_refused(folder: Path, capsys: Captured, argv: list[str], words: str) -> None:
    before = everything(folder)
    assert words in bad(capsys, "prune", "hf", "out", *argv)["message"]
    assert everything(folder) == before


def test_a_config_that_does_not_fit(folder: Path, capsys: Captured) -> None:
    (folder / "hf" / "config.json").write_text('{"num_hidden_layers": 5}')
    assert "num_hidden_layers is 5" in bad(capsys, "prune", "hf", "out", "--drop-layers", "1")["message"]
    (folder / "hf" / "config.json").write_text("[1")
    assert bad(capsys, "prune", "hf", "out", "--drop-layers", "1")["code"] == "corrupt"


def test_transformers_loads_it(tmp_path: Path, capsys: Captured) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path / "a")
    good(capsys, "prune", tmp_path / "a", tmp_path / "b", "--drop-layers", "1-2", "--pattern", "2:4")
    again, info = type(model).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(again.model.layers) == 3 and logits(again.eval()).isfinite().all()
    weight = again.model.layers[1].mlp.up_proj.weight
    kept = model.model.layers[3].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() // 2 and bool(((weight == kept) | (weight == 0)).all())
