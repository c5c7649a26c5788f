"""The shades of a heat map: equal steps of the logarithm, since what moves in a network moves by orders of magnitude."""

from __future__ import annotations

from collections.abc import Iterator
from math import log

from wtool.report import Heat

STEPS = 8
_BARS = " ▁▂▃▄▅▆▇█"
_NOTHING = "·"


def levels(heat: Heat) -> list[list[int | None]]:
    """For each cell 0 (zero) to STEPS (the largest); None where there is nothing."""
    positive = [cell for row in heat.cells for cell in row if cell]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    spread = log(high / low) if high > low else 0.0

    def level(cell: float) -> int:
        return 0 if not cell else STEPS if not spread else 1 + round((STEPS - 1) * log(cell / low) / spread)

    return [[None if cell is None else level(cell) for cell in row] for row in heat.cells]


def lines(heat: Heat) -> Iterator[tuple[str, str, float]]:
    """A line for each column of the map: its label, a bar for each row, and the largest of its quantities."""
    grid = levels(heat)
    for at, name in enumerate(heat.columns):
        bars = "".join(_NOTHING if row[at] is None else _BARS[row[at] or 0] for row in grid)
        yield name, bars, max((row[at] or 0.0 for row in heat.cells), default=0.0)
