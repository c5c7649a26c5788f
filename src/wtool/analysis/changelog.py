"""What happened to a model from version to version, in words: from the diffs of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from os.path import basename
from typing import Any

from wtool.analysis.compare import Comparison
from wtool.analysis.diff import Diff, Pair
from wtool.checkpoint import Checkpoint
from wtool.keys import merged, natural, pattern, short_key
from wtool.report import Block, Column, Facts, Note, Report, Row, Table
from wtool.sizes import format_count, format_size

SCHEMA = "wtool.changelog/1"

_STEPS = ((0.0, "unchanged"), (1e-3, "barely moved"), (3e-2, "fine-tuned"), (0.5, "retrained"), (float("inf"), "new values"))


def changelog(diffs: Sequence[Diff]) -> list[Report]:
    """A report for each pair of neighbours, the newest first. `diffs` in the order of the versions, values compared."""
    return [_step(diff) for diff in reversed(diffs)]


def _step(diff: Diff) -> Report:
    before, after = (_name(side) for side in (diff.a, diff.b))
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
        "frozen": len(diff.same),
        "changed": sum(not value.cast for value in diff.values.values()),
        "modules": modules,
        "elements": {"from": _elements(diff.a), "to": _elements(diff.b)},
        "bytes": {"from": diff.a.nbytes, "to": diff.b.nbytes},
    }
    blocks: list[Block] = [Facts(tuple(_facts(diff, data)))]
    if modules:
        columns = (
            Column("module", keep=True),
            Column("tensors", number=True),
            Column("frozen", number=True),
            Column("relative L2", number=True),
            Column("largest", number=True),
            Column(""),
        )
        rows = tuple(
            Row(
                (
                    module["module"],
                    f"{module['tensors']:,}",
                    f"{module['frozen']:,}",
                    "" if not module["rel_l2"] else f"{module['rel_l2']:.3g}",
                    "" if not module["max_abs"] else f"{module['max_abs']:.3g}",
                    module["verdict"],
                )
            )
            for module in modules
        )
        blocks.append(Table(columns, rows, "How far it moved"))
    for keys, title in ((diff.only_b, "Added"), (diff.only_a, "Removed")):
        if keys:
            side = diff.b if title == "Added" else diff.a
            blocks.append(_list(keys, side, title))
    if not (data["changed"] or diff.structure or diff.dtypes):
        blocks.append(Note("Nothing changed.", "good"))
    return Report(SCHEMA, f"{after} (from {before})", data, tuple(blocks))


def _facts(diff: Diff, data: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "size", f"{_size(diff.a)} -> {_size(diff.b)}" if _size(diff.a) != _size(diff.b) else _size(diff.a)
    for name in ("added", "removed", "renamed", "transposed", "reshaped"):
        if data[name]:
            yield name, _tensors(len(data[name]))
    for cast in data["cast"]:
        yield "cast", f"{cast['from']} -> {cast['to']}, {_tensors(cast['tensors'])}"
    yield "changed", _tensors(data["changed"])
    yield "unchanged", _tensors(data["frozen"])


def _modules(diff: Diff) -> list[dict[str, Any]]:
    """Modules that share their fate, those of one pattern together: `layers.{0-7}` frozen, `layers.{8-11}` fine-tuned."""
    members: dict[str, list[Pair]] = {}
    for pair in sorted((*diff.same, *diff.values), key=lambda pair: natural(short_key(pair.a))):
        members.setdefault(_module(short_key(pair.a)), []).append(pair)
    groups: dict[object, list[str]] = {}
    for name, pairs in members.items():
        verdict = _verdict(_pooled(diff, pairs)[0])
        groups.setdefault((pattern(name), verdict), []).append(name)
    found = []
    for names in groups.values():
        pairs = [pair for name in names for pair in members[name]]
        rel_l2, largest = _pooled(diff, pairs)
        frozen = sum(pair not in diff.values or diff.values[pair].cast for pair in pairs)
        found.append(
            {
                "module": merged(names),
                "tensors": len(pairs),
                "frozen": frozen,
                "rel_l2": rel_l2,
                "max_abs": largest,
                "verdict": _verdict(rel_l2),
            }
        )
    return found


def _module(key: str) -> str:
    """The path of the layer that a key belongs to: to its first numbered part, else its first part."""
    parts = key.replace("/", ".").split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1]) or key


def _pooled(diff: Diff, pairs: Iterable[Pair]) -> tuple[float | None, float | None]:
    """The relative L2 and the largest difference of all values that changed by more than a cast; None if nothing did."""
    values: list[Comparison] = [diff.values[pair] for pair in pairs if pair in diff.values and not diff.values[pair].cast]
    if not values:
        return 0.0, None
    a, d = (sum(getattr(value, f"squares_{side}") for value in values) for side in "ad")
    largest = max((value.max_abs for value in values if value.max_abs is not None), default=None)
    return (sqrt(d / a) if a else None), largest


def _verdict(rel_l2: float | None) -> str:
    return "new values" if rel_l2 is None else next(word for limit, word in _STEPS if rel_l2 <= limit)


def _casts(diff: Diff) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for pair in diff.dtypes:
        found.setdefault((diff.a[pair.a].dtype.name, diff.b[pair.b].dtype.name), []).append(pair.a)
    return found


def _list(keys: Sequence[str], side: Checkpoint, title: str) -> Table:
    groups: dict[object, list[str]] = {}
    shown: Callable[[str], str] = short_key
    for key in keys:
        groups.setdefault((pattern(key), side[key].shape, side[key].dtype.name), []).append(key)
    rows = tuple(
        Row((merged([shown(key) for key in some]), side[some[0]].dtype.name, _shape(side[some[0]].shape), f"{len(some):,}"))
        for some in groups.values()
    )
    return Table((Column("tensor", keep=True), Column("dtype"), Column("shape"), Column("count", number=True)), rows, title)


def _name(checkpoint: Checkpoint) -> str:
    return basename(checkpoint.source.path.rstrip("/")) or checkpoint.source.path


def _size(checkpoint: Checkpoint) -> str:
    return f"{_tensors(len(checkpoint))}, {format_count(_elements(checkpoint))} elements, {format_size(checkpoint.nbytes)}"


def _elements(checkpoint: Checkpoint) -> int:
    return sum(spec.elements for spec in checkpoint.specs)


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _tensors(count: int) -> str:
    return f"{count:,} {'tensor' if count == 1 else 'tensors'}"
