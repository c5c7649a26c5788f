"""Recipes on checkpoints: every key has one fate, decided from headers, in both directions, or there is an error."""

from __future__ import annotations

import json
import pickle
import re
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as chosen
from hypothesis import strategies as st
from support import checkpoint_on

from wtool.api import open_checkpoint, plan_save, save, save_checkpoint
from wtool.between import map_checkpoint
from wtool.bytesource import LocalFile, MemoryBytes
from wtool.checkpoint import Checkpoint
from wtool.cli.app import run
from wtool.dtypes import dtype
from wtool.errors import KeyClashError, MapError, WtoolError
from wtool.keys import short_key
from wtool.maps import catalog
from wtool.maps.kinds import joined
from wtool.maps.like import template
from wtool.maps.match import UnsetVariable
from wtool.maps.recipe import Recipe, parse_recipe
from wtool.maps.resolve import Resolved, resolve
from wtool.maps.templates import Template
from wtool.ops.map import MapTensors

Array = np.ndarray[Any, Any]
HEAD = 'schema = "wtool.map/1"\n'
SIDES = '[sides]\na = "torch"\nb = "torch"\n'
KERAS = SIDES.replace('b = "torch"', 'b = "keras"')


def recipe(rules: str, *, head: str = "", sides: str = SIDES, name: str = "mine") -> Recipe:
    return parse_recipe(HEAD + head + sides + rules, name)


def rule(a: str | list[str], b: str | list[str], *ops: str, more: str = "") -> str:
    """A tensor rule in TOML."""
    return f"[[tensor]]\na = {json.dumps(a)}\nb = {json.dumps(b)}\nops = {json.dumps(ops)}\n{more}\n"


def module(a: str, b: str, more: str = "") -> str:
    return f'[[module]]\na = "{a}"\nb = "{b}"\n{more}\n'


def model(**shapes: tuple[int, ...]) -> Checkpoint:
    """f32 tensors of the numbers from 0 on; `__` in a name is a dot."""
    named = {key.replace("__", "."): shape for key, shape in shapes.items()}
    return keyed(named)


def keyed(shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    values = np.arange(count, dtype="f4")
    return checkpoint_on(MemoryBytes(values.tobytes()), {key: ("f32", shape) for key, shape in shapes.items()})


def mapped(rec: Recipe, checkpoint: Checkpoint, **options: Any) -> tuple[Resolved, dict[str, Array]]:
    found = resolve(rec, checkpoint, **options)
    return found, {key: tensor.array() for key, tensor in MapTensors(found)(checkpoint).items()}


def bits(checkpoint: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], bytes]]:
    arrays = {key: tensor if isinstance(tensor, np.ndarray) else tensor.array() for key, tensor in checkpoint.items()}
    return {key: (array.shape, array.tobytes()) for key, array in arrays.items()}


def there_and_back(rec: Recipe, checkpoint: Checkpoint, **given: int) -> Checkpoint:
    """The checkpoint after both directions."""
    there = MapTensors(resolve(rec, checkpoint, given=given))(checkpoint)
    return MapTensors(resolve(rec.reverse(), there, given=given))(there)


# Which key becomes which


def test_rules_are_tried_in_order_and_each_key_is_taken_once() -> None:
    rec = recipe(rule("l.{i}.special", "s.{i}") + rule("l.{i}.{name}", "m.{i}.{name}"))
    found, values = mapped(rec, model(l__0__special=(1,), l__0__w=(2,), l__11__w=(3,)))
    assert list(values) == ["s.0", "m.0.w", "m.11.w"]
    assert [row.rule for row in found.rows] == ["tensor rule 1 (l.{i}.special)", *["tensor rule 2 (l.{i}.{name})"] * 2]
    assert found.unused == ()


def test_the_order_of_the_output_is_that_of_the_source() -> None:
    rec = recipe(rule("b", "y") + rule("a", "x"))
    assert list(mapped(rec, model(a=(1,), b=(1,)))[1]) == ["x", "y"]


def test_drops_come_first() -> None:
    rec = recipe('[drop]\na = ["**.num_batches_tracked"]\n' + rule("{p*}", "m.{p*}"))
    found, values = mapped(rec, model(bn__w=(1,), bn__num_batches_tracked=()))
    assert list(values) == ["m.bn.w"] and found.dropped == ("bn.num_batches_tracked",)


