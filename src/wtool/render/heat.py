"""The shades of a heat map: equal steps of the logarithm, since what moves in a network moves by orders of magnitude."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite, log

from wtool.report import Heat

STEPS = 8
ODD = STEPS + 1  # the level of what cannot be told: infinite
_LEAST = 2.0 ** (STEPS - 1)  # the scale's least span, so that what is nearly equal looks nearly equal
_MARKS = "·▁▂▃▄▅▆▇█!"
_PLAIN = ".12345678!"
_NOTHING = " "


def scale(heat: Heat) -> list[float]:
    """The quantities that the shades from 1 to STEPS stand for."""
    moved = [cell for row in heat.cells for cell in row if cell and isfinite(cell)]
    low, high = heat.scale or (min(moved, default=1.0), max(moved, default=1.0))
    low = min(low, high / _LEAST) or high  # the smallest of doubles has no half
    return [low * (high / low) ** (step / (STEPS - 1)) if high / low < inf else high for step in range(STEPS)]


def levels(heat: Heat) -> list[list[int | None]]:
    """For each cell 0 (zero) to STEPS (the largest), or ODD; None where there is nothing."""
    low, *_, high = scale(heat)
    spread = log(high) - log(low)

    def level(cell: float) -> int:
        if not cell or not isfinite(cell):
            return 0 if cell == 0 else ODD
        place = (log(cell) - log(low)) / spread if spread else 1.0
        return 1 + round((STEPS - 1) * min(1.0, max(0.0, place)))

    return [[None if cell is None else level(cell) for cell in row] for row in heat.cells]


def lines(heat: Heat, *, unicode: bool = True) -> Iterator[tuple[str, str, float]]:
    """A line for each column of the map: its label, a mark for each row, and the largest of its finite quantities."""
    grid = levels(heat)
    for at, name in enumerate(heat.columns):
        bars = "".join(_NOTHING if row[at] is None else mark(row[at] or 0, unicode=unicode) for row in grid)
        yield name, bars, max((cell for row in heat.cells if (cell := row[at]) and isfinite(cell)), default=0.0)


def mark(level: int, *, unicode: bool = True) -> str:
    return (_MARKS if unicode else _PLAIN)[level]


def legend(heat: Heat) -> list[tuple[int, str]]:
    """Levels that are in the map, or tell its scale, and what they say."""
    there = {level for row in levels(heat) for level in row}
    steps = scale(heat)
    shades = [(1 + step, f"{steps[step]:.2g}") for step in (0, 2, 5, STEPS - 1)]
    found = [(0, "equal")] if 0 in there else []
    return found + shades + ([(ODD, "NaN, infinite, or zero before")] if ODD in there else [])


def binned(heat: Heat, most: int) -> Heat:
    """The map with at most `most` rows: neighbours become one, as the largest of them."""
    size = -(-len(heat.rows) // max(1, most))
    if size <= 1:
        return heat
    rows, cells = [], []
    for first in range(0, len(heat.rows), size):
        some = heat.rows[first : first + size]
        rows.append(some[0] if len(some) == 1 else f"{some[0]} to {some[-1]}")
        columns = zip(*heat.cells[first : first + size], strict=True)
        cells.append(tuple(max((cell for cell in column if cell is not None), default=None) for column in columns))
    title = f"{heat.title or ''}, {size} to a place".lstrip(", ")
    return Heat(tuple(rows), heat.columns, tuple(cells), title, heat.scale)


def ends(heat: Heat) -> tuple[str, str, str]:
    """What the labels of the rows begin with, and the rest of the first and of the last."""
    first, last = heat.rows[0], heat.rows[-1]
    shared = 0
    for place in range(min(len(first), len(last))):
        if first[place] != last[place]:
            break
        if first[place] in "./_-":
            shared = place + 1
    return first[:shared], first[shared:], last[shared:]
