"""The report of a diff: the verdict, what differs in structure, and how far the values moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

from wtool.analysis.compare import Comparison
from wtool.analysis.diff import Diff, Pair
from wtool.checkpoint import Checkpoint
from wtool.keys import merged, natural, pattern, short_key
from wtool.report import Block, Column, Facts, Heat, Note, Report, Row, Table
from wtool.sizes import format_size

SCHEMA = "wtool.diff/1"
CLASSES = ("structure", "dtype", "values")
IGNORABLE = ("dtype", "order", "renamed", "transposed")


@dataclass(frozen=True)
class Judgement:
    """What counts: the classes of differences that make the verdict `differs`, and what is left aside."""

    fail_on: tuple[str, ...] = CLASSES
    ignore: tuple[str, ...] = ()

    def counts(self, diff: Diff) -> dict[str, int]:
        """Class -> how many differences of it count."""
        structure = len(diff.only_a) + len(diff.only_b) + len(diff.shapes)
        structure += 0 if "renamed" in self.ignore else len(diff.renamed)
        structure += 0 if "transposed" in self.ignore else len(diff.transposed)
        found = {
            "structure": structure,
            "dtype": 0 if "dtype" in self.ignore else len(diff.dtypes),
            "values": sum(not self._by_cast(pair, value) for pair, value in diff.values.items()),
        }
        return {name: found[name] if name in self.fail_on else 0 for name in CLASSES}

    def _by_cast(self, pair: Pair, value: Comparison) -> bool:
        """Values that differ by the cast alone are the dtype's difference."""
        return value.cast and ("dtype" in self.ignore or "dtype" in self.fail_on)


def diff_report(diff: Diff, judgement: Judgement, *, top: int | None = 20, exit_zero: bool = False) -> Report:
    """`top` bounds the rows of values that people see (None: all); the JSON has all."""
    counts = judgement.counts(diff)
    differs = any(counts.values())
    a, b = diff.a.source.path, diff.b.source.path
    data: dict[str, Any] = {
        "a": a,
        "b": b,
        "verdict": "differs" if differs else "same",
        "only_in_a": [short_key(key) for key in diff.only_a],
        "only_in_b": [short_key(key) for key in diff.only_b],
        "renamed": [{"from": short_key(p.a), "to": short_key(p.b), "axes": _axes(p)} for p in diff.renamed],
        "transposed": [{"key": short_key(p.a), "axes": _axes(p)} for p in diff.transposed],
        "shape": [{"key": short_key(p.a), "a": list(diff.a[p.a].shape), "b": list(diff.b[p.b].shape)} for p in diff.shapes],
        "dtype": [{"key": short_key(p.a), "a": diff.a[p.a].dtype.name, "b": diff.b[p.b].dtype.name} for p in diff.dtypes],
        "values": [_value(pair, diff.values[pair]) for pair in sorted(diff.values, key=lambda pair: natural(pair.a))],
        "same": len(diff.same),
        "reordered": diff.reordered,
        "compared": "values" if diff.read else "structure",
        "counted": counts,
        "totals": {"a": _totals(diff.a), "b": _totals(diff.b), "moved": _moved(diff)},
        "hints": list(diff.hints),
    }
    blocks = (_verdict(diff, data, judgement), *_structure(diff), *_values(diff, top), *_heat(diff), *_notes(diff, judgement))
    return Report(SCHEMA, f"{a} -> {b}: {data['verdict']}", data, blocks, int(differs and not exit_zero))


def _axes(pair: Pair) -> list[int] | None:
    return None if pair.axes is None else list(pair.axes)


