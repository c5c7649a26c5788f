"""Layers and experts taken out: the tensors, config.json, and what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wtool.api import open_checkpoint, plan_save, save
from wtool.bytesource import MemoryBytes
from wtool.checkpoint import Checkpoint, Source
from wtool.cli import hf_config
from wtool.dtypes import dtype
from wtool.errors import MismatchError, NoTensorsError, UnsupportedError, UsageError
from wtool.ops.drop import (
    drop_layers,
    experts_in,
    experts_left,
    layer_lists,
    parse_numbers,
    routers,
    strongest,
    without,
)
from wtool.tensor import LazyTensor

NAMES = ("attn.weight", "mlp.weight", "mlp.bias", "norm.weight")


def checkpoint(arrays: dict[str, Any]) -> Checkpoint:
    tensors = {}
    for key, value in arrays.items():
        array = np.asarray(value)
        tensors[key] = LazyTensor.contiguous(key, dtype(array.dtype.name), array.shape, MemoryBytes(array.tobytes()), 0)
    return Checkpoint(tensors, Source("a.safetensors", "safetensors", "single", ()))


def layered(*prefixes: str, count: int = 4, **more: Any) -> Checkpoint:
    """Each layer's values are its number."""
    arrays = {f"{prefix}{n}.{name}": np.full(2, n, "f4") for prefix in prefixes for n in range(count) for name in NAMES}
    return checkpoint({"embed.weight": np.zeros((3, 2), "f4"), **arrays, **more})


def test_numbers() -> None:
    assert parse_numbers("20-22, 5,21") == (5, 20, 21, 22)
    for bad in ("", "3-1", "-1", "a", "1,,2", "1-", "99999999999", "0-99999999"):
        with pytest.raises(UsageError, match="is no list"):
            parse_numbers(bad)


@pytest.mark.parametrize("prefix", ["model.layers.", "transformer.h.", "h.", "bert/encoder/layer_", "module.0.layers."])
def test_layers_are_renumbered(prefix: str) -> None:
    source = layered(prefix, head=np.zeros((3, 2), "f4"))
    if "/" in prefix:
        source = checkpoint({key.replace(".", "/"): tensor.array() for key, tensor in source.items()})
        source = checkpoint({"bert/word_embeddings": np.zeros(2, "f4")} | {k: v.array() for k, v in source.items()})
    made = drop_layers(source, "0,2", [] if prefix != "module.0.layers." else [prefix])(source)
    sign = "/" if "/" in prefix else "."
    assert [made[f"{prefix}{n}{sign}attn{sign}weight"].array().tolist() for n in (0, 1)] == [[1, 1], [3, 3]]
    assert len(made) == len(source) - 2 * len(NAMES)
    assert not any(key.startswith(f"{prefix}2") for key in made)
    order = [key for key in source if not key.startswith((f"{prefix}0", f"{prefix}2"))]
    assert [made[key].array().tolist() for key in made] == [source[key].array().tolist() for key in order]


def test_which_list() -> None:
    source = layered("encoder.block.", "decoder.block.", count=3)
    assert layer_lists(source) == {"decoder.block.": (0, 1, 2), "encoder.block.": (0, 1, 2)}
    with pytest.raises(UsageError, match="2 lists of layers: --layers-of") as caught:
        drop_layers(source, "1")
    assert caught.value.hint == "it has decoder.block (0-2), encoder.block (0-2)"
    made = drop_layers(source, "1", ["decoder.block"])(source)
    assert {key.split(".")[2] for key in made if key.startswith("decoder")} == {"0", "1"}
    assert {key.split(".")[2] for key in made if key.startswith("encoder")} == {"0", "1", "2"}
    both = drop_layers(source, "0-1", ["decoder.block.", "encoder.block"])(source)
    assert len(both) == 1 + 2 * len(NAMES)
    with pytest.raises(UsageError, match="no list of layers is called 'blocks'"):
        drop_layers(source, "1", ["blocks"])
    # Experts stand inside layers, and a head of two small modules is no list beside them.
    inner = {f"model.layers.{n}.mlp.experts.{e}.w{w}": np.zeros(2, "f4") for n in range(2) for e in range(3) for w in range(5)}
    small = {f"head.{n}.weight": np.zeros(2, "f4") for n in range(2)}
    assert list(layer_lists({**inner, **small})) == ["model.layers."]
    assert list(layer_lists(small)) == ["head."]


