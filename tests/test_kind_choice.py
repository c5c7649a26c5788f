"""What names and shapes cannot tell about a layer is asked for, said, or settled by a template, a word or a rule."""

from __future__ import annotations

from typing import Any

import pytest

from wtool import views
from wtool.checkpoint import Checkpoint, Source
from wtool.dtypes import dtype
from wtool.errors import KeyClashError, MapError, WtoolError
from wtool.maps.catalog import load
from wtool.maps.like import template
from wtool.maps.recipe import Recipe, parse_recipe
from wtool.maps.resolve import Resolved, resolve

Shapes = dict[str, tuple[int, ...]]


def checkpoint(shapes: Shapes) -> Checkpoint:
    tensors = {key: views.filled(key, dtype("f32"), shape, 0) for key, shape in shapes.items()}
    return Checkpoint(tensors, Source("x", "torch", "zip", ()))


def mapped(shapes: Shapes, by: str | Recipe = "torch-to-keras", like: Shapes | None = None, **options: Any) -> Resolved:
    recipe = load(by) if isinstance(by, str) else by
    onto = None if like is None else template(checkpoint(like), recipe.sides[1][1], {}, None)
    return resolve(recipe, checkpoint(shapes), like=onto, **options)


def made(found: Resolved) -> Shapes:
    return {tensor.key: tensor.shape for tensor in found.tensors}


def ruled(*rules: str, layout: str = "keras", more: str = "") -> Recipe:
    text = "".join(f"[[module]]\n{rule}\n" for rule in rules)
    return parse_recipe(f'schema = "wtool.map/1"\n{more}\n[sides]\ntorch = "torch"\nkeras = "{layout}"\n{text}', "own")


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"layer3.proj.weight": (6, 4)}, "dense"),
        ({"mlp.fc1.weight": (6, 6)}, "dense"),
        ({"attn.query.weight": (6, 6)}, "dense"),
        ({"lm_head.weight": (9, 6)}, "dense"),
        ({"embed.proj.weight": (6, 6)}, "dense"),
        ({"embeddings.word.weight": (9, 6)}, "embedding"),
        ({"mlp.tok_embeddings.weight": (9, 6)}, "embedding"),
        ({"wte.weight": (9, 6)}, "embedding"),
        ({"block.dw.weight": (8, 1, 3, 3)}, "depthwise2d"),
        ({"block.depthwise1.weight": (8, 1, 3)}, "depthwise1d"),
        ({"x.weight": (8, 4, 3, 3), "x.bias": (8,)}, "conv2d"),
        ({"x.weight": (8, 4, 3, 3), "x.bias": (4,)}, "conv_transpose2d"),
        ({"ln_f.weight": (6,)}, "layer_norm"),
        ({"rmsnorm.weight": (6,)}, "rms_norm"),
        ({"x.weight": (6,), "x.bias": (6,)}, "layer_norm"),
        ({"x.weight": (6, 4), "x.bias": (6,)}, "dense"),
    ],
)
def test_a_clear_name_or_shape_is_evidence(shapes: Shapes, kind: str) -> None:
    found = mapped(shapes)
    assert found.warnings == ()
    assert all(f"kind {kind}:" in row.why for row in found.rows)


@pytest.mark.parametrize(
    ("shapes", "said", "taken"),
    [
        ({"conv1.weight": (8, 1, 3, 3)}, "conv2d or depthwise2d", {"conv1/kernel": (3, 3, 1, 8)}),
        ({"conv1.weight": (8, 1, 3)}, "conv1d or depthwise1d", {"conv1/kernel": (3, 1, 8)}),
        ({"x.weight": (6, 4)}, "dense or embedding", {"x/kernel": (4, 6)}),
        ({"norm.weight": (6,)}, "rms_norm or layer_norm or prelu", {"norm/scale": (6,)}),
        ({"prelu.weight": (6,)}, "prelu or prelu1d or prelu2d", {"prelu/alpha": (6,)}),
    ],
)
def test_a_guess_is_said(shapes: Shapes, said: str, taken: Shapes) -> None:
    found = mapped(shapes)
    (warning,) = found.warnings
    assert f"could be {said}" in warning
    assert "--like" in warning and "kind =" in warning
    assert made(found) == taken