@pytest.mark.parametrize("inside", [False, True])
def test_unmatched(inside: bool) -> None:
    def policy(word: str) -> tuple[Recipe, dict[str, str]]:
        head = f'unmatched = "{word}"\n' if inside else ""
        return recipe(rule("a", "x"), head=head), {} if inside else {"unmatched": word}

    checkpoint = model(a=(1,), left__one=(2,), left__two=(3,))
    rec, options = policy("error")
    with pytest.raises(MapError, match=r"2 keys match no rule of 'mine': 'left\.one', 'left\.two'") as caught:
        resolve(rec, checkpoint, **options)
    assert "--unmatched keep" in (caught.value.hint or "")
    rec, options = policy("keep")
    found, values = mapped(rec, checkpoint, **options)
    assert list(values) == ["x", "left.one", "left.two"] and found.kept == ("left.one", "left.two") and found.lost == ()
    rec, options = policy("drop")
    found, values = mapped(rec, checkpoint, **options)
    assert list(values) == ["x"] and found.lost == ("left.one", "left.two") and found.dropped == ()


def test_a_kept_key_may_not_be_one_that_is_made() -> None:
    with pytest.raises(KeyClashError, match="'x' is made twice"):
        resolve(recipe(rule("a", "x")), model(a=(1,), x=(2,)), unmatched="keep")


def test_a_number_that_should_be_a_word_is_hinted_at() -> None:
    with pytest.raises(MapError) as caught:
        resolve(recipe(rule("l.{w}.x", "m.{w}")), model(l__conv__x=(1,)))
    assert caught.value.hint == "'l.{w}.x' would match if {w} were a word: one letter is a number"


def test_two_sources_for_one_target() -> None:
    with pytest.raises(KeyClashError, match=r"'x\.w' is made twice, the second time from 'b\.w'"):
        resolve(recipe(rule("a.{n1}", "x.{n1}") + rule("b.{n1}", "x.{n1}")), model(a__w=(1,), b__w=(1,)))


def test_two_names_for_one_key_of_a_template() -> None:
    """A Sequential's own name may stand in front of a name or not, but not both."""
    like = template(keyed({"net/fc/kernel": (2, 2), "net/out/kernel": (2, 2)}), "keras", {}, None)
    rec = recipe(rule("one", "fc/kernel") + rule("two", "net/fc/kernel") + rule("out", "out/kernel"), sides=KERAS)
    with pytest.raises(WtoolError, match="fc/kernel"):
        resolve(rec, model(one=(2, 2), two=(2, 2), out=(2, 2)), like=like)
    rec = recipe(rule("one", "fc/kernel") + rule("out", "net/out/kernel"), sides=KERAS)
    assert list(mapped(rec, model(out=(2, 2), one=(2, 2)), like=like)[1]) == ["net/fc/kernel", "net/out/kernel"]


def test_no_rule_meets_a_key() -> None:
    with pytest.raises(MapError, match="no rule of 'mine' matches a key") as caught:
        resolve(recipe(rule("a", "x")), model(other=(1,)), unmatched="keep")
    assert caught.value.hint == "its first key is 'other'"


def test_a_partner_that_is_missing() -> None:
    rec = recipe(rule(["l.{i}.q", "l.{i}.k"], "l.{i}.qk", "concat 0"))
    with pytest.raises(MapError, match=r"'l\.1\.q' has no partner 'l\.1\.k'"):
        resolve(rec, model(l__0__q=(1,), l__0__k=(1,), l__1__q=(1,)))


def test_numbers_with_a_gap() -> None:
    rec = recipe(rule("e.{e}.w", "experts", "stack 0"))
    with pytest.raises(MapError, match="not numbered from 0 without a gap"):
        resolve(rec, model(e__0__w=(1,), e__2__w=(1,)))
    with pytest.raises(MapError, match="not numbered from 0 without a gap"):
        resolve(rec, model(e__1__w=(1,), e__2__w=(1,)))


def test_experts_are_stacked_in_the_order_of_their_numbers() -> None:
    checkpoint = keyed({f"e.{e}.w": (2, 3) for e in (0, 10, 2, 3, 4, 5, 6, 7, 8, 9, 1)})
    rec = recipe(rule("e.{e}.w", "experts", "stack 0"))
    _, values = mapped(rec, checkpoint)
    assert np.array_equal(values["experts"], np.stack([checkpoint[f"e.{e}.w"].array() for e in range(11)]))
    assert bits(there_and_back(rec, checkpoint)) == bits(checkpoint)


# Variables


LLAMA = rule("w.{i}", "w.{i}", "rearrange (h d two) i -> (h two d) i ; h=$heads two=2")


def test_a_variable_that_is_not_set_is_named_with_what_it_is() -> None:
    rec = recipe('[vars]\nheads = "number of attention heads"\n' + LLAMA)
    with pytest.raises(UnsetVariable, match="the variable 'heads' is not set: number of attention heads") as caught:
        resolve(rec, model(w__0=(8, 3)))
    assert caught.value.hint == "--set heads=N"
    _, values = mapped(rec, model(w__0=(8, 3)), given={"heads": 2})
    expected = np.arange(24, dtype="f4").reshape(2, 2, 2, 3).transpose(0, 2, 1, 3).reshape(8, 3)
    assert np.array_equal(values["w.0"], expected)