def test_layers_that_are_not_there() -> None:
    source = layered("h.")
    with pytest.raises(UsageError, match="'h' has no layer 4: it has 0-3"):
        drop_layers(source, "3-5")
    with pytest.raises(NoTensorsError, match="no layer of 'h' would be left"):
        drop_layers(source, "0-3")
    with pytest.raises(UsageError, match="no numbered list"):
        drop_layers(checkpoint({"w": np.zeros(2, "f4")}), "0")


def test_a_layer_that_holds_what_others_share() -> None:
    """T5's first block holds the relative positions of all."""
    source = layered("block.", **{"block.0.bias.weight": np.zeros(2, "f4")})
    with pytest.raises(UnsupportedError, match=r"'block\.0' alone has 'bias\.weight'"):
        drop_layers(source, "0,2")
    assert "block.0.bias.weight" in drop_layers(source, "1-3")(source)
    # A first layer that is of another kind may go.
    other = layered("block.", **{"block.0.dense.weight": np.zeros(2, "f4")})
    other = Checkpoint({key: one for key, one in other.items() if key != "block.0.mlp.weight"}, other.source)
    assert "block.0.mlp.weight" in drop_layers(other, "0")(other)


def test_nothing_is_read_and_ties_stay() -> None:
    source = layered("h.")
    shared = source["h.0.attn.weight"]
    tied = Checkpoint({**source.tensors, "h.3.attn.weight": shared.renamed("h.3.attn.weight")}, source.source)
    made = drop_layers(tied, "1-2")(tied)
    assert made.tied() == [["h.0.attn.weight", "h.1.attn.weight"]]
    assert all(tensor.span is not None for tensor in made.values())
    assert drop_layers(tied, "1-2") == made.history[-1]


def config(**values: Any) -> dict[str, Any]:
    return {"model_type": "x", **values}


LISTS = {"model.layers.": range(4)}
CONFIGS: list[tuple[dict[str, Any], str, int, str, dict[str, Any]]] = [
    (config(num_hidden_layers=4), "model.layers.", 4, "1-2", config(num_hidden_layers=2)),
    (config(n_layer=4, n_layers=4), "transformer.h.", 4, "0", config(n_layer=3, n_layers=3)),
    (
        config(num_hidden_layers=4, layer_types=["a", "b", "a", "c"], sliding_window_pattern=2),
        "model.layers.",
        4,
        "1",
        config(num_hidden_layers=3, layer_types=["a", "a", "c"], sliding_window_pattern=2),
    ),
    (
        config(num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0], mlp_only_layers=[0, 2, 3], first_k_dense_replace=2),
        "model.layers.",
        4,
        "0,3",
        config(num_hidden_layers=2, no_rope_layers=[1, 1], mlp_only_layers=[1], first_k_dense_replace=1),
    ),
    (
        config(vision_config={"num_hidden_layers": 2}, text_config={"num_hidden_layers": 4}),
        "model.language_model.layers.",
        4,
        "3",
        config(vision_config={"num_hidden_layers": 2}, text_config={"num_hidden_layers": 3}),
    ),
    (
        config(vision_config={"depth": 4}, num_hidden_layers=4),
        "visual.blocks.",
        4,
        "3",
        config(vision_config={"depth": 3}, num_hidden_layers=4),
    ),
    (
        config(is_encoder_decoder=True, num_layers=4),
        "encoder.block.",
        4,
        "0",
        config(is_encoder_decoder=True, num_layers=3, num_decoder_layers=4),
    ),
    (
        config(is_encoder_decoder=True, num_layers=4),
        "decoder.block.",
        4,
        "0",
        config(is_encoder_decoder=True, num_layers=4, num_decoder_layers=3),
    ),
    (
        config(is_encoder_decoder=True, encoder_layers=4, decoder_layers=2, num_hidden_layers=4),
        "model.encoder.layers.",
        4,
        "0",
        config(is_encoder_decoder=True, encoder_layers=3, decoder_layers=2, num_hidden_layers=3),
    ),
    (
        config(is_encoder_decoder=True, encoder_layers=4, decoder_layers=4, num_hidden_layers=4),
        "model.decoder.layers.",
        4,
        "0-1",
        config(is_encoder_decoder=True, encoder_layers=4, decoder_layers=2, num_hidden_layers=4),
    ),
    (
        config(is_encoder_decoder=True, encoder={"num_hidden_layers": 4}, decoder={"num_hidden_layers": 4}),
        "decoder.bert.encoder.layer.",
        4,
        "0",
        config(is_encoder_decoder=True, encoder={"num_hidden_layers": 4}, decoder={"num_hidden_layers": 3}),
    ),
    (config(num_hidden_layers=4), "bert.encoder.layer.", 4, "0", config(num_hidden_layers=3)),
    (
        config(num_hidden_layers=4, num_nextn_predict_layers=1),
        "model.layers.",
        5,
        "1",
        config(num_hidden_layers=3, num_nextn_predict_layers=1),
    ),
    (
        config(num_hidden_layers=4, num_nextn_predict_layers=1),
        "model.layers.",
        5,
        "4",
        config(num_hidden_layers=4, num_nextn_predict_layers=0),
    ),
    (
        config(num_layers=4, attention_layers=["g", "l", "g", "l"], attention_types=[[["g", "l"], 2]]),
        "transformer.h.",
        4,
        "0",
        config(num_layers=3, attention_layers=["l", "g", "l"], attention_types=[[["l"], 1], [["g"], 1], [["l"], 1]]),
    ),
    (
        config(num_hidden_layers=4, decoder_sparse_step=2),
        "model.layers.",
        4,
        "0-1",
        config(num_hidden_layers=2, decoder_sparse_step=2),
    ),
]