@pytest.mark.parametrize(
    ("shapes", "like"),
    [
        ({"conv1.weight": (8, 1, 3, 3)}, {"conv1/kernel": (3, 3, 8, 1)}),
        ({"conv1.weight": (8, 1, 3, 3)}, {"conv1/kernel": (3, 3, 1, 8)}),
        ({"conv1.weight": (8, 1, 3, 3)}, {"conv1/kernel": (3, 3, 4, 2)}),
        ({"conv1.weight": (8, 1, 3)}, {"conv1/kernel": (3, 4, 2)}),
        ({"fc.weight": (6, 6)}, {"fc/embeddings": (6, 6)}),
        ({"norm.weight": (6,)}, {"norm/gamma": (6,)}),
        ({"norm.weight": (6,)}, {"norm/alpha": (1, 1, 6)}),
        ({"a.in_proj_weight": (18, 6), "a.out_proj.weight": (6, 6)}, None),
    ],
)
def test_a_template_settles_it(shapes: Shapes, like: Shapes | None) -> None:
    like = like or {f"a/{x}/kernel": (6, 2, 3) for x in ("query", "key", "value")} | {"a/attention_output/kernel": (2, 3, 6)}
    found = mapped(shapes, like=like)
    assert made(found) == like
    assert found.warnings == ()


def test_a_rule_settles_it() -> None:
    shapes: Shapes = {"conv1.weight": (8, 1, 3, 3)}
    rule = 'torch = "{path*}"\nkeras = "{path*}"\n'
    for kind, shape in (
        ('kind = "conv2d"', (3, 3, 1, 8)),
        ('kind = "depthwise2d"', (3, 3, 8, 1)),
        ('kind = "depthwise2d_m"\nwith = { m = 2 }', (3, 3, 4, 2)),
    ):
        found = mapped(shapes, ruled(rule + kind))
        assert made(found) == {"conv1/kernel": shape} and found.warnings == ()
    with pytest.raises(MapError, match="the variable 'm' is not set"):
        mapped(shapes, ruled(rule + 'kind = "depthwise2d_m"'))
    with pytest.raises(MapError, match=r"'conv1' is no dense: 'conv1\.weight' has the shape \[8, 1, 3, 3\]"):
        mapped(shapes, ruled(rule + 'kind = "dense"'))


def test_heads_are_asked_for() -> None:
    shapes: Shapes = {"a.in_proj_weight": (18, 6), "a.out_proj.weight": (6, 6)}
    with pytest.raises(MapError, match="the variable 'heads' is not set") as caught:
        mapped(shapes)
    assert "--set heads=N" in str(caught.value.hint)
    there = made(mapped(shapes, given={"heads": 3}))
    assert there["a/query/kernel"] == (6, 3, 2)
    back = mapped(there, "keras-to-torch")
    assert made(back) == shapes and back.warnings == ()
    with pytest.raises(MapError):
        mapped(shapes, given={"heads": 4})
    with pytest.raises(MapError):
        mapped(there, "keras-to-torch", given={"heads": 2})


@pytest.mark.parametrize(
    ("shapes", "by", "sentence"),
    [
        (
            {"g/gru_cell/kernel": (4, 9), "g/gru_cell/recurrent_kernel": (3, 9), "g/gru_cell/bias": (9,)},
            "keras-to-torch",
            r"there is no torch\.nn\.GRU for reset_after=False",
        ),
        (
            {"g/cell/kernel": (4, 9), "g/cell/recurrent_kernel": (3, 9), "g/cell/bias": (9,)},
            "keras-object-to-torch",
            r"there is no torch\.nn\.GRU for reset_after=False",
        ),
        (
            {f"a/{x}/kernel": (6, 2, 4) for x in ("query", "key", "value")} | {"a/attention_output/kernel": (2, 4, 6)},
            "keras-to-torch",
            r"torch\.nn\.MultiheadAttention has one width",
        ),
        ({"p/alpha": (4, 5, 3)}, "keras-to-torch", "alpha must be shared"),
    ],
)
def test_layers_that_torch_has_not_are_refused(shapes: Shapes, by: str, sentence: str) -> None:
    with pytest.raises(MapError, match=sentence):
        mapped(shapes, by)
    alone = {"d/_kernel" if "object" in by else "d/kernel": (2, 3), "d/bias": (3,)}
    assert made(mapped(shapes | alone, by, unmatched="drop")) == {"d.weight": (3, 2), "d.bias": (3,)}


