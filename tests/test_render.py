"""Renderers: what people and scripts get is whole, valid and harmless."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.render import KINDS, render
from wtool.render.text import columns
from wtool.report import Bars, Column, Facts, Note, Report, Row, Table

ROWS = (
    Row(("model", "", "3"), heading=True),
    Row(("a", "f32", "1"), 1),
    Row(("b", "", "2"), 1, heading=True),
    Row(("c", "f16", "1"), 2),
    Row(("d", "f16", "1"), 2),
    Row(("head", "f32", "1")),
)
TABLE = Table((Column("tensor"), Column("dtype", keep=True), Column("size", number=True, keep=True)), ROWS)


def report(*blocks: object, title: str = "x.pth: PyTorch", data: dict | None = None) -> Report:
    return Report("wtool.test/1", title, {"n": 1} if data is None else data, blocks)  # type: ignore[arg-type]


def test_a_tree_is_drawn_with_its_branches() -> None:
    assert render([report(TABLE)], "text") == (
        "x.pth: PyTorch\n"
        "\n"
        "  tensor   dtype  size\n"
        "  model              3\n"
        "  ├─ a     f32       1\n"
        "  └─ b               2\n"
        "     ├─ c  f16       1\n"
        "     └─ d  f16       1\n"
        "  head     f32       1\n"
    )


def test_without_unicode_text_is_ascii() -> None:
    blocks = (TABLE, Facts((("size", "12 × 3 kB"),)), Bars((("f32", 2.0, "2 B"),)))
    text = render([report(*blocks)], "text", unicode=False)
    assert text.isascii()
    assert "12 x 3 kB" in text


def test_bars_are_as_long_as_their_share() -> None:
    text = render([report(Bars((("f32", 4.0, "4 B"), ("f16", 2.0, "2 B"), ("none", 0.0, "0 B"))))], "text")
    full, half, none = (line.count("█") for line in text.splitlines()[2:])
    assert full == 2 * half > 0 == none


LONG = "model." + "very_long_part." * 12 + "weight"
WIDE = report(
    Facts(((LONG, LONG),), "Facts"),
    Table((Column("key"), Column("shape", keep=True)), (Row((LONG, "[1, 2]")), Row(("短い鍵" * 30, "[3]")))),
    Note(LONG.replace(".", " "), "warning"),
    Bars(((LONG[:40], 1.0, "1 B"),)),
    title=LONG.replace(".", " "),
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_on_a_terminal_no_line_is_wider(width: int, unicode: bool) -> None:
    text = render([WIDE], "text", width=width, unicode=unicode)
    assert max(map(columns, text.splitlines())) <= width
    assert "[1, 2]" in text
    assert "weight" in text


def test_off_a_terminal_nothing_is_shortened() -> None:
    text = render([WIDE], "text")
    assert "…" not in text and "..." not in text
    assert text.count(LONG) == 3


def test_too_many_columns_are_left_out_not_wrapped() -> None:
    table = Table(tuple(Column(f"column{i}", keep=True) for i in range(20)), (Row(tuple("x" * 8 for _ in range(20))),))
    text = render([report(table)], "text", width=80)
    assert max(map(columns, text.splitlines())) <= 80


def test_color_only_when_asked() -> None:
    blocks = (TABLE, Note("careful", "danger"), Note("fine", "good"))
    plain = render([report(*blocks)], "text")
    colored = render([report(*blocks)], "text", color=True)
    assert "\x1b" not in plain
    assert "\x1b[1;31mdanger:\x1b[0m careful" in colored
    import re

    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


EVIL = "\x1b[2Jk\u202eey\n<script>alert(1)</script>|`*x*"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_says_cannot_drive_a_terminal_or_a_browser(kind: str) -> None:
    blocks = (
        Facts(((EVIL, EVIL),), EVIL),
        Table((Column(EVIL),), (Row((EVIL,)),), EVIL),
        Note(EVIL, "danger"),
        Bars(((EVIL, 1.0, EVIL),), EVIL),
    )
    shown = render([report(*blocks, title=EVIL, data={"k": EVIL})], kind)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    if kind in ("html", "markdown"):
        assert "<script" not in shown
    if kind == "markdown":
        assert all(
            line.count("|") == shown.splitlines()[i - 1].count("|")
            for i, line in enumerate(shown.splitlines())
            if "---" in line
        )


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_needs_nothing_else() -> None:
    page = Page()
    page.feed(render([report(TABLE, Note("x"), Facts((("a", "b"),), "T"), Bars((("q", 1.0, "1"),)))] * 2, "html"))
    assert page.open == []
    assert page.links == []


def test_json_has_the_schema_first_and_an_entry_a_line() -> None:
    data = {
        "tensors": [{"key": "a", "shape": [1, 2]}, {"key": "b", "shape": []}],
        "dtypes": {"f32": {"bytes": 8}},
        "none": None,
    }
    text = render([report(data=data)], "json")
    found = json.loads(text)
    assert list(found) == ["schema", *data]
    assert {key: found[key] for key in data} == data
    assert '    {"key": "a", "shape": [1, 2]},\n' in text


def test_several_reports_are_one_object() -> None:
    found = json.loads(render([report(data={"n": 1}), report(data={"n": 2})], "json", many="checkpoints"))
    assert found == {"schema": "wtool.test/1", "checkpoints": [{"n": 1}, {"n": 2}]}


def test_what_is_no_json_is_null() -> None:
    data = {"a": float("nan"), "b": [{"x": float("inf"), "y": 1.5}], "c": {"d": (float("-inf"), 2)}, "e": "\ud800"}
    found = json.loads(render([report(data=data)], "json"))
    assert found == {"schema": "wtool.test/1", "a": None, "b": [{"x": None, "y": 1.5}], "c": {"d": [None, 2]}, "e": "\ud800"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda key: key != "schema"), VALUES, max_size=5))
def test_json_says_what_the_data_says(data: dict) -> None:
    text = render([report(data=data)], "json")
    assert text.isascii()
    assert json.loads(text) == {"schema": "wtool.test/1", **data}


@given(st.text(max_size=80), st.integers(12, 100))
def test_any_cell_fits(cell: str, width: int) -> None:
    table = Table((Column("key"),), (Row((cell,)),))
    lines = render([report(table, title="t")], "text", width=width).splitlines()
    assert all(columns(line) <= max(width, 14) for line in lines)