@pytest.mark.parametrize(("before", "prefix", "count", "numbers", "after"), CONFIGS, ids=lambda value: str(value)[:30])
def test_configs(before: dict[str, Any], prefix: str, count: int, numbers: str, after: dict[str, Any]) -> None:
    found, notes = hf_config.fewer_layers(before, {prefix: range(count)}, parse_numbers(numbers))
    assert found == after and not notes
    assert json.loads(hf_config.written(found)) == after


def test_configs_that_do_not_fit() -> None:
    with pytest.raises(MismatchError, match=r"num_hidden_layers is 5, and 'model\.layers\.' has 4"):
        hf_config.fewer_layers(config(num_hidden_layers=5), LISTS, [1])
    with pytest.raises(MismatchError, match="does not say how many layers"):
        hf_config.fewer_layers(config(), LISTS, [1])
    with pytest.raises(UnsupportedError, match="decoder_sparse_step is 2"):
        hf_config.fewer_layers(config(num_hidden_layers=4, decoder_sparse_step=2), LISTS, [1])
    found, notes = hf_config.fewer_layers(config(num_hidden_layers=4, eos_token_id=[1, 2, 3, 4]), LISTS, [1])
    assert found["eos_token_id"] == [1, 2, 3, 4] and "eos_token_id has as many entries" in notes[0]
    _, notes = hf_config.fewer_layers(config(n_layer=4, scale_attn_by_inverse_layer_idx=True), LISTS, [1])
    assert "depends on its number" in notes[0]


def test_files_of_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.mkdir()
    for name in ("tokenizer.json", "vocab.txt", ".gitattributes", "model.safetensors", "pytorch_model.bin", "x.gguf"):
        (source / name).write_text(name)
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "config.json").write_text('{"b": 1e-05, "a": "ä"}')
    (source / "onnx").mkdir()
    with (source / "log.txt").open("wb") as file:
        file.truncate((64 << 20) + 1)
    found, large = hf_config.files_beside(str(source), {"new": 1}, str(tmp_path / "b"))
    assert large == ["log.txt"]
    assert sorted(found) == ["config.json", "tokenizer.json", "vocab.txt"]
    assert found["config.json"].pread(0, 15) == b'{\n  "new": 1\n}\n'
    assert list(hf_config.files_beside(str(source), {"new": 1}, str(source))[0]) == ["config.json"]
    assert hf_config.read(str(source)) == hf_config.read(str(source / "model.safetensors")) == {"b": 1e-05, "a": "ä"}
    assert hf_config.read(str(tmp_path)) is None


