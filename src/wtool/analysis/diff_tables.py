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
    columns: tuple[Column, ...]
    sides = (Column("A", keep=True), Column("B", keep=True))
    for keys, side, checkpoint in ((diff.only_a, "A", diff.a), (diff.only_b, "B", diff.b)):
        groups = grouped(keys, lambda key, of=checkpoint: (of[key].dtype.name, of[key].shape))  # type: ignore[misc]
        title, columns = f"Only in {side}", (_TENSOR, _TIMES, Column("dtype", keep=True), Column("shape", keep=True))
        rows = ((said(some), times(some), checkpoint[some[0]].dtype.name, shape(checkpoint[some[0]].shape)) for some in groups)
        blocks += _table(title, len(keys), columns, rows, len(groups), top)
    renamed = _renames(diff.renamed)
    columns = (Column("A"), Column("B"), _TIMES, Column("axes", keep=True))
    blocks += _table("Renamed", len(diff.renamed), columns, map(_renamed, renamed), len(renamed), top)
    groups = grouped(diff.transposed, lambda pair: (pair.axes, diff.a[pair.a].shape))
    turned = ((said(some), times(some), *_shapes(diff, some[0]), _axes(some[0])) for some in groups)
    columns = (_TENSOR, _TIMES, *sides, Column("axes", keep=True))
    blocks += _table("Transposed", len(diff.transposed), columns, turned, len(groups), top)
    groups = grouped(diff.shapes, lambda pair: _shapes(diff, pair))
    rows = ((said(some), times(some), *_shapes(diff, some[0])) for some in groups)
    blocks += _table("Another shape", len(diff.shapes), (_TENSOR, _TIMES, *sides), rows, len(groups), top)
    groups = grouped(diff.dtypes, lambda pair: (*dtypes(diff, pair), _fate(diff, pair)))
    cast = ((said(some), times(some), *dtypes(diff, some[0]), _fate(diff, some[0]), _by_cast(diff, some)) for some in groups)
    columns = (_TENSOR, _TIMES, *sides, Column("values", keep=True), Column("rel L2", number=True))
    return blocks + _table("Another dtype", len(diff.dtypes), columns, cast, len(groups), top)


def values(diff: Diff, top: int | None) -> list[Block]:
    """How far values moved by more than a cast, those that moved most first."""
    moved = [pair for pair, value in diff.values.items() if not value.cast]
    if not moved:
        return []
    groups = grouped(moved, lambda pair: diff.a[pair.a].shape)
    pools = {some[0]: pooled(diff.values[pair] for pair in some) for some in groups}
    groups.sort(key=lambda some: _rank(pools[some[0]], [diff.values[pair] for pair in some]))

    def row(some: list[Pair]) -> tuple[str, ...]:
        found, measures = pools[some[0]], [diff.values[pair] for pair in some]
        odd = sum(value.nonfinite for value in measures)
        return (
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

    columns = (
        _TENSOR,
        _TIMES,
        *(Column(name, number=True, keep=True) for name in ("NaN/Inf", "rel L2", "max abs", "cosine")),
        Column("differing", number=True, keep=True, spare=True),
        Column("mean abs", number=True, keep=True, spare=True),
        Column("shape", keep=True, spare=True),
    )
    return _table(
        "Other values", len(moved), columns, map(row, groups), len(groups), top, "the {} rows that moved most, of {:,}"
    )


def pooled(values: Iterable[Comparison]) -> Mapping[str, float | None]:
    """The measures of several tensors as if they were one."""
    whole = compare.pooled(values)
    return {name: getattr(whole, name) for name in ("max_abs", "mean_abs", "rel_l2", "cosine")}


def _rank(found: Mapping[str, float | None], some: Sequence[Comparison]) -> tuple[bool, bool, float]:
    """What is not finite first, then what was zero, then the largest."""
    return not any(value.nonfinite for value in some), found["rel_l2"] is not None, -(found["rel_l2"] or 0.0)


def _table(
    title: str,
    count: int,
    columns: Sequence[Column],
    rows: Iterable[tuple[str, ...]],
    whole: int,
    top: int | None,
    cut: str = "the first {} of {:,} rows",
) -> list[Block]:
    """A table for `count` tensors, if there are any: the first `top` of the `whole` rows, no column that none of them fills.

    Only the rows that are shown are made.
    """
    kept = list(islice(rows, top))
    if not kept:
        return []
    title = f"{title}, {tensors(count)}" + (f" ({cut.format(len(kept), whole)})" if len(kept) < whole else "")
    filled = [at for at in range(len(columns)) if any(row[at] for row in kept)]
    lines = tuple(Row(tuple(row[at] for at in filled)) for row in kept)
    return [Table(tuple(columns[at] for at in filled), lines, title)]


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


Renamed = list[tuple[Pair, str, str]]  # with what each key begins with, up to the common end


def _renames(pairs: Sequence[Pair]) -> list[Renamed]:
    """What was renamed alike together: `blocks.0.up -> layers.0.up` and `blocks.1.down -> layers.1.down`."""
    found: dict[Hashable, Renamed] = {}
    for pair in sorted(pairs, key=lambda pair: natural(pair.a)):
        one, two = short_key(pair.a), short_key(pair.b)
        tail = _tail(one, two)
        heads = one.removesuffix(tail), two.removesuffix(tail)
        found.setdefault((pattern(heads[0]), pattern(heads[1]), pair.axes), []).append((pair, *heads))
    return list(found.values())


def _renamed(some: Renamed) -> tuple[str, ...]:
    """A row: `blocks.* -> layers.*`."""
    pairs = [pair for pair, _, _ in some]
    if len({short_key(pair.a).removeprefix(head) for pair, head, _ in some}) == 1:
        names = [merged([short_key(key) for key in keys]) for keys in ([p.a for p in pairs], [p.b for p in pairs])]
    else:
        names = [merged(heads) + "*" for heads in ([row[1] for row in some], [row[2] for row in some])]
    return names[0], names[1], times(some), _axes(pairs[0])


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
    keys = [short_key(_key(item)) for item in some]
    return merged(keys) if len(keys) > 1 else keys[0]


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
