"""Between torch and MLX: every kind of layer by its forward pass, both ways, with MLX's strict loader as the judge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wtool.api import open_checkpoint, plan_save, save_checkpoint
from wtool.between import map_checkpoint
from wtool.checkpoint import Checkpoint, Source
from wtool.cli.app import run
from wtool.dtypes import dtype
from wtool.errors import MapError, RecipeError
from wtool.maps.catalog import load as load_recipe
from wtool.maps.recipe import parse_recipe
from wtool.maps.resolve import resolve
from wtool.views import filled

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A layer in both frameworks, and the shape of torch's input. `images`: channels are torch's second axis, MLX's last."""

    torch: Any
    mlx: Any
    shape: tuple[int, ...]
    images: bool = False
    exact: bool = True  # whether torch -> MLX -> torch gives the same bits


def cases(torch: Any, mlx: Any) -> dict[str, Case]:
    """By name: one that has `deconv` in it tells a transposed convolution."""
    return {
        "linear": Case(torch.Linear(5, 3), mlx.Linear(5, 3), (4, 5)),
        "square": Case(torch.Linear(6, 6, bias=False), mlx.Linear(6, 6, bias=False), (4, 6)),
        "conv1d": Case(torch.Conv1d(3, 5, 4), mlx.Conv1d(3, 5, 4), (2, 3, 9), True),
        "conv2d": Case(torch.Conv2d(3, 5, (3, 4), 2, 1), mlx.Conv2d(3, 5, (3, 4), 2, 1), (2, 3, 7, 8), True),
        "conv3d": Case(torch.Conv3d(2, 3, (2, 3, 4)), mlx.Conv3d(2, 3, (2, 3, 4)), (2, 2, 5, 6, 7), True),
        "grouped": Case(torch.Conv2d(6, 9, 3, groups=3), mlx.Conv2d(6, 9, 3, groups=3), (2, 6, 5, 5), True),
        "depthwise": Case(torch.Conv2d(4, 8, 3, groups=4), mlx.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 6), True),
        "deconv1": Case(torch.ConvTranspose1d(3, 5, 4, 2), mlx.ConvTranspose1d(3, 5, 4, 2), (2, 3, 5), True),
        "deconv2": Case(
            torch.ConvTranspose2d(3, 5, (3, 4), 2, 1), mlx.ConvTranspose2d(3, 5, (3, 4), 2, 1), (2, 3, 5, 6), True
        ),
        "deconv3": Case(torch.ConvTranspose3d(2, 3, (2, 3, 4)), mlx.ConvTranspose3d(2, 3, (2, 3, 4)), (2, 2, 3, 4, 5), True),
        "bn": Case(torch.BatchNorm2d(4), mlx.BatchNorm(4), (3, 4, 5, 5), True),
        "ln": Case(torch.LayerNorm(6), mlx.LayerNorm(6), (4, 6)),
        "gn": Case(torch.GroupNorm(3, 6), mlx.GroupNorm(3, 6, pytorch_compatible=True), (2, 6, 4, 4), True),
        "rms": Case(torch.RMSNorm(6, eps=1e-5), mlx.RMSNorm(6), (4, 6)),
        "prelu": Case(torch.PReLU(), mlx.PReLU(), (4, 6)),
        "embed": Case(torch.Embedding(11, 5), mlx.Embedding(11, 5), ()),
        "lstm": Case(torch.LSTM(4, 3, batch_first=True), mlx.LSTM(4, 3), (2, 6, 4), exact=False),
        "gru": Case(torch.GRU(4, 3, batch_first=True), mlx.GRU(4, 3), (2, 6, 4), exact=False),
        "rnn": Case(torch.RNN(4, 3, batch_first=True), mlx.RNN(4, 3), (2, 6, 4), exact=False),
        "attn": Case(torch.MultiheadAttention(8, 2, batch_first=True), mlx.MultiHeadAttention(8, 2, bias=True), (2, 5, 8)),
        "plain": Case(torch.MultiheadAttention(8, 2, False, False), mlx.MultiHeadAttention(8, 2), (2, 5, 8)),
    }


