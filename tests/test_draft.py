"""Drafts: what they get right on real models' keys, and that the two sure verdicts are never wrong."""

from __future__ import annotations

import itertools
import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import draft_models as models
import pytest
from draft_models import Shapes, checkpoint
from hypothesis import given
from hypothesis import strategies as st

from wtool.api import open_checkpoint, save_checkpoint
from wtool.between import map_checkpoint
from wtool.cli.app import run
from wtool.maps.align import AGREED, AMBIGUOUS, FUSED, NAME, ORDER, SURE, UNIQUE, common
from wtool.maps.catalog import load
from wtool.maps.draft import Draft, draft
from wtool.maps.recipe import parse_recipe
from wtool.maps.resolve import resolve
from wtool.maps.writing import comment, quoted, writable

Tally = Counter[tuple[str, bool]]

# Of each pair: recipe, both key sets, variables, and right and wrong keys with the order kept, then with the target's lost.
PAIRS = [
    ("bert-tf1-to-hf", models.bert_tf1, models.bert_hf, {}, (206, 0), (206, 0)),
    ("gpt2-tf1-to-hf", models.gpt2_tf1, models.gpt2_hf, {}, (148, 0), (148, 0)),
    ("llama-meta-to-hf", models.llama_meta, models.llama_hf, {"heads": 32}, (291, 0), (227, 64)),
    ("vit-timm-to-hf", models.vit_timm, models.vit_hf, {}, (200, 0), (152, 48)),
    ("resnet50-torchvision-to-keras", models.resnet50_torch, models.resnet50_keras, {}, (241, 26), (169, 98)),
    ("mobilenetv2-torchvision-to-keras", models.mobilenet_torch, models.mobilenet_keras, {}, (262, 0), (122, 140)),
    ("vgg16-torchvision-to-keras", models.vgg16_torch, models.vgg16_keras, {}, (32, 0), (32, 0)),
]


def pairs(found: Draft) -> dict[str, tuple[tuple[str, ...], str]]:
    """Target name -> its sources, and the verdict."""
    return {target: (s, rule.verdict) for rule in found.rules for s, targets in rule.rows for target in targets}


def tally(found: Draft, truth: dict[str, tuple[str, ...]]) -> Tally:
    return Counter((verdict, set(s) <= set(truth.get(target, ()))) for target, (s, verdict) in pairs(found).items())


def reproduced(found: Draft, source: Shapes) -> None:
    """The text, read and applied, makes exactly the pairs of its lines."""
    assert found.fault == ""
    done = resolve(parse_recipe(found.text, "drafted"), checkpoint(source), unmatched="drop")
    assert {t: row.sources for row in done.rows for t in row.targets} == {t: s for t, (s, _) in pairs(found).items()}


@pytest.mark.parametrize("order", ["kept", "lost"])
@pytest.mark.parametrize("recipe, left, right, given_, kept, lost", PAIRS, ids=[pair[0] for pair in PAIRS])
def test_real_models(
    recipe: str,
    left: Callable[[], Shapes],
    right: Callable[[], Shapes],
    given_: dict[str, int],
    kept: tuple[int, int],
    lost: tuple[int, int],
    order: str,
) -> None:
    source = checkpoint(left())
    truth = {t: row.sources for row in resolve(load(recipe), source, given=given_).rows for t in row.targets}
    target = right() if order == "kept" else models.alphabetical(right())
    found = draft(source, checkpoint(target))
    counted = tally(found, truth)
    assert sum(n for (_, right), n in counted.items() if not right) <= (kept if order == "kept" else lost)[1]
    assert sum(n for (_, right), n in counted.items() if right) >= (kept if order == "kept" else lost)[0]
    assert not any(counted[verdict, False] for verdict in (*SURE, FUSED)), counted
    assert found.doubts(), "none of these may be written without being read"
    reproduced(found, left())


def test_templates_have_slots() -> None:
    text = draft(checkpoint(models.bert_tf1()), checkpoint(models.bert_hf())).text
    assert 'keras = "bert/encoder/layer_{i}/attention/self/query"' in text
    assert 'torch = "bert.encoder.layer.{i}.attention.self.query"' in text
    found = tomllib.loads(text)
    assert len(found["module"]) + len(found["tensor"]) < 20
    text = draft(checkpoint(models.mobilenet_torch()), checkpoint(models.mobilenet_keras())).text
    assert 'torch = "features.{i}.conv.0.0"\nkeras = "block_{i-1}_expand"' in text


