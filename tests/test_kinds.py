"""Every kind of layer between torch and Keras 3: converted, loaded by the framework itself, and computing the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wtool.api import open_checkpoint, save_checkpoint
from wtool.between import map_checkpoint
from wtool.maps.recipe import Recipe, parse_recipe

torch = pytest.importorskip("torch")
nn = torch.nn
FRAMEWORKS = pytest.mark.frameworks


@dataclass(frozen=True)
class Case:
    """A layer in both frameworks. `inputs` is torch's shape; `spatial`: channels are first in torch, last in Keras.

    `rule` are the entries of the module rule; none: the shipped recipe, which infers the kind. `off`: the outputs differ by
    at least so much, because something is not declared.
    """

    name: str
    torch: Callable[[], Any]
    keras: Callable[[Any], Any]
    inputs: tuple[int, ...]
    rule: str = ""
    spatial: bool = True
    exact: bool = True
    given: tuple[tuple[str, int], ...] = ()
    off: float = 0.0
    built: tuple[int, ...] | None = None


class Flat(nn.Module):
    """Flatten and a Linear that is the module's own weight."""

    def __init__(self, channels_and_sizes: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Linear(channels_and_sizes, out).parameters()

    def forward(self, x: Any) -> Any:
        return nn.functional.linear(x.flatten(1), self.weight, self.bias)


class Separable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, groups=3, bias=False)
        self.pointwise = nn.Conv2d(6, 4, 1)

    def forward(self, x: Any) -> Any:
        return self.pointwise(self.depthwise(x))


class Itself(nn.MultiheadAttention):
    def forward(self, x: Any) -> Any:
        return super().forward(x, x, x, need_weights=False)[0]


