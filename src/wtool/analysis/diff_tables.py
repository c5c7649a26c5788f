"""The tables of a diff: what is on one side only, renamed, of another shape or dtype, and how far values moved."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import islice
from math import prod
from re import finditer
from typing import Any

from wtool.analysis import compare
from wtool.analysis.compare import Comparison
from wtool.analysis.diff import Diff, Pair
from wtool.keys import SEPARATORS, merged, natural, pattern, short_key
from wtool.report import Block, Column, Row, Table

_TENSOR = Column("tensor")
_TIMES = Column("", number=True)


def structure(diff: Diff, top: int | None) -> list[Block]:
    """A table for each kind of difference that there is; `top` bounds the rows of each."""
    blocks: list[Block] = []
    rows: list[tuple[str, ...]]
    columns: tuple[Column, ...]
    for keys, side, checkpoint in ((diff.only_a, "A", diff.a), (diff.only_b, "B", diff.b)):
        if keys:
            groups = grouped(keys, lambda key, of=checkpoint: (of[key].dtype.name, of[key].shape))  # type: ignore[misc]
            rows = [
                (said(some), times(some), checkpoint[some[0]].dtype.name, shape(checkpoint[some[0]].shape)) for some in groups
            ]
            columns = (_TENSOR, _TIMES, Column("dtype", keep=True), Column("shape", keep=True))
            blocks.append(_table(f"Only in {side}, {tensors(len(keys))}", columns, rows, top))
    if diff.renamed:
        columns = (Column("A"), Column("B"), _TIMES, Column("axes", keep=True))
        blocks.append(_table(f"Renamed, {tensors(len(diff.renamed))}", columns, _renames(diff.renamed), top))
    if diff.transposed:
        groups = grouped(diff.transposed, lambda pair: (pair.axes, diff.a[pair.a].shape))
        rows = [(said(some), times(some), *_shapes(diff, some[0]), _axes(some[0])) for some in groups]
        columns = (_TENSOR, _TIMES, Column("A", keep=True), Column("B", keep=True), Column("axes", keep=True))
        blocks.append(_table(f"Transposed, {tensors(len(diff.transposed))}", columns, rows, top))
    if diff.shapes:
        groups = grouped(diff.shapes, lambda pair: _shapes(diff, pair))
        rows = [(said(some), times(some), *_shapes(diff, some[0])) for some in groups]
        columns = (_TENSOR, _TIMES, Column("A", keep=True), Column("B", keep=True))
        blocks.append(_table(f"Another shape, {tensors(len(diff.shapes))}", columns, rows, top))
    if diff.dtypes:
        groups = grouped(diff.dtypes, lambda pair: (*dtypes(diff, pair), _fate(diff, pair)))
        rows = [
            (said(some), times(some), *dtypes(diff, some[0]), _fate(diff, some[0]), _by_cast(diff, some)) for some in groups
        ]
        columns = (_TENSOR, _TIMES, Column("A", keep=True), Column("B", keep=True), Column("values", keep=True))
        columns += (Column("rel L2", number=True),)
        blocks.append(_table(f"Another dtype, {tensors(len(diff.dtypes))}", columns, rows, top))
    return blocks


def values(diff: Diff, top: int | None) -> list[Block]:
    """How far values moved by more than a cast, those that moved most first."""
    moved = [pair for pair, value in diff.values.items() if not value.cast]
    if not moved:
        return []
    groups = grouped(moved, lambda pair: diff.a[pair.a].shape)
    pools = {some[0]: pooled(diff.values[pair] for pair in some) for some in groups}
    groups.sort(key=lambda some: _rank(pools[some[0]], [diff.values[pair] for pair in some]))
    rows = []
    for some in islice(groups, top):
        found, measures = pools[some[0]], [diff.values[pair] for pair in some]
        odd = sum(value.nonfinite for value in measures)
        rows.append(
            (
                said(some),
                times(some),
                f"{odd:,}" if odd else "",
                shown(found["rel_l2"]),
                shown(found["max_abs"]),
                cosine(found["cosine"]),
                share(sum(value.differing for value in measures), sum(value.elements for value in measures)),
                shown(found["mean_abs"]),
                shape(diff.a[some[0].a].shape),
            )
        )
    columns = (
        _TENSOR,
        _TIMES,
        *(Column(name, number=True, keep=True) for name in ("NaN/Inf", "rel L2", "max abs", "cosine")),
        Column("differing", number=True, keep=True, spare=True),
        Column("mean abs", number=True, keep=True, spare=True),
        Column("shape", keep=True, spare=True),
    )
    title = f"Other values, {tensors(len(moved))}"
    if len(rows) < len(groups):
        title += f" (the {len(rows)} rows that moved most, of {len(groups):,})"
    return [_table(title, columns, rows, None)]


def pooled(values: Iterable[Comparison]) -> Mapping[str, float | None]:
    """The measures of several tensors as if they were one."""
    whole = compare.pooled(values)
    return {name: getattr(whole, name) for name in ("max_abs", "mean_abs", "rel_l2", "cosine")}


def _rank(found: Mapping[str, float | None], some: Sequence[Comparison]) -> tuple[bool, bool, float]:
    """What is not finite first, then what was zero, then the largest."""
    return not any(value.nonfinite for value in some), found["rel_l2"] is not None, -(found["rel_l2"] or 0.0)


def _table(title: str, columns: Sequence[Column], rows: Sequence[tuple[str, ...]], top: int | None) -> Table:
    """Without the columns that no row fills, and with the first `top` rows."""
    kept = rows if top is None else rows[:top]
    if len(kept) < len(rows):
        title += f" (the first {len(kept)} of {len(rows):,} rows)"
    filled = [at for at in range(len(columns)) if any(row[at] for row in kept)]
    return Table(tuple(columns[at] for at in filled), tuple(Row(tuple(row[at] for at in filled)) for row in kept), title)


def grouped(items: Iterable[Any], alike: Callable[[Any], Hashable]) -> list[list[Any]]:
    """Keys, or pairs, that one row can tell of: of one pattern and `alike`, so that every combination of numbers is there."""
    found: dict[Hashable, list[Any]] = {}
    for item in items:
        found.setdefault((pattern(_key(item)), alike(item)), []).append(item)
    return [whole for some in found.values() for whole in _boxes(some)]


def _boxes(some: list[Any]) -> list[list[Any]]:
    """`h.8.ln_1` and `h.9.ln_2` are no `h.{8-9}.ln_{1-2}`: then only the first number may run."""
    if len(some) < 2:
        return [some]
    numbers = [tuple(found.group() for found in finditer("[0-9]+", _key(item))) for item in some]
    if prod(len(set(column)) for column in zip(*numbers, strict=True)) == len(some):
        return [some]
    found: dict[Hashable, list[Any]] = {}
    for item, row in zip(some, numbers, strict=True):
        found.setdefault(row[1:], []).append(item)
    return list(found.values())


def _renames(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Rows of what was renamed alike: `blocks.* -> layers.*`."""
    found: dict[Hashable, list[tuple[Pair, str, str]]] = {}
    for pair in sorted(pairs, key=lambda pair: natural(pair.a)):
        tail = _tail(short_key(pair.a), short_key(pair.b))
        heads = (short_key(pair.a).removesuffix(tail), short_key(pair.b).removesuffix(tail))
        found.setdefault((pattern(heads[0]), pattern(heads[1]), pair.axes), []).append((pair, *heads))
    rows: list[tuple[str, ...]] = []
    for some in found.values():
        if len(some) == 1:
            names = [short_key(some[0][0].a), short_key(some[0][0].b)]
        elif len({short_key(pair.a).removeprefix(head) for pair, head, _ in some}) == 1:
            names = [merged([short_key(key) for key in keys]) for keys in zip(*((p.a, p.b) for p, _, _ in some), strict=True)]
        else:
            names = [f"{merged([row[at] for row in some])}*" for at in (1, 2)]  # type: ignore[misc]
        rows.append((names[0], names[1], times(some), _axes(some[0][0])))
    return rows