def test_a_variable_that_no_rule_needs_here_need_not_be_set() -> None:
    rec = recipe('[vars]\nheads = "number of heads"\n' + LLAMA + rule("b", "b"))
    assert list(mapped(rec, model(b=(1,)))[1]) == ["b"]


def test_variables_follow_one_another() -> None:
    rec = recipe('[vars]\nheads = "$kv"\nkv = 2\n' + LLAMA)
    two, four = (mapped(rec, model(w__0=(8, 3)), given=given)[1]["w.0"] for given in ({}, {"kv": 4}))
    assert not np.array_equal(two, four)


def test_a_variable_that_there_is_not() -> None:
    with pytest.raises(MapError, match="the recipe 'mine' has no variable 'head'") as caught:
        resolve(recipe("[vars]\nheads = 2\n" + LLAMA), model(w__0=(8, 3)), given={"head": 2})
    assert caught.value.hint == "it has heads"


# Backwards


def test_a_template_that_swallows_another_on_the_way_back() -> None:
    """`_{c}_conv` of one rule also takes the shortcut's `_0_conv`, which another rule makes."""
    sides = '[sides]\na = "torch"\nb = "keras"\n'
    rules = module("l{s}.{b}.conv{c}", "c{s}_b{b}_{c}_conv") + module("l{s}.{b}.downsample", "c{s}_b{b}_0_conv")
    checkpoint = model(l1__0__conv1__weight=(4, 4, 1, 1), l1__0__downsample__weight=(4, 4, 1, 1))
    with pytest.raises(MapError, match="does not lead back") as caught:
        resolve(recipe(rules, sides=sides), checkpoint)
    assert "c1_b0_0_conv/kernel" in caught.value.message and "l1.0.conv0.weight" in caught.value.message
    assert "narrower" in (caught.value.hint or "")
    narrow = rules.replace("{c}", "{c:1|2|3}")
    assert bits(there_and_back(recipe(narrow, sides=sides), checkpoint)) == bits(checkpoint)


def test_a_path_that_swallows_the_norms_on_the_way_back() -> None:
    rules = rule("{sub*}/kernel", "{sub*}.weight", "t") + rule("{sub*}/gamma", "{sub*}.weight")
    sides = '[sides]\na = "keras"\nb = "torch"\n'
    with pytest.raises(MapError, match="does not lead back"):
        resolve(recipe(rules, sides=sides), keyed({"d/kernel": (2, 2), "norm/gamma": (2,)}))


def test_what_the_other_side_drops() -> None:
    rec = recipe('[drop]\nb = ["m.*"]\n' + rule("{n1}", "m.{n1}"))
    with pytest.raises(MapError, match=r"does not lead back.*it is dropped: 'm\.w'"):
        resolve(rec, model(w=(1,)))


def test_a_shift_below_zero() -> None:
    with pytest.raises(MapError, match="does not lead back"):
        resolve(recipe(rule("l.{i}", "m.{i-1}")), model(l__0=(1,), l__1=(1,)))


def test_one_way_recipes_lead_forwards_only() -> None:
    rec = recipe(rule("a", "x", "cast f16"))
    found, values = mapped(rec, model(a=(3,)))
    assert values["x"].dtype == np.float16 and [row.exact for row in found.rows] == ["lossy"]
    with pytest.raises(WtoolError, match="'cast f16' has no way back"):
        resolve(rec.reverse(), model(x=(3,)))


ROUND = {
    "names": (rule("{p*}.{x:weight|bias}", "m.{p*}.{x:w|b}"), {"a.weight": (2, 3), "a.b.bias": (3,)}),
    "shift": (rule("l.{i}.w", "l_{i+1:}.w".replace(":", "")), {"l.0.w": (1,), "l.9.w": (2,)}),
    "zeros": (rule("l.{i}", "block_{i:03}"), {"l.7": (1,), "l.123": (2,)}),
    "split": (rule("{n1}.qkv", ["{n1}.q", "{n1}.k", "{n1}.v"], "split 0"), {"l.qkv": (6, 2), "m.qkv": (3, 1)}),
    "sizes": (rule("qkv", ["q", "k", "v"], "split 0 4 1 1"), {"qkv": (6, 2)}),
    "stack": (rule("e.{e}.{n1}", "all.{n1}", "stack 1"), {f"e.{e}.{n}": (2, 2) for e in range(3) for n in ("up", "down")}),
    "unstack": (rule("all.{n1}", "e.{e}.{n1}", "unstack 0"), {"all.up": (3, 2)}),
    "heads": (LLAMA.replace("$heads", "2"), {"w.0": (8, 3), "w.1": (4, 1)}),
    "flip": (rule("w", "x", "permute 2 3 0 1", "flip 0", "flip 1"), {"w": (2, 3, 4, 5)}),
    "gates": (rule(["i", "h"], "b", "blocks 0 1 0 2", "stack 0"), {"i": (6,), "h": (6,)}),
}