def test_layers_of_one_torch_module() -> None:
    shapes: Shapes = {}
    for layer, size in ((0, 4), (1, 6)):
        for way in ("", "_reverse"):
            shapes |= {f"rnn.weight_ih_l{layer}{way}": (12, size), f"rnn.weight_hh_l{layer}{way}": (12, 3)}
            shapes |= {f"rnn.bias_{x}_l{layer}{way}": (12,) for x in ("ih", "hh")}
    with pytest.raises(MapError, match=r"kind = 'bilstm' and with = \{ layer = 1 \}"):
        mapped(shapes)
    rules = [
        f'torch = "{{path*}}"\nkeras = "{{path*}}_{layer}"\nkind = "bilstm"\nwith = {{ layer = {layer} }}' for layer in (0, 1)
    ]
    there = mapped(shapes, ruled(*rules))
    assert there.warnings == () and len(there.tensors) == 12
    assert made(there)["rnn_1/backward_lstm/lstm_cell/kernel"] == (6, 12)
    assert made(mapped(made(there), ruled(*rules).reverse())) == shapes
    halves = [
        f'torch = "{{path*}}"\nkeras = "{{path*}}_0/{way}_lstm_7"\nkind = "lstm{kind}"'
        for way, kind in (("forward", ""), ("backward", "_reverse"))
    ]
    first = {key: shape for key, shape in shapes.items() if "l0" in key}
    there = mapped(first, ruled(*halves))
    assert made(there)["rnn_0/backward_lstm_7/lstm_cell/recurrent_kernel"] == (3, 12)
    assert made(mapped(made(there), ruled(*halves).reverse())) == first


def test_random_states_are_no_weights() -> None:
    states: Shapes = {"seed_generator_5/seed_generator_state": (2,), "a/seed_generator/seed_generator_state": (2,)}
    found = mapped({"a/kernel": (2, 3), "a/bias": (3,)} | states, "keras-to-torch")
    assert set(made(found)) == {"a.weight", "a.bias"} and set(found.dropped) == set(states)
    like = {"net/a/kernel": (2, 3), "net/a/bias": (3,), "net/seed_generator/seed_generator_state": (2,)}
    onto = mapped({"a.weight": (3, 2), "a.bias": (3,)}, like=like)
    assert made(onto) == like and onto.own == ("net/seed_generator/seed_generator_state",)


def test_faults_before_the_first_byte() -> None:
    shapes: Shapes = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (6, 4), "b.bias": (6,)}
    rules = ['torch = "a"\nkeras = "d"', 'torch = "b"\nkeras = "d"']
    with pytest.raises(KeyClashError, match="is made twice"):
        mapped(shapes, ruled(*rules))
    like: Shapes = {"a/kernel": (4, 5), "a/bias": (6,), "b/kernel": (4, 6), "b/bias": (6,)}
    with pytest.raises(MapError, match=r"1 shapes differ \('a/kernel' is \[4, 6\], there \[4, 5\]\)"):
        mapped(shapes, like=like)
    with pytest.raises(MapError, match=r"1 of its keys are not made \('c/kernel'\)"):
        mapped(shapes, like={**like, "a/kernel": (4, 6), "c/kernel": (2, 2)})
    with pytest.raises(WtoolError, match="match"):
        mapped({**shapes, "odd.thing": (3,)})


def test_a_dense_layer_that_may_stand_behind_flatten() -> None:
    shapes: Shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "bn.weight": (4,), "bn.bias": (4,)}
    shapes |= {"fc1.weight": (6, 60), "fc1.bias": (6,), "fc2.weight": (12, 6), "fc2.bias": (12,)}
    found = mapped(shapes)
    (warning,) = found.warnings
    assert "'fc1.weight' has 60 inputs, 15 times the 4 channels of 'conv.weight'" in warning
    assert "flatten" in warning
    (back,) = mapped(made(found), "keras-to-torch").warnings
    assert "'fc1/kernel' has 60 inputs" in back
    rest = 'torch = "{path*}"\nkeras = "{path*}"'
    for entry in ('kind = "dense"\nflatten = "4 3 5"', 'kind = "dense"'):
        assert mapped(shapes, ruled(f'torch = "fc1"\nkeras = "fc1"\n{entry}', rest)).warnings == ()
    assert mapped({**shapes, "fc1.weight": (6, 4)}).warnings == ()