def test_what_no_file_can_tell_is_asked() -> None:
    def asked(left: Shapes, right: Shapes) -> list[str]:
        return [line for line in draft(checkpoint(left), checkpoint(right)).text.splitlines() if line.startswith("# ? ")]

    assert any("rotary" in line for line in asked(models.llama_meta(2), models.llama_hf(2)))
    flat = draft(checkpoint(models.vgg16_torch()), checkpoint(models.vgg16_keras()))
    assert {name for name, why in flat.doubts().items() if "Flatten" in why} == {"classifier.0.weight", "classifier.0.bias"}
    assert any("head by head" in line for line in asked(models.vit_timm(2), models.vit_hf(2)))
    assert any("no partner" in line for line in asked(models.bert_tf1(2), models.bert_hf(2)))
    assert not any("rotary" in line for line in asked(models.bert_tf1(2), models.bert_hf(2)))


@pytest.mark.parametrize(
    "name, other, asked",
    [
        ("attention.linears.{i}", "attn.dense.{i}", "rotary"),  # who knows what the attention of this does
        ("lstm.gate{i}", "lstm.part{i}", "gates"),
        ("fc.{i}", "dense.{i}", ""),
        ("attn.qkv", "self_attention.in_proj", "head by head"),
    ],
)
def test_layers_that_are_more_than_their_shapes(name: str, other: str, asked: str) -> None:
    left: Shapes = {f"{name.format(i=i)}.weight": (8, 4 + i) for i in range(3)}
    right: Shapes = {f"{other.format(i=i)}.weight": (8, 4 + i) for i in range(3)}
    why = " ".join(draft(checkpoint(left), checkpoint(right)).doubts().values())
    assert asked in why
    assert bool(asked) == bool(why)
    assert not draft(checkpoint(left), checkpoint({f"model.{key}": shape for key, shape in left.items()})).doubts()


def cnn_torch() -> Shapes:
    found: Shapes = {"stem.conv.weight": (16, 3, 3, 3), **models.torch_norm("stem.bn", 16)}
    for i in range(3):
        found |= {f"blocks.{i}.conv.weight": (16, 16, 3, 3), **models.torch_norm(f"blocks.{i}.bn", 16)}
    return found | {"head.weight": (10, 16), "head.bias": (10,)}


def cnn_keras(block: str = "block_") -> Shapes:
    found: Shapes = {"stem/conv/kernel": (3, 3, 3, 16), **models.keras_norm("stem/bn", 16)}
    for i in range(3):
        found |= {f"{block}{i}/conv/kernel": (3, 3, 16, 16), **models.keras_norm(f"{block}{i}/bn", 16)}
    return found | {"head/kernel": (16, 10), "head/bias": (10,)}


def sure(left: Shapes, right: Shapes) -> bool:
    found = draft(checkpoint(left), checkpoint(right))
    if found.rules:
        reproduced(found, left)
    return not found.doubts()


def test_all_sure() -> None:
    found = draft(checkpoint(cnn_torch()), checkpoint(cnn_keras()))
    assert found.doubts() == {}
    assert {verdict for _, verdict in pairs(found).values()} == set(SURE)
    assert pairs(found)["block_1/conv/kernel"] == (("blocks.1.conv.weight",), AGREED)
    assert pairs(found)["head/kernel"] == (("head.weight",), UNIQUE)
    reproduced(found, cnn_torch())
    back = draft(checkpoint(cnn_keras()), checkpoint(cnn_torch()))
    assert back.doubts() == {}
    renamed = {f"backbone.{key}": shape for key, shape in models.llama_hf(2).items()}
    assert sure(models.llama_hf(2), renamed), "the same names behind a prefix are the same model, rotary or not"


