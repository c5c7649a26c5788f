"""Whole models between torch and Keras 3, through files that TensorFlow wrote and files that it loads."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wtool.api import open_checkpoint, save_checkpoint
from wtool.between import map_checkpoint
from wtool.errors import MapError

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.frameworks
INPUTS = (2, 3, 8, 8)


class Net(nn.Module):
    """Every sort of layer whose parts have other names in paths and in Keras' objects."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.square = nn.Conv2d(6, 6, 3)
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.both = nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.ln = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.square(torch.relu(self.norm(self.conv(x)))))
        x, _ = self.lstm(x.permute(0, 2, 3, 1).flatten(1, 2))
        x, _ = self.both(x)
        return self.head(self.ln(self.attention(x, x, x, need_weights=False)[0]))


def layers(k: Any) -> dict[str, Any]:
    return {
        "conv": k.Conv2D(6, 3, name="conv"),
        "norm": k.BatchNormalization(name="norm"),
        "square": k.Conv2D(6, 3, name="square"),
        "lstm": k.LSTM(4, return_sequences=True, name="lstm", dropout=0.1),
        "both": k.Bidirectional(k.GRU(3, return_sequences=True, name="gru"), name="both"),
        "attention": k.MultiHeadAttention(2, 3, name="attention", dropout=0.1),
        "ln": k.LayerNormalization(epsilon=1e-5, name="ln"),
        "head": k.Dense(5, name="head"),
    }


def run(keras: Any, parts: dict[str, Any], x: Any) -> Any:
    relu = keras.layers.ReLU
    x = relu()(parts["square"](relu()(parts["norm"](parts["conv"](x)))))
    x = parts["both"](parts["lstm"](keras.layers.Reshape((16, 6))(x)))
    return parts["head"](parts["ln"](parts["attention"](x, x)))


def functional(keras: Any) -> Any:
    x = keras.Input((8, 8, 3))
    return keras.Model(x, run(keras, layers(keras.layers), x), name="net")


def subclassed(keras: Any) -> Any:
    class Subclassed(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="net")
            for name, layer in layers(keras.layers).items():
                setattr(self, name, layer)

        def call(self, x: Any) -> Any:
            return run(keras, vars(self), x)

    model = Subclassed()
    model(np.zeros((1, 8, 8, 3), "f4"))
    return model