@pytest.mark.parametrize("case", ROUND)
def test_there_and_back(case: str) -> None:
    rules, shapes = ROUND[case]
    checkpoint = keyed(shapes)
    assert bits(there_and_back(recipe(rules), checkpoint)) == bits(checkpoint)


def test_values_that_are_not_the_same_bits_are_the_same_function() -> None:
    """Two biases become their sum, one becomes itself and zeros; a bias goes into a norm's mean."""
    rec = recipe(rule(["l.b1", "l.b2"], "m.b", "sum"))
    given = model(l__b1=(3,), l__b2=(3,))
    found, values = mapped(rec, given)
    assert np.array_equal(values["m.b"], given["l.b1"].array() + given["l.b2"].array())
    assert [row.exact for row in found.rows] == ["function"] and found.rows[0].why
    back = there_and_back(rec, given)
    assert np.array_equal(back["l.b1"].array(), values["m.b"]) and not back["l.b2"].array().any()
    rec = recipe(rule("bn.mean", ["conv.bias", "bn.mean"], "unabsorb"))
    assert bits(there_and_back(rec, model(bn__mean=(3,)))) == bits(model(bn__mean=(3,)))
    given = model(conv__bias=(3,), bn__mean=(3,))
    _, values = mapped(rec.reverse(), given)
    assert np.array_equal(values["bn.mean"], given["bn.mean"].array() - given["conv.bias"].array())


# Unused rules, fills, inheritance


def test_an_unused_rule_is_a_warning_and_with_strict_an_error() -> None:
    rec = recipe(rule("a", "x") + rule("nosuch", "y") + rule("{n1}.nosuch", "z.{n1}", more="optional = true"))
    checkpoint = model(a=(1,))
    found = resolve(rec, checkpoint)
    assert found.unused == ("tensor rule 2 (nosuch)",)
    [warning] = MapTensors(found)(checkpoint).warnings
    assert warning.code == "unused-rule" and "tensor rule 2 (nosuch)" in warning.message
    with pytest.raises(MapError, match="no key met tensor rule 2"):
        map_checkpoint(checkpoint, [rec], strict=True)


def test_fills() -> None:
    rec = recipe(rule("{n1}.w", "{n1}.w") + '[[fill]]\nb = "{n1}.b"\nbeside = "{n1}.w"\nvalue = 1.5\n')
    checkpoint = model(one__w=(2, 2), two__w=(3,))
    found, values = mapped(rec, checkpoint)
    assert found.filled == ("one.b", "two.b") and set(values) == {"one.w", "one.b", "two.w", "two.b"}
    assert np.array_equal(values["one.b"], np.full((2, 2), 1.5, "f4"))
    assert bits(there_and_back(rec, checkpoint)) == bits(checkpoint)
    back = resolve(rec.reverse(), MapTensors(found)(checkpoint))
    assert back.dropped == ("one.b", "two.b")


def test_extends_puts_the_rules_of_another_behind() -> None:
    sides = '[sides]\na = "torch"\nb = "keras"\n'
    rec = recipe(rule("special", "s"), head='extends = "torch-to-keras"\n', sides=sides)
    _, values = mapped(rec, model(special=(2,), fc__weight=(2, 3), fc__bias=(2,)))
    assert {key: value.shape for key, value in values.items()} == {"s": (2,), "fc/kernel": (3, 2), "fc/bias": (2,)}


def test_ties_survive() -> None:
    """Two keys of one storage are one storage in the output, and what is tied by a rule is too."""
    plain = model(wte__weight=(4, 2), head__weight=(4, 2))
    tied = Checkpoint(
        {"wte.weight": plain["wte.weight"], "head.weight": plain["wte.weight"].renamed("head.weight")}, plain.source
    )
    rec = recipe(rule("{p*}.weight", "m.{p*}.w", "t"))
    found = MapTensors(resolve(rec, tied))(tied)
    assert found.tied() == [["m.wte.w", "m.head.w"]]
    assert MapTensors(resolve(rec, plain))(plain).tied() == []
    rec = recipe(rule("wte.weight", ["in", "out"], "tie"))
    one = Checkpoint({"wte.weight": plain["wte.weight"]}, plain.source)
    both = MapTensors(resolve(rec, one))(one)
    assert both.tied() == [["in", "out"]]
    assert bits(MapTensors(resolve(rec.reverse(), both))(both)) == bits(one)
    for name in ("in", "out"):
        lone = model(**{name: (4, 2)})
        assert bits(MapTensors(resolve(rec.reverse(), lone))(lone)) == bits({"wte.weight": lone[name]}), "some may be missing"