@pytest.mark.parametrize("inputs, asked", [(16, False), (400, True), (80, True), (426, True)])
def test_dense_layers_behind_flatten(inputs: int, asked: bool) -> None:
    """Told by what stands before: as many inputs as the convolution has channels are pooled, all others may be an image."""
    left: Shapes = {"c1.weight": (6, 3, 5, 5), "c2.weight": (16, 6, 5, 5), "f1.weight": (120, inputs), "f2.weight": (10, 120)}
    right: Shapes = {"c1/kernel": (5, 5, 3, 6), "c2/kernel": (5, 5, 6, 16), "f1/kernel": (inputs, 120), "f2/kernel": (120, 10)}
    for one, two in ((left, right), (right, left), (left, models.alphabetical(right))):
        doubts = draft(checkpoint(one), checkpoint(two)).doubts()
        assert len(doubts) == asked
        assert all("Flatten" in why and name.startswith("f1") for name, why in doubts.items())
    assert not draft(checkpoint(left), checkpoint({f"x.{key}": shape for key, shape in left.items()})).doubts()


def shuffled(shapes: Shapes, seed: int) -> Shapes:
    """Modules in another order."""
    modules: dict[str, list[str]] = {}
    for key in shapes:
        modules.setdefault(key.replace("/", ".").rpartition(".")[0], []).append(key)
    names = list(modules)
    random.Random(seed).shuffle(names)
    return {key: shapes[key] for name in names for key in modules[name]}


@pytest.mark.parametrize("seed", range(12))
def test_shuffled_order_is_never_surely_wrong(seed: int) -> None:
    for left, right, truth in (
        (cnn_torch(), cnn_keras(), lambda s: s.replace("block_", "blocks.").replace("/", ".")),
        (models.bert_tf1(3), models.bert_hf(3), None),
        (models.llama_meta(3), models.llama_hf(3), None),
    ):
        found = draft(checkpoint(left), checkpoint(shuffled(right, seed)))
        for target, ((one, *_), verdict) in pairs(found).items():
            if verdict == AGREED:
                assert truth is not None
            if truth is not None and verdict in SURE:
                assert one.rpartition(".")[0] == truth(target).rpartition(".")[0]


@pytest.mark.parametrize("seed", range(12))
def test_names_that_lie_are_not_sure(seed: int) -> None:
    """The template's equal layers have each other's names: order and names disagree, so nothing of them is sure."""
    names = ["a", "b", "c", "d"]
    lied = list(names)
    while any(one == two for one, two in zip(names, lied, strict=True)):
        random.Random(seed).shuffle(lied)
        seed += 100
    left = {f"{name}.fc.weight": (8, 8) for name in names}
    right = {f"{name}/fc/kernel": (8, 8) for name in lied}
    assert AGREED not in {verdict for _, verdict in pairs(draft(checkpoint(left), checkpoint(right))).values()}


def two(left: tuple[str, ...], right: tuple[str, ...], shape: tuple[int, ...] = (8, 8)) -> bool:
    return sure({f"{name}.weight": shape for name in left}, {f"{name}.weight": shape for name in right})


@pytest.mark.parametrize(
    "left, right",
    [
        (("branch1.fc", "branch2.fc"), ("x.fc", "y.fc")),  # two branches, no word in common
        (("attention_norm", "ffn_norm"), ("post_attention_layernorm", "input_layernorm")),  # LLaMA's, turned round
        (("attention_norm", "ffn_norm"), ("input_layernorm", "post_attention_layernorm")),  # right, but who could tell
        (("fc1", "fc2"), ("dense", "dense_1")),  # numbers that Keras gave
        (("fc1", "fc2"), ("dense_1", "dense_2")),
        (("layer1.conv3", "layer1.downsample"), ("block1_0_conv", "block1_3_conv")),
        (("net.0", "net.2"), ("net.0", "net.1")),  # numbers by rank alone
        (("a.out", "a.output"), ("a.output", "a.out")),  # words that are taken for the same
        (("fc", "fc.fc"), ("fc", "fc.fc.x")),
        (("mlp.w1", "mlp.w3"), ("mlp.gate_proj", "mlp.up_proj")),
        (("up.0.conv", "up.1.conv"), ("up.1.conv", "up.0.conv")),
    ],
)
def test_two_of_one_shape_are_not_sure(left: tuple[str, ...], right: tuple[str, ...]) -> None:
    assert not two(left, right)
    assert not two(left, right, (8, 4))