def _tail(one: str, two: str) -> str:
    """The longest common end of both that begins a part."""
    length = 0
    while length < min(len(one), len(two)) and one[-1 - length] == two[-1 - length]:
        length += 1
    while length:
        if all(len(key) == length or key[-1 - length] in SEPARATORS for key in (one, two)):
            return one[-length:]
        length -= 1
    return ""


def _fate(diff: Diff, pair: Pair) -> str:
    if not diff.read:
        return ""
    value = diff.values.get(pair)
    return "equal" if value is None else "cast" if value.cast else "other"


def _by_cast(diff: Diff, some: Sequence[Pair]) -> str:
    cast = [diff.values[pair] for pair in some if pair in diff.values and diff.values[pair].cast]
    return shown(pooled(cast)["rel_l2"]) if cast else ""


def _shapes(diff: Diff, pair: Pair) -> tuple[str, str]:
    return shape(diff.a[pair.a].shape), shape(diff.b[pair.b].shape)


def dtypes(diff: Diff, pair: Pair) -> tuple[str, str]:
    return diff.a[pair.a].dtype.name, diff.b[pair.b].dtype.name


def _axes(pair: Pair) -> str:
    return "" if pair.axes is None else " ".join(map(str, pair.axes))


def _key(item: Any) -> str:
    return item if isinstance(item, str) else str(item.a)


def said(some: Sequence[Any]) -> str:
    return merged([short_key(_key(item)) for item in some])


def times(some: Sequence[Any]) -> str:
    return f"{len(some):,}x" if len(some) > 1 else ""


def shape(sizes: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, sizes)) + "]"


def tensors(count: int) -> str:
    return f"{count:,} {'tensor' if count == 1 else 'tensors'}"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def cosine(value: float | None) -> str:
    """Near 1 what is missing from it, since that is what tells one from another."""
    if value is None:
        return "-"
    missing = 1 - value
    return "1" if not missing else f"1-{missing:.1e}" if missing < 1e-5 else f"{value:.6f}"


def share(part: int, whole: int) -> str:
    """Never rounded to all or none."""
    if part == whole:
        return "all"
    return f"{part:,}" if part < 1000 else "<0.01%" if part / whole < 1e-4 else f"{min(part / whole, 0.9999):.2%}"
