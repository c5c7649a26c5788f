"""What happened to a model from version to version, in words: from the diffs of neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite, prod, sqrt
from typing import Any

from wtool.analysis.compare import Comparison
from wtool.analysis.diff import Diff, Pair
from wtool.checkpoint import Checkpoint
from wtool.keys import SEPARATORS, merged, natural, pattern, short_key
from wtool.report import Block, Column, Facts, Note, Report, Row, Table
from wtool.sizes import format_count, format_size

SCHEMA = "wtool.changelog/1"

# Up to which norm of the change, relative to that of what was there, it has which name.
_STEPS = ((1e-3, "barely moved"), (3e-2, "fine-tuned"), (0.5, "retrained"), (float("inf"), "new values"))
_ROWS = 50  # of a table that people see
_KEYS = 3  # named in a sentence
_PARTS = re.compile("([" + re.escape(SEPARATORS) + "])")
_NUMBERS = re.compile("[0-9]+")
_LAST = re.compile("[0-9]+(?=[^0-9]*$)")


def changelog(diffs: Sequence[Diff]) -> list[Report]:
    """A report for each pair of neighbours, the newest first. `diffs` in the order of the versions, values compared."""
    paths = [diff.a.source.path for diff in diffs] + [diff.b.source.path for diff in diffs[-1:]]
    names = _names(paths)
    return [_step(diff, *names[place : place + 2]) for place, diff in reversed(list(enumerate(diffs)))]


def _step(diff: Diff, before: str, after: str) -> Report:
    changed = [value for value in diff.values.values() if not value.cast]
    modules = _modules(diff)
    data: dict[str, Any] = {
        "from": diff.a.source.path,
        "to": diff.b.source.path,
        "added": [short_key(key) for key in diff.only_b],
        "removed": [short_key(key) for key in diff.only_a],
        "renamed": [{"from": short_key(pair.a), "to": short_key(pair.b)} for pair in diff.renamed],
        "transposed": [short_key(pair.a) for pair in diff.transposed],
        "reshaped": [
            {"key": short_key(p.a), "from": list(diff.a[p.a].shape), "to": list(diff.b[p.b].shape)} for p in diff.shapes
        ],
        "cast": [{"from": a, "to": b, "tensors": len(keys)} for (a, b), keys in _casts(diff).items()],
        "frozen": len(diff.same) + len(diff.values) - len(changed),
        "changed": len(changed),
        "modules": modules,
        "elements": {"from": _elements(diff.a), "to": _elements(diff.b)},
        "bytes": {"from": diff.a.nbytes, "to": diff.b.nbytes},
    }
    blocks: list[Block] = [Facts(tuple(_facts(diff, data)))]
    if not (changed or diff.structure or diff.dtypes):
        blocks.append(Note("Nothing changed.", "good"))
    blocks += _warnings(diff)
    if changed:
        blocks += _moved(modules)
    blocks += _lists(diff)
    return Report(SCHEMA, f"{after} (from {before})", data, tuple(blocks))


def _facts(diff: Diff, data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    before, after = _size(diff.a), _size(diff.b)
    yield "size", after if before == after else f"{before} -> {after}"
    for name in ("added", "removed", "renamed", "transposed", "reshaped"):
        if data[name]:
            yield name, _tensors(len(data[name]))
    for cast in data["cast"]:
        yield "cast", f"{cast['from']} -> {cast['to']}, {_tensors(cast['tensors'])}"
    if data["changed"]:
        yield "changed", _tensors(data["changed"])
    if data["frozen"]:
        yield "frozen", _tensors(data["frozen"])


def _warnings(diff: Diff) -> Iterator[Note]:
    odd = [short_key(pair.a) for pair, value in diff.values.items() if value.nonfinite]
    if odd:
        count = sum(value.nonfinite for value in diff.values.values())
        more = f" and {len(odd) - _KEYS:,} more" if len(odd) > _KEYS else ""
        values = "1 value" if count == 1 else f"{count:,} values"
        yield Note(f"{values} became or ceased to be NaN or infinite, in {', '.join(odd[:_KEYS])}{more}.", "warning")


def _moved(modules: Sequence[dict[str, Any]]) -> Iterator[Block]:
    columns = (
        Column("module", keep=True),
        Column("tensors", number=True),
        Column("changed", number=True),
        Column("relative L2", number=True),
        Column("largest", number=True),
        Column("verdict"),
    )
    rows = [
        Row(
            (
                module["module"],
                f"{module['tensors']:,}",
                f"{module['tensors'] - module['frozen']:,}",
                "" if not module["rel_l2"] else f"{module['rel_l2']:.3g}",
                "" if not module["max_abs"] else f"{module['max_abs']:.3g}",
                module["verdict"],
            )
        )
        for module in modules
    ]
    yield from _table(columns, rows, "How far it moved")


def _lists(diff: Diff) -> Iterator[Block]:
    """What was added, removed, renamed and reshaped, repeated layers together."""
    columns = (Column("tensor", keep=True), Column("dtype"), Column("shape"), Column("count", number=True))
    for keys, side, title in ((diff.only_b, diff.b, "Added"), (diff.only_a, diff.a, "Removed")):
        kind = _kind(side)
        rows = [
            Row((merged([short_key(key) for key in some]), *kind(some[0]), f"{len(some):,}")) for some in _families(keys, kind)
        ]
        yield from _table(columns, rows, title)
    there = {pair.a: pair for pair in (*diff.renamed, *diff.transposed, *diff.shapes)}
    for pairs, title in ((diff.renamed, "Renamed"), (diff.transposed, "Transposed"), (diff.shapes, "Reshaped")):
        rows = []
        for some in _families([pair.a for pair in pairs], lambda key: (pattern(there[key].b), *_change(diff, there[key]))):
            others = merged([short_key(there[key].b) for key in some]) if title == "Renamed" else ""
            was, now = _change(diff, there[some[0]])
            moved = was if was == now else f"{was} -> {now}"
            rows.append(Row((merged([short_key(key) for key in some]), others or moved, f"{len(some):,}")))
        second = Column("to", code=True) if title == "Renamed" else Column("shape")
        yield from _table((Column("tensor", keep=True), second, Column("count", number=True)), rows, title)


def _table(columns: tuple[Column, ...], rows: Sequence[Row], title: str) -> Iterator[Block]:
    if rows:
        yield Table(columns, tuple(rows[:_ROWS]), title)
    if len(rows) > _ROWS:
        yield Note(f"and {len(rows) - _ROWS:,} rows more, which the JSON has")


def _modules(diff: Diff) -> list[dict[str, Any]]:
    """Modules that share their fate, those of one pattern together: `layers.{0-7}` frozen, `layers.{8-11}` fine-tuned."""
    members: dict[str, list[Pair]] = {}
    for pair in sorted((*diff.same, *diff.values), key=lambda pair: natural(short_key(pair.a))):
        members.setdefault(_module(short_key(pair.a)), []).append(pair)
    verdicts = {name: _pooled(diff, pairs)[2] for name, pairs in members.items()}
    found = []
    for names in _families(list(members), lambda name: (verdicts[name],)):
        pairs = [pair for name in names for pair in members[name]]
        rel_l2, largest, verdict = _pooled(diff, pairs)
        frozen = sum(pair not in diff.values or diff.values[pair].cast for pair in pairs)
        found.append(
            {
                "module": merged(names),
                "tensors": len(pairs),
                "frozen": frozen,
                "rel_l2": rel_l2,
                "max_abs": largest,
                "verdict": verdict,
            }
        )
    return found


def _module(key: str) -> str:
    """The path of the layer that a key belongs to: to its first numbered part, else all but its last part."""
    parts = _PARTS.split(key)  # the separators stand between
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return "".join(parts[: place + 1])
    return "".join(parts[:-2]) or key


def _pooled(diff: Diff, pairs: Iterable[Pair]) -> tuple[float | None, float | None, str]:
    """Of all that changed by more than a cast: the relative L2, the largest difference, and what to call it.

    Counters, whole numbers that stand alone (`num_batches_tracked`), would drown the weights: they enter only the largest
    difference of modules in which nothing else changed.
    """
    values = {pair: value for pair in pairs if (value := diff.values.get(pair)) is not None and not value.cast}
    if not values:
        return 0.0, None, "unchanged"
    weights = [value for pair, value in values.items() if not _counter(diff.a, pair.a)]
    if not weights:
        return None, _largest(values.values()), "counters"
    a, d = (sum(getattr(value, f"squares_{side}") for value in weights) for side in "ad")
    # One value that is NaN or beyond f64 leaves nothing to say of the norms.
    rel_l2 = sqrt(d) / sqrt(a) if a and isfinite(a) and isfinite(d) else 0.0 if a == d == 0 else None
    verdict = "new values" if rel_l2 is None else next(word for limit, word in _STEPS if rel_l2 <= limit)
    return rel_l2, _largest(weights), verdict


def _counter(side: Checkpoint, key: str) -> bool:
    tensor = side[key]
    return tensor.elements == 1 and tensor.dtype.kind in ("int", "uint")


def _largest(values: Iterable[Comparison]) -> float | None:
    return max((value.max_abs for value in values if value.max_abs is not None and isfinite(value.max_abs)), default=None)


def _casts(diff: Diff) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for pair in diff.dtypes:
        found.setdefault((diff.a[pair.a].dtype.name, diff.b[pair.b].dtype.name), []).append(pair.a)
    return found


def _families(keys: Sequence[str], kind: Callable[[str], tuple[object, ...]]) -> list[list[str]]:
    """Keys that `merged` can say as one without claiming more than there are: of one pattern and kind, in all combinations."""
    groups: dict[object, list[str]] = {}
    for key in keys:
        groups.setdefault((pattern(key), *kind(key)), []).append(key)
    found: list[list[str]] = []
    for some in groups.values():
        if prod(len(set(numbers)) for numbers in zip(*map(_NUMBERS.findall, some), strict=True)) == len(some):
            found.append(some)
            continue
        rows: dict[str, list[str]] = {}
        for key in some:
            rows.setdefault(_LAST.sub("#", key), []).append(key)
        found += rows.values()
    return found


def _kind(side: Checkpoint) -> Callable[[str], tuple[str, str]]:
    return lambda key: (side[key].dtype.name, _shape(side[key].shape))


def _change(diff: Diff, pair: Pair) -> tuple[str, str]:
    return _shape(diff.a[pair.a].shape), _shape(diff.b[pair.b].shape)


def _names(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all share."""
    rows = [path.rstrip("/").split("/") for path in paths]
    shared = 0
    while all(len(row) > shared + 1 and row[shared] == rows[0][shared] for row in rows):
        shared += 1
    return ["/".join(row[shared:]) for row in rows]


def _size(checkpoint: Checkpoint) -> str:
    return f"{_tensors(len(checkpoint))}, {format_count(_elements(checkpoint))} elements, {format_size(checkpoint.nbytes)}"


def _elements(checkpoint: Checkpoint) -> int:
    return sum(spec.elements for spec in checkpoint.specs)


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _tensors(count: int) -> str:
    return f"{count:,} {'tensor' if count == 1 else 'tensors'}"