def test_other_models_are_not_sure() -> None:
    assert not sure(models.llama_hf(3), models.llama_hf(2)), "a template of another depth"
    assert not sure(models.llama_hf(2), models.llama_hf(3))
    shallow = {key: shape for key, shape in cnn_keras().items() if not key.startswith("block_2")}
    assert not sure(cnn_torch(), shallow)
    assert not sure(cnn_torch(), cnn_keras() | {"extra/kernel": (5, 7)})
    assert not sure(cnn_torch() | {"extra.weight": (5, 7)}, cnn_keras())


def test_which_way_matrices_lie() -> None:
    """GPT-2's matrices are (in, out) in a torch file: seen by those that are not square, taken for those that are."""
    found = draft(checkpoint(models.gpt2_hf(2)), checkpoint(models.gpt2_linear(2)))
    ops = {rule.rows[0][0][0]: rule.ops for rule in found.rules}
    assert ops["transformer.h.0.attn.c_attn.weight"] == ("t",)
    assert found.doubts(), "lm_head is not turned, so the square c_proj may be either"
    assert "transformer.h.0.attn.c_proj.weight" in found.doubts()
    assert pairs(found)["transformer.h.1.mlp.c_fc.weight"][0] == ("transformer.h.1.mlp.c_fc.weight",)
    square = draft(checkpoint({"a.w": (4, 4), "a.bias": (4,)}), checkpoint({"x.weight": (4, 4), "x.bias": (4,)}))
    assert "square" in " ".join(square.doubts().values()), "another leaf's name, and nothing to learn from"
    crossed = draft(checkpoint({"a.weight": (4, 4)}), checkpoint({"x/kernel": (4, 4)}))
    assert crossed.doubts() == {}
    assert crossed.rules[0].kind == "dense"


def test_transposed_without_a_bias_is_not_paired_by_its_shape() -> None:
    left = {"mlp.c_fc.weight": (8, 32), "mlp.c_proj.weight": (32, 8)}
    right = {"mlp.c_fc.weight": (32, 8), "mlp.c_proj.weight": (8, 32)}
    found = draft(checkpoint(left), checkpoint(right))
    assert all(verdict not in SURE or s == (target,) for target, (s, verdict) in pairs(found).items())


def test_depthwise_is_told_by_the_template() -> None:
    for there, kind in (((3, 3, 6, 1), "depthwise2d"), ((3, 3, 1, 6), "conv2d")):
        found = draft(checkpoint({"c.weight": (6, 1, 3, 3)}), checkpoint({"c/kernel": there}))
        assert [rule.kind for rule in found.rules] == [kind]
    found = draft(checkpoint({"up.weight": (6, 6, 3, 3)}), checkpoint({"params.up.kernel": (3, 3, 6, 6)}))
    assert "could be" in " ".join(found.doubts().values()), "Flax flips a transposed convolution's kernel"


ATTENTION: tuple[Shapes, Shapes] = (
    {"a.in_proj_weight": (48, 16), "a.in_proj_bias": (48,), "a.out_proj.weight": (16, 16), "a.out_proj.bias": (16,)},
    {f"mha/{n}/{leaf}": shape for n in ("query", "key", "value") for leaf, shape in (("kernel", (16, 4, 4)), ("bias", (4, 4)))}
    | {"mha/attention_output/kernel": (4, 4, 16), "mha/attention_output/bias": (16,)},
)


def recurrent(gates: int, layers: int = 1) -> Shapes:
    leaves = {"weight_ih": (gates * 5, 5), "weight_hh": (gates * 5, 5), "bias_ih": (gates * 5,), "bias_hh": (gates * 5,)}
    return {f"rnn.{leaf}_l{layer}": shape for layer in range(layers) for leaf, shape in leaves.items()}


def cell(at: str, gates: int, *bias: int) -> Shapes:
    return {f"{at}/kernel": (5, gates * 5), f"{at}/recurrent_kernel": (5, gates * 5), f"{at}/bias": (*bias, gates * 5)}


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(
    "left, right, kind, values",
    [
        (*ATTENTION, "attention", {"heads": 4}),
        (recurrent(4), cell("lstm/lstm_cell", 4), "lstm", {}),
        (recurrent(3), cell("gru/gru_cell", 3, 2), "gru", {}),
        (recurrent(1), cell("simple_rnn/simple_rnn_cell", 1), "rnn", {}),
    ],
    ids=["attention", "lstm", "gru", "rnn"],
)
def test_layers_of_several_modules(left: Shapes, right: Shapes, kind: str, values: dict[str, int], back: bool) -> None:
    left, right = left | {"end.weight": (3, 7)}, right | {"end/kernel": (7, 3)}
    if back:
        left, right = right, left
    found = draft(checkpoint(left), checkpoint(right))
    assert {(rule.kind, rule.values) for rule in found.rules} == {(kind, tuple(values.items())), ("dense", ())}
    assert found.doubts() == {}
    reproduced(found, left)


