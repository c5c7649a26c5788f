"""Between torch and Flax: every kind of layer by its forward pass, both ways, and the names of models that people use.

The judges are flax.linen itself and, for BERT, transformers 4, the last that had Flax models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wtool.api import open_checkpoint, save_checkpoint
from wtool.between import map_checkpoint
from wtool.errors import MapError
from wtool.maps.recipe import Recipe, parse_recipe
from wtool.maps.resolve import Resolved

pytestmark = pytest.mark.frameworks
torch = pytest.importorskip("torch")
linen = pytest.importorskip("flax.linen")
jax = pytest.importorskip("jax")
from flax.traverse_util import flatten_dict, unflatten_dict  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

Arrays = dict[str, Any]


def last(array: Any) -> Any:
    """(n, c, ...) as (n, ..., c)."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def first(array: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def same(array: Any) -> Any:
    return array


@dataclass(frozen=True)
class Case:
    """A layer in both frameworks. `into` and `out` carry its input and output from torch to Flax and back."""

    torch: Any
    flax: Any
    shape: tuple[int, ...]
    into: Callable[[Any], Any] = last
    out: Callable[[Any], Any] = first
    exact: bool = True  # whether torch -> flax -> torch gives the same bits


def images(torch_layer: Any, flax_layer: Any, *shape: int, exact: bool = True) -> Case:
    return Case(torch_layer, flax_layer, shape, exact=exact)


def vectors(torch_layer: Any, flax_layer: Any, *shape: int, exact: bool = True) -> Case:
    return Case(torch_layer, flax_layer, shape, same, same, exact=exact)


def cases() -> dict[str, Case]:
    """By name. Names are those that tell a transposed convolution, an embedding and a PReLU."""
    nn, fl = torch.nn, linen
    conv, up = {"padding": "VALID"}, {"padding": "VALID", "strides": (2, 2)}
    return {
        "linear": vectors(nn.Linear(5, 3), fl.Dense(3), 4, 5),
        "fc_square": vectors(nn.Linear(6, 6, bias=False), fl.Dense(6, use_bias=False), 4, 6),
        "conv1d": images(nn.Conv1d(3, 5, 4), fl.Conv(5, (4,), **conv), 2, 3, 9),
        "conv2d": images(nn.Conv2d(3, 5, (3, 4), padding=1), fl.Conv(5, (3, 4), padding=1), 2, 3, 7, 8),
        "conv3d": images(nn.Conv3d(2, 3, (2, 3, 4)), fl.Conv(3, (2, 3, 4), **conv), 2, 2, 5, 6, 7),
        "grouped": images(nn.Conv2d(6, 9, 3, groups=3), fl.Conv(9, (3, 3), feature_group_count=3, **conv), 2, 6, 5, 5),
        "depthwise": images(nn.Conv2d(4, 8, 3, groups=4), fl.Conv(8, (3, 3), feature_group_count=4, **conv), 2, 4, 5, 6),
        "deconv1": images(nn.ConvTranspose1d(3, 5, 4, stride=2), fl.ConvTranspose(5, (4,), (2,), "VALID"), 2, 3, 5),
        "deconv2": images(nn.ConvTranspose2d(3, 5, (3, 4), stride=2), fl.ConvTranspose(5, (3, 4), **up), 2, 3, 5, 6),
        "deconv3": images(nn.ConvTranspose3d(2, 3, (2, 3, 4)), fl.ConvTranspose(3, (2, 3, 4), **conv), 2, 2, 3, 4, 5),
        "bn": images(nn.BatchNorm2d(4), fl.BatchNorm(use_running_average=True, epsilon=1e-5), 3, 4, 5, 5),
        "ln": vectors(nn.LayerNorm(6), fl.LayerNorm(epsilon=1e-5), 4, 6),
        "gn": images(nn.GroupNorm(3, 6), fl.GroupNorm(3, epsilon=1e-5), 2, 6, 4, 4),
        "rms": vectors(nn.RMSNorm(6, eps=1e-6), fl.RMSNorm(epsilon=1e-6), 4, 6),
        "prelu": vectors(nn.PReLU(), fl.PReLU(), 4, 6),
        "embed": Case(nn.Embedding(11, 5), fl.Embed(11, 5), (), same, same),
        "lstm": vectors(nn.LSTM(4, 3, batch_first=True), fl.RNN(fl.OptimizedLSTMCell(3)), 2, 6, 4, exact=False),
        "gru": vectors(nn.GRU(4, 3, batch_first=True), fl.RNN(fl.GRUCell(3)), 2, 6, 4, exact=False),
        "rnn": vectors(nn.RNN(4, 3, batch_first=True), fl.RNN(fl.SimpleCell(3)), 2, 6, 4, exact=False),
        "bilstm": vectors(
            nn.LSTM(4, 3, batch_first=True, bidirectional=True),
            fl.Bidirectional(fl.RNN(fl.LSTMCell(3)), fl.RNN(fl.LSTMCell(3))),
            *(2, 6, 4),
            exact=False,
        ),
        "bigru": vectors(
            nn.GRU(4, 3, batch_first=True, bidirectional=True),
            fl.Bidirectional(fl.RNN(fl.GRUCell(3)), fl.RNN(fl.GRUCell(3))),
            *(2, 6, 4),
            exact=False,
        ),
        "attn": vectors(nn.MultiheadAttention(8, 2, batch_first=True), fl.MultiHeadDotProductAttention(2), 2, 5, 8),
    }


