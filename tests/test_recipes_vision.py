"""The recipes between torchvision and keras.applications: key sets at full depth, forward passes, and files both ways."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wtool.checkpoint import Checkpoint, Source
from wtool.cli.app import run
from wtool.dtypes import dtype
from wtool.errors import MapError, RecipeError
from wtool.maps.catalog import load
from wtool.maps.recipe import parse_recipe
from wtool.maps.resolve import resolve
from wtool.views import filled

Shapes = dict[str, tuple[int, ...]]
HEADS = ("fc.", "classifier.", "fc1/", "fc2/", "predictions/")
RESNETS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
VGGS = {"16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}


class Sides:
    """The same layers under torchvision's names and under Keras'."""

    def __init__(self) -> None:
        self.torch: Shapes = {}
        self.keras: Shapes = {}

    def norm(self, torch: str, keras: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            self.torch[f"{torch}.{leaf}"] = (channels,)
        self.torch[f"{torch}.num_batches_tracked"] = ()
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            self.keras[f"{keras}/{leaf}"] = (channels,)

    def conv(self, torch: str, keras: str, inputs: int, outputs: int, size: int, bias: str = "") -> None:
        """`bias`: which of the sides have one, of `tk`."""
        self.torch[f"{torch}.weight"] = (outputs, inputs, size, size)
        self.keras[f"{keras}/kernel"] = (size, size, inputs, outputs)
        self.torch |= {f"{torch}.bias": (outputs,)} if "t" in bias else {}
        self.keras |= {f"{keras}/bias": (outputs,)} if "k" in bias else {}

    def depthwise(self, torch: str, keras: str, channels: int) -> None:
        self.torch[f"{torch}.weight"] = (channels, 1, 3, 3)
        self.keras[f"{keras}/kernel"] = (3, 3, channels, 1)

    def dense(self, torch: str, keras: str, inputs: int, outputs: int) -> None:
        self.torch |= {f"{torch}.weight": (outputs, inputs), f"{torch}.bias": (outputs,)}
        self.keras |= {f"{keras}/kernel": (inputs, outputs), f"{keras}/bias": (outputs,)}


def resnet(blocks: tuple[int, ...], classes: int = 1000) -> Sides:
    found = Sides()
    found.conv("conv1", "conv1_conv", 3, 64, 7, "k")
    found.norm("bn1", "conv1_bn", 64)
    inputs = 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            torch, keras = f"layer{stage + 1}.{block}.", f"conv{stage + 2}_block{block + 1}_"
            width = 64 << stage
            for part, (before, after, size) in enumerate([(inputs, width, 1), (width, width, 3), (width, 4 * width, 1)], 1):
                found.conv(f"{torch}conv{part}", f"{keras}{part}_conv", before, after, size, "k")
                found.norm(f"{torch}bn{part}", f"{keras}{part}_bn", after)
            if not block:
                found.conv(f"{torch}downsample.0", f"{keras}0_conv", inputs, 4 * width, 1, "k")
                found.norm(f"{torch}downsample.1", f"{keras}0_bn", 4 * width)
            inputs = 4 * width
    found.dense("fc", "predictions", inputs, classes)
    return found


def mobilenet(classes: int = 1000) -> Sides:
    found = Sides()
    found.conv("features.0.0", "Conv1", 3, 32, 3)
    found.norm("features.0.1", "bn_Conv1", 32)
    inputs, number = 32, 0
    for expand, outputs, count in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(count):
            torch, keras, at = f"features.{number + 1}.conv.", f"block_{number}_" if number else "expanded_conv_", 0
            width = inputs * expand
            if expand > 1:
                found.conv(f"{torch}0.0", f"{keras}expand", inputs, width, 1)
                found.norm(f"{torch}0.1", f"{keras}expand_BN", width)
                at = 1
            found.depthwise(f"{torch}{at}.0", f"{keras}depthwise", width)
            found.norm(f"{torch}{at}.1", f"{keras}depthwise_BN", width)
            found.conv(f"{torch}{at + 1}", f"{keras}project", width, outputs, 1)
            found.norm(f"{torch}{at + 2}", f"{keras}project_BN", outputs)
            inputs, number = outputs, number + 1
    found.conv("features.18.0", "Conv_1", 320, 1280, 1)
    found.norm("features.18.1", "Conv_1_bn", 1280)
    found.dense("classifier.1", "predictions", 1280, classes)
    return found


def vgg(blocks: tuple[int, ...], classes: int = 1000, flat: int = 49) -> Sides:
    found = Sides()
    inputs, number = 3, 0
    for block, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512, 512), strict=True), 1):
        for conv in range(1, count + 1):
            found.conv(f"features.{number}", f"block{block}_conv{conv}", inputs, width, 3, "tk")
            inputs, number = width, number + 2
        number += 1
    found.dense("classifier.0", "fc1", 512 * flat, 4096)
    found.dense("classifier.3", "fc2", 4096, 4096)
    found.dense("classifier.6", "predictions", 4096, classes)
    return found


def headers(shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """Tensors of these shapes that take no room."""
    tensors = {key: filled(key, dtype("i64" if key.endswith("tracked") else "f32"), shape, 0) for key, shape in shapes.items()}
    return Checkpoint(tensors, Source("x", "torch", "zip", ()))


MODELS = [
    *(pytest.param(resnet(blocks), "resnet50", id=f"resnet{depth}") for depth, blocks in RESNETS.items()),
    pytest.param(mobilenet(), "mobilenetv2", id="mobilenetv2"),
    *(pytest.param(vgg(blocks), f"vgg{depth}", id=f"vgg{depth}") for depth, blocks in VGGS.items()),
]


@pytest.mark.parametrize("top", [True, False], ids=["top", "no-top"])
@pytest.mark.parametrize(("model", "name"), MODELS)
def test_every_key_of_the_whole_model_finds_its_place(model: Sides, name: str, top: bool) -> None:
    torch, keras = (
        {key: shape for key, shape in side.items() if top or not key.startswith(HEADS)} for side in (model.torch, model.keras)
    )
    recipe = load(f"{name}-torchvision-to-keras")
    there, back = resolve(recipe, headers(torch)), resolve(recipe.reverse(), headers(keras))
    assert {tensor.key: tensor.shape for tensor in there.tensors} == keras
    assert {tensor.key: tensor.shape for tensor in back.tensors} == torch
    counters = [key for key in torch if key.endswith("num_batches_tracked")]
    assert sorted(there.dropped) == sorted(back.filled) == sorted(counters)
    assert not (there.unused or there.warnings or back.unused or back.warnings)
    assert all(tensor.dtype.name == "i64" for tensor in back.tensors if tensor.key in counters)
    inexact = {target for row in back.rows if row.exact != "exact" for target in row.targets}
    assert inexact == ({key for key in torch if key.endswith("running_mean")} if name == "resnet50" else set())


def test_another_model_is_refused_or_said() -> None:
    with pytest.raises(MapError, match=r"match no rule.*features\.16\.weight"):
        resolve(load("vgg16-torchvision-to-keras"), headers(vgg(VGGS["19"]).torch))
    with pytest.raises(MapError, match="match no rule"):
        resolve(load("resnet50-torchvision-to-keras"), headers(mobilenet().torch))
    shallow = {key: shape for key, shape in resnet((2, 2, 2, 2)).torch.items() if "conv3" not in key and "bn3" not in key}
    found = resolve(load("resnet50-torchvision-to-keras"), headers(shallow))
    assert [rule for rule in found.unused if "conv3" in rule]
    unbiased = {key: shape for key, shape in resnet(RESNETS["50"]).keras.items() if not key.endswith("_conv/bias")}
    with pytest.raises(MapError, match="has no partner 'conv1_conv/bias'"):
        resolve(load("keras-to-resnet50-torchvision"), headers(unbiased))


def test_flatten_of_another_image() -> None:
    small = vgg(VGGS["16"], flat=6).torch
    recipe = load("vgg16-torchvision-to-keras")
    with pytest.raises(MapError, match=r"classifier\.0"):
        resolve(recipe, headers(small))
    found = resolve(recipe, headers(small), given={"height": 2, "width": 3})
    row = next(row for row in found.rows if row.sources == ("classifier.0.weight",))
    assert row.after == ((512 * 6, 4096),)
    assert "c=512 h=2 w=3" in row.steps[0].text


def test_optional_is_true_or_false() -> None:
    text = 'schema = "wtool.map/1"\n[sides]\na = "torch"\nb = "torch"\n[[tensor]]\na = "x"\nb = "y"\noptional = "yes"\n'
    with pytest.raises(RecipeError, match=r"line 8: optional = 'yes'"):
        parse_recipe(text, "r")
    found = resolve(parse_recipe(text.replace('"yes"', "true") + '[[tensor]]\na = "z"\nb = "z"\n', "r"), headers({"z": (1,)}))
    assert not found.unused


def test_a_recipe_of_ones_own_extends_one_with_its_own_kinds() -> None:
    text = """
        schema = "wtool.map/1"
        extends = ["resnet50-torchvision-to-keras"]
        sides = { torch = "torch", keras = "keras" }
        module = [{ torch = "head", keras = "mine" }]
        """
    model = resnet((1, 1, 1, 1))
    torch = {key.replace("fc.", "head."): shape for key, shape in model.torch.items()}
    found = resolve(parse_recipe(text, "mine"), headers(torch))
    assert {tensor.key for tensor in found.tensors} == {key.replace("predictions/", "mine/") for key in model.keras}
    assert not found.unused


@dataclass(frozen=True)
class Family:
    """`wrong` is the torch model as torchvision makes it, where that computes something else with Keras' weights."""

    recipe: str
    application: str
    torch: Callable[[Any], Any]
    wrong: Callable[[Any], Any] | None
    note: str
    image: tuple[int, int] = (64, 64)
    options: Mapping[str, Any] | None = None
    given: tuple[str, ...] = ()
    shapes: Callable[[], Sides] | None = None