def test_ties_that_are_none_fail_while_they_are_written(tmp_path: Path) -> None:
    rec = recipe(rule("wte", ["in", "out"], "tie")).reverse()
    given = model(**{"in": (4, 2), "out": (4, 2)})
    found = MapTensors(resolve(rec, given))(given)
    with pytest.raises(MapError, match="'in' and 'out' become one tensor but hold different values"):
        save_checkpoint(found, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


# Composition


ONE = recipe(rule("a.{i}", "b.{i}", "t"), name="one")
TWO = recipe(rule("b.{i}", "c.{i+1}", "flip 0"), name="two")


def test_composition() -> None:
    checkpoint = model(a__0=(2, 3), a__1=(1, 4))
    found, done = map_checkpoint(checkpoint, [ONE, TWO])
    assert list(found) == ["c.1", "c.2"] and [one.recipe for one in done] == ["one", "two"]
    assert np.array_equal(found["c.1"].array(), checkpoint["a.0"].array().T[::-1])
    back, undone = map_checkpoint(found, [ONE, TWO], reverse=True)
    assert bits(back) == bits(checkpoint) and [one.recipe for one in undone] == ["two", "one"]


def test_variables_go_to_the_recipes_that_have_them() -> None:
    rec = recipe('[vars]\nheads = "heads"\n' + LLAMA)
    other = recipe(rule("w.{i}", "v.{i}"))
    found, _ = map_checkpoint(model(w__0=(8, 3)), [rec, other], given={"heads": 2})
    assert list(found) == ["v.0"]
    with pytest.raises(MapError, match="no variable 'nosuch'"):
        map_checkpoint(model(w__0=(8, 3)), [rec, other], given={"heads": 2, "nosuch": 1})


# Data


@pytest.mark.parametrize("case", ROUND)
def test_what_was_decided_is_data(case: str) -> None:
    """Through pickle, to another process, it makes the same bytes."""
    rules, shapes = ROUND[case]
    checkpoint = keyed(shapes)
    found = resolve(recipe(rules), checkpoint)
    sent: Resolved = pickle.loads(pickle.dumps(found))
    assert bits(MapTensors(sent)(checkpoint)) == bits(MapTensors(found)(checkpoint))
    operation: MapTensors = pickle.loads(pickle.dumps(MapTensors(found)))
    assert bits(operation(checkpoint)) == bits(MapTensors(found)(checkpoint))
    assert MapTensors(found)(checkpoint).history[-1] == MapTensors(found)


def test_headers_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*_: object) -> bytes:
        raise AssertionError("values were read")

    monkeypatch.setattr(MemoryBytes, "pread", unread)
    monkeypatch.setattr(MemoryBytes, "readinto", unread)
    for rules, shapes in ROUND.values():
        there_and_back(recipe(rules), keyed(shapes))


def test_what_is_not_touched_is_moved_verbatim(tmp_path: Path) -> None:
    rec = recipe(rule("l.{i}.w", "m.{i}.w") + rule("l.{i}.t", "m.{i}.t", "t"))
    given = model(l__0__w=(100, 100), l__0__t=(100, 100), l__1__w=(50,))
    save_checkpoint(given, tmp_path / "in.safetensors")
    opened = open_checkpoint(tmp_path / "in.safetensors")
    found = MapTensors(resolve(rec, opened))(opened)
    assert found["m.0.w"].span == opened["l.0.w"].span is not None and found["m.0.t"].span is None
    plan = plan_save(found, tmp_path / "out.safetensors")
    assert plan.plan.copied == 4 * (100 * 100 + 50)


# The command line


MAP = HEAD + '[sides]\nold = "torch"\nnew = "torch"\n[vars]\nheads = "the number of heads"\n'
MAP += '[[tensor]]\nold = "l.{i}.w"\nnew = "m.{i}.w"\nops = ["t"]\n'
MAP += '[[tensor]]\nold = "l.{i}.r"\nnew = "m.{i}.r"\nops = ["rearrange (h d) -> d h ; h=$heads"]\n'
MAP += '[[tensor]]\nold = "l.{i}.b"\nnew = "m.{i}.b"\n'

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MAP)
    given = keyed({f"l.{i}.{n}": shape for i in range(3) for n, shape in (("w", (4, 6)), ("r", (12,)), ("b", (5,)))})
    save_checkpoint(given, "in.safetensors")
    return tmp_path