class Plain(nn.Module):
    """What a Sequential model can do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.square = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=1e-3), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.square(torch.relu(self.norm(self.conv(x)))))
        return self.head(x.permute(0, 2, 3, 1))


def sequential(keras: Any) -> Any:
    parts, relu = layers(keras.layers), keras.layers.ReLU
    model = keras.Sequential([parts["conv"], parts["norm"], relu(), parts["square"], relu(), parts["head"]], name="net")
    model.build((None, 8, 8, 3))
    return model


MODELS = {"functional": (Net, functional), "sequential": (Plain, sequential), "subclassed": (Net, subclassed)}


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow")
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def tf(keras: Any) -> Any:
    return pytest.importorskip("tensorflow")


def filled(module: Any, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator) / 3
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return module.eval()


def randomized(model: Any, seed: int = 2) -> Any:
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype == "float32":
            values = generator.standard_normal(variable.shape) / 3
            variable.assign(abs(values) + 0.5 if variable.path.endswith("variance") else values)
    return model


def same(module: Any, model: Any) -> None:
    x = torch.randn(INPUTS, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        there = module(x).numpy()
    here = np.asarray(model(x.permute(0, 2, 3, 1).numpy(), training=False))
    print(f"{abs(here - there).max():.1e} at {abs(there).max():.1f}")
    assert abs(here - there).max() < 1e-6 * (1 + abs(there).max())


def convert(source: Path, target: Path, by: str, **options: Any) -> Any:
    whole = open_checkpoint(source, section="all")
    mapped, (how,) = map_checkpoint(whole.section(), [by], whole=whole, **options)
    save_checkpoint(mapped, target)
    return how


def saved(module: Any, folder: Path) -> Path:
    torch.save(module.state_dict(), folder / "net.pth")
    return folder / "net.pth"


def loaded(module: Any, path: Path) -> Any:
    module.load_state_dict(torch.load(path), strict=True)
    return module


def restored(tf: Any, model: Any, prefix: Path, **objects: Any) -> Any:
    status = tf.train.Checkpoint(**(objects or {"model": model})).read(str(prefix))
    status.assert_existing_objects_matched()
    return status


@pytest.mark.parametrize("name", MODELS)
def test_a_template_gives_keys_and_graph(name: str, keras: Any, tf: Any, tmp_path: Path) -> None:
    make, build = MODELS[name]
    model = build(keras)
    recipe = "torch-to-keras-object" if name == "subclassed" else "torch-to-keras"
    tf.train.Checkpoint(model).write(str(tmp_path / "template"))
    module = filled(make())
    given = {} if name == "sequential" else {"heads": 2}
    how = convert(saved(module, tmp_path), tmp_path / "out.ckpt", recipe, like=str(tmp_path / "template"), given=given)
    assert how.warnings == ()
    status = tf.train.Checkpoint(model).read(str(tmp_path / "out.ckpt"))
    status.assert_existing_objects_matched()
    status.assert_consumed()
    same(module, model)
    heads = convert(tmp_path / "net.pth", tmp_path / "again.ckpt", recipe, like=str(tmp_path / "template"))
    assert [row.after for row in heads.rows] == [row.after for row in how.rows]  # the template knows the heads


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_keras(name: str, keras: Any, tf: Any, tmp_path: Path) -> None:
    make, build = MODELS[name]
    model = randomized(build(keras))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    recipe = "keras-object-to-torch" if name == "subclassed" else "keras-to-torch"
    paths = [
        tf.train.Checkpoint(model).write(str(tmp_path / "alone")),
        tf.train.Checkpoint(model=model).write(str(tmp_path / "named")),
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "beside")),
    ]
    for number, path in enumerate(paths):
        convert(Path(path), tmp_path / f"{number}.pth", recipe)
        same(loaded(make(), tmp_path / f"{number}.pth").eval(), model)
    back = convert(tmp_path / "2.pth", tmp_path / "back.ckpt", recipe, reverse=True, like=paths[2])
    assert {row.exact for row in back.rows} <= {"exact", "function"}
    other = randomized(build(keras), 5)
    tf.train.Checkpoint(model=other).read(str(tmp_path / "back.ckpt")).expect_partial().assert_existing_objects_matched()
    same(loaded(make(), tmp_path / "2.pth").eval(), other)
    if name == "subclassed":
        with pytest.raises(MapError, match="two variables are called 'net/kernel'") as caught:
            convert(Path(paths[0]), tmp_path / "no.pth", "keras-to-torch")
        assert "torch-to-keras-object" in str(caught.value.hint)


def test_without_a_template(keras: Any, tf: Any, tmp_path: Path) -> None:
    module = filled(Net())
    path = saved(module, tmp_path)
    with pytest.raises(MapError, match="the variable 'heads' is not set") as caught:
        convert(path, tmp_path / "no.ckpt", "torch-to-keras")
    assert "--set heads=N" in str(caught.value.hint)
    model = subclassed(keras)
    convert(path, tmp_path / "object.ckpt", "torch-to-keras-object", given={"heads": 2})
    status = tf.train.Checkpoint(model).read(str(tmp_path / "object.ckpt"))
    status.assert_existing_objects_matched()
    status.assert_consumed()
    same(module, model)

    convert(path, tmp_path / "paths.ckpt", "torch-to-keras", given={"heads": 2})
    model = functional(keras)
    layered = tf.train.Checkpoint(**{layer.name: layer for layer in model.layers})
    layered.read(str(tmp_path / "paths.ckpt")).assert_existing_objects_matched()
    same(module, model)
    convert(tmp_path / "paths.ckpt", tmp_path / "home.pth", "keras-to-torch")
    same(loaded(Net(), tmp_path / "home.pth").eval(), model)
    model = randomized(functional(keras))
    tf.compat.v1.train.Saver({v.path: v.value for v in model.weights}).restore(None, str(tmp_path / "paths.ckpt"))
    same(module, model)

    # A Sequential model has its name in front of its paths, but not of its layers.
    module, model = filled(Plain()), sequential(keras)
    convert(saved(module, tmp_path), tmp_path / "plain.ckpt", "torch-to-keras")
    tf.train.Checkpoint(**{layer.name: layer for layer in model.layers}).read(
        str(tmp_path / "plain.ckpt")
    ).assert_existing_objects_matched()
    same(module, model)


def test_two_ways_under_any_name(keras: Any, tf: Any, tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.LSTM(6, 4, batch_first=True, bidirectional=True)
            self.two = nn.LSTM(8, 3, batch_first=True, bidirectional=True)

        def forward(self, x: Any) -> Any:
            return self.two(self.one(x.permute(0, 2, 3, 1).flatten(1, 2).repeat(1, 1, 2))[0])[0]

    def build() -> Any:
        k, x = keras.layers, keras.Input((8, 8, 3))
        y = k.Reshape((64, 3))(x)
        y = k.Bidirectional(k.LSTM(4, return_sequences=True), name="one")(k.Concatenate()([y, y]))
        return keras.Model(x, k.Bidirectional(k.LSTM(3, return_sequences=True, name="mine"), name="two")(y))

    module, model = filled(Two()), build()
    prefix = tf.train.Checkpoint(model).write(str(tmp_path / "template"))
    convert(saved(module, tmp_path), tmp_path / "like.ckpt", "torch-to-keras", like=prefix)
    tf.train.Checkpoint(model).read(str(tmp_path / "like.ckpt")).assert_consumed()
    same(module, model)
    convert(tmp_path / "net.pth", tmp_path / "paths.ckpt", "torch-to-keras")
    model = build()
    restored(tf, model, tmp_path / "paths.ckpt", **{layer.name: layer for layer in model.layers})
    same(module, model)
    prefix = tf.train.Checkpoint(randomized(model)).write(str(tmp_path / "other"))
    convert(Path(prefix), tmp_path / "other.pth", "keras-to-torch")
    same(loaded(Two(), tmp_path / "other.pth"), model)


def test_layers_with_the_dotted_names_of_torch(keras: Any, tf: Any, tmp_path: Path) -> None:
    def build() -> Any:
        k, x = keras.layers, keras.Input((8, 8, 3))
        y = k.Dense(5, name="body.0.1")(k.Conv2D(4, 3, name="body.0.0")(x))
        return keras.Model(x, k.Dense(2, name="head")(y))

    class Dense(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x.permute(0, 2, 3, 1))

    def make() -> Any:
        body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), Dense(4, 5)))
        return nn.Sequential(OrderedDict(body=body, head=nn.Linear(5, 2)))

    module, model = filled(make()), build()
    prefix = tf.train.Checkpoint(model).write(str(tmp_path / "template"))
    convert(saved(module, tmp_path), tmp_path / "like.ckpt", "torch-to-keras", like=prefix)
    tf.train.Checkpoint(model).read(str(tmp_path / "like.ckpt")).assert_consumed()
    same(module, model)
    prefix = tf.train.Checkpoint(randomized(model)).write(str(tmp_path / "other"))
    convert(Path(prefix), tmp_path / "other.pth", "keras-to-torch")
    same(loaded(make(), tmp_path / "other.pth"), model)


def test_layers_in_a_list_are_missing_and_said(keras: Any, tf: Any, tmp_path: Path) -> None:
    class Listed(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(4)
            self.blocks = [keras.layers.Dense(4), keras.layers.Dense(4)]

        def call(self, x: Any) -> Any:
            return self.blocks[1](self.blocks[0](self.first(x)))

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    model = Listed()
    model(np.zeros((1, 3), "f4"))
    prefix = tf.train.Checkpoint(model).write(str(tmp_path / "template"))
    with pytest.raises(MapError, match=r"4 keys are not in it \('blocks/0/_kernel', 'blocks/0/bias'"):
        convert(saved(Module(), tmp_path), tmp_path / "out.ckpt", "torch-to-keras-object", like=prefix)
    convert(Path(prefix), tmp_path / "half.pth", "keras-object-to-torch")
    with pytest.raises(MapError, match=r"4 of its keys are not made \('blocks\.0\.weight'"):
        convert(Path(prefix), tmp_path / "no.pth", "keras-object-to-torch", like=str(tmp_path / "net.pth"))


def test_a_gru_that_torch_has_not(keras: Any, tf: Any, tmp_path: Path) -> None:
    x = keras.Input((5, 4))
    for reset_after in (True, False):
        model = keras.Model(x, keras.layers.GRU(3, reset_after=reset_after, name="g")(x))
        prefix = Path(tf.train.Checkpoint(model).write(str(tmp_path / f"{reset_after}")))
        if reset_after:
            # The one layer's name is not taken for the model's own.
            convert(prefix, tmp_path / "g.pth", "keras-to-torch")
            assert torch.load(tmp_path / "g.pth")["g.weight_ih_l0"].shape == (9, 4)
        else:
            with pytest.raises(MapError, match=r"there is no torch\.nn\.GRU for reset_after=False"):
                convert(prefix, tmp_path / "no.pth", "keras-to-torch")


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4 * 6 * 6, 6), nn.Linear(6, 6)

    def forward(self, x: Any) -> Any:
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))


RECIPE = """
schema = "wtool.map/1"
extends = ["{base}"]
[sides]
torch = "torch"
{side} = "{side}"
[[module]]
torch = "fc1"
{side} = "fc1"
kind = "dense"
flatten = "4 6 6"
"""


def test_flatten_by_a_recipe(keras: Any, tf: Any, tmp_path: Path) -> None:
    k = keras.layers

    def build() -> Any:
        x = keras.Input((8, 8, 3))
        y = k.Flatten()(k.ReLU()(k.Conv2D(4, 3, use_bias=False, name="conv")(x)))
        return keras.Model(x, k.Dense(6, name="fc2")(k.ReLU()(k.Dense(6, name="fc1")(y))))

    paths, objects = tmp_path / "paths.toml", tmp_path / "objects.toml"
    paths.write_text(RECIPE.format(base="torch-to-keras", side="keras"))
    objects.write_text(RECIPE.format(base="torch-to-keras-object", side="object"))
    module, model = filled(Cnn()), build()
    path = saved(module, tmp_path)

    convert(path, tmp_path / "names.ckpt", str(paths))
    tf.compat.v1.train.Saver({v.path: v.value for v in model.variables}).restore(None, str(tmp_path / "names.ckpt"))
    same(module, model)

    model = build()
    objects_of = {layer.name: layer for layer in model.layers}
    convert(path, tmp_path / "objects.ckpt", str(objects))
    restored(tf, model, tmp_path / "objects.ckpt", **objects_of)
    same(module, model)

    model = randomized(build())
    prefix = tf.train.Checkpoint(model).write(str(tmp_path / "template"))
    convert(path, tmp_path / "like.ckpt", str(paths), like=prefix)
    tf.train.Checkpoint(model).read(str(tmp_path / "like.ckpt")).assert_consumed()
    same(module, model)

    model = randomized(build(), 4)
    prefix = tf.train.Checkpoint(model).write(str(tmp_path / "other"))
    convert(Path(prefix), tmp_path / "other.pth", str(paths), reverse=True)
    same(loaded(Cnn(), tmp_path / "other.pth").eval(), model)
    prefix = tf.train.Checkpoint(**{layer.name: layer for layer in model.layers}).write(str(tmp_path / "layers"))
    convert(Path(prefix), tmp_path / "layers.pth", str(objects), reverse=True)
    same(loaded(Cnn(), tmp_path / "layers.pth").eval(), model)