CLASSES = 10
FAMILIES = {
    "resnet50": Family(
        "resnet50-torchvision",
        "ResNet50",
        lambda vision: vision.ResNet(classes=CLASSES, keras=True),
        lambda vision: vision.ResNet(classes=CLASSES),
        "note: stride",
        shapes=lambda: resnet(RESNETS["50"], CLASSES),
    ),
    "mobilenetv2": Family(
        "mobilenetv2-torchvision",
        "MobileNetV2",
        lambda vision: vision.MobileNetV2(0.35, CLASSES, keras=True, epsilon=1e-3),
        lambda vision: vision.MobileNetV2(0.35, CLASSES),
        "note: padding",
        options={"alpha": 0.35},
    ),
    "mobilenetv2-odd": Family(
        "mobilenetv2-torchvision",
        "MobileNetV2",
        lambda vision: vision.MobileNetV2(0.35, CLASSES, epsilon=1e-3),
        None,
        "note: padding",
        image=(65, 97),
        options={"alpha": 0.35},
    ),
    "vgg16": Family(
        "vgg16-torchvision",
        "VGG16",
        lambda vision: vision.Vgg(classes=CLASSES, size=(2, 3)),
        None,
        "note: fc1",
        image=(64, 96),
        given=("--set", "height=2", "--set", "width=3"),
        shapes=lambda: vgg(VGGS["16"], CLASSES, 6),
    ),
}


