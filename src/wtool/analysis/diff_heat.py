"""How far each tensor of each layer moved, as maps: one for each stack of layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wtool.analysis.compare import Comparison
from wtool.analysis.diff import Diff
from wtool.analysis.diff_tables import pooled
from wtool.keys import merged, natural, pattern, short_key
from wtool.report import Heat

_STACKS = 6
_NAMES = 24  # tensors of a layer; with more, numbered ones (experts) share a place
_MOST = 40

_NUMBERED = re.compile(r"(?<![^._-])[0-9]+(?![^._-])")
_ENDS = re.compile(r".*[0-9]")

Cells = dict[tuple[str, str], list[Comparison | None]]


def heats(diff: Diff) -> list[Heat]:
    """The maps of the stacks that moved, on one scale. What differs by a cast alone did not move."""
    if all(value.cast for value in diff.values.values()):
        return []
    stacks: dict[str, Cells] = {}
    for pair in (*diff.same, *diff.values):
        layer, name = layer_of(short_key(pair.a))
        if layer:
            value = diff.values.get(pair)
            cells = stacks.setdefault(pattern(layer), {})
            cells.setdefault((layer, name), []).append(None if value is None or value.cast else value)
    maps = [_heat(cells) for _, cells in sorted(stacks.items(), key=lambda item: natural(item[0]))]
    found = [heat for heat in maps if len(heat.rows) > 1 and any(cell for row in heat.cells for cell in row)]
    if len(found) > _STACKS:
        # Many short stacks say little; the longest ones are the model.
        longest = sorted(found, key=lambda heat: -len(heat.rows))[:_STACKS]
        found = [heat for heat in found if heat in longest]
    moved = [cell for heat in found for row in heat.cells for cell in row if cell and cell < float("inf")]
    scale = (min(moved), max(moved)) if moved else None
    return [Heat(heat.rows, heat.columns, heat.cells, heat.title, scale) for heat in found]


def layer_of(key: str) -> tuple[str, str]:
    """The path of the layer that a key belongs to and what comes behind it, both empty where there is no layer.

    That is the path to the first part that is a number (`layers.3`), else to the first that ends in one (`layer_3`).
    """
    parts = key.replace("/", ".").split(".")
    for is_layer in (str.isdecimal, _ENDS.fullmatch):
        for place, part in enumerate(parts[:-1]):
            if is_layer(part):
                return ".".join(parts[: place + 1]), ".".join(parts[place + 1 :])
    return "", key


def _heat(cells: Cells) -> Heat:
    if len({name for _, name in cells}) > _NAMES:
        cells = _fewer(cells)
    layers = sorted({layer for layer, _ in cells}, key=natural)
    names = sorted({name for _, name in cells}, key=natural)
    table = {cell: _cell(found) for cell, found in cells.items()}
    title = "How far each layer moved (relative L2)"
    if len(names) > _MOST:
        furthest: dict[str, float] = {}
        for (_, name), moved in table.items():
            furthest[name] = max(furthest.get(name, 0.0), moved)
        title += f", the {_MOST} of {len(names):,} tensors that moved most"
        names = sorted(sorted(names, key=lambda name: -furthest[name])[:_MOST], key=natural)
    rows = tuple(tuple(table.get((layer, name)) for name in names) for layer in layers)
    return Heat(tuple(layers), tuple(names), rows, title)


def _fewer(cells: Cells) -> Cells:
    """Names that differ only in numbers as one: `experts.{0-7}.w1`."""
    names: dict[str, dict[str, None]] = {}
    for _, name in cells:
        names.setdefault(_NUMBERED.sub("#", name), {})[name] = None
    found: Cells = {}
    said = {alike: merged(list(some)) for alike, some in names.items()}
    for (layer, name), values in cells.items():
        found.setdefault((layer, said[_NUMBERED.sub("#", name)]), []).extend(values)
    return found


def _cell(found: Sequence[Comparison | None]) -> float:
    """0 where nothing moved; infinite where a NaN came or went, or where all was zero before."""
    moved = [value for value in found if value is not None]
    if not moved:
        return 0.0
    if any(value.nonfinite for value in moved):
        return float("inf")
    distance = pooled(moved)["rel_l2"]
    return float("inf") if distance is None else distance
