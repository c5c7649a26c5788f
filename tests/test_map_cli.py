"""`wtool map list`, `show` and `check`: what they print, their JSON, and their exit codes."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_resolve import MAP, keyed

from wtool.api import save_checkpoint
from wtool.cli.app import run
from wtool.maps import catalog
from wtool.maps.kinds import shipped
from wtool.maps.recipe import parse_recipe
from wtool.maps.resolve import resolve
from wtool.maps.table import mapped_blocks, mapped_data
from wtool.render import render
from wtool.report import Report, Table

Captured = pytest.CaptureFixture[str]
NET = {
    "conv1.weight": (8, 3, 3, 3),
    "conv1.bias": (8,),
    "bn.weight": (8,),
    "bn.bias": (8,),
    "bn.running_mean": (8,),
    "bn.running_var": (8,),
    "bn.num_batches_tracked": (),
    "fc.weight": (8, 8),
    "fc.bias": (8,),
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MAP)
    layers = {f"l.{i}.{n}": shape for i in range(3) for n, shape in (("w", (4, 6)), ("r", (12,)), ("b", (5,)))}
    save_checkpoint(keyed(layers), "in.safetensors")
    save_checkpoint(keyed(NET), "net.safetensors")
    save_checkpoint(keyed({**NET, "odd.thing": (3, 3)}), "odd.safetensors")
    return tmp_path


def answer(capsys: Captured, *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["map", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def data(capsys: Captured, *argv: str, code: int = 0) -> dict[str, Any]:
    got, out, err = answer(capsys, *argv, "--json")
    assert (got, err) == (code, "")
    found: dict[str, Any] = json.loads(out)
    assert next(iter(found)) == "schema"
    return found


def test_the_group_says_what_it_has(capsys: Captured) -> None:
    code, out, err = answer(capsys)
    assert (code, err) == (0, "") and all(word in out for word in ("list", "show", "check"))


# list


def test_list(capsys: Captured) -> None:
    found = data(capsys, "list")
    assert found["schema"] == "wtool.map-list/1"
    assert [row["name"] for row in found["recipes"]] == list(catalog.names())
    for row in found["recipes"]:
        assert list(row) == ["name", "backwards", "about", "sides", "vars", "notes"]
        assert row["backwards"] == catalog.turned_name(row["name"]) and row["about"]
        assert [list(side) for side in row["sides"]] == [["name", "layout"]] * 2
    _, out, _ = answer(capsys, "list")
    for name in catalog.names():
        assert f"  {name} " in out and catalog.turned_name(name) in out


def test_list_kinds(capsys: Captured) -> None:
    found = data(capsys, "list", "--kinds")
    assert found["schema"] == "wtool.map-kinds/1" and [kind["name"] for kind in found["kinds"]] == list(shipped())
    dense = found["kinds"][0]
    assert list(dense) == ["name", "about", "inferred", "vars", "leaves"]
    assert dense["leaves"][0]["names"]["keras"] == ["kernel"] and dense["leaves"][0]["ops"]["keras"] == ["t"]
    _, out, _ = answer(capsys, "list", "--kinds")
    assert "kernel (t), bias?" in out


@pytest.mark.parametrize("kind", ["text", "json", "markdown", "html"])
@pytest.mark.parametrize("argv", [["list"], ["list", "--kinds"], ["show", "torch-to-keras"], ["check", "torch-to-keras"]])
def test_every_way_to_write(desk: Path, capsys: Captured, kind: str, argv: list[str]) -> None:
    code, out, err = answer(capsys, *argv, "--format", kind)
    assert (code, err) == (0, "") and out.endswith("\n")
    suffix = {"text": "txt", "json": "json", "markdown": "md", "html": "html"}[kind]
    assert answer(capsys, *argv, "--report", f"r.{suffix}")[0] == 0
    text = (desk / f"r.{suffix}").read_text()
    assert text == out or kind == "text"


# show


def test_show_is_the_recipe_as_it_is_written(capsys: Captured) -> None:
    for name in catalog.names():
        code, out, err = answer(capsys, "show", name)
        assert (code, err) == (0, "") and out.rstrip("\n") == catalog.source_text(name).rstrip("\n")
        code, turned, _ = answer(capsys, "show", catalog.turned_name(name))
        head, _, rest = turned.partition("\n")
        assert code == 0 and head == f"# {catalog.turned_name(name)} is this recipe, {name}, read backwards." and rest == out
        assert tomllib.loads(turned) == tomllib.loads(out)


def test_show_as_data(desk: Path, capsys: Captured) -> None:
    found = data(capsys, "show", "keras-to-torch")
    assert found["schema"] == "wtool.map-show/1"
    names = ["name", "path", "written_as", "backwards", "about", "sides", "vars", "notes", "drop", "rules", "toml"]
    assert list(found) == ["schema", *names]
    assert (found["name"], found["written_as"], found["backwards"]) == ("keras-to-torch", "torch-to-keras", True)
    assert [side["name"] for side in found["sides"]] == ["keras", "torch"]
    found = data(capsys, "show", "mine.toml")
    assert (found["path"], found["backwards"], found["toml"]) == ("mine.toml", False, MAP)
    assert found["rules"][0] == {"rule": "tensor", "from": ["l.{i}.w"], "to": ["m.{i}.w"], "ops": ["t"]}


def test_show_of_what_is_none(desk: Path, capsys: Captured) -> None:
    (desk / "bad.toml").write_text("a = \n")
    for name in ("nosuch", "bad.toml", "in.safetensors"):
        code, out, err = answer(capsys, "show", name)
        assert (code, out) == (2, "") and err.startswith("wtool: error: ") and len(err.splitlines()) <= 2


def test_what_a_file_holds_cannot_drive_the_terminal(desk: Path, capsys: Captured) -> None:
    (desk / "evil.toml").write_text('about = "\u202ex\u009b31m"\n' + MAP)
    for argv in (["show", "evil.toml"], ["check", "evil.toml"]):
        code, out, _ = answer(capsys, *argv)
        assert code == 0 and not set(out) & {"\u202e", "\u009b", "\x1b"}


# check


def test_check_a_recipe_alone(desk: Path, capsys: Captured) -> None:
    found = data(capsys, "check", "mine.toml")
    assert (found["schema"], found["recipe"], found["fits"], found["on"]) == ("wtool.map-check/1", "mine", None, None)
    assert found["vars"] == {"heads": "the number of heads"} and found["map"] == []
    code, out, _ = answer(capsys, "check", "mine.toml")
    assert code == 0 and out.startswith("mine is a recipe\n") and "asks for" in out
    for name in catalog.names():
        assert answer(capsys, "check", name)[0] == 0


FITS: list[tuple[list[str], int, str]] = [
    (["mine.toml", "--on", "in.safetensors", "--set", "heads=3"], 0, "mine fits in.safetensors"),
    (["mine.toml", "--on", "in.safetensors", "--set", "heads=3", "--strict"], 0, "all 9 mapped keys come back"),
    (["mine.toml", "--on", "in.safetensors", "--set", "heads=5"], 1, "does not fit the shape of 'l.0.r' [12]"),
    (["mine.toml", "--on", "net.safetensors", "--set", "heads=3"], 1, "9 keys match no rule"),
    (["mine.toml", "--on", "in.safetensors", "--set", "heads=3", "--reverse"], 1, "its keys are those of the other side"),
    (["torch-to-keras", "--on", "net.safetensors"], 0, "torch-to-keras fits net.safetensors"),
    (["torch-to-keras", "--on", "odd.safetensors"], 1, "'odd.thing'"),
    (["torch-to-keras", "--on", "odd.safetensors", "--unmatched", "keep"], 0, "kept"),
    (["torch-to-keras", "--on", "odd.safetensors", "--unmatched", "drop"], 0, "unmatched"),
    (["keras-to-torch", "--on", "net.safetensors"], 1, "torch-to-keras"),
    (["torch-to-keras", "--on", "net.safetensors", "--reverse"], 1, "other side"),
    (
        ["mine.toml", "--on", "in.safetensors", "--set", "heads=3", "--like", "net.safetensors"],
        1,
        "the template says otherwise",
    ),
    (["unused.toml", "--on", "in.safetensors"], 0, "no key met tensor rule 2 (x.{i})"),
    (["unused.toml", "--on", "in.safetensors", "--strict"], 1, "no key met tensor rule 2 (x.{i})"),
    (["oneway.toml", "--on", "in.safetensors"], 0, "'cast f16' has no way back"),
    (["oneway.toml", "--on", "in.safetensors", "--strict"], 1, "'cast f16' has no way back"),
    # What could not be found out.
    (["mine.toml", "--on", "in.safetensors"], 2, "the variable 'heads' is not set: the number of heads"),
    (["mine.toml", "--on", "in.safetensors", "--set", "head=3"], 2, "no variable 'head'"),
    (["mine.toml", "--on", "nosuch.pth", "--set", "heads=3"], 2, "nosuch.pth"),
    (["mine.toml", "--on", "mine.toml", "--set", "heads=3"], 2, "mine.toml"),
    (["mine.toml", "--on", "in.safetensors", "--set", "heads=3", "--like", "nosuch.pth"], 2, "nosuch.pth"),
    (["mine.toml", "--on", "in.safetensors", "--set", "heads=3", "--section", "nosuch"], 2, "nosuch"),
    (["nosuch.toml"], 2, "no recipe or file 'nosuch.toml'"),
    (["bad.toml"], 2, "bad.toml: is no TOML: line 2, column 7"),
    (["wrong.toml"], 2, "wrong.toml: line 10: there is no operation 'spin'"),
    (["mine.toml", "--like", "in.safetensors"], 2, "--like needs --on"),
    (["mine.toml", "--strict"], 2, "--strict needs --on"),
    (["mine.toml", "--on", "in.safetensors", "--unmatched", "maybe"], 2, "maybe"),
]


@pytest.mark.parametrize(("argv", "code", "word"), FITS, ids=[" ".join(argv) for argv, _, _ in FITS])
def test_check(desk: Path, capsys: Captured, argv: list[str], code: int, word: str) -> None:
    every = '[[tensor]]\nold = "l.{i}.{name}"\nnew = "m.{i}.{name}"\n'
    sides = MAP.split("[vars]")[0]
    (desk / "unused.toml").write_text(sides + every + '[[tensor]]\nold = "x.{i}"\nnew = "y.{i}"\n')
    (desk / "oneway.toml").write_text(sides + every + 'ops = ["cast f16"]\n')
    (desk / "bad.toml").write_text("# no\na = [,]\n".replace("[,]", "  @"))
    (desk / "wrong.toml").write_text(MAP.replace('ops = ["t"]', 'ops = ["spin"]'))
    before = sorted(os.listdir(desk))
    got, out, err = answer(capsys, "check", *argv)
    assert got == code and word in (err if code == 2 else out), out + err
    if code == 2:
        assert out == "" and err.startswith("wtool: error: ") and len(err.splitlines()) <= 2
    got, out, err = answer(capsys, "check", *argv, "--json")
    assert got == code
    if code == 2:
        assert json.loads(err)["schema"] == "wtool.error/1"
    else:
        found = json.loads(out)
        assert found["fits"] is (code == 0)
        assert (found["fault"] is None) == (code == 0 or "--strict" in argv)
    assert answer(capsys, "check", *argv, "-q")[:2] == (code, "")
    assert sorted(os.listdir(desk)) == before, "nothing is written"


def test_what_check_says_of_the_keys_that_are_left(desk: Path, capsys: Captured) -> None:
    found = data(capsys, "check", "torch-to-keras", "--on", "odd.safetensors", code=1)
    assert found["unmatched"] == ["odd.thing"] and len(found["map"]) == 8
    assert list(found["fault"]) == ["code", "message", "hint"] and found["leads_back"] is None
    found = data(capsys, "check", "torch-to-keras", "--on", "net.safetensors")
    assert found["leads_back"] is True and found["dropped"] == ["bn.num_batches_tracked"] and found["doubts"] == []


def test_check_and_convert_agree(desk: Path, capsys: Captured) -> None:
    for argv, code, _ in FITS:
        if code == 2 or "oneway.toml" in argv or "unused.toml" in argv or "--strict" in argv:
            continue
        name, on, rest = argv[0], argv[2], argv[3:]
        assert (run(["convert", on, "out.safetensors", "-n", "--map", name, *rest]) == 0) == (code == 0), argv
    capsys.readouterr()


# The table


def table(rules: str, shapes: dict[str, tuple[int, ...]], sides: str = 'a = "torch"\nb = "torch"\n') -> Table:
    rec = parse_recipe(f'schema = "wtool.map/1"\n[sides]\n{sides}{rules}', "mine")
    [found] = mapped_blocks([resolve(rec, keyed(shapes))])
    assert isinstance(found, Table)
    return found


def lines(found: Table) -> list[tuple[str, ...]]:
    return [row.cells[:3] for row in found.rows]


PLAIN = '[[tensor]]\na = "l.{i}.{name}"\nb = "m.{i}.{name}"\n'


def test_layers_that_are_alike_are_one_line_below_the_path_they_share() -> None:
    shapes = {f"l.{i}.{name}": (2,) for i in range(12) for name in ("w", "b")}
    found = table(PLAIN, shapes)
    assert lines(found) == [("l.{0-11}.", "m.{0-11}.", "12×"), ("w", "w", ""), ("b", "b", "")]
    assert [(row.depth, row.heading) for row in found.rows] == [(0, True), (1, False), (1, False)]


def test_shapes_keep_layers_apart() -> None:
    found = table(PLAIN, {"l.0.w": (2,), "l.1.w": (2,), "l.2.w": (3,)})
    assert lines(found) == [("l.{0-1}.w", "m.{0-1}.w", "2×"), ("l.2.w", "m.2.w", "")]


def test_gaps_are_seen() -> None:
    assert lines(table(PLAIN, {f"l.{i}.w": (2,) for i in (0, 2, 7)})) == [("l.{0,2,7}.w", "m.{0,2,7}.w", "3×")]


def test_numbers_that_cross_are_not_hidden() -> None:
    """`l.{0-1} -> m.{0-1}` would be a lie."""
    rules = '[[tensor]]\na = "l.{x:0|1|2}.w"\nb = "m.{x:1|0|2}.w"\n'
    found = lines(table(rules, {f"l.{i}.w": (2,) for i in range(3)}))
    assert found == [("l.0.w", "m.1.w", ""), ("l.1.w", "m.0.w", ""), ("l.2.w", "m.2.w", "")]


def test_numbers_that_are_shifted_are_shown_so() -> None:
    rules = '[[tensor]]\na = "l.{i}.w"\nb = "block_{i+1}/w"\n'
    assert lines(table(rules, {f"l.{i}.w": (2,) for i in range(3)})) == [("l.{0-2}.w", "block_{1-3}/w", "3×")]


def test_only_whole_grids_are_one_line() -> None:
    rules = '[[tensor]]\na = "s{s}.{b}.w"\nb = "t{s}.{b}.w"\n'
    grid = {f"s{s}.{b}.w": (2,) for s in range(2) for b in range(3)}
    assert lines(table(rules, grid)) == [("s{0-1}.{0-2}.w", "t{0-1}.{0-2}.w", "6×")]
    found = lines(table(rules, {**grid, "s2.0.w": (2,)}))
    assert sum(int(count.rstrip("×") or 1) for _, _, count in found) == 7
    assert all("{0-2}.{0-2}" not in source for source, _, _ in found)


def test_several_keys_of_one_line() -> None:
    rules = '[[tensor]]\na = "{i}.qkv.{leaf}"\nb = ["{i}.q.{leaf}", "{i}.k.{leaf}", "{i}.v.{leaf}"]\nops = ["split 0"]\n'
    found = table(rules, {f"{i}.qkv.w": (6, 2) for i in range(2)})
    assert lines(found) == [("{0-1}.qkv.w", "{0-1}.{q,k,v}.w", "2×")]
    assert found.rows[0].cells[3:6] == ("split 0", "[6, 2] -> 3×[2, 2]", "exact")
    rules = '[[tensor]]\na = ["one", "two.x"]\nb = "both"\nops = ["concat 0"]\n'
    assert lines(table(rules, {"one": (1,), "two.x": (2,)})) == [("one + two.x", "both", "")]


def test_numbers_of_thousands_of_digits() -> None:
    found = table('[[tensor]]\na = "{name}"\nb = "m.{name}"\n', {f"x{'9' * 600}{i}": (1,) for i in range(3)})
    assert sum(int(row.cells[2].rstrip("×") or 1) for row in found.rows if not row.heading) >= 1


def test_why_says_only_what_needs_saying() -> None:
    rules = '[[module]]\na = "{p*}"\nb = "{p*}"\n'
    found = table(rules, NET, 'a = "torch"\nb = "keras"\n')
    assert {row.cells[-1] for row in found.rows} == {"conv2d", "batch_norm", "dense"}


@pytest.mark.parametrize("width", [40, 80, 120, None])
@pytest.mark.parametrize("unicode", [True, False])
def test_the_table_fits_and_a_pipe_cuts_nothing(width: int | None, unicode: bool) -> None:
    rules = '[[tensor]]\na = "model.layers.{i}.self_attn.{name}.weight"\nb = "blk/{i}/attention/{name}/kernel"\n'
    rules += 'ops = ["rearrange (h d two) i -> (h two d) i ; h=2 two=2"]\n'
    rules += PLAIN
    shapes = {f"model.layers.{i}.self_attn.{n}_projection_of_some_length.weight": (8, 4) for i in range(40) for n in "qk"}
    found = table(rules, {**shapes, "l.0.w": (1,)})
    text = render([Report("x", "title", {}, (found,))], "text", width=width, unicode=unicode)
    if width is not None:
        assert max(map(len, text.splitlines())) <= width
    if width is None or width >= 80:
        assert "q_projection_of_some_length.weight" in text and "rearrange (h d two) i -> (h two d) i ; h=2 two=2" in text
        assert "…" not in text and "..." not in text, "nothing is cut"
        assert "blk/{0-39}/" in text and "attention/k_projection_of_some_length/kernel" in text
    assert unicode or text.isascii()


def test_markdown_and_html_show_keys_as_code() -> None:
    found = Report("x", "title", {}, (table(PLAIN, {"l.0.w": (2,), "l.1.w": (2,)}),))
    assert "<code>m.{0-1}.w</code>" in render([found], "markdown")
    assert '<td class="c">m.{0-1}.w</td>' in render([found], "html")


def test_the_data_has_every_row() -> None:
    rec = parse_recipe('schema = "wtool.map/1"\n[sides]\na = "torch"\nb = "torch"\n' + PLAIN, "mine")
    found = mapped_data([resolve(rec, keyed({f"l.{i}.w": (2,) for i in range(12)}))])
    assert len(found["map"]) == 12 and found["recipes"] == ["mine"]
    assert not any(mapped_data([]).values())