@pytest.fixture(scope="module")
def judges() -> Any:
    """torch, torchvision's models, TensorFlow and Keras."""
    torch = pytest.importorskip("torch")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    import vision

    return SimpleNamespace(torch=torch, tf=tf, keras=keras, vision=vision)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once: these files are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def application(judges: Any, family: Family, **more: Any) -> Any:
    make = getattr(judges.keras.applications, family.application)
    options = {"classes": CLASSES, "classifier_activation": None, **(family.options or {}), **more}
    return make(weights=None, input_shape=(*family.image, 3), **options)


def randomize(judges: Any, named: Mapping[str, Any], seed: int) -> None:
    """Random values for norms, their statistics and biases; the other weights are random as they were made."""
    import numpy as np

    random = np.random.default_rng(seed)
    for name, variable in named.items():
        leaf = name.replace("/", ".").rpartition(".")[2]
        norm = len(variable.shape) == 1
        if not norm or leaf == "num_batches_tracked":
            continue
        high = leaf in ("gamma", "weight", "moving_variance", "running_var")
        value = (random.uniform(0.5, 1.5, variable.shape) if high else random.normal(0, 0.1, variable.shape)).astype("f4")
        if isinstance(variable, judges.torch.Tensor):
            variable.copy_(judges.torch.from_numpy(value))
        else:
            variable.assign(value)


