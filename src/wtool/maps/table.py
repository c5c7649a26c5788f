"""What a recipe did, or would do, as the JSON and the table of a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from wtool.keys import short_key
from wtool.maps.resolve import Mapped, Resolved
from wtool.report import Block, Column, Row, Table

_NUMBER = re.compile("[0-9]+")


def mapped_data(resolved: Sequence[Resolved]) -> dict[str, Any]:
    """`recipes`, `map`, `dropped`, `filled`, `unused` of a report; all empty without a recipe."""
    return {
        "recipes": [one.recipe for one in resolved],
        "map": [_row(row) for one in resolved for row in one.rows],
        "dropped": [key for one in resolved for key in (*one.dropped, *one.lost)],
        "filled": [key for one in resolved for key in (*one.filled, *one.own)],
        "unused": [rule for one in resolved for rule in one.unused],
    }


def _row(row: Mapped) -> dict[str, Any]:
    return {
        "from": list(row.sources),
        "to": list(row.targets),
        "ops": [step.text for step in row.steps],
        "shape_from": [list(shape) for shape in row.before],
        "shape_to": [list(shape) for shape in row.after],
        "exact": row.exact,
        "why": row.why,
        "assumed": row.doubt or None,
    }


def mapped_blocks(resolved: Sequence[Resolved]) -> tuple[Block, ...]:
    """A table for each recipe, rows that differ only in their numbers shown as one."""
    blocks: list[Block] = []
    for one in resolved:
        columns = (
            Column("from", keep=True),
            Column("to", keep=True),
            Column("ops"),
            Column("shape"),
            Column("", number=True),
            Column("exact"),
            Column("why"),
        )
        groups: dict[object, list[Mapped]] = {}
        for row in one.rows:
            groups.setdefault(_pattern(row), []).append(row)
        rows = tuple(line for group in groups.values() for line in _lines(group))
        blocks.append(Table(columns, rows, f"Map {one.recipe}"))
    return tuple(blocks)


def _pattern(row: Mapped) -> object:
    keys = tuple(_NUMBER.sub("#", key) for key in (*row.sources, *row.targets))
    return keys, row.before, row.after, tuple(step.text for step in row.steps), row.exact, row.why


def _lines(group: list[Mapped]) -> Iterable[Row]:
    row = group[0]
    sources = [_merged([other.sources[at] for other in group]) for at in range(len(row.sources))]
    targets = [_merged([other.targets[at] for other in group]) for at in range(len(row.targets))]
    shapes = " ".join(dict.fromkeys(map(_shape, row.before))) + " -> " + " ".join(dict.fromkeys(map(_shape, row.after)))
    if row.before == row.after:
        shapes = " ".join(dict.fromkeys(map(_shape, row.before)))
    cells = (
        "; ".join(step.text for step in row.steps),
        shapes,
        f"{len(group)}x" if len(group) > 1 else "",
        row.exact,
        row.why,
    )
    yield Row((sources[0], targets[0], *cells))
    for at in range(1, max(len(sources), len(targets))):
        yield Row((sources[at] if at < len(sources) else "", targets[at] if at < len(targets) else "", "", "", "", "", ""))


def _merged(keys: list[str]) -> str:
    """Keys that differ in their numbers, as one: `layer.{0-11}.weight`."""
    numbers = list(zip(*(_NUMBER.findall(key) for key in keys), strict=True))
    parts = _NUMBER.split(short_key(keys[0]))
    said = parts[0]
    for part, values in zip(parts[1:], numbers, strict=False):
        unlike = sorted({int(value) for value in values if len(value) < 19})
        text = values[0]
        if len(set(values)) > 1:
            whole = unlike == list(range(unlike[0], unlike[-1] + 1))
            text = "{" + (f"{unlike[0]}-{unlike[-1]}" if whole else ",".join(map(str, unlike))) + "}"
        said += text + part
    return said


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
