"""Heat maps: shades that can be read, however wide the range, however many the layers, however hostile the names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtool.render import render
from wtool.render.heat import ODD, STEPS, binned, ends, legend, levels, lines, scale
from wtool.render.text import columns
from wtool.report import Heat, Report

NAMES = ("attn.weight", "mlp.weight")


def heat(*cells: tuple[float | None, ...], names: tuple[str, ...] = NAMES, **more: object) -> Heat:
    rows = tuple(f"layers.{at}" for at in range(len(cells)))
    return Heat(rows, names[: len(cells[0])], cells, "Moved", **more)  # type: ignore[arg-type]


def shown(kind: str, *maps: Heat, **options: object) -> str:
    return render([Report("wtool.test/1", "t", {}, maps)], kind, **options)  # type: ignore[arg-type]


QUANTITIES = st.none() | st.just(0.0) | st.just(inf) | st.floats(5e-324, 1.7e308)
GRIDS = st.integers(1, 4).flatmap(lambda wide: st.lists(st.tuples(*[QUANTITIES] * wide), min_size=1, max_size=30))


@given(GRIDS, st.none() | st.tuples(st.floats(1e-300, 1.0), st.floats(1.0, 1e300)))
def test_every_quantity_has_a_level_and_larger_ones_no_lower(
    cells: list[tuple[float | None, ...]], shared: tuple[float, float] | None
) -> None:
    grid = heat(*cells, names=("a", "b", "c", "d"), scale=shared)
    found = [pair for row, shades in zip(cells, levels(grid), strict=True) for pair in zip(row, shades, strict=True)]
    for cell, level in found:
        if cell is None:
            assert level is None
        else:
            assert level == (0 if not cell else ODD if cell == inf else level)
            assert level in range(ODD + 1)
    finite = sorted((cell, level) for cell, level in found if cell and cell != inf and level is not None)
    assert [level for _, level in finite] == sorted(level for _, level in finite)
    assert all(1 <= level <= STEPS for _, level in finite)
    assert scale(grid) == sorted(scale(grid))


@given(GRIDS, st.integers(1, 12))
def test_fewer_places_keep_the_largest(cells: list[tuple[float | None, ...]], most: int) -> None:
    grid = heat(*cells, names=("a", "b", "c", "d"))
    fewer = binned(grid, most)
    assert len(fewer.rows) == len(fewer.cells) <= max(most, 1)
    for at in range(len(grid.columns)):
        highest = [max((row[at] for row in some.cells if row[at] is not None), default=None) for some in (grid, fewer)]
        assert highest[0] == highest[1]


@given(GRIDS, st.integers(20, 150), st.booleans())
def test_a_map_fits_its_terminal(cells: list[tuple[float | None, ...]], width: int, unicode: bool) -> None:
    text = shown("text", heat(*cells, names=("a" * 50, "b", "c", "d")), width=width, unicode=unicode)
    # The legend's longest entry and a label are never cut to less than they need.
    assert max(map(columns, text.splitlines())) <= max(width, 44)
    assert unicode or text.isascii()


def test_what_is_nearly_equal_looks_nearly_equal() -> None:
    [[low], [high]] = levels(heat((1.0,), (1.9,)))
    assert (low, high) == (STEPS - 1, STEPS)
    assert levels(heat((1e-9,), (1e-3,))) == [[1], [STEPS]]


def test_maps_of_one_scale_have_the_same_shades() -> None:
    assert levels(heat((0.1,), (0.1,), scale=(1e-6, 0.1))) == [[STEPS], [STEPS]]
    assert levels(heat((1e-6,), (1e-6,), scale=(1e-6, 0.1))) == [[1], [1]]


MIXED = heat((0.0, None), (1e-4, 0.0), (1e-2, inf), (1.0, 0.5))


def test_a_line_for_each_tensor_and_a_mark_for_each_layer() -> None:
    assert list(lines(MIXED)) == [("attn.weight", "·▁▅█", 1.0), ("mlp.weight", " ·!▇", 0.5)]
    assert list(lines(MIXED, unicode=False)) == [("attn.weight", ".158", 1.0), ("mlp.weight", " .!7", 0.5)]


def test_text() -> None:
    assert shown("text", MIXED) == (
        "t\n"
        "\n"
        "Moved: layers.0 to 3\n"
        "               0  3  most\n"
        "  attn.weight  ·▁▅█     1\n"
        "  mlp.weight    ·!▇   0.5\n"
        "  · equal  ▁ 0.0001  ▃ 0.0014  ▆ 0.072  █ 1  ! NaN, infinite, or zero before\n"
    )


def test_the_legend_tells_only_of_marks_that_are_there() -> None:
    assert [level for level, _ in legend(MIXED)] == [0, 1, 3, 6, STEPS, ODD]
    assert [level for level, _ in legend(heat((1.0,), (2.0,)))] == [1, 3, 6, STEPS]


@pytest.mark.parametrize("layers", [96, 1000])
def test_very_deep_models_share_places(layers: int) -> None:
    deep = heat(*[(float(at + 1),) for at in range(layers)])
    text = shown("text", deep, width=80)
    assert max(map(columns, text.splitlines())) <= 80
    assert re.search(r"\d+ to a place: layers.0 to \d+", text)
    assert shown("html", deep).count("<tr>") <= 201 and len(shown("markdown", deep)) < 1000
    assert ("to a place" in shown("text", deep)) == (layers == 1000)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("layers.0", "layers.11", ("layers.", "0", "11")),
        ("bert/encoder/layer_0", "bert/encoder/layer_11", ("bert/encoder/layer_", "0", "11")),
        ("layer1.0", "layer4.2", ("", "layer1.0", "layer4.2")),
        ("a to b.0", "a to b.1", ("a to b.", "0", "1")),
    ],
)
def test_ends(first: str, last: str, expected: tuple[str, str, str]) -> None:
    assert ends(Heat((first, last), ("w",), ((1.0,), (2.0,)))) == expected


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.styles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.titles += [found["title"] or ""] if "title" in found else []
        self.styles += [found["style"] or ""] if "style" in found else []
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_cells_say_what_they_are() -> None:
    page = Page()
    page.feed(shown("html", MIXED))
    assert page.open == []
    assert "layers.0.attn.weight: equal" in page.titles
    assert "layers.1.attn.weight: 0.0001" in page.titles
    assert "layers.2.mlp.weight: NaN, infinite, or zero before" in page.titles
    assert len(page.titles) == 7  # nothing where there is nothing
    assert {"--h:0%", "--h:20%", "--h:100%"} <= set(page.styles)


EVIL = '"><script>alert(1)</script>|`*x*\x1b[2J'


@pytest.mark.parametrize("kind", ["text", "markdown", "html", "json"])
def test_hostile_names_stay_names(kind: str) -> None:
    grid = Heat((f"{EVIL}.0", f"{EVIL}.1"), (EVIL, "b"), ((1.0, 2.0), (3.0, inf)), EVIL)
    text = shown(kind, grid)
    assert "\x1b" not in text
    if kind in ("markdown", "html"):
        assert "<script" not in text
    if kind == "html":
        page = Page()
        page.feed(text)
        assert page.open == [] and "script" not in page.styles
    if kind == "markdown":
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in table} == {4}


def test_markdown_keeps_its_places() -> None:
    text = shown("markdown", heat((None, 1.0), (None, 2.0), (0.1, 4.0)))
    assert "<code>&nbsp;&nbsp;▃</code>" in text