def convert(*argv: str) -> int:
    return run(["convert", "in.safetensors", *argv, "-q"])


def test_a_mapping_composes_with_what_convert_does(desk: Path, capsys: Captured) -> None:
    use = ("--map", "mine.toml", "--set", "heads=3")
    before = open_checkpoint("in.safetensors")
    assert convert("plain.safetensors", *use) == 0
    plain = open_checkpoint("plain.safetensors")
    assert list(plain) and np.array_equal(plain["m.1.w"].array(), before["l.1.w"].array().T)
    assert np.array_equal(plain["m.1.r"].array(), before["l.1.r"].array().reshape(3, 4).T)

    assert convert("half.safetensors", *use, "--dtype", "f16", "--verify") == 0
    half = open_checkpoint("half.safetensors")
    assert all(half[key].dtype is dtype("f16") for key in half)
    assert np.array_equal(half["m.2.w"].array(), plain["m.2.w"].array().astype("f2"))

    assert convert("shards", *use, "--max-shard", "200B") == 0
    assert bits(open_checkpoint("shards")) == bits(plain)
    assert len(list(Path("shards").glob("*.safetensors"))) > 1

    assert convert("some.safetensors", *use, "--include", "l.0.*", "--exclude", "**.b") == 0
    assert set(open_checkpoint("some.safetensors")) == {"m.0.w", "m.0.r"}

    assert convert("pre.safetensors", "--rename", "^l=>model.l") == 0
    assert run(["convert", "pre.safetensors", "back.safetensors", *use, "--strip-prefix", "model.", "-q"]) == 0
    assert bits(open_checkpoint("back.safetensors")) == bits(plain)

    assert convert("renamed.safetensors", *use, "--rename", r"^l\.0=>l.7") == 0
    assert "m.7.w" in open_checkpoint("renamed.safetensors")

    for name in ("out.pth", "out.ckpt"):
        assert convert(name, *use, "--verify") == 0
        assert bits(open_checkpoint(name)) == bits(plain)
        assert run(["convert", name, f"{name}.safetensors", *use, "--reverse", "-q"]) == 0
        assert bits(open_checkpoint(f"{name}.safetensors")) == bits(before)
    capsys.readouterr()