def test_layers_of_one_recurrent_module_are_told_by_order_alone() -> None:
    left, right = recurrent(4, 2), cell("lstm/lstm_cell", 4) | cell("lstm_1/lstm_cell", 4)
    found = draft(checkpoint(left), checkpoint(right))
    assert [(rule.verdict, rule.values) for rule in found.rules] == [(ORDER, ()), (ORDER, (("layer", 1),))]
    reproduced(found, left)


@pytest.mark.parametrize(
    "key", ['a"b', "a\\b", "a\nb", "ä.ß", "a'''b", "\x7f\x00", "a{b}", "{i}", "}", "# ?", "\u2028x", "\ud800"]
)
def test_hostile_names(key: str) -> None:
    left: Shapes = {f"{key}.weight": (3, 5), "ok.weight": (7, 2)}
    found = draft(checkpoint(left), checkpoint({f"x{key}.weight": (3, 5), "fine.weight": (7, 2)}))
    assert tomllib.loads(found.text)["schema"] == "wtool.map/1"
    found.text.encode()
    assert pairs(found)["fine.weight"] == (("ok.weight",), UNIQUE)
    if writable(key):
        assert pairs(found)[f"x{key}.weight"] == ((f"{key}.weight",), UNIQUE)
        reproduced(found, left)
    else:
        assert f"{key}.weight" in found.doubts()
        assert "no template can be written" in found.text


@given(st.text())
def test_strings_are_toml(text: str) -> None:
    assert tomllib.loads(f"{comment(text)}\nx = {quoted(text)}") == {"x": text}


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_common_subsequence_is_longest(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    found = common(left, right)
    assert all(left[i] == right[j] for i, j in found)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(found))
    assert len(found) == table[-1][-1]


WORDS = ["a", "b", "encoder", "enc", "decoder", "attn", "attention", "mlp", "fc", "dense", "proj", "out", "output", "q", "k"]
WORDS += ["v", "query", "norm", "ln", "up", "down", "gate", "post", "w"]
FRESH = [f"{one}{two}" for one in ("foo", "bar", "baz") for two in ("qux", "zip", "lam", "nu", "rho", "mi")]


def invented(r: random.Random) -> tuple[Shapes, Shapes, dict[str, str], bool]:
    """A small model, the same under other names, which name is which, and whether matrices are turned.

    Words become others, even words that mean something else in the first model; numbers shift; modules may be in any order.
    """
    vocabulary = r.sample(WORDS, 6)
    names: list[str] = []
    for _ in range(r.randint(1, 4)):
        parts = [r.choice(vocabulary) for _ in range(r.randint(1, 3))]
        many = range(r.randint(1, 3)) if r.random() < 0.5 else [""]
        names += [".".join([*parts[:-1], f"{parts[-1]}{i}"]) for i in many]
    names = list(dict.fromkeys(names))
    words = list(dict.fromkeys(re.findall("[a-z]+", " ".join(names))))
    r.shuffle(words)
    chained = r.random() < 0.4
    others = {w: words[i + 1] if chained and i + 1 < len(words) else r.choice((w, FRESH[i])) for i, w in enumerate(words)}
    if len(set(others.values())) < len(others):
        others = dict(zip(words, FRESH, strict=False))
    shift, cross, turned = r.choice((0, 0, 1)), r.random() < 0.5, r.random() < 0.3
    leaf, separator = ("kernel", "/") if cross else ("weight", ".")
    found = []
    for name in names:
        other = re.sub("[a-z]+", lambda word: others[word[0]], name)
        other = re.sub("[0-9]+", lambda number: str(int(number[0]) + shift), other).replace(".", separator)
        found.append((f"{name}.weight", f"{other}{separator}{leaf}", r.choice(((4, 4), (4, 4), (4, 8), (8, 4), (6, 3)))))
    left = {one: shape for one, _, shape in found}
    if r.random() < 0.5:
        r.shuffle(found)
    right = {two: shape[::-1] if cross or turned else shape for _, two, shape in found}
    return left, right, {two: one for one, two, _ in found}, cross or turned