def shuffled(arrays: Mapping[str, Any], seed: int) -> Arrays:
    """Other values; variances stay positive."""
    dice = np.random.default_rng(seed)
    made = {}
    for name, array in arrays.items():
        values = dice.standard_normal(array.shape).astype(np.float32)
        made[name] = np.abs(values) + 0.5 if name.endswith("var") else values if array.dtype.kind == "f" else array
    return made


@pytest.mark.frameworks
def test_every_kind_of_layer_is_the_same_function_both_ways(tmp_path: Path) -> None:
    """All layers in one file: torch -> MLX, strictly loaded; then what MLX saves, strictly loaded by torch."""
    torch, mlx = pytest.importorskip("torch"), pytest.importorskip("mlx.nn")
    mx, utils = pytest.importorskip("mlx.core"), pytest.importorskip("mlx.utils")
    table = cases(torch.nn, mlx)
    model = torch.nn.ModuleDict({name: case.torch for name, case in table.items()}).eval()
    ours = shuffled({key: value.numpy() for key, value in model.state_dict().items()}, 5)
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in ours.items()})
    other = mlx.Module()
    for name, case in table.items():
        other[name] = case.mlx
    other.eval()
    dice = np.random.default_rng(3)
    inputs = {
        name: dice.integers(0, 11, (2, 5)) if name == "embed" else dice.standard_normal(case.shape).astype(np.float32)
        for name, case in table.items()
    }

    def compare(direction: str) -> None:
        for name, case in table.items():
            values = inputs[name]
            many = 3 if "MultiHead" in type(case.mlx).__name__ else 1
            batched = values.transpose(1, 0, 2) if name == "plain" else values  # this one is not batch_first
            with torch.no_grad():
                left = case.torch(*[torch.from_numpy(np.ascontiguousarray(batched))] * many)
            left = (left[0] if isinstance(left, tuple) else left).numpy()
            left = left.transpose(1, 0, 2) if name == "plain" else left
            right = case.mlx(*[mx.array(np.moveaxis(values, 1, -1) if case.images else values)] * many)
            right = np.array(right[0] if isinstance(right, tuple) else right)
            right = np.moveaxis(right, -1, 1) if case.images else right
            assert left.shape == right.shape, name
            apart, scale = float(np.abs(left - right).max()), float(np.abs(left).max())
            assert apart <= 2e-6 * max(scale, 1.0), f"{direction} {name}: {apart} at scale {scale}"

    torch.save(model.state_dict(), tmp_path / "model.pth")
    mapped, (done,) = map_checkpoint(open_checkpoint(tmp_path / "model.pth"), ["torch-to-mlx"])
    assert not done.warnings and not done.kept and done.dropped == ("bn.num_batches_tracked",)
    save_checkpoint(mapped, tmp_path / "mlx.safetensors")
    other.load_weights(str(tmp_path / "mlx.safetensors"), strict=True)
    compare("torch -> mlx")
    back, _ = map_checkpoint(open_checkpoint(tmp_path / "mlx.safetensors"), ["mlx-to-torch"])
    assert set(back) == set(ours)
    for key, value in ours.items():
        if table[key.split(".")[0]].exact:
            assert np.array_equal(back[key].array(), value) and back[key].shape == value.shape, key

    saved = shuffled({key: np.array(value) for key, value in utils.tree_flatten(other.parameters())}, 7)
    other.load_weights([(key, mx.array(value)) for key, value in saved.items()], strict=True)
    other.save_weights(str(tmp_path / "other.safetensors"))
    mapped, _ = map_checkpoint(open_checkpoint(tmp_path / "other.safetensors"), ["mlx-to-torch"])
    save_checkpoint(mapped, tmp_path / "torch.pth")
    model.load_state_dict(torch.load(tmp_path / "torch.pth", weights_only=True), strict=True)
    compare("mlx -> torch")
    again, _ = map_checkpoint(open_checkpoint(tmp_path / "torch.pth"), ["torch-to-mlx"])
    for key, value in saved.items():
        assert np.array_equal(again[key].array(), value), key


