"""Recipes as they are written: read, turned round, and every fault named with its line."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.errors import RecipeError, WtoolError
from wtool.maps import catalog
from wtool.maps.kinds import LAYOUTS, shipped
from wtool.maps.recipe import Recipe, parse_recipe, used_variables

SIDES = 'schema = "wtool.map/1"\n[sides]\na = "torch"\nb = "keras"\n'
RULE = '[[tensor]]\na = "{p*}.x"\nb = "{p*}/y"\n'

# Recipes that say nothing sensible, and what is said of them. The line that is named ends in #!.
FAULTS: dict[str, tuple[str, str]] = {
    "no schema": ("[sides]\n" + RULE, "the schema is missing"),
    "another schema": ('schema = "wtool.map/2" #!\n', "the schema is 'wtool.map/2', not 'wtool.map/1'"),
    "schema of another type": ("schema = 1\n", "the schema is '1'"),
    "unknown entry": (SIDES + RULE + "[rules] #!\nx = 1\n", "a recipe has no 'rules'"),
    "no sides": ('schema = "wtool.map/1"\n' + RULE, "two sides"),
    "one side": ('schema = "wtool.map/1"\n[sides] #!\na = "torch"\n' + RULE, "two sides"),
    "three sides": (SIDES.replace("[sides]", "[sides] #!") + 'c = "flax"\n' + RULE, "two sides"),
    "sides of another type": ('schema = "wtool.map/1"\nsides = "torch"\n' + RULE, "sides is no table"),
    "unknown layout": (SIDES.replace('"keras"', '"onnx" #!') + RULE, "no layout 'onnx'"),
    "layout of another type": (SIDES.replace('"keras"', "[1] #!") + RULE, "no layout '[1]'"),
    "no rules": (SIDES, "there are no rules"),
    "rules of another type": (SIDES + "[tensor]\na = 1\n", "tensor is no list"),
    "a rule of another type": ("tensor = [1]\n" + SIDES, "tensor rule 1 is no table"),
    "about of another type": ("about = 1\n" + SIDES + RULE, "about is no text"),
    "a note of another type": ("notes = [1]\n" + SIDES + RULE, "a note is no text"),
    "unmatched": ('unmatched = "ignore" #!\n' + SIDES + RULE, "unmatched = 'ignore'"),
    "unmatched of another type": ("unmatched = [1]\n" + SIDES + RULE, "unmatched"),
    # Tensor rules.
    "unknown entry of a rule": (SIDES + RULE + RULE + 'op = "t" #!\n', "tensor rule 2 has no entry 'op'"),
    "no second side": (SIDES + '[[tensor]] #!\na = "x"\n', "tensor rule 1 has no 'b'"),
    "an empty side": (SIDES + '[[tensor]]\na = "x"\nb = [] #!\n', "tensor rule 1 has no 'b'"),
    "a key of another type": (SIDES + '[[tensor]]\na = "x"\nb = 1\n', "'b' of tensor rule 1 is no list"),
    "unknown operation": (SIDES + RULE + RULE + 'ops = ["transpose"] #!\n', "no operation 'transpose'"),
    "bad operation": (SIDES + RULE + 'ops = ["t", "permute 0 0"] #!\n', "'permute 0 0' is no 'permute'"),
    "operation of another type": (SIDES + RULE + "ops = [1]\n", "an operation is no text"),
    "unknown slot": (SIDES + RULE + '[[tensor]]\na = "{i!}" #!\nb = "{i}"\n', "'{i!}' is no slot"),
    "brace": (SIDES + '[[tensor]]\na = "{i" #!\nb = "{i}"\n', "a brace that is no slot"),
    "unknown table": (SIDES + '[[tensor]]\na = "{x:parts}.w" #!\nb = "{x:parts}"\n', "no table 'parts'"),
    "slot on one side": (
        SIDES + RULE + '[[tensor]]\na = "l.{i}.{part}" #!\nb = "l/{i}"\n',
        "'{part}' stands on one side only",
    ),
    "slot on the other side": (SIDES + '[[tensor]]\na = "l.{i}"\nb = "l/{i}/{name}" #!\n', "'{name}' stands on one side only"),
    "a word for stack": (SIDES + '[[tensor]]\na = "{n1}.{n2}" #!\nb = "{n1}"\nops = "stack 0"\n', "'{n2}' stands on one side"),
    "a number on the wrong side": (
        SIDES + '[[tensor]]\na = "x"\nb = "x.{i}" #!\nops = "stack 0"\n',
        "'{i}' stands on one side",
    ),
    "one to two": (SIDES + '[[tensor]]\na = "x"\nb = ["y", "z"]\n', "has 1 keys on one side and 2"),
    "choices": (SIDES + '[[tensor]] #!\na = "{x:a|b}"\nb = "{x:a|b|c}"\n', "2 choices on one side and 3"),
    "number and part": (SIDES + '[[tensor]]\na = "{x*}"\nb = "{x}" #!\n', "'{x}' is a path on one side and a number"),
    "optional": (SIDES + RULE + 'optional = "yes" #!\n', "optional = 'yes'"),
    # Module rules.
    "unknown kind": (SIDES + '[[module]]\na = "{p*}"\nb = "{p*}"\nkind = "conv4d" #!\n', "no kind 'conv4d'"),
    "kind of another type": (SIDES + '[[module]]\na = "{p*}"\nb = "{p*}"\nkind = [1]\n', "kind"),
    "kind without the layout": (
        SIDES.replace("keras", "flax") + '[[module]]\na = "{p*}"\nb = "{p*}"\nkind = "separable2d" #!\n',
        "kind 'separable2d' has no layout 'flax'",
    ),
    "module without a side": (SIDES + '[[module]] #!\na = "{p*}"\n', "module rule 1 has no 'b'"),
    "module slot on one side": (SIDES + '[[module]]\na = "l{i}" #!\nb = "l"\n', "'{i}' stands on one side only"),
    "module with ops": (SIDES + '[[module]]\na = "l"\nb = "l"\nops = ["t"] #!\n', "module rule 1 has no entry 'ops'"),
    "flatten": (SIDES + '[[module]]\na = "l"\nb = "l"\nkind = "dense"\nflatten = "512" #!\n', "flatten = '512'"),
    "flatten with a name": (SIDES + '[[module]]\na = "l"\nb = "l"\nflatten = "c h w" #!\n', "flatten = 'c h w'"),
    "with": (SIDES + '[[module]]\na = "l"\nb = "l"\nwith = 2\n', "with of module rule 1 is no table"),
    "with of another type": (SIDES + '[[module]]\na = "l"\nb = "l"\nwith = { m = [1] } #!\n', "the variable 'm' is [1]"),
    # Tables, variables, drops, fills.
    "a word twice": (SIDES + RULE + '[names.part]\n"a" = "x" #!\n"b" = "x"\n', "table 'part' has 'x' twice"),
    "a table of another type": (SIDES + RULE + "[names]\npart = 1\n", "names.part is no table"),
    "a word of another type": (SIDES + RULE + "[names.part]\na = 1\n", "names.part is no text"),
    "variable": (SIDES + RULE + "[vars]\nheads = 0 #!\n", "the variable 'heads' is 0"),
    "negative variable": (SIDES + RULE + "[vars]\nheads = -12 #!\n", "the variable 'heads' is -12"),
    "variable of another type": (SIDES + RULE + "[vars]\nheads = 1.5 #!\n", "the variable 'heads' is 1.5"),
    "truth as a variable": (SIDES + RULE + "[vars]\nheads = true #!\n", "the variable 'heads' is True"),
    "variables that lead in a circle": (SIDES + RULE + '[vars]\nx = "$y" #!\ny = "$x"\n', "the variable 'x' leads to itself"),
    "a variable that is itself": (SIDES + RULE + '[vars]\nw = 1\nx = "$x" #!\n', "the variable 'x' leads to itself"),
    "drop of no side": (SIDES + RULE + '[drop]\nc = ["x"] #!\n', "[drop] names a side 'c'"),
    "drop of another type": (SIDES + RULE + "[drop]\na = 1\n", "drop.a is no list"),
    "bad glob": (SIDES + RULE + '[drop]\na = ["x["] #!\n', "x["),
    "fill without beside": (SIDES + RULE + '[[fill]] #!\nb = "x"\nvalue = 1\n', "fill rule 1 needs a side"),
    "fill with a stray slot": (SIDES + RULE + '[[fill]]\nb = "x/{i}" #!\nbeside = "y"\n', "'{i}' is not in 'y'"),
    "fill with a text": (SIDES + RULE + '[[fill]]\nb = "x"\nbeside = "y"\nvalue = "one" #!\n', "the value is 'one'"),
    "fill with truth": (SIDES + RULE + '[[fill]] #!\nb = "x"\nbeside = "y"\nvalue = true\n', "the value is True"),
    "extends": ('extends = "nosuch" #!\n' + SIDES, "extends = 'nosuch'"),
    "extends others": ('extends = "torch-to-keras" #!\n' + SIDES.replace("keras", "flax"), "'torch-to-keras' is between"),
    # Kinds of its own.
    "kind without leaves": (SIDES + RULE + '[kind.mine] #!\nabout = "x"\n', "kind 'mine' has no leaves"),
    "leaf without torch": (SIDES + RULE + '[[kind.mine.leaf]]\nkeras = "x"\n', "a leaf of kind 'mine' has no torch name"),
    "leaf with a bad operation": (
        SIDES + RULE + '[[kind.mine.leaf]]\ntorch = "x"\nkeras = "y"\nops = { keras = ["spin"] } #!\n',
        "no operation 'spin'",
    ),
    "leaf with an unknown entry": (
        SIDES + RULE + '[[kind.mine.leaf]]\ntorch = "x"\nleaves = "y" #!\n',
        "has no entry 'leaves'",
    ),
    "leaf with a bad layout": (
        SIDES + RULE + '[[kind.mine.leaf]]\ntorch = "x"\nkeras = "y"\nops = { onnx = ["t"] } #!\n',
        "no layout 'onnx'",
    ),
    "leaf with a name of another type": (SIDES + RULE + "[[kind.mine.leaf]]\ntorch = 1 #!\n", "is no text"),
    "leaf with a bad dtype": (SIDES + RULE + '[[kind.mine.leaf]]\ntorch = "x"\nfill = 0\ndtype = "f33" #!\n', "f33"),
    "leaf with a bad fill": (SIDES + RULE + '[[kind.mine.leaf]]\ntorch = "x"\nfill = "zero" #!\n', "zero"),
    "kinds of another type": ("kind = 1\n" + SIDES + RULE, "kind is no table"),
    "words of another type": (
        SIDES + RULE + '[kind.mine]\nwords = 3 #!\n[[kind.mine.leaf]]\ntorch = "x"\n',
        "kind 'mine': '3' is no text",
    ),
    # TOML itself.
    "no value": (SIDES + "about = #!\n" + RULE, "line 5, column 9: invalid value"),
    "text without an end": (SIDES + 'about = "x #!\n' + RULE, "line 5, column"),
    "list without an end": (SIDES + RULE + 'ops = ["t",\n', "line 8, column 12"),
    "a table twice": (SIDES + RULE + '[sides] #!\na = "torch"\n', "line 8, column"),
    "a key twice": (SIDES + RULE + 'a = "x" #!\n', "line 8, column"),
    "words for a value": (SIDES + "about = yes #!\n", "line 5, column 9"),
    "a control character": (SIDES + 'about = "\x07" #!\n', "line 5, column"),
    "a number without end": (SIDES + f"x = {'9' * 5000}\n", "number is too long"),
    "lists without end": (SIDES + f"x = {'[' * 5000}\n", "too deep"),
    "tables without end": (f"x{'.x' * 5000} = 1\n" + SIDES, "has no 'x'"),
    "nothing": ("", "the schema is missing"),
    "XML": ("<recipe/> #!\n", "line 1, column 1: invalid"),
}


@pytest.mark.parametrize("case", FAULTS, ids=list(FAULTS))
def test_a_fault_is_one_line_that_names_its_line(case: str) -> None:
    text, word = FAULTS[case]
    with pytest.raises(RecipeError, match=re.escape(word)) as caught:
        parse_recipe(text, "mine")
    message = caught.value.message
    assert "\n" not in message and caught.value.exit_code == 2 and caught.value.code == "recipe"
    assert caught.value.path == "mine"
    marked = [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("#!")]
    named = re.search(r"line (\d+)", message)
    if marked:
        assert named is not None and int(named[1]) == marked[0], message


def test_the_line_is_that_of_the_rule_not_of_another_that_reads_alike() -> None:
    text = SIDES + RULE * 3 + '[[module]]\na = "x"\nb = "x"\n[module.with]\nm = 1\n' + RULE + 'ops = "turn"\n'
    text += "# ops = 'turn'\n"
    for rule in (SIDES + 'about = """\n[[tensor]]\nops = "turn"\n"""\n', ""):
        whole = ("notes = [\n  'turn',\n '[[tensor]]',\n]\n" if rule else "") + text
        with pytest.raises(RecipeError) as caught:
            parse_recipe(whole, "mine")
        last = max(number for number, line in enumerate(whole.splitlines(), 1) if line == 'ops = "turn"')
        assert f"line {last}: there is no operation 'turn'" in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe" + b"x" * 10)
    with pytest.raises(RecipeError, match="is no text: byte 0"):
        catalog.load(str(path))
    path.write_bytes(b"#" * (5 << 20))
    with pytest.raises(RecipeError, match="too large"):
        catalog.load(str(path))
    path.write_text(SIDES + RULE)
    assert (catalog.load(str(path)).name, catalog.load(str(path)).path) == ("mine", str(path))
    path.write_bytes((SIDES + RULE).replace("\n", "\r\n").encode())
    assert catalog.load(str(path)).tensors
    path.write_bytes(b"\xef\xbb\xbf" + (SIDES + RULE).encode())
    assert catalog.load(str(path)).tensors, "editors put a byte order mark there"
    for name in (str(tmp_path / "no.toml"), "nosuch", "", "a\0b", str(path / "below")):
        with pytest.raises(WtoolError) as caught:
            catalog.load(name)
        assert caught.value.code == "not-found" or name == str(path / "below")
    with pytest.raises(WtoolError) as caught:
        catalog.load(str(tmp_path))
    assert caught.value.code == "unreadable"
    with pytest.raises(WtoolError) as caught:
        catalog.load("torch-to-kears")
    assert "torch-to-keras" in (caught.value.hint or "")


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WtoolError) as caught:
        catalog.load(str(tmp_path / "pipe"))
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("name", catalog.names())
class TestShipped:
    def test_reads_both_ways(self, name: str) -> None:
        recipe, turned = catalog.load(name), catalog.load(catalog.turned_name(name))
        assert recipe.name == name and turned.name == catalog.turned_name(name)
        assert replace(turned.reverse(), name=name) == recipe
        assert recipe.reverse().reverse() == recipe and turned.turned

    def test_says_what_it_is(self, name: str) -> None:
        recipe = catalog.load(name)
        assert recipe.about and len(recipe.about) < 250 and not recipe.about.endswith(".")
        assert "-to-" in name and all(layout in LAYOUTS for _, layout in recipe.sides)
        assert all(note.strip() == note and "\n" not in note for note in recipe.notes)

    def test_asks_for_what_it_does_not_know(self, name: str) -> None:
        recipe = catalog.load(name)
        for variable in used_variables(recipe):
            assert variable in recipe.vars, f"[vars] does not say what {variable} is"


def test_kinds() -> None:
    assert {"dense", "conv2d", "batch_norm", "lstm", "gru", "attention"} <= set(shipped())
    for kind in shipped().values():
        assert kind.about and kind.leaves


# Fuzz

SHIPPED = [catalog.source_text(name) for name in catalog.names()]
TEXTS = st.one_of(
    st.sampled_from(["{p*}.x", "{i}", "{x:a|b}", "{x:t}", "a.b", "", "{", "$heads", "split 0", "t", "sum", "tie", "stack 0"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(-2, 3), st.booleans(), st.floats(allow_nan=True)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=5,
)
ENTRIES = ["a", "b", "ops", "kind", "flatten", "with", "optional", "value", "beside", "copy", "when", "leaf", "torch", "keras"]
ENTRIES += ["shape", "as", "words", "about", "fill", "vars", "wrong", "t"]
TABLES = st.dictionaries(st.sampled_from(ENTRIES), VALUES, max_size=4)
SECTIONS = ["about", "notes", "vars", "names", "drop", "why", "fill", "module", "tensor", "kind", "extends", "shape", "alias"]
SECTIONS += ["unmatched", "sides", "need"]


def toml(value: object) -> str:
    """TOML of plain values, all in line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(str(key))} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return (
        '"' + "".join(f"\\U{ord(char):08x}" if char in '"\\' or not char.isprintable() else char for char in str(value)) + '"'
    )