@pytest.mark.parametrize("seed", range(8))
def test_what_is_sure_is_right(seed: int) -> None:
    r = random.Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(40):
        left, right, truth, turned = invented(r)
        found = draft(checkpoint(left), checkpoint(right))
        assert found.fault == ""
        for rule in found.rules:
            ((one,), (two,)) = rule.rows[0]
            mine = truth.get(two) or next(a for b, a in truth.items() if b.endswith(f"/{two}"))
            seen[rule.verdict] += 1
            assert rule.verdict not in SURE or mine == one, (left, right)
            if not found.doubts():
                assert turned == (rule.kind == "dense" or rule.ops == ("t",)), (left, right)
    assert seen[UNIQUE] and seen[AGREED]


def saved(shapes: Shapes, path: Path) -> str:
    save_checkpoint(checkpoint(shapes), path)
    return str(path)


def test_auto(tmp_path: Path) -> None:
    source = saved(cnn_torch(), tmp_path / "a.pth")
    renamed = {f"backbone.{key}".replace("blocks", "layers"): shape for key, shape in cnn_torch().items()}
    like = saved(renamed, tmp_path / "t.pth")
    target = tmp_path / "b.pth"
    assert run(["convert", source, str(target), "--map", "auto", "--like", like]) == 0
    assert list(open_checkpoint(target)) == list(renamed)
    whole = open_checkpoint(source, section="all")
    _, (done,) = map_checkpoint(whole.section(), ["auto"], like=like, whole=whole)
    assert {row.why.partition(";")[0] for row in done.rows} == set(SURE)


def test_auto_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved({f"features.{i}.weight": (8, 8, 3, 3) for i in (0, 2, 5, 7, 10)}, tmp_path / "a.pth")
    like = saved({f"conv{i}/kernel": (3, 3, 8, 8) for i in range(5)}, tmp_path / "t.pth")
    target = tmp_path / "b.ckpt"
    assert run(["convert", source, str(target), "--map", "auto", "--like", like]) == 2
    error = capsys.readouterr().err
    assert "5 doubts: 'features.0.weight' (order only); " in error
    assert " and 2 more" in error
    assert "wtool map draft" in error
    assert not list(tmp_path.glob("b.*"))
    for options in (
        [],
        ["--like", like, "--reverse"],
        ["--like", like, "--map", "torch-to-keras"],
        ["--like", like, "--set", "a=1"],
    ):
        assert run(["convert", source, str(target), "--map", "auto", *options]) == 2
        assert "--map auto" in capsys.readouterr().err


def test_draft_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, like = saved(cnn_torch(), tmp_path / "a.pth"), saved(cnn_keras(), tmp_path / "t.pth")
    recipe, target = tmp_path / "recipe.toml", tmp_path / "b.pth"
    assert run(["map", "draft", source, "--like", like]) == 0
    printed = capsys.readouterr().out
    assert run(["map", "draft", source, "--like", like, "-o", str(recipe)]) == 0
    assert recipe.read_text(encoding="utf-8").strip() == printed.strip()
    assert run(["map", "draft", source, "--like", like, "-o", str(recipe)]) == 2
    assert run(["map", "draft", source]) == 2
    capsys.readouterr()
    assert run(["map", "check", str(recipe), "--on", source, "--like", like]) == 0
    assert run(["convert", source, str(target), "--map", str(recipe), "--like", like]) == 0
    assert list(open_checkpoint(target)) == list(cnn_keras())


def test_odd_checkpoints() -> None:
    for left, right in (
        ({"a": ()}, {"b": ()}),
        ({"": (2,)}, {"x": (2,)}),
        ({"weight": (2, 3)}, {"kernel": (3, 2)}),
        ({"a": (0,)}, {}),
    ):
        found = draft(checkpoint(left), checkpoint(right))
        tomllib.loads(found.text)
    same = {f"m{i}.weight": (4, 4) for i in range(3)}
    assert {AMBIGUOUS, NAME, ORDER, *SURE} >= {v for _, v in pairs(draft(checkpoint(same), checkpoint(same))).values()}