def test_two_maps_and_both_back(desk: Path, capsys: Captured) -> None:
    (desk / "next.toml").write_text(HEAD + SIDES + rule("m.{i}.{name}", "n.{i}.{name}"))
    use = ("--map", "mine.toml", "--map", "next.toml", "--set", "heads=3")
    assert convert("out.safetensors", *use, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recipes"] == ["mine", "next"] and len(data["map"]) == 18
    assert set(open_checkpoint("out.safetensors")) == {f"n.{i}.{n}" for i in range(3) for n in "wrb"}
    assert run(["convert", "out.safetensors", "back.safetensors", *use, "--reverse", "-q"]) == 0
    assert bits(open_checkpoint("back.safetensors")) == bits(open_checkpoint("in.safetensors"))


def test_sections(desk: Path, capsys: Captured) -> None:
    lightning = next((Path(__file__).parent.parent / "fixtures" / "torch" / "lightning").glob("*.ckpt"))
    (desk / "all.toml").write_text(HEAD + SIDES + rule("{p*}", "x.{p*}"))
    assert run(["convert", str(lightning), "m.safetensors", "--map", "all.toml", "-q"]) == 0
    section = open_checkpoint(lightning)
    assert set(open_checkpoint("m.safetensors")) == {f"x.{key}" for key in section}
    capsys.readouterr()


ERRORS: list[tuple[list[str], str]] = [
    ([], "the variable 'heads' is not set: the number of heads"),
    (["--set", "head=3"], "has no variable 'head'"),
    (["--set", "heads=0"], "'heads=0' sets no variable"),
    (["--set", "heads=5"], "does not fit the shape of 'l.0.r' [12]"),
    (["--set", "heads=3", "--include", "**.nosuch"], "nosuch"),
    (["--set", "heads=3", "--map", "mine.toml"], "match no rule"),
    (["--set", "heads=3", "--reverse"], "match no rule"),
    (["--set", "heads=3", "--unmatched", "maybe"], "maybe"),
    (["--set", "heads=3", "--like", "nosuch.safetensors"], "nosuch.safetensors"),
    (["--set", "heads=3", "--like", "in.safetensors"], "the template says otherwise"),
    (["--set", "heads=3", "--map", "nosuch"], "no recipe or file 'nosuch'"),
    (["--set", "heads=3", "--include", "l.*.b", "--strict"], "no key met tensor rule 1"),
]


@pytest.mark.parametrize(("argv", "word"), ERRORS, ids=[" ".join(argv) or "plain" for argv, _ in ERRORS])
def test_what_does_not_fit_is_exit_2_before_the_first_byte(desk: Path, capsys: Captured, argv: list[str], word: str) -> None:
    before = sorted(desk.iterdir())
    assert run(["convert", "in.safetensors", "out.safetensors", "--map", "mine.toml", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and word in err and err.startswith("wtool: error: ") and len(err.splitlines()) <= 2
    assert sorted(desk.iterdir()) == before


def test_the_report(desk: Path, capsys: Captured) -> None:
    use = ["--map", "mine.toml", "--set", "heads=3", "--json"]
    for more in ([], ["-n"]):
        capsys.readouterr()
        assert run(["convert", "in.safetensors", "out.safetensors", *use, *more, "--force"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["recipes"] == ["mine"] and len(data["map"]) == 9
        first = next(row for row in data["map"] if row["from"] == ["l.0.w"])
        assert list(first) == ["from", "to", "ops", "shape_from", "shape_to", "exact", "why", "assumed"]
        assert (first["from"], first["to"], first["ops"]) == (["l.0.w"], ["m.0.w"], ["t"])
        assert (first["shape_from"], first["shape_to"], first["exact"]) == ([[4, 6]], [[6, 4]], "exact")
        assert data["dropped"] == data["filled"] == data["unused"] == []


# Memory


def test_a_mapped_conversion_holds_blocks(tmp_path: Path) -> None:
    """64 MiB, transposed, split and stacked, in a few MiB."""
    size = 1024
    with open(tmp_path / "raw", "wb") as file:
        file.truncate(16 * size * size * 4)
    shapes = {f"e.{e}.w": (size, size) for e in range(8)} | {f"q.{i}": (size, size) for i in range(8)}
    given = checkpoint_on(LocalFile(tmp_path / "raw"), {key: ("f32", shape) for key, shape in shapes.items()})
    rec = recipe(rule("e.{e}.w", "all", "t", "stack 0") + rule("q.{i}", ["a.{i}", "b.{i}"], "split 1"))
    found = MapTensors(resolve(rec, given))(given)
    save_checkpoint(MapTensors(resolve(rec, model(q__0=(4, 4))))(model(q__0=(4, 4))), tmp_path / "warm.safetensors")
    tracemalloc.start()
    try:
        save(plan_save(found, tmp_path / "out.safetensors"), jobs=1, memory=8 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


# Fuzz


KEYS = st.lists(st.sampled_from(["a", "b", "0", "1", "12", "w", "weight", "bias", "kernel"]), min_size=1, max_size=4)
TEMPLATES = st.sampled_from(
    ["{p*}.weight", "{p*}", "{n1}.{n2}", "{i}.{n1}", "{n1}.{i+1}.w", "{n1}.{i}.w", "{x:a|b}.{i}.weight", "{x:b|w}.{i}.bias"]
)
OPS = st.sampled_from(["t", "flip 0", "permute 1 0", "rearrange a b -> b a", "rearrange a -> a 1", "split 0", "sum", "tie"])
OPS |= st.sampled_from(
    ["stack 0", "unstack 0", "unabsorb", "add 1", "cast f16", "blocks 0 1 0", "rearrange (a b) -> a b ; a=2"]
)


@chosen(st.data())
def test_any_rules_on_any_keys_are_a_mapping_or_an_error(data: st.DataObject) -> None:
    """And a mapping that is said to be exact comes back bit for bit."""
    shapes = {".".join(parts): shape for parts, shape in data.draw(
        st.lists(st.tuples(KEYS, st.sampled_from([(2,), (4,), (2, 3), (4, 4), (2, 2, 2), ()])), min_size=1, max_size=6)
    )}  # fmt: skip
    text = HEAD + '[sides]\na = "torch"\nb = "keras"\n'
    for _ in range(data.draw(st.integers(1, 3))):
        sides = data.draw(st.tuples(TEMPLATES, TEMPLATES))
        if data.draw(st.integers(0, 3)):
            sides = (sides[0], sides[0].replace(".", "/"))
        if data.draw(st.booleans()):
            text += rule(sides[0], sides[1], *data.draw(st.lists(OPS, max_size=2)))
        else:
            text += module(sides[0], sides[1])
    checkpoint = keyed(shapes)
    try:
        rec = parse_recipe(text, "mine")
        found = resolve(rec, checkpoint, unmatched=data.draw(st.sampled_from(["error", "keep", "drop"])))
    except WtoolError as error:
        assert "\n" not in error.message
        return
    there = MapTensors(found)(checkpoint)
    fates = [key for row in found.rows for key in row.sources] + [*found.dropped, *found.lost]
    assert sorted(fates) == sorted(checkpoint), "every key has one fate"
    assert len(there) == len(found.tensors)
    arrays = bits(there)
    if all(row.exact == "exact" for row in found.rows) and not found.kept and not found.lost:
        back = MapTensors(resolve(rec.reverse(), there))(there)
        taken = {key: checkpoint[key] for row in found.rows for key in row.sources}
        assert bits(back).items() >= bits(taken).items(), arrays


@pytest.mark.parametrize("name", ["", "\0", "a" * 5000, "{i}", "(.*)", "💥", ".", "..", "a/b.c"])
def test_hostile_keys(name: str) -> None:
    rec = recipe(rule("{p*}.weight", "m.{p*}.w") + rule("{n1}", "n.{n1}"))
    try:
        found = resolve(rec, keyed({name: (2,), "x.weight": (2, 2)}), unmatched="keep")
    except WtoolError as error:
        assert not re.search("[\n\0]", error.message) and len(error.message) <= 1100
    else:
        assert len(found.tensors) == 2


SHIPPED = {name: catalog.source_text(name) for name in catalog.names()}


def sample(rec: Recipe) -> Checkpoint:
    """A checkpoint with a key for every rule of the source side, of shapes that may fit."""
    layout = rec.sides[0][1]
    values: dict[str, object] = {"number": 0, "part": "w", "path": ("p", "q"), "word": 0}
    shapes: dict[str, tuple[int, ...]] = {}

    def written(found: Template) -> str:
        return found.write({slot.name: values[slot.kind] for slot in found.slots.values()})

    for each in rec.tensors:
        shapes |= {written(found): (12, 12) for found in each.sides[0]}
    for one in rec.modules:
        kind = rec.kinds[one.kind or "conv2d"]
        for leaf in kind.leaves:
            for name in leaf.names.get(layout, ()):
                shapes[joined(layout, written(one.sides[0]), name)] = tuple(4 for _ in leaf.shape or ())
    return keyed(shapes)


@chosen(st.data())
def test_flipped_bytes_of_shipped_recipes_on_their_keys(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SHIPPED)))
    original, text = parse_recipe(SHIPPED[name], name), bytearray(SHIPPED[name].encode())
    for _ in range(data.draw(st.integers(0, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(32, 126))
    reverse = data.draw(st.booleans())
    checkpoint = sample(original.reverse() if reverse else original)
    try:
        rec = parse_recipe(text.decode("utf-8", "replace"), "mine")
        rec = rec.reverse() if reverse else rec
        numbers = {name: 2 for name, value in rec.vars.items() if not isinstance(value, int)}
        found = resolve(rec, checkpoint, given=numbers, unmatched=data.draw(st.sampled_from(["error", "keep", "drop"])))
    except WtoolError as error:
        assert "\n" not in error.message
    else:
        assert sum(tensor.nbytes for tensor in MapTensors(found)(checkpoint).values()) >= 0


FOLDERS = sorted(path for path in (Path(__file__).parent.parent / "fixtures").glob("*/*") if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_format_can_be_rearranged(folder: Path) -> None:
    """Strided, sharded, partitioned, compressed: the values are those of numpy, and come back bit for bit."""
    for path in (folder, *sorted(folder.iterdir())):
        try:
            whole = open_checkpoint(path, section="all")
            break
        except WtoolError:
            continue
    else:
        pytest.skip("no checkpoint by itself")

    def turn(rank: int) -> str:
        return ("flip 0", "t")[rank - 1] if rank < 3 else "permute " + " ".join(map(str, reversed(range(rank))))

    shapes = {key: tensor.shape for key, tensor in whole.items() if key and not set(key) & set("{}") and tensor.dtype.itemsize}
    if not shapes:
        pytest.skip("all of it is packed")
    rules = "".join(rule(short_key(key), f"x.{short_key(key)}", *[turn(len(s))] * bool(s)) for key, s in shapes.items())
    rec = recipe(rules)
    given = Checkpoint({key: whole[key] for key in shapes}, whole.source)
    there = MapTensors(resolve(rec, given))(given)
    back = MapTensors(resolve(rec.reverse(), there))(there)
    for key in shapes:
        array = given[key].array()
        expected = array[::-1] if array.ndim == 1 else array.T
        assert bits({"": there[f"x.{short_key(key)}"]}) == bits({"": np.ascontiguousarray(expected).reshape(expected.shape)})
        assert bits({"": back[short_key(key)]}) == bits({"": array})