def llama(layers: int, width: int, hidden: int, kv: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """The keys of LlamaForCausalLM."""
    block = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    keys = {"model.embed_tokens.weight": (vocabulary, width)}
    keys |= {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in block.items()}
    return {**keys, "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def test_a_llama_is_the_same_file_in_mlx(tmp_path: Path) -> None:
    """The 8B model's keys at full depth: every tensor keeps its bytes where they lie, in either direction."""
    shapes = llama(32, 4096, 14336, 1024, 128256)
    checkpoint = Checkpoint(
        {key: filled(key, dtype("bf16"), shape, 0) for key, shape in shapes.items()}, Source("llama", "torch", "zip", ())
    )
    for name in ("torch-to-mlx", "mlx-to-torch"):
        done = resolve(load_recipe(name), checkpoint)
        assert len(done.rows) == 291 and not done.warnings and not done.kept
        assert [tensor.key for tensor in done.tensors] == list(checkpoint)
        assert all(tensor.boxes == checkpoint[tensor.key].boxes for tensor in done.tensors)

    from safetensors.numpy import save_file

    save_file(
        {key: np.ones(shape, "f2" if "norm" in key else "f4") for key, shape in llama(2, 8, 12, 4, 16).items()},
        tmp_path / "small.safetensors",
    )
    small = open_checkpoint(tmp_path / "small.safetensors")
    mapped, _ = map_checkpoint(small, ["torch-to-mlx"])
    assert all(mapped[key].span == tensor.span is not None for key, tensor in small.items())
    plan = plan_save(mapped, tmp_path / "mlx.safetensors")
    assert plan.plan.copied == sum(tensor.nbytes for tensor in small.values())
    assert mapped.metadata["format"] == "mlx"


def arrays_at(path: Path, arrays: Arrays) -> Checkpoint:
    from safetensors.numpy import save_file

    save_file(arrays, path)
    return open_checkpoint(path)


def test_parameters_of_no_layer_are_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "patch.weight": np.arange(24, dtype="f2").reshape(2, 3, 2, 2),
        "cls_token": np.ones((1, 1, 2), "f4"),
        "blocks.0.gamma": np.ones(2, "f4"),
        "decoder.bias": np.ones(2, "f4"),
    }
    mapped, (done,) = map_checkpoint(arrays_at(tmp_path / "model.safetensors", values), ["torch-to-mlx"])
    assert set(done.kept) == {"cls_token", "blocks.0.gamma", "decoder.bias"}
    assert np.array_equal(mapped["patch.weight"].array(), values["patch.weight"].transpose(0, 2, 3, 1))
    argv = ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "mlx.safetensors"), "--map", "torch-to-mlx"]
    assert run([*argv, "-n"]) == 0
    assert "kept as it is" in " ".join(capsys.readouterr().out.split())
    assert run([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["kept"]) == set(done.kept)
    assert len(said["map"]) == 4
    mx = pytest.importorskip("mlx.core")
    loaded, metadata = mx.load(str(tmp_path / "mlx.safetensors"), return_metadata=True)
    assert metadata["format"] == "mlx" and loaded["patch.weight"].dtype == mx.float16
    assert loaded["patch.weight"].shape == (2, 2, 2, 3)


ODD = {
    "a second layer of LSTM": {
        "lstm.weight_ih_l0": (12, 3),
        "lstm.weight_hh_l0": (12, 3),
        "lstm.bias_ih_l0": (12,),
        "lstm.bias_hh_l0": (12,),
        "lstm.weight_ih_l1": (12, 3),
        "lstm.weight_hh_l1": (12, 3),
    },
    "the way back of an LSTM": {
        "lstm.weight_ih_l0": (12, 5),
        "lstm.weight_hh_l0": (12, 3),
        "lstm.weight_ih_l0_reverse": (12, 5),
        "lstm.weight_hh_l0_reverse": (12, 3),
    },
    "a convolution under weight_norm": {"conv.weight_g": (4, 1, 1), "conv.weight_v": (4, 3, 5), "conv.bias": (4,)},
    "a second kernel in a layer": {"conv.weight": (4, 3, 5), "conv.weight_mask": (4, 3, 5)},
}


@pytest.mark.parametrize("what", ODD)
def test_parts_of_layers_are_not_kept_without_being_asked(what: str, tmp_path: Path) -> None:
    """Their axes may have to move: the recipe's own `keep` is not meant for them."""
    values = {key: np.ones(shape, "f4") for key, shape in ODD[what].items()}
    values["fc.weight"] = np.ones((2, 3), "f4")
    source = arrays_at(tmp_path / "model.safetensors", values)
    with pytest.raises(MapError, match="no rule of 'torch-to-mlx'"):
        map_checkpoint(source, ["torch-to-mlx"])
    _, (done,) = map_checkpoint(source, ["torch-to-mlx"], unmatched="keep")
    assert done.kept


def test_both_ways_and_every_layer_of_an_lstm_by_rules() -> None:
    """MLX has one layer, one way: a model of them says which is which."""
    rules = "".join(
        f'[[module]]\ntorch = "lstm"\nmlx = "{name}.{layer}"\nkind = "{kind}"\nwith = {{ layer = {layer} }}\n'
        for layer in (0, 1)
        for name, kind in (("forward", "lstm"), ("backward", "lstm_reverse"))
    )
    recipe = parse_recipe(f'schema = "wtool.map/1"\n[sides]\ntorch = "torch"\nmlx = "mlx"\n{rules}', "own")
    shapes = {
        f"lstm.{name}_l{layer}{way}": shape
        for layer in (0, 1)
        for way in ("", "_reverse")
        for name, shape in {
            "weight_ih": (12, 5 if layer == 0 else 6),
            "weight_hh": (12, 3),
            "bias_ih": (12,),
            "bias_hh": (12,),
        }.items()
    }
    tensors = {key: filled(key, dtype("f32"), shape, 1) for key, shape in shapes.items()}
    done = resolve(recipe, Checkpoint(tensors, Source("x", "torch", "zip", ())))
    made = {tensor.key: tensor.shape for tensor in done.tensors}
    assert made == {
        f"{name}.{layer}.{leaf}": shape
        for name in ("forward", "backward")
        for layer, width in ((0, 5), (1, 6))
        for leaf, shape in {"Wx": (12, width), "Wh": (12, 3), "bias": (12,)}.items()
    }


def test_a_recipe_that_extends_keeps_what_it_extends_keeps(tmp_path: Path) -> None:
    own = """
schema = "wtool.map/1"
extends = "torch-to-mlx"
[sides]
torch = "torch"
mlx = "mlx"
[[module]]
torch = "net.{i}"
mlx = "net.layers.{i}"
"""
    values = {"net.0.weight": np.ones((2, 3), "f4"), "cls_token": np.ones((1, 3), "f4")}
    mapped, (done,) = map_checkpoint(arrays_at(tmp_path / "model.safetensors", values), [parse_recipe(own, "own")])
    assert set(mapped) == {"net.layers.0.weight", "cls_token"} and done.kept == ("cls_token",)
    assert not done.unused  # of what is extended, nothing was left to do
    with pytest.raises(MapError, match="matches no rule"):
        map_checkpoint(
            open_checkpoint(tmp_path / "model.safetensors"),
            [parse_recipe(own.replace("extends", 'unmatched = "error"\nextends'), "own")],
        )
    backwards = own.replace("torch-to-mlx", "mlx-to-torch").replace(
        'torch = "torch"\nmlx = "mlx"', 'mlx = "mlx"\ntorch = "torch"'
    )
    with pytest.raises(RecipeError, match="read backwards"):
        parse_recipe(backwards, "own")


def test_a_file_that_is_of_mlx_already_is_announced(tmp_path: Path) -> None:
    """Names are torch's and shapes fit, so nothing else tells that the axes would move twice."""
    source = arrays_at(tmp_path / "model.safetensors", {"conv.weight": np.ones((2, 3, 5, 5), "f4")})
    mapped, (done,) = map_checkpoint(source, ["torch-to-mlx"])
    assert not done.warnings
    _, (_, twice) = map_checkpoint(source, ["torch-to-mlx", "torch-to-mlx"])
    assert twice.warnings == ("its metadata say that it is of the format 'mlx', but 'torch-to-mlx' reads the side 'torch'",)
    _, (_, back) = map_checkpoint(source, ["torch-to-mlx", "mlx-to-torch"])
    assert not back.warnings
    with pytest.raises(MapError, match="format 'mlx'"):
        map_checkpoint(mapped, ["torch-to-mlx"], strict=True)


@pytest.mark.parametrize(
    ("name", "shapes", "kind", "doubt"),
    [
        ("up", {"weight": (4, 4, 2, 2), "bias": (4,)}, "conv2d", True),
        ("dec.3", {"weight": (4, 4, 5)}, "conv1d", True),
        ("up", {"weight": (4, 6, 2, 2), "bias": (6,)}, "conv_transpose2d", False),  # the bias tells
        ("up", {"weight": (4, 6, 2, 2)}, "conv2d", False),  # a strict loader would tell
        ("layer1.0.conv2", {"weight": (4, 4, 3, 3)}, "conv2d", False),
        ("deconv1", {"weight": (4, 4, 2, 2)}, "conv_transpose2d", False),
    ],
)
@pytest.mark.parametrize("recipe", ["torch-to-mlx", "torch-to-flax"])
def test_a_transposed_convolution_that_nothing_tells_is_doubted(
    name: str, shapes: dict[str, tuple[int, ...]], kind: str, doubt: bool, recipe: str
) -> None:
    """Square in its channels, a kernel has the same shape either way, and only its values would be wrong."""
    tensors = {f"{name}.{leaf}": filled(f"{name}.{leaf}", dtype("f32"), shape, 0) for leaf, shape in shapes.items()}
    source = Checkpoint(tensors, Source("x", "torch", "zip", ()))
    done = resolve(load_recipe(recipe), source)
    assert bool(done.warnings) == doubt, done.warnings
    assert f"kind {kind}" in done.rows[0].why
    if doubt:
        assert f"'{name}.weight'" in done.warnings[0] and "could be conv" in done.warnings[0]
        layout = recipe.rpartition("-")[2]
        there = Checkpoint({tensor.key: tensor for tensor in done.tensors}, Source("y", "torch", "zip", ()))
        assert resolve(load_recipe(f"{layout}-to-torch"), there).warnings
    assert not resolve(load_recipe("torch-to-keras"), source).warnings  # there both kernels lie alike


@pytest.mark.parametrize("recipe", ["torch-to-mlx", "mlx-to-torch"])
def test_experts_in_one_tensor_are_no_convolution(recipe: str) -> None:
    """As mlx-lm stacks them: they stay as they are. Elsewhere a tensor that would fit in silence is doubted."""

    def resolved(key: str, *shape: int) -> Any:
        return resolve(
            load_recipe(recipe), Checkpoint({key: filled(key, dtype("bf16"), shape, 0)}, Source("x", "torch", "zip", ()))
        )

    done = resolved("model.layers.0.mlp.switch_mlp.gate_proj.weight", 8, 14, 4)
    assert done.tensors[0].shape == (8, 14, 4) and not done.rows[0].steps and not done.warnings
    done = resolved("mixer.weight", 8, 4, 4)
    assert done.rows[0].steps and "conv1d or" in done.warnings[0]
    assert not resolved("mixer.conv.weight", 8, 4, 4).warnings