def shuffled(arrays: Mapping[str, Any], seed: int) -> Arrays:
    """Other values; variances stay positive."""
    dice = np.random.default_rng(seed)
    made = {}
    for name, array in arrays.items():
        values = dice.standard_normal(array.shape).astype(np.float32)
        made[name] = np.abs(values) + 0.5 if name.endswith("var") else values if array.dtype.kind == "f" else array
    return made


def through(
    arrays: Mapping[str, Any], recipe: str | Recipe, folder: Path, name: str, *, like: Path | None = None, **given: int
) -> tuple[Arrays, Resolved]:
    """Saved by safetensors, mapped, written, read by safetensors."""
    save_file({key: np.array(array, order="C") for key, array in arrays.items()}, folder / f"{name}.in.safetensors")
    source = open_checkpoint(folder / f"{name}.in.safetensors")
    mapped, (done,) = map_checkpoint(source, [recipe], given=given, like=None if like is None else str(like))
    save_checkpoint(mapped, folder / f"{name}.safetensors", force=True)
    return load_file(folder / f"{name}.safetensors"), done


def numbers(module: Any) -> Arrays:
    return {key: value.detach().numpy().copy() for key, value in module.state_dict().items()}


def load(module: Any, arrays: Mapping[str, Any]) -> None:
    module.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, strict=True)


def variables(case: Case, values: Any) -> Arrays:
    """Those of a layer, as people flatten them."""
    inputs = (values, values) if isinstance(case.torch, torch.nn.MultiheadAttention) else (values,)
    made = flatten_dict(jax.eval_shape(case.flax.init, jax.random.key(0), *inputs), sep=".")
    return {key: np.zeros(value.shape, value.dtype) for key, value in made.items()}


def torch_output(case: Case, values: Any) -> Any:
    with torch.no_grad():
        given = torch.from_numpy(values)
        heads = isinstance(case.torch, torch.nn.MultiheadAttention)
        found = case.torch.eval()(*([given] * 3 if heads else [given]))
        return (found[0] if isinstance(found, tuple) else found).numpy()