def apart(judges: Any, torch_model: Any, keras_model: Any, image: tuple[int, int]) -> tuple[float, float]:
    """The largest difference of the outputs, and their largest value."""
    import numpy as np

    images = np.random.default_rng(7).normal(size=(2, *image, 3)).astype("f4")
    with judges.torch.no_grad():
        left = torch_model.eval()(judges.torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    right = np.asarray(keras_model(images, training=False))
    return float(np.abs(left - right).max()), float(np.abs(right).max())


def converted(*argv: object) -> None:
    assert run([str(arg) for arg in ("convert", *argv)]) == 0


@pytest.mark.frameworks
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_run_in_the_other_framework(name: str, judges: Any, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[name]
    torch, tf = judges.torch, judges.tf
    torch.manual_seed(1)
    judges.keras.utils.set_random_seed(2)
    mine, theirs, fresh = family.torch(judges.vision), application(judges, family), application(judges, family)
    state = mine.state_dict()
    randomize(judges, state, 3)
    randomize(judges, {variable.path: variable for variable in theirs.variables}, 4)
    if family.shapes is not None:
        assert {key: tuple(value.shape) for key, value in state.items()} == family.shapes().torch
        assert {variable.path: tuple(variable.shape) for variable in theirs.variables} == family.shapes().keras

    # torch -> Keras, with a fresh model as the template; and back
    torch.save(state, room / "torch.pth")
    like = tf.train.Checkpoint(fresh).write(str(room / "like.ckpt"))
    there = ("--map", f"{family.recipe}-to-keras", "--strict", *family.given)
    back = ("--map", f"keras-to-{family.recipe}", "--strict", *family.given)
    converted(room / "torch.pth", room / "keras.ckpt", "--like", like, *there)
    assert family.note in capsys.readouterr().err
    tf.train.Checkpoint(fresh).read(str(room / "keras.ckpt")).assert_existing_objects_matched()
    far, scale = apart(judges, mine, fresh, family.image)
    assert far < 3e-6 * scale
    converted(room / "keras.ckpt", room / "again.pth", *back)
    again = torch.load(room / "again.pth", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) and again[key].dtype == state[key].dtype for key in state)

    # Keras -> torch
    prefix = tf.train.Checkpoint(theirs).write(str(room / "theirs.ckpt"))
    converted(prefix, room / "theirs.pth", *back)
    values = torch.load(room / "theirs.pth", weights_only=True)
    mine.load_state_dict(values, strict=True)
    far, scale = apart(judges, mine, theirs, family.image)
    assert far < 1e-5 * scale
    if family.wrong is not None:
        wrong = family.wrong(judges.vision)
        wrong.load_state_dict(values, strict=True)
        assert apart(judges, wrong, theirs, family.image)[0] > 100 * far


@pytest.mark.frameworks
def test_by_name_and_without_the_top(judges: Any, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    tf, torch = judges.tf, judges.torch
    family = FAMILIES["mobilenetv2"]
    mine = family.torch(judges.vision)
    randomize(judges, mine.state_dict(), 5)
    torch.save(mine.state_dict(), room / "torch.pth")
    there = ("--map", "mobilenetv2-torchvision-to-keras", "--strict")
    converted(room / "torch.pth", room / "named.ckpt", *there)
    assert "--like CHECKPOINT" in capsys.readouterr().err
    theirs = application(judges, family)
    tf.compat.v1.train.Saver({variable.path: variable.value for variable in theirs.variables}).restore(
        None, str(room / "named.ckpt")
    )
    far, scale = apart(judges, mine, theirs, family.image)
    assert far < 3e-6 * scale

    topless = application(judges, family, include_top=False)
    like = tf.train.Checkpoint(topless).write(str(room / "like.ckpt"))
    converted(room / "torch.pth", room / "topless.ckpt", *there, "--like", like, "--exclude", "classifier.**")
    assert "--like CHECKPOINT" not in capsys.readouterr().err
    tf.train.Checkpoint(topless).read(str(room / "topless.ckpt")).assert_existing_objects_matched()
    by_path = {variable.path: variable for variable in theirs.variables}
    assert all(np.array_equal(variable, by_path[variable.path]) for variable in topless.variables)
    converted(room / "topless.ckpt", room / "topless.pth", "--map", "keras-to-mobilenetv2-torchvision", "--strict")
    values = torch.load(room / "topless.pth", weights_only=True)
    missing, extra = family.torch(judges.vision).load_state_dict(values, strict=False)
    assert missing == ["classifier.1.weight", "classifier.1.bias"]
    assert not extra