def mixture(kind: str, layers: int = 2, count: int = 4) -> dict[str, Any]:
    """Each expert's values are its number; routers call expert 1 least, then 3."""
    arrays: dict[str, Any] = {}
    for n in range(layers):
        base = f"model.layers.{n}.mlp."
        gate = np.full((count, 3), 1, "f4") * np.array([[4], [-0.1], [-3], [1]], "f4")
        arrays[f"{base}gate.weight"] = gate if n == 0 else gate[::-1].copy()
        arrays[f"{base}gate.e_score_correction_bias"] = np.arange(count, dtype="f4")
        arrays[f"{base}shared_experts.up_proj.weight"] = np.zeros((count, 3), "f4")
        arrays[f"{base}shared_expert_gate.weight"] = np.zeros((1, 3), "f4")
        if kind == "stacked":
            numbers = np.arange(count, dtype="f4")
            arrays[f"{base}experts.gate_up_proj"] = np.broadcast_to(numbers[:, None, None], (count, 3, 6)).copy()
            arrays[f"{base}experts.down_proj_bias"] = np.broadcast_to(numbers[:, None], (count, 3)).copy()
            continue
        name = "expert_" if kind == "named" else ""
        for e in range(count):
            arrays[f"{base}experts.{name}{e}.w1.weight"] = np.full((2, 3), e, "f4")
    return arrays


@pytest.mark.parametrize("kind", ["apart", "named", "stacked"])
def test_experts(kind: str) -> None:
    source = checkpoint(mixture(kind))
    found = experts_in(source)
    assert [one.count for one in found.values()] == [4, 4] and list(found) == ["model.layers.0.mlp.", "model.layers.1.mlp."]
    norms = {base: np.abs(gate.array()).sum(1).tolist() for base, gate in routers(found, source).items()}
    by_norm = strongest(found, norms, 2)
    assert by_norm.kept == (("model.layers.0.mlp.", (0, 2)), ("model.layers.1.mlp.", (1, 3)))
    assert experts_left(found, by_norm) == (4, 2)
    for operation in (by_norm, without(found, [0, 3])):
        made = operation(source)
        for base, kept in operation.kept:
            assert made[f"{base}gate.weight"].array().tolist() == source[f"{base}gate.weight"].array()[list(kept)].tolist()
            assert made[f"{base}gate.e_score_correction_bias"].array().tolist() == list(kept)
            assert made[f"{base}shared_experts.up_proj.weight"].shape == (4, 3)
            if kind == "stacked":
                assert made[f"{base}experts.gate_up_proj"].array()[:, 0, 0].tolist() == list(kept)
                assert made[f"{base}experts.down_proj_bias"].array()[:, 0].tolist() == list(kept)
            else:
                name = "expert_" if kind == "named" else ""
                parts = [made[f"{base}experts.{name}{n}.w1.weight"].array()[0, 0] for n in range(2)]
                assert parts == list(kept) and f"{base}experts.{name}2.w1.weight" not in made
        assert set(experts_in(made)) == set(found)


def test_experts_that_cannot_be_told() -> None:
    with pytest.raises(UsageError, match="there are no experts"):
        experts_in(layered("h."))
    source = mixture("apart")
    with pytest.raises(UnsupportedError, match=r"no matrix of 4 rows"):
        experts_in(checkpoint({key: value for key, value in source.items() if "gate.weight" not in key}))
    with pytest.raises(UnsupportedError, match="are not one behind the other"):
        experts_in(checkpoint({key: value for key, value in source.items() if "experts.1." not in key}))
    found = experts_in(checkpoint(source))
    with pytest.raises(UsageError, match="has no expert 4: it has 0-3"):
        without(found, [1, 4])
    with pytest.raises(NoTensorsError, match="no expert"):
        without(found, range(4))
    for count in (0, 5):
        with pytest.raises(UsageError, match="cannot be kept"):
            strongest(found, {base: [1.0] * 4 for base in found}, count)