def _value(pair: Pair, found: Comparison) -> dict[str, Any]:
    return {
        "key": short_key(pair.a),
        "max_abs": _number(found.max_abs),
        "mean_abs": _number(found.mean_abs),
        "rel_l2": _number(found.rel_l2),
        "cosine": _number(found.cosine),
        "differing": found.differing,
        "elements": found.elements,
        "nonfinite": found.nonfinite,
        "cast": found.cast,
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _totals(checkpoint: Checkpoint) -> dict[str, int]:
    specs = checkpoint.specs
    return {
        "tensors": len(specs),
        "elements": sum(spec.elements for spec in specs),
        "bytes": sum(spec.nbytes for spec in specs),
    }


def _moved(diff: Diff) -> dict[str, Any]:
    """The measures of all differing tensors together."""
    found = _pooled(diff.values.values())
    return {"tensors": len(diff.values), "elements": sum(value.differing for value in diff.values.values())} | {
        name: _number(found[name]) for name in ("max_abs", "rel_l2", "cosine")
    }


def _pooled(values: Iterable[Comparison]) -> Mapping[str, float | None]:
    some = list(values)
    a, b, d = (sum(getattr(value, f"squares_{side}") for value in some) for side in "abd")
    elements = sum(value.elements for value in some)
    return {
        "max_abs": max((value.max_abs for value in some if value.max_abs is not None), default=None),
        "mean_abs": sum((value.mean_abs or 0.0) * value.elements for value in some) / elements if elements else None,
        "rel_l2": (sqrt(d / a) if a else None) if d else (0.0 if some else None),
        "cosine": max(-1.0, min(1.0, (a + b - d) / 2 / (sqrt(a) * sqrt(b)))) if a and b else None,
    }


def _verdict(diff: Diff, data: Mapping[str, Any], judgement: Judgement) -> Facts:
    totals = data["totals"]
    rows = [
        (side.upper(), f"{data[side]}, {_tensors(totals[side]['tensors'])}, {format_size(totals[side]['bytes'])}")
        for side in ("a", "b")
    ]
    counted = [f"{count:,} in {name}" for name, count in data["counted"].items() if count]
    same = _tensors(data["same"])
    if data["verdict"] == "same":
        what = "equal" if diff.read else "of equal keys, shapes and dtypes; values were not read"
        rows.append(("same", f"{same} {what}"))
    else:
        rows.append(("differs", ", ".join(counted)))
        rows.append(("same", same))
    if diff.values:
        moved = data["totals"]["moved"]
        rows.append(("moved", f"relative L2 {_shown(moved['rel_l2'])}, cosine {_cosine(moved['cosine'])} over what differs"))
    return Facts(tuple(rows))


def _structure(diff: Diff) -> list[Block]:
    blocks: list[Block] = []
    for keys, side, checkpoint in ((diff.only_a, "A", diff.a), (diff.only_b, "B", diff.b)):
        if keys:
            groups = _groups(keys, lambda key, of=checkpoint: (of[key].dtype.name, of[key].shape))
            rows = tuple(
                Row((merged([short_key(key) for key in some]), _shape(checkpoint[some[0]].shape), _times(some)))
                for some in groups
            )
            blocks.append(
                Table((Column("tensor", keep=True), Column("shape"), Column("", number=True)), rows, f"Only in {side}")
            )
    for pairs, title in ((diff.renamed, "Renamed"), (diff.transposed, "Transposed")):
        if pairs:
            rows = tuple(
                Row(
                    (
                        merged([short_key(p.a) for p in some]),
                        merged([short_key(p.b) for p in some]),
                        _turn(some[0]),
                        _times(some),
                    )
                )
                for some in _groups(pairs, lambda pair: (pattern(pair.a), pattern(pair.b), pair.axes))
            )
            columns = (Column("A", keep=True), Column("B", keep=True), Column("axes"), Column("", number=True))
            blocks.append(Table(columns, rows, title))
    for pairs, title in ((diff.shapes, "Shape"), (diff.dtypes, "Dtype")):
        if pairs:
            rows = tuple(
                Row((merged([short_key(p.a) for p in some]), *_sides(diff, some[0], title), _times(some)))
                for some in _groups(pairs, lambda pair, of=title: (pattern(pair.a), *_sides(diff, pair, of)))
            )
            columns = (Column("tensor", keep=True), Column("A"), Column("B"), Column("", number=True))
            blocks.append(Table(columns, rows, title))
    return blocks


def _values(diff: Diff, top: int | None) -> list[Block]:
    if not diff.values:
        return []
    groups = _groups(diff.values, lambda pair: (pattern(pair.a), diff.a[pair.a].shape))
    groups.sort(key=lambda some: -(_pooled(diff.values[pair] for pair in some)["rel_l2"] or float("inf")))
    rows = []
    for some in groups[:top]:
        values = [diff.values[pair] for pair in some]
        found = _pooled(values)
        differing, elements = sum(v.differing for v in values), sum(v.elements for v in values)
        odd = sum(v.nonfinite for v in values)
        why = ("cast" if all(v.cast for v in values) else "") + (f"{odd:,} not finite" if odd else "")
        rows.append(
            Row(
                (
                    merged([short_key(pair.a) for pair in some]),
                    _shape(diff.a[some[0].a].shape),
                    _times(some),
                    _shown(found["max_abs"]),
                    _shown(found["mean_abs"]),
                    _shown(found["rel_l2"]),
                    _cosine(found["cosine"]),
                    _share(differing, elements),
                    why,
                )
            )
        )
    numbers = ("", "max abs", "mean abs", "rel L2", "cosine", "differing")
    columns = (Column("tensor", keep=True), Column("shape"), *(Column(name, number=True) for name in numbers), Column(""))
    more = len(groups) - len(rows)
    title = "Values" + (f", the {len(rows)} that moved most of {len(groups)}" if more > 0 else "")
    return [Table(columns, tuple(rows), title)]


def _heat(diff: Diff) -> list[Block]:
    """How far each tensor of each layer moved, where there are layers."""
    cells: dict[tuple[str, str], list[Comparison | None]] = {}
    for pair in (*diff.same, *diff.values):
        layer, name = _layer(short_key(pair.a))
        if layer:
            cells.setdefault((layer, name), []).append(diff.values.get(pair))
    layers = sorted({layer for layer, _ in cells}, key=natural)
    names = list(dict.fromkeys(name for _, name in sorted(cells, key=lambda cell: natural(cell[1]))))
    if len(layers) < 2 or not diff.values:
        return []
    table = []
    for layer in layers:
        row: list[float | None] = []
        for name in names:
            found = cells.get((layer, name))
            moved = [value for value in found or [] if value is not None]
            row.append(None if found is None else (_pooled(moved)["rel_l2"] or 0.0) if moved else 0.0)
        table.append(tuple(row))
    return [Heat(tuple(layers), tuple(names), tuple(table), "Relative L2 by layer")]


def _layer(key: str) -> tuple[str, str]:
    """The path to the first numbered part, and what comes behind it; empty where no part is a number."""
    parts = key.replace("/", ".").split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[: place + 1]), ".".join(parts[place + 1 :])
    return "", key


