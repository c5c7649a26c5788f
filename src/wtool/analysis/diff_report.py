"""The report of a diff: the verdict, what differs in structure, and how far the values moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from wtool.analysis import beside
from wtool.analysis.compare import Comparison
from wtool.analysis.diff import Diff, Pair
from wtool.analysis.diff_heat import heats
from wtool.analysis.diff_tables import cosine, dtypes, pooled, shown, structure, tensors, values
from wtool.checkpoint import Checkpoint
from wtool.keys import natural, short_key
from wtool.report import Block, Facts, Note, Report
from wtool.sizes import format_size

SCHEMA = "wtool.diff/1"
CLASSES = ("structure", "dtype", "values")
IGNORABLE = ("dtype", "order", "renamed", "transposed", "tied")

_NAMED = 4  # things that a note names


@dataclass(frozen=True)
class Part:
    """So many tensors that differ in one way. `ignored` ones are left aside, whatever their class."""

    kind: str
    count: int
    said: str
    ignored: bool = False


@dataclass(frozen=True)
class Judgement:
    """What counts: the classes of differences that make the verdict `differs`, and what is left aside.

    A tensor that is the other's cast differs in dtype, not in values; only where dtypes do not count and are not ignored
    either, it is one of other values. `rtol` and `atol` are what the diff was made with.
    """

    fail_on: tuple[str, ...] = CLASSES
    ignore: tuple[str, ...] = ()
    rtol: float = 0.0
    atol: float = 0.0

    def parts(self, diff: Diff) -> list[Part]:
        """All that differs, in words."""
        tied = [beside.left_out(side, alone) for side, alone in ((diff.a, diff.only_a), (diff.b, diff.only_b))]
        cast = sum(value.cast for value in diff.values.values())
        apart = "dtype" in self.ignore or "dtype" in self.fail_on
        names = Counter(dtypes(diff, pair) for pair in diff.dtypes)
        change = "{} -> {}".format(*next(iter(names))) if len(names) == 1 else f"{len(names)} changes"
        found = [
            Part("structure", len(diff.only_a) - len(tied[0]), "only in A"),
            Part("structure", len(diff.only_b) - len(tied[1]), "only in B"),
            Part("structure", len(tied[0]), "only in A, tied to one that both have", "tied" in self.ignore),
            Part("structure", len(tied[1]), "only in B, tied to one that both have", "tied" in self.ignore),
            Part("structure", len(diff.renamed), "renamed", "renamed" in self.ignore),
            Part("structure", len(diff.transposed), "transposed", "transposed" in self.ignore),
            Part("structure", len(diff.shapes), "of another shape"),
            Part("dtype", len(diff.dtypes), f"of another dtype ({change})", "dtype" in self.ignore),
            Part("values", len(diff.values) - cast, "with other values"),
            Part("values", 0 if apart else cast, "with other values by a cast alone"),
        ]
        return [part for part in found if part.count]

    def counted(self, part: Part) -> bool:
        return not part.ignored and part.kind in self.fail_on

    def compared(self, diff: Diff) -> bool:
        """Whether any tensor has met its like."""
        return bool(diff.same or diff.values or diff.renamed or diff.transposed or diff.shapes or diff.dtypes)

    def same(self, diff: Diff) -> int:
        """How many tensors are equal, with those whose difference is ignored."""
        cast = sum(value.cast for value in diff.values.values()) if "dtype" in self.ignore else 0
        if "dtype" in self.ignore and not diff.read:
            cast = len(diff.dtypes)
        renamed = len(diff.renamed) if "renamed" in self.ignore else 0
        return len(diff.same) + cast + renamed + (len(diff.transposed) if "transposed" in self.ignore else 0)


def diff_report(diff: Diff, judgement: Judgement, *, top: int | None = 20, exit_zero: bool = False) -> Report:
    """`top` bounds the rows of each table that people see (None: all); the JSON has all."""
    parts = judgement.parts(diff)
    counted = {name: sum(part.count for part in parts if part.kind == name and judgement.counted(part)) for name in CLASSES}
    differs = any(counted.values())
    verdict = "differs" if differs else "same"
    data: dict[str, Any] = {
        "a": diff.a.source.path,
        "b": diff.b.source.path,
        "verdict": verdict,
        "only_in_a": [short_key(key) for key in diff.only_a],
        "only_in_b": [short_key(key) for key in diff.only_b],
        "renamed": [{"from": short_key(p.a), "to": short_key(p.b), "axes": _axes(p)} for p in diff.renamed],
        "transposed": [{"key": short_key(p.a), "axes": _axes(p)} for p in diff.transposed],
        "shape": [{"key": short_key(p.a), "a": list(diff.a[p.a].shape), "b": list(diff.b[p.b].shape)} for p in diff.shapes],
        "dtype": [{"key": short_key(p.a), "a": diff.a[p.a].dtype.name, "b": diff.b[p.b].dtype.name} for p in diff.dtypes],
        "values": [_value(pair, diff.values[pair]) for pair in sorted(diff.values, key=lambda pair: natural(pair.a))],
        "same": judgement.same(diff),
        "reordered": diff.reordered,
        "compared": "values" if diff.read else "structure",
        "counted": counted,
        "fail_on": list(judgement.fail_on),
        "ignored": list(judgement.ignore),
        "rtol": judgement.rtol,
        "atol": judgement.atol,
        "totals": {"a": _totals(diff.a), "b": _totals(diff.b), "moved": _moved(diff)},
        "tied": beside.tied(diff),
        "metadata": beside.metadata(diff),
        "extras": beside.extras(diff),
        "hints": list(diff.hints),
    }
    names = _names(diff.a.source.path, diff.b.source.path)
    blocks = (
        Facts(tuple(_facts(diff, data, judgement, parts, names))),
        *_news(diff),
        *structure(diff, top),
        *values(diff, top),
        *heats(diff),
        *_notes(diff, data, judgement),
    )
    return Report(SCHEMA, f"{verdict}: {names[0]} -> {names[1]}", data, blocks, int(differs and not exit_zero))


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
    found = pooled(diff.values.values())
    return {"tensors": len(diff.values), "elements": sum(value.differing for value in diff.values.values())} | {
        name: _number(found[name]) for name in ("max_abs", "rel_l2", "cosine")
    }


def _facts(
    diff: Diff, data: Mapping[str, Any], judgement: Judgement, parts: Sequence[Part], names: tuple[str, str]
) -> Iterator[tuple[str, str]]:
    for side, name, checkpoint in zip("ab", names, (diff.a, diff.b), strict=True):
        totals = data["totals"][side]
        yield side.upper(), f"{name}, {checkpoint.source.format}, {tensors(totals['tensors'])}, {format_size(totals['bytes'])}"
    for label, counted in (("differs", True), ("not counted", False)):
        for part in parts:
            if judgement.counted(part) is counted:
                yield label, f"{part.count:,} {part.said}"
                label = ""
        if counted:
            yield "same", _same(diff, data["same"], judgement)
    for label, cast in (("moved", False), ("by the cast", True)):
        some = [value for value in diff.values.values() if value.cast is cast]
        if some:
            found = pooled(some)
            yield label, f"relative L2 {shown(found['rel_l2'])}, cosine {cosine(found['cosine'])} ({tensors(len(some))})"


def _same(diff: Diff, count: int, judgement: Judgement) -> str:
    if not diff.read:
        return f"{tensors(count)} of equal key, shape and dtype; values were not read"
    left = count - len(diff.same)
    within = f", within rtol {judgement.rtol:g} and atol {judgement.atol:g}" if judgement.rtol or judgement.atol else ""
    return tensors(count) + within + (f", {left:,} of them but for what is ignored" if left else "")


def _names(a: str, b: str) -> tuple[str, str]:
    """The paths without the folders that they share."""
    one, two = a.split("/"), b.split("/")
    shared = 0
    while shared < min(len(one), len(two)) - 1 and one[shared] == two[shared]:
        shared += 1
    return "/".join(one[shared:]), "/".join(two[shared:])


def _news(diff: Diff) -> Iterator[Block]:
    """What to know before the tables."""
    odd = {short_key(pair.a): value.nonfinite for pair, value in diff.values.items() if value.nonfinite}
    if odd:
        count = sum(odd.values())
        what = (
            f"{count:,} {'value is' if count == 1 else 'values are'} NaN or infinite on one side and not the same on the other"
        )
        yield Note(f"{what}, in {_some(list(odd))}", "warning")
    for hint in diff.hints:
        yield Note(hint)


def _notes(diff: Diff, data: Mapping[str, Any], judgement: Judgement) -> Iterator[Block]:
    """What differs and never counts."""
    aside = [f"tied in {entry['in'].upper()} only: {_some(entry['keys'])}" for entry in data["tied"]]
    if data["metadata"]:
        aside.append("metadata: " + beside.said(data["metadata"], _NAMED))
    if data["extras"]:
        aside.append("beside the tensors: " + beside.said(data["extras"], _NAMED))
    alike = diff.a.source.format == diff.b.source.format  # formats have orders of their own
    if diff.reordered and alike and "order" not in judgement.ignore:
        aside.append("the tensors stand in another order")
    for text in aside:
        yield Note(f"not counted: {text}")
    if diff.a.source.path == diff.b.source.path:
        yield Note("A and B are the same file")


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
