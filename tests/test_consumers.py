"""What is written is loaded by those for whom it is written: torch, safetensors, transformers, TensorFlow, Keras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wtool.api import open_checkpoint, plan_save, save, save_checkpoint
from wtool.errors import TruncatedError, VerifyError
from wtool.ops.convert import Convert
from wtool.verify import verify

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8))
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype
        assert torch.equal(value, right[key]), key


@pytest.fixture
def net(tmp_path: Path) -> Any:
    torch.manual_seed(1)
    module = Net()
    torch.save({"model": module.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    torch.save(module.state_dict(), tmp_path / "flat.pth")
    return module


def test_tied_weights_to_safetensors_and_back(net: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_model

    save_checkpoint(open_checkpoint(tmp_path / "net.pth"), tmp_path / "net.safetensors")
    fresh = Net()
    missing, unexpected = load_model(fresh, tmp_path / "net.safetensors", strict=True)
    assert not missing and not unexpected
    same(net.state_dict(), fresh.state_dict())
    save_checkpoint(open_checkpoint(tmp_path / "net.safetensors"), tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True, mmap=True)
    same(net.state_dict(), dict(back))
    assert back["embed.weight"].data_ptr() == back["head.weight"].data_ptr()
    Net().load_state_dict(back, strict=True)


def test_duplicated_ties_load_file(net: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_checkpoint(open_checkpoint(tmp_path / "net.pth"), tmp_path / "net.safetensors", tied="duplicate")
    Net().load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)


def test_flat_state_dict_keeps_its_metadata(net: Any, tmp_path: Path) -> None:
    save_checkpoint(open_checkpoint(tmp_path / "flat.pth"), tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again._metadata == net.state_dict()._metadata
    same(net.state_dict(), dict(again))


def test_all_sections_keep_their_nesting(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    whole = {
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "names": ("a", [1, None, 2.5]),
    }
    torch.save(whole, tmp_path / "train.ckpt")
    save_checkpoint(open_checkpoint(tmp_path / "train.ckpt", section="all"), tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again["epoch"] == 7
    assert again["names"] == ("a", [1, None, 2.5])
    torch.optim.AdamW(torch.nn.Linear(3, 2).parameters()).load_state_dict(again["optimizer"])
    same(module.state_dict(), dict(again["state_dict"]))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("max_shard", [None, 40_000])
def test_transformers_load_the_folder(family: str, max_shard: int | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=100, n_positions=16)
        model = transformers.GPT2LMHeadModel(config).eval()
    else:
        config = transformers.BertConfig(
            num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=100
        )
        model = transformers.BertForMaskedLM(config).eval()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path / "pytorch_model.bin")
    report = save_checkpoint(checkpoint, tmp_path / "folder", max_shard=max_shard)
    assert (len(report.files) > 1) == (max_shard is not None)
    config.save_pretrained(tmp_path / "folder")
    loaded, info = type(model).from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    same(dict(model.state_dict()), dict(loaded.state_dict()))
    tokens = torch.arange(8)[None]
    assert torch.equal(model(tokens).logits, loaded.eval()(tokens).logits)


def test_torch_shards_load_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=100, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    save_checkpoint(open_checkpoint(tmp_path / "x.pt"), tmp_path / "folder", to="torch", max_shard=40_000)
    index = json.loads((tmp_path / "folder" / "pytorch_model.bin.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    again = open_checkpoint(tmp_path / "folder")
    assert set(again) == set(model.state_dict())
    for name in set(index["weight_map"].values()):
        for key, value in torch.load(tmp_path / "folder" / name, weights_only=True).items():
            assert torch.equal(value, model.state_dict()[key])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@pytest.mark.parametrize("mode", ["digest", "framework"])
def test_verify_both_ways(suffix: str, mode: str, tmp_path: Path) -> None:
    if suffix == ".ckpt" and mode == "framework":
        pytest.importorskip("tensorflow")
    values = {"a": torch.randn(3, 4).t(), "b.c": torch.arange(5), "h": torch.randn(7).half(), "z": torch.zeros(0, 2)}
    torch.save(values, tmp_path / "x.pth")
    plan = plan_save(open_checkpoint(tmp_path / "x.pth"), tmp_path / f"y{suffix}")
    save(plan)
    verify(plan, mode)


def test_keras_object_checkpoint_through_torch_and_back(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")

    def build() -> Any:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
        model.compile("adam", "mse")
        return model

    first, second = build(), build()
    first.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    prefix = tf.train.Checkpoint(model=first).write(str(tmp_path / "keras"))
    whole = open_checkpoint(prefix, section="all")
    save_checkpoint(whole, tmp_path / "again.ckpt")
    tf.train.Checkpoint(model=second).read(str(tmp_path / "again.ckpt")).assert_existing_objects_matched()
    for left, right in zip(first.variables, second.variables, strict=True):
        assert np.array_equal(left.numpy(), right.numpy())
    short = Convert(short_keys=True)(open_checkpoint(prefix))
    save_checkpoint(short, tmp_path / "model.pth")
    loaded = torch.load(tmp_path / "model.pth", weights_only=True)
    assert any(np.array_equal(value.numpy(), first.layers[0].kernel.numpy()) for value in loaded.values())


def test_torch_state_dict_as_a_tensorflow_checkpoint(net: Any, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    save_checkpoint(open_checkpoint(tmp_path / "net.pth"), tmp_path / "net.ckpt")
    reader = tf.train.load_checkpoint(str(tmp_path / "net.ckpt"))
    state = net.state_dict()
    assert set(state) <= set(reader.get_variable_to_shape_map())
    for key, value in state.items():
        assert np.array_equal(reader.get_tensor(key), value.numpy())
    graph = tf.Graph()
    with graph.as_default():
        variable = tf.compat.v1.get_variable("embed.weight", shape=(11, 8))
        with tf.compat.v1.Session(graph=graph) as session:
            tf.compat.v1.train.Saver({"embed.weight": variable}).restore(session, str(tmp_path / "net.ckpt"))
            assert np.array_equal(session.run(variable), state["embed.weight"].numpy())


@pytest.mark.parametrize("force", [False, True])
def test_a_failed_check_never_removes_what_replaced_something(force: bool, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "x.pth")
    plan = plan_save(open_checkpoint(tmp_path / "x.pth"), tmp_path / "y.safetensors", force=force)
    save(plan)
    damaged = (tmp_path / "y.safetensors").read_bytes()[:-1] + b"\xff"
    (tmp_path / "y.safetensors").write_bytes(damaged)
    with pytest.raises(VerifyError):
        verify(plan)
    assert (tmp_path / "y.safetensors").exists() == force


def test_a_source_that_fails_is_no_fault_of_the_output(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "x.pth")
    plan = plan_save(open_checkpoint(tmp_path / "x.pth"), tmp_path / "y.safetensors")
    save(plan)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(TruncatedError):
        verify(plan)
    assert (tmp_path / "y.safetensors").exists()