def flax_output(case: Case, arrays: Mapping[str, Any], values: Any) -> Any:
    given = case.into(values)
    heads = isinstance(case.torch, torch.nn.MultiheadAttention)
    apply = jax.jit(case.flax.apply)  # one compilation, and not one for every operation
    return case.out(np.asarray(apply(unflatten_dict(dict(arrays), sep="."), *([given] * (1 + heads)))))


def test_every_kind_of_layer_is_the_same_function_both_ways(tmp_path: Path) -> None:
    """All layers in one file: torch -> Flax, then other values back, strictly loaded by torch."""
    torch.manual_seed(3)
    dice = np.random.default_rng(3)
    table = cases()
    names = list(table)
    inputs = {
        name: dice.integers(0, 11, (2, 5)) if name == "embed" else dice.standard_normal(case.shape).astype(np.float32)
        for name, case in table.items()
    }
    for case in table.values():
        load(case.torch, shuffled(numbers(case.torch), 5))
    state = {f"net.{name}.{key}": value for name in names for key, value in numbers(table[name].torch).items()}
    flat, there = through(state, "torch-to-flax", tmp_path, "flax", heads=2)
    assert not there.warnings and not there.kept and not there.lost
    assert there.dropped == ("net.bn.num_batches_tracked",)

    expected = {}
    for name, case in table.items():
        for key, value in variables(case, case.into(inputs[name])).items():
            collection, _, leaf = key.partition(".")
            expected[f"{collection}.net.{name}.{leaf}"] = value
    assert {key: value.shape for key, value in flat.items()} == {key: value.shape for key, value in expected.items()}

    def part(arrays: Mapping[str, Any], name: str) -> Arrays:
        return {key.replace(f".net.{name}", ""): value for key, value in arrays.items() if f".net.{name}." in key}

    def compare(arrays: Mapping[str, Any], direction: str) -> None:
        for name, case in table.items():
            ours, theirs = torch_output(case, inputs[name]), flax_output(case, part(arrays, name), inputs[name])
            assert ours.shape == theirs.shape, name
            apart, scale = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
            assert apart <= 2e-6 * max(scale, 1.0), f"{direction} {name}: {apart} at scale {scale}"

    compare(flat, "torch -> flax")
    again, _ = through(flat, "flax-to-torch", tmp_path, "again", heads=2)
    assert again.keys() == state.keys()
    for key, value in state.items():
        if table[key.split(".")[1]].exact:
            assert np.array_equal(again[key], value) and again[key].dtype == value.dtype, key

    other = shuffled(expected, 7)
    back, _ = through(other, "flax-to-torch", tmp_path, "torch", heads=2)
    for name, case in table.items():
        load(case.torch, {key.removeprefix(f"net.{name}."): value for key, value in back.items() if f"net.{name}." in key})
    compare(other, "flax -> torch")
    once_more, _ = through(back, "torch-to-flax", tmp_path, "more", heads=2)
    for key, value in other.items():
        assert np.array_equal(once_more[key], value), key


AUTO = """
schema = "wtool.map/1"
extends = "torch-to-flax"
[sides]
torch = "torch"
flax = "flax"
[names.layer]
conv1 = "Conv_0"
bn1 = "BatchNorm_0"
conv2 = "Conv_1"
fc2 = "Dense_1"
[[module]]
torch = "fc1"
flax = "Dense_0"
kind = "dense"
flatten = "4 3 5"
[[module]]
torch = "lstm"
flax = "LSTMCell_0"
kind = "lstm_inline"
[[module]]
torch = "lstm"
flax = "LSTMCell_1"
kind = "lstm_inline"
with = { layer = 1 }
[[module]]
torch = "{x:layer}"
flax = "{x:layer}"
"""


class Automatic(linen.Module):  # type: ignore[misc, name-defined]
    """A model whose layers Flax named itself."""

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = linen.Conv(6, (3, 3), padding=1, use_bias=False)(images)
        x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
        x = linen.Conv(4, (1, 1))(x)
        x = linen.Dense(8)(x.reshape((x.shape[0], -1)))
        x = x.reshape((x.shape[0], 4, 2))
        x = linen.RNN(linen.LSTMCell(3))(x)
        x = linen.RNN(linen.LSTMCell(3))(x)
        return linen.Dense(2)(x)