class Matrix(nn.Module):
    """GPT-2's Conv1D: (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.bias


def sequence(layer: Any) -> Any:
    layer.batch_first = True
    return layer


EPS = {"epsilon": 1e-5}
IMAGE, LINE, VOLUME = (2, 3, 9, 8), (2, 3, 9), (2, 3, 5, 6, 7)
ROWS = {"spatial": False}
TWO_WAY = {"merge_mode": "concat"}
CASES = [
    Case("dense", lambda: nn.Linear(4, 6), lambda k: k.Dense(6), (5, 4), **ROWS),
    Case(
        "dense-no-bias",
        lambda: nn.Linear(4, 6, bias=False),
        lambda k: k.Dense(6, use_bias=False),
        (5, 4),
        'kind = "dense"',
        **ROWS,
    ),
    Case("dense-square", lambda: nn.Linear(6, 6), lambda k: k.Dense(6), (5, 6), **ROWS),
    Case("dense-io", Matrix, lambda k: k.Dense(6), (5, 4), 'kind = "dense_io"', **ROWS),
    Case("embedding", lambda: nn.Embedding(7, 3), lambda k: k.Embedding(7, 3), (), 'kind = "embedding"', **ROWS),
    Case("conv1d", lambda: nn.Conv1d(3, 4, 3), lambda k: k.Conv1D(4, 3), LINE),
    Case("conv2d", lambda: nn.Conv2d(3, 4, 3), lambda k: k.Conv2D(4, 3), IMAGE),
    Case("conv2d-strided", lambda: nn.Conv2d(3, 4, 3, 2), lambda k: k.Conv2D(4, 3, 2), IMAGE),
    Case("conv2d-dilated", lambda: nn.Conv2d(3, 4, 3, dilation=2), lambda k: k.Conv2D(4, 3, dilation_rate=2), IMAGE),
    Case("conv2d-grouped", lambda: nn.Conv2d(6, 9, 3, groups=3), lambda k: k.Conv2D(9, 3, groups=3), (2, 6, 9, 8)),
    Case("conv2d-one-channel", lambda: nn.Conv2d(1, 4, 3), lambda k: k.Conv2D(4, 3), (2, 1, 9, 8), 'kind = "conv2d"'),
    Case("conv3d", lambda: nn.Conv3d(3, 4, 3), lambda k: k.Conv3D(4, 3), VOLUME),
    Case("transpose1d", lambda: nn.ConvTranspose1d(3, 4, 3, 2), lambda k: k.Conv1DTranspose(4, 3, 2), LINE),
    Case("transpose2d", lambda: nn.ConvTranspose2d(3, 4, 3, 2), lambda k: k.Conv2DTranspose(4, 3, 2), IMAGE),
    Case("transpose3d", lambda: nn.ConvTranspose3d(3, 4, 3, 2), lambda k: k.Conv3DTranspose(4, 3, 2), VOLUME),
    Case("depthwise", lambda: nn.Conv2d(3, 3, 3, groups=3), lambda k: k.DepthwiseConv2D(3), IMAGE, 'kind = "depthwise2d"'),
    Case(
        "depthwise-two",
        lambda: nn.Conv2d(3, 6, 3, groups=3),
        lambda k: k.DepthwiseConv2D(3, depth_multiplier=2),
        IMAGE,
        'kind = "depthwise2d_m"\nwith = { m = 2 }',
    ),
    Case("depthwise1d", lambda: nn.Conv1d(3, 3, 3, groups=3), lambda k: k.DepthwiseConv1D(3), LINE, 'kind = "depthwise1d"'),
    Case(
        "separable",
        Separable,
        lambda k: k.SeparableConv2D(4, 3, depth_multiplier=2),
        IMAGE,
        'kind = "separable2d"\nwith = { m = 2 }',
    ),
    Case("batch-norm", lambda: nn.BatchNorm2d(3), lambda k: k.BatchNormalization(**EPS), IMAGE),
    Case("batch-norm-epsilon-of-keras", lambda: nn.BatchNorm2d(3, eps=1e-3), lambda k: k.BatchNormalization(), IMAGE),
    Case("batch-norm-epsilon-left", lambda: nn.BatchNorm2d(3), lambda k: k.BatchNormalization(), IMAGE, off=1e-4),
    Case("layer-norm", lambda: nn.LayerNorm(6), lambda k: k.LayerNormalization(**EPS), (5, 6), **ROWS),
    Case("layer-norm-epsilon-left", lambda: nn.LayerNorm(6), lambda k: k.LayerNormalization(), (5, 6), off=1e-4, **ROWS),
    Case("group-norm", lambda: nn.GroupNorm(3, 6), lambda k: k.GroupNormalization(3, **EPS), (2, 6, 4, 5)),
    Case("rms-norm", lambda: nn.RMSNorm(6, eps=1e-6), lambda k: k.RMSNormalization(), (5, 6), 'kind = "rms_norm"', **ROWS),
    Case("prelu", lambda: nn.PReLU(1), lambda k: k.PReLU(shared_axes=[1]), (5, 6), 'kind = "prelu"', **ROWS),
    Case("prelu1d", lambda: nn.PReLU(3), lambda k: k.PReLU(shared_axes=[1]), LINE, 'kind = "prelu1d"'),
    Case("prelu2d", lambda: nn.PReLU(3), lambda k: k.PReLU(shared_axes=[1, 2]), IMAGE, 'kind = "prelu2d"'),
    Case(
        "lstm",
        lambda: sequence(nn.LSTM(4, 3)),
        lambda k: k.LSTM(3, return_sequences=True),
        (2, 5, 4),
        exact=False,
        **ROWS,
    ),
    Case("gru", lambda: sequence(nn.GRU(4, 3)), lambda k: k.GRU(3, return_sequences=True), (2, 5, 4), **ROWS),
    Case(
        "rnn", lambda: sequence(nn.RNN(4, 3)), lambda k: k.SimpleRNN(3, return_sequences=True), (2, 5, 4), exact=False, **ROWS
    ),
    Case(
        "bilstm",
        lambda: sequence(nn.LSTM(4, 3, bidirectional=True)),
        lambda k: k.Bidirectional(k.LSTM(3, return_sequences=True, name="lstm")),
        (2, 5, 4),
        exact=False,
        **ROWS,
    ),
    Case(
        "bigru",
        lambda: sequence(nn.GRU(4, 3, bidirectional=True)),
        lambda k: k.Bidirectional(k.GRU(3, return_sequences=True, name="gru")),
        (2, 5, 4),
        **ROWS,
    ),
    Case(
        "birnn",
        lambda: sequence(nn.RNN(4, 3, bidirectional=True)),
        lambda k: k.Bidirectional(k.SimpleRNN(3, return_sequences=True, name="simple_rnn")),
        (2, 5, 4),
        exact=False,
        **ROWS,
    ),
    Case(
        "attention",
        lambda: Itself(6, 2, batch_first=True),
        lambda k: k.MultiHeadAttention(2, 3),
        (2, 5, 6),
        given=(("heads", 2),),
        **ROWS,
    ),
    Case(
        "flatten",
        lambda: Flat(60, 2),
        lambda k: k.Dense(2),
        (2, 4, 3, 5),
        'kind = "dense"\nflatten = "4 3 5"',
        built=(None, 60),
    ),
    Case(
        "flatten1d", lambda: Flat(24, 2), lambda k: k.Dense(2), (2, 4, 6), 'kind = "dense"\nflatten = "4 6"', built=(None, 24)
    ),
    Case("flatten-left", lambda: Flat(60, 2), lambda k: k.Dense(2), (2, 4, 3, 5), off=0.1, built=(None, 60)),
]


def recipe(case: Case, layout: str) -> str | Recipe:
    if not case.rule:
        return {"keras": "torch-to-keras", "object": "torch-to-keras-object"}[layout]
    rule = f'[[module]]\ntorch = "{{path*}}"\nkeras = "{{path*}}"\n{case.rule}\n'
    return parse_recipe(f'schema = "wtool.map/1"\n[sides]\ntorch = "torch"\nkeras = "{layout}"\n{rule}', case.name)


def random_torch(module: Any, generator: Any) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)


def random_keras(layer: Any, generator: np.random.Generator) -> None:
    for variable in layer.variables:
        if variable.dtype == "float32":
            values = generator.standard_normal(variable.shape)
            variable.assign(abs(values) + 0.5 if variable.path.endswith("variance") else values)


def outputs(case: Case, module: Any, layer: Any, inputs: Any) -> tuple[float, float]:
    """The largest difference and the largest value."""
    with torch.no_grad():
        there = module.m(inputs)
    there = (there[0] if isinstance(there, tuple) else there).numpy()
    x = np.moveaxis(inputs.numpy(), 1, -1) if case.spatial else inputs.numpy()
    x = x.reshape(len(x), -1) if case.built else x
    here = np.asarray(layer(x, x) if "MultiHead" in type(layer).__name__ else layer(x))
    there = np.moveaxis(there, 1, -1) if case.spatial and not case.built else there
    assert here.shape == there.shape
    return float(abs(here - there).max()), float(abs(there).max())


def convert(source: Path | str, target: Path, by: str | Recipe, **options: Any) -> Any:
    whole = open_checkpoint(source, section="all")
    mapped, (how,) = map_checkpoint(whole.section(), [by], whole=whole, **options)
    save_checkpoint(mapped, target)
    return how


@FRAMEWORKS
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_layer_computes_the_same_in_the_other_framework(case: Case, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    generator, numbers = torch.Generator().manual_seed(1), np.random.default_rng(1)
    module = nn.Module()
    module.m = case.torch()
    module.eval()
    layer = case.keras(keras.layers)
    layer.name = "m"
    inputs = torch.randn(case.inputs, generator=generator) if case.inputs else torch.tensor([[0, 3, 6], [1, 5, 2]])
    shape = case.built or ((*inputs.shape[:1], *inputs.shape[2:], inputs.shape[1]) if case.spatial else inputs.shape)
    layer(*[np.zeros([2, *shape[1:]], inputs.numpy().dtype)] * (2 if case.name == "attention" else 1))
    random_torch(module, generator)
    random_keras(layer, numbers)
    torch.save(module.state_dict(), tmp_path / "m.pth")
    given = dict(case.given)

    how = convert(tmp_path / "m.pth", tmp_path / "m.ckpt", recipe(case, "object"), given=given)
    tf.train.Checkpoint(m=layer).read(str(tmp_path / "m.ckpt")).expect_partial().assert_existing_objects_matched()
    there, scale = outputs(case, module, layer, inputs)
    named = convert(tmp_path / "m.pth", tmp_path / "m.safetensors", recipe(case, "keras"), given=given)
    values = {variable.path: np.asarray(variable) for variable in layer.variables if variable.dtype == "float32"}
    saved = {key: tensor.array() for key, tensor in open_checkpoint(tmp_path / "m.safetensors").items()}
    assert saved.keys() == values.keys()
    assert all(np.array_equal(saved[key], value) for key, value in values.items())

    convert(tmp_path / "m.ckpt", tmp_path / "back.pth", recipe(case, "object"), reverse=True)
    back = torch.load(tmp_path / "back.pth")
    counters = [key for key in back if key.endswith("num_batches_tracked")]
    exact = all(torch.equal(back[key], tensor) for key, tensor in module.state_dict().items() if key not in counters)
    assert exact == case.exact
    assert {row.exact for row in how.rows} | {row.exact for row in named.rows} == {"exact", "function"} - (
        {"function"} if case.exact else set()
    )
    module.load_state_dict(back, strict=True)
    again, _ = outputs(case, module, layer, inputs)

    random_keras(layer, numbers)
    tf.train.Checkpoint(m=layer).write(str(tmp_path / "k.ckpt"))
    convert(tmp_path / "k.ckpt", tmp_path / "k.pth", recipe(case, "object"), reverse=True)
    module.load_state_dict(torch.load(tmp_path / "k.pth"), strict=True)
    other, size = outputs(case, module, layer, inputs)
    print(f"{case.name} | {there:.1e} | {other:.1e} | {scale:.1f} | {'bits' if exact else 'function'}")
    if case.off:
        assert there > case.off and other > case.off
    else:
        assert there < 1e-6 * (1 + scale) and again < 1e-6 * (1 + scale) and other < 1e-6 * (1 + size)