def test_configs_of_experts() -> None:
    assert hf_config.fewer_experts({"num_local_experts": 8, "num_experts_per_tok": 2}, 8, 6) == {
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    }
    nested = {"text_config": {"num_experts": 8}, "ffn_config": {"x": 1}}
    assert hf_config.fewer_experts(nested, 8, 6)["text_config"] == {"num_experts": 6}
    with pytest.raises(UsageError, match="num_experts_per_tok is 4: 3 experts are too few"):
        hf_config.fewer_experts({"num_experts": 8, "num_experts_per_tok": 4}, 8, 3)
    with pytest.raises(MismatchError, match="num_experts is 16, and there are 8"):
        hf_config.fewer_experts({"num_experts": 16}, 8, 3)
    with pytest.raises(MismatchError, match="does not say how many experts"):
        hf_config.fewer_experts({}, 8, 3)
    with pytest.raises(UnsupportedError, match="n_group is 2"):
        hf_config.fewer_experts({"n_routed_experts": 8, "n_group": 2}, 8, 6)


def tiny(kind: str) -> Any:
    """A random model of transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    if kind == "gpt2":
        told = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=5, n_head=2, n_positions=32)
        return transformers.GPT2LMHeadModel(told).eval()
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, num_hidden_layers=5)).eval()
    told = transformers.MixtralConfig(**size, num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(told).eval()


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(12)[None], use_cache=False).logits


@pytest.mark.parametrize(("kind", "prefix"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_transformers_loads_fewer_layers(tmp_path: Path, kind: str, prefix: str) -> None:
    model = tiny(kind)
    import torch

    source, target = tmp_path / "source", tmp_path / "target"
    model.save_pretrained(source, max_shard_size="8KB")
    (source / "tokenizer.json").write_text("{}")
    opened = open_checkpoint(source)
    operation = drop_layers(opened, "1,3")
    found = hf_config.read(str(source))
    assert found is not None
    told, notes = hf_config.fewer_layers(found, dict(operation.lists), operation.numbers)
    assert not notes
    save(plan_save(operation(opened), target), beside=hf_config.files_beside(str(source), told, str(target))[0])
    assert (target / "tokenizer.json").read_text() == "{}"

    again, info = type(model).from_pretrained(target, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    layers = model.get_submodule(prefix)
    before = logits(model)
    kept = torch.nn.ModuleList(layer for n, layer in enumerate(layers) if n not in (1, 3))
    owner, _, name = prefix.rpartition(".")
    setattr(model.get_submodule(owner), name, kept)
    model.config.num_hidden_layers = 3
    assert again.config.num_hidden_layers == 3
    assert torch.equal(logits(again.eval()), logits(model)) and not torch.equal(before, logits(model))


def test_transformers_loads_fewer_experts(tmp_path: Path) -> None:
    """The same as a model whose experts and router rows were cut by torch."""
    model = tiny("mixtral")
    import torch

    source, target = tmp_path / "source", tmp_path / "target"
    gone = {"model.layers.0.": (1,), "model.layers.1.": (2,)}
    model.save_pretrained(source)
    opened = open_checkpoint(source)
    found = experts_in(opened)
    norms = {base: [0.0 if n in gone[base[:15]] else 1.0 for n in range(4)] for base in found}
    operation = strongest(found, norms, 3)
    config = hf_config.read(str(source))
    assert config is not None
    told = hf_config.fewer_experts(config, *experts_left(found, operation))
    save(plan_save(operation(opened), target), beside=hf_config.files_beside(str(source), told, str(target))[0])
    again, info = type(model).from_pretrained(target, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.num_local_experts == 3

    told_config = type(model.config)(**{**model.config.to_dict(), "num_local_experts": 3})
    expected = type(model)(told_config)
    state = model.state_dict()
    for key in state:
        base = key[:15]
        if ".mlp.experts." in key or ".mlp.gate." in key:  # transformers 5 stacks them
            state[key] = state[key][[n for n in range(4) if n not in gone[base]]]
    expected.load_state_dict(state)
    assert torch.equal(logits(again.eval()), logits(expected.eval()))