def _notes(diff: Diff, judgement: Judgement) -> list[Block]:
    notes: list[Block] = [Note(hint, "warning") for hint in diff.hints]
    if diff.reordered and "order" not in judgement.ignore:
        notes.append(Note("the tensors stand in another order; that does not count"))
    return notes


def _groups(items: Iterable[Any], alike: Any) -> list[list[Any]]:
    found: dict[Any, list[Any]] = {}
    for item in items:
        key = item if isinstance(item, str) else item.a
        found.setdefault((pattern(key), alike(item)), []).append(item)
    return list(found.values())


def _sides(diff: Diff, pair: Pair, what: str) -> tuple[str, str]:
    a, b = diff.a[pair.a], diff.b[pair.b]
    return (_shape(a.shape), _shape(b.shape)) if what == "Shape" else (a.dtype.name, b.dtype.name)


def _turn(pair: Pair) -> str:
    return "" if pair.axes is None else " ".join(map(str, pair.axes))


def _times(some: Sequence[Any]) -> str:
    return f"{len(some)}x" if len(some) > 1 else ""


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _tensors(count: int) -> str:
    return f"{count:,} {'tensor' if count == 1 else 'tensors'}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cosine(value: float | None) -> str:
    """With as many digits as it takes to tell it from 1."""
    if value is None:
        return "-"
    return f"{value:.6f}" if abs(value) < 0.999999 or abs(value) == 1 else f"{value:.12f}".rstrip("0")


def _share(part: int, whole: int) -> str:
    if part == whole:
        return "all"
    return f"{part:,}" if part < 1000 else f"{part / whole:.2%}"