class Named(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(6)
        self.conv2 = torch.nn.Conv2d(6, 4, 1)
        self.fc1 = torch.nn.Linear(60, 8)
        self.lstm = torch.nn.LSTM(2, 3, num_layers=2, batch_first=True)
        self.fc2 = torch.nn.Linear(3, 2)

    def forward(self, images: Any) -> Any:
        x = self.conv2(torch.relu(self.bn1(self.conv1(images))))
        return self.fc2(self.lstm(self.fc1(x.flatten(1)).reshape(-1, 4, 2))[0])


def test_a_model_that_flax_named_needs_a_table(tmp_path: Path) -> None:
    case = Case(Named(), Automatic(), (2, 3, 3, 5), out=same)
    load(case.torch, shuffled(numbers(case.torch), 1))
    values = np.random.default_rng(2).standard_normal(case.shape).astype(np.float32)
    recipe = parse_recipe(AUTO, "auto")
    flat, there = through(numbers(case.torch), recipe, tmp_path, "flax")
    assert not there.unused
    ours = torch_output(case, values)
    assert np.abs(flax_output(case, flat, values) - ours).max() <= 2e-6 * np.abs(ours).max()
    theirs = shuffled(variables(case, case.into(values)), 4)
    assert theirs.keys() == flat.keys()
    back, _ = through(theirs, recipe.reverse(), tmp_path, "torch")
    load(case.torch, back)
    ours = torch_output(case, values)
    assert np.abs(flax_output(case, theirs, values) - ours).max() <= 2e-6 * np.abs(ours).max()
    # The wrong order of Flatten has the same shapes; that it is told is all that helps.
    unsaid, _ = through(back, parse_recipe(AUTO.replace('flatten = "4 3 5"\n', ""), "unsaid"), tmp_path, "unsaid")
    assert np.abs(flax_output(case, unsaid, values) - ours).max() > 0.01


HUGGING_FACE = """
import sys, numpy as np, torch
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from transformers import BertConfig, BertForMaskedLM, FlaxBertForMaskedLM, FlaxViTModel, ViTConfig, ViTModel
small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
bert = BertConfig(vocab_size=20, max_position_embeddings=10, tie_word_embeddings=False, **small)
vit = ViTConfig(image_size=8, patch_size=4, **small)
for name, config, Torch, Flax in ("bert", bert, BertForMaskedLM, FlaxBertForMaskedLM), ("vit", vit, ViTModel, FlaxViTModel):
    torch.manual_seed(1)
    model = Torch(config)
    for value in model.parameters():
        torch.nn.init.normal_(value)
    model.save_pretrained(f"{sys.argv[1]}/{name}")
    params = Flax.from_pretrained(f"{sys.argv[1]}/{name}", from_pt=True).params
    save_file({k: np.asarray(v) for k, v in flatten_dict(params, sep=".").items()}, f"{sys.argv[1]}/{name}.flax.safetensors")
"""


def judged(script: str, folder: Path) -> None:
    """Run a script with transformers 4, which lies beside the environment."""
    judges = Path(sys.prefix) / "judges"
    if not (judges / "transformers").is_dir():
        pytest.skip("transformers 4 is not in <environment>/judges")
    settings = {**os.environ, "PYTHONPATH": str(judges), "USE_TF": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, env=settings)
    assert not done.returncode, done.stderr[-2000:]


def test_hugging_face_models(tmp_path: Path) -> None:
    """Bit for bit what transformers' own conversion makes, and back. Its Flax files name no collection."""
    judged(HUGGING_FACE, tmp_path)
    loose = {"bert": ["cls.predictions.bias"], "vit": ["embeddings.cls_token", "embeddings.position_embeddings"]}
    for name, kept in loose.items():
        path, like = tmp_path / name / "model.safetensors", tmp_path / f"{name}.flax.safetensors"
        source, oracle = load_file(path), load_file(like)
        mapped, (done,) = map_checkpoint(open_checkpoint(path), ["torch-to-flax"], unmatched="keep")
        found = {key.removeprefix("params."): mapped[key].array() for key in mapped}
        assert all(key.startswith("params.") for key in mapped)
        assert len(done.warnings) == (name == "bert"), done.warnings  # a decoder without a bias may be an embedding
        assert sorted(done.kept) == [f"params.{key}" for key in kept]
        assert found.keys() == oracle.keys()
        for key, value in oracle.items():
            assert np.array_equal(found[key], value), key
        fitted, (done,) = map_checkpoint(open_checkpoint(path), ["torch-to-flax"], unmatched="keep", like=str(like))
        assert list(fitted) == list(open_checkpoint(like)) and not done.warnings
        assert fitted.metadata["format"] == "flax"
        back, _ = map_checkpoint(open_checkpoint(like), ["flax-to-torch"], unmatched="keep")
        assert set(back) == set(source)
        for key, value in source.items():
            assert np.array_equal(back[key].array(), value), key


def test_what_cannot_be_known_is_asked(tmp_path: Path) -> None:
    values = {f"attn.{key}": value for key, value in numbers(torch.nn.MultiheadAttention(8, 2)).items()}
    with pytest.raises(MapError, match="the variable 'heads' is not set"):
        through(values, "torch-to-flax", tmp_path, "heads")
    with pytest.raises(MapError, match="matches no rule of 'torch-to-flax': 'cls_token'"):
        through({"fc.weight": np.ones((2, 3), "f4"), "cls_token": np.ones(3, "f4")}, "torch-to-flax", tmp_path, "token")


def test_collections_and_separators(tmp_path: Path) -> None:
    """`flatten_dict` with slashes, and the parameters alone, are understood; other collections are not taken for either."""
    kernel = np.arange(6, dtype="f4").reshape(3, 2)
    for prefix in ("params/net/fc/", "net/fc/", "params.net.fc.", "net.fc."):
        back, _ = through({f"{prefix}kernel": kernel, f"{prefix}bias": np.ones(2, "f4")}, "flax-to-torch", tmp_path, "fc")
        assert back.keys() == {"net.fc.weight", "net.fc.bias"}
        assert np.array_equal(back["net.fc.weight"], kernel.T)
    with pytest.raises(MapError, match="matches no rule"):
        through({"params.fc.kernel": kernel, "cache.fc.index": np.ones(2, "f4")}, "flax-to-torch", tmp_path, "cache")


LISTS = """
schema = "wtool.map/1"
extends = "torch-to-{layout}"
[sides]
torch = "torch"
{layout} = "{layout}"
[[module]]
torch = "{torch}"
{layout} = "{other}"
"""


def test_lists_of_layers_have_other_names(tmp_path: Path) -> None:
    values = {"blocks.0.fc.weight": np.ones((2, 3), "f4"), "blocks.11.fc.weight": np.ones((4, 3), "f4")}
    text = LISTS.format(layout="flax", torch="blocks.{i}.{path*}", other="blocks_{i}.{path*}")
    made, _ = through(values, parse_recipe(text, "own"), tmp_path, "linen")
    assert made.keys() == {"params.blocks_0.fc.kernel", "params.blocks_11.fc.kernel"}
    text = LISTS.format(layout="nnx", torch="{path*}.{i}", other="{path*}.layers.{i}")
    values = {
        "net.0.weight": np.ones((2, 3), "f4"),
        "net.2.weight": np.ones((3, 2), "f4"),
        "out.weight": np.ones((2, 2), "f4"),
    }
    made, _ = through(values, parse_recipe(text, "own"), tmp_path, "nnx")
    assert made.keys() == {"net.layers.0.kernel", "net.layers.2.kernel", "out.kernel"}


def test_nnx_is_the_same_function_both_ways(tmp_path: Path) -> None:
    """The state of an NNX model, as nnx.to_pure_dict and flatten_dict give it; random states are no weights."""
    nnx = pytest.importorskip("flax.nnx")
    rngs, nn = nnx.Rngs(0), torch.nn

    def layer(kind: Any, *args: Any, **options: Any) -> Any:
        return kind(*args, rngs=rngs, **options)

    attention = layer(nnx.MultiHeadAttention, 2, 8, decode=False)
    table = {
        "fc": Case(nn.Linear(5, 3), layer(nnx.Linear, 5, 3), (4, 5), same, same),
        "conv": Case(nn.Conv2d(3, 5, 3, padding=1), layer(nnx.Conv, 3, 5, (3, 3), padding=1), (2, 3, 6, 7)),
        "deconv": Case(
            nn.ConvTranspose2d(3, 5, 3, 2), layer(nnx.ConvTranspose, 3, 5, (3, 3), 2, padding="VALID"), (2, 3, 4, 5)
        ),
        "bn": Case(nn.BatchNorm2d(4), layer(nnx.BatchNorm, 4, use_running_average=True), (2, 4, 5, 5)),
        "gn": Case(nn.GroupNorm(3, 6), layer(nnx.GroupNorm, 6, 3, epsilon=1e-5), (2, 6, 4, 4)),
        "rms": Case(nn.RMSNorm(6, 1e-6), layer(nnx.RMSNorm, 6), (4, 6), same, same),
        "prelu": Case(nn.PReLU(), nnx.PReLU(), (4, 6), same, same),
        "embed": Case(nn.Embedding(11, 5), layer(nnx.Embed, 11, 5), (), same, same),
        "lstm": Case(nn.LSTM(4, 3, batch_first=True), nnx.RNN(layer(nnx.OptimizedLSTMCell, 4, 3)), (2, 6, 4), same, same),
        "rnn": Case(nn.RNN(4, 3, batch_first=True), nnx.RNN(layer(nnx.SimpleCell, 4, 3)), (2, 6, 4), same, same),
        "attn": Case(nn.MultiheadAttention(8, 2, batch_first=True), attention, (2, 5, 8), same, same),
    }
    model = nn.ModuleDict({name: case.torch for name, case in table.items()})
    load(model, shuffled(numbers(model), 1))
    dice = np.random.default_rng(2)

    def compare() -> None:
        for name, case in table.items():
            values = dice.standard_normal(case.shape).astype(np.float32) if case.shape else np.arange(11)
            ours, theirs = torch_output(case, values), case.out(np.asarray(case.flax(case.into(values))))
            assert np.abs(ours - theirs).max() <= 2e-6 * max(np.abs(ours).max(), 1.0), name

    def update(arrays: Mapping[str, Any]) -> None:
        for name, case in table.items():
            state = nnx.state(case.flax)
            pure = {key.removeprefix(name + "."): value for key, value in arrays.items() if key.startswith(name + ".")}
            own = {key: value for key, value in flatten_dict(nnx.to_pure_dict(state)).items() if "rngs" in key}
            assert unflatten_dict({**unflat(pure), **own}).keys() == nnx.to_pure_dict(state).keys()
            nnx.replace_by_pure_dict(state, unflatten_dict({**unflat(pure), **own}))
            nnx.update(case.flax, state)

    def unflat(pure: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
        return {tuple(key.split(".")): value for key, value in pure.items()}

    made, _ = through(numbers(model), "torch-to-nnx", tmp_path, "nnx", heads=2)
    update(made)
    compare()
    state = {
        f"{name}.{key}": np.asarray(value)
        for name, case in table.items()
        for key, value in flatten_dict(nnx.to_pure_dict(nnx.state(case.flax)), sep=".").items()
        if not key.endswith("rngs.key")
    }
    assert made.keys() == {key for key in state if "rngs" not in key}
    other = shuffled(state, 3)
    update({key: value for key, value in other.items() if "rngs" not in key})
    back, there = through(other, "nnx-to-torch", tmp_path, "torch", heads=2)
    assert there.dropped == ("lstm.rngs.count", "rnn.rngs.count")
    load(model, back)
    compare()


KERAS = {
    "net/conv/kernel": (3, 3, 4, 5),
    "net/conv/bias": (5,),
    "net/depthwise/kernel": (3, 3, 4, 1),
    "net/depthwise/bias": (4,),
    "net/deconv/kernel": (3, 3, 5, 4),
    "net/deconv/bias": (5,),
    "net/fc/kernel": (5, 6),
    "net/bn/gamma": (5,),
    "net/bn/beta": (5,),
    "net/bn/moving_mean": (5,),
    "net/bn/moving_variance": (5,),
    "net/embed/embeddings": (7, 8),
    "net/lstm/lstm_cell/kernel": (3, 16),
    "net/lstm/lstm_cell/recurrent_kernel": (4, 16),
    "net/lstm/lstm_cell/bias": (16,),
    "net/gru/gru_cell/kernel": (3, 12),
    "net/gru/gru_cell/recurrent_kernel": (4, 12),
    "net/gru/gru_cell/bias": (2, 12),
    "net/attn/query/kernel": (8, 2, 4),
    "net/attn/key/kernel": (8, 2, 4),
    "net/attn/value/kernel": (8, 2, 4),
    "net/attn/attention_output/kernel": (2, 4, 8),
}


def test_keras_and_flax_meet_in_torch(tmp_path: Path) -> None:
    """One recipe from Keras to Flax does what the two by way of torch do, each of which is judged by its framework."""
    values = shuffled({key: np.zeros(shape, "f4") for key, shape in KERAS.items()}, 1)
    direct, there = through(values, "keras-to-flax", tmp_path, "direct", heads=2)
    assert not there.warnings
    torches, _ = through(values, "keras-to-torch", tmp_path, "torch", heads=2)
    around, _ = through(torches, "torch-to-flax", tmp_path, "around", heads=2)
    assert direct.keys() == around.keys()
    for key, value in around.items():
        assert np.array_equal(direct[key], value), key
    back, _ = through(direct, "flax-to-keras", tmp_path, "back", heads=2)
    assert back.keys() == values.keys()
    for key, value in values.items():
        assert np.array_equal(back[key], value) or key == "net/gru/gru_cell/bias", key


TURNED = """
schema = "wtool.map/1"
[sides]
torch = "torch"
flax = "flax"
[[module]]
torch = "net.{{i}}"
flax = "net.{{i}}"
kind = "conv_transpose{axes}d_turned"
"""


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_transposed_convolution_that_flax_turns_itself(axes: int, tmp_path: Path) -> None:
    sizes = (3, 4, 2)[:axes]
    layer = getattr(torch.nn, f"ConvTranspose{axes}d")(3, 5, sizes, stride=2)
    turned = linen.ConvTranspose(5, sizes, (2,) * axes, "VALID", transpose_kernel=True)
    case = Case(layer, turned, (2, 3, 5, 6, 4)[: axes + 2])
    state = {f"net.0.{key}": value for key, value in numbers(layer).items()}
    made, _ = through(state, parse_recipe(TURNED.format(axes=axes), "own"), tmp_path, "flax")
    values = np.random.default_rng(1).standard_normal(case.shape).astype(np.float32)
    flat = {key.replace("net.0.", ""): value for key, value in made.items()}
    ours = torch_output(case, values)
    assert np.abs(flax_output(case, flat, values) - ours).max() <= 2e-6 * np.abs(ours).max()