@given(st.dictionaries(st.sampled_from(SECTIONS), st.one_of(VALUES, TABLES, st.lists(TABLES, max_size=3)), max_size=4))
def test_whatever_is_written_is_a_recipe_or_an_error(table: dict[str, object]) -> None:
    table = {"sides": {"a": "torch", "b": "keras"}, **table}
    lines = ['schema = "wtool.map/1"', *(f"{name} = {toml(value)}" for name, value in table.items())]
    text = "\n".join(line for line in lines if not re.search("[\ud800-\udfff]|U0000d[89a-f]", line))
    try:
        recipe = parse_recipe(text, "mine")
    except RecipeError as error:
        assert "\n" not in error.message
    else:
        assert isinstance(recipe, Recipe) and recipe.reverse().reverse() == recipe
        used_variables(recipe)


@given(st.data())
def test_flipped_bytes_of_shipped_recipes(data: st.DataObject) -> None:
    text = bytearray(data.draw(st.sampled_from(SHIPPED)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.integers(0, 255))
    try:
        recipe = parse_recipe(text.decode("utf-8", "replace"), "mine")
    except RecipeError as error:
        assert "\n" not in error.message
    else:
        assert recipe.reverse().reverse() == recipe


@given(st.data())
def test_truncated_recipes(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SHIPPED))
    try:
        parse_recipe(text[: data.draw(st.integers(0, len(text)))], "mine")
    except RecipeError as error:
        assert "\n" not in error.message
