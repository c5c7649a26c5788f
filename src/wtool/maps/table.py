"""What a recipe did, or would do, as the JSON and the table of a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from wtool.keys import short_key
from wtool.maps.resolve import Mapped, Resolved
from wtool.report import Block, Column, Row, Table
from wtool.tensor import Shape

_NUMBER = re.compile("[0-9]{1,18}")
_SEPARATOR = re.compile("([./])")


def mapped_data(resolved: Sequence[Resolved]) -> dict[str, Any]:
    """`recipes`, `map`, `dropped`, `filled`, `kept`, `unused` of a report; all empty without a recipe."""
    return {
        "recipes": [one.recipe for one in resolved],
        "map": [_row(row) for one in resolved for row in one.rows],
        "dropped": [key for one in resolved for key in (*one.dropped, *one.lost)],
        "filled": [key for one in resolved for key in (*one.filled, *one.own)],
        "kept": [key for one in resolved for key in one.kept],
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


class _Line(NamedTuple):
    """One line of the table: rows that differ only in numbers, which run alike on both sides."""

    source: str
    target: str
    steps: str
    shape: str
    times: int
    exact: str
    why: str


def mapped_blocks(resolved: Sequence[Resolved]) -> tuple[Block, ...]:
    """A table for each recipe: a line for all layers that are treated alike, below the path that they share."""
    columns = (
        Column("from", code=True),
        Column("to", below=True, code=True),
        Column("", number=True),
        Column("operations", below=True),
        Column("shape"),
        Column("values"),
        Column("why", below=True),
    )
    return tuple(Table(columns, tuple(_rows(_lines(one.rows))), f"Map {one.recipe}") for one in resolved)


def _lines(rows: Sequence[Mapped]) -> list[_Line]:
    """In the order of their first rows."""
    groups: dict[object, list[Mapped]] = {}
    for row in rows:
        groups.setdefault(_pattern(row), []).append(row)
    order = {row.sources: place for place, row in enumerate(rows)}
    parts = [some for group in groups.values() for some in _alike(group)]
    return [_line(some) for some in sorted(parts, key=lambda some: order[some[0].sources])]


def _line(rows: list[Mapped]) -> _Line:
    first = rows[0]
    return _Line(
        _one([_merged([row.sources[at] for row in rows]) for at in range(len(first.sources))]),
        _one([_merged([row.targets[at] for row in rows]) for at in range(len(first.targets))]),
        "; ".join(step.text for step in first.steps),
        _shapes(first),
        len(rows),
        first.exact,
        _short(first),
    )


def _pattern(row: Mapped) -> object:
    # A number with leading zeros goes with others as long as itself.
    def blank(found: re.Match[str]) -> str:
        return f"#{len(found[0])}" if found[0].startswith("0") and len(found[0]) > 1 else "#"

    keys = tuple(_NUMBER.sub(blank, key) for key in (*row.sources, *row.targets))
    return keys, row.before, row.after, tuple(step.text for step in row.steps), row.exact, row.why, row.doubt


def _alike(rows: list[Mapped]) -> Iterator[list[Mapped]]:
    """Rows of one pattern in parts of which one line tells the truth.

    Every number that runs must run along with one of the other side, always as far from it, and of the numbers of several
    independent runs all combinations must be there: a line that said `conv{1-2} -> conv{1-2}` of two that cross would lie.
    """
    before = [_numbers(row.sources) for row in rows]
    after = [_numbers(row.targets) for row in rows]
    runs = [[_run(column) for column in zip(*side, strict=True)] for side in (before, after)]
    ours, theirs = ({run for run in side if any(run)} for side in runs)
    combinations = 1
    for run in ours:
        combinations *= len(set(run))
    if len(rows) == 1 or (theirs == ours and combinations == len(rows)):
        yield rows
        return
    counts = [len(set(run)) for run in runs[0]]
    at = min((at for at, count in enumerate(counts) if count > 1), key=lambda at: counts[at], default=None)
    if at is None:
        yield from ([row] for row in rows)
        return
    parts: dict[int, list[Mapped]] = {}
    for row, numbers in zip(rows, before, strict=True):
        parts.setdefault(numbers[at], []).append(row)
    for part in parts.values():
        yield from _alike(part)


def _numbers(keys: Sequence[str]) -> list[int]:
    return [int(number) for key in keys for number in _NUMBER.findall(short_key(key))]


def _run(column: Sequence[int]) -> tuple[int, ...]:
    return tuple(number - column[0] for number in column)


def _merged(keys: list[str]) -> str:
    """Keys that differ in their numbers, as one: `layer.{0-11}.weight`."""
    keys = [short_key(key) for key in keys]
    parts = _NUMBER.split(keys[0])
    said = parts[0]
    for part, values in zip(parts[1:], zip(*(_NUMBER.findall(key) for key in keys), strict=True), strict=True):
        texts = sorted(set(values), key=int)
        if len(texts) > 1:
            whole = int(texts[-1]) - int(texts[0]) == len(texts) - 1
            said += "{" + (f"{texts[0]}-{texts[-1]}" if whole else ",".join(texts)) + "}"
        else:
            said += texts[0]
        said += part
    return said


def _one(keys: Sequence[str]) -> str:
    """Several keys of one line as one: `layer.{q,k,v}.weight`."""
    if len(keys) == 1:
        return keys[0]
    cut = [_SEPARATOR.split(key) for key in keys]
    least = min(map(len, cut))
    head = next((at for at in range(least) if len({parts[at] for parts in cut}) > 1), least)
    head -= head % 2  # parts stand at even places, separators between them
    room = least - head
    tail = next((at for at in range(room) if len({parts[-1 - at] for parts in cut}) > 1), room)
    tail -= tail % 2
    middles = ["".join(parts[head : len(parts) - tail]) for parts in cut]
    start, end = "".join(cut[0][:head]), "".join(cut[0][len(cut[0]) - tail :])
    if not start and not end:
        return " + ".join(keys)
    return f"{start}{{{','.join(middles)}}}{end}"


def _shapes(row: Mapped) -> str:
    before, after = _counted(row.before), _counted(row.after)
    return before if before == after else f"{before} -> {after}"


def _counted(shapes: Sequence[Shape]) -> str:
    found = []
    for shape, same in groupby(shapes):
        many = len(list(same))
        text = "[" + ", ".join(map(str, shape)) + "]"
        found.append(text if many == 1 else f"{many}×{text}")
    return " + ".join(found)


def _short(row: Mapped) -> str:
    """What needs saying: of a kind that was the only one that fits, its name alone."""
    why = row.why.removeprefix("kind ").replace(": the only one that fits", "").replace(": ", ", ", 1)
    return f"{why}; could be another" if row.doubt else why


def _rows(lines: Iterable[_Line]) -> Iterator[Row]:
    """Lines that stand below one path on both sides under a heading that names it."""
    for (source, target, times), some in groupby(lines, _home):
        group = list(some)
        if len(group) == 1 or not source:
            yield from (Row(_cells(line, "", "")) for line in group)
            continue
        yield Row((source, target, f"{times}×", "", "", "", ""), heading=True)
        yield from (Row(_cells(line._replace(times=1), source, target), depth=1) for line in group)


def _home(line: _Line) -> tuple[str, str, int]:
    """The paths up to the last number that runs; empty where a line has none, or is for several keys that do not share it."""
    paths = []
    for key in (line.source, line.target):
        found = re.search(r"^.*\{[0-9]+(?:-[0-9]+|(?:,[0-9]+)+)\}[./]?", key)
        if found is None or " + " in key or "," in found[0].partition("}")[2]:
            return "", "", 0
        paths.append(found[0])
    return paths[0], paths[1], line.times


def _cells(line: _Line, source: str, target: str) -> tuple[str, ...]:
    count = f"{line.times}×" if line.times > 1 else ""
    return (line.source[len(source) :], line.target[len(target) :], count, line.steps, line.shape, line.exact, line.why)
