"""What an average did, or would do, as a report."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from wtool.analysis.spread import Spread
from wtool.api import SavePlan, SaveReport
from wtool.keys import merged, natural, pattern
from wtool.ops.average import Averaged
from wtool.report import Block, Column, Facts, Note, Report, Row, Table
from wtool.sizes import format_size
from wtool.tensor import BLOCK, STRIPE

if TYPE_CHECKING:
    from wtool.cli.average import Work

SCHEMA = "wtool.average/1"
_PIECE = 1 << 18  # bytes of an input in f64 that are worked on at a time
_ROWS = 40
_NUMBERS = ("decay", "t", "scale", "density", "seed", "trim_scope", "vote", "compat")  # that a method may have been told


def average_report(
    work: Work,
    found: Averaged,
    plan: SavePlan,
    done: SaveReport | None,
    spread: Spread | None,
    *,
    jobs: int,
    memory: int | None,
    verbose: bool = False,
) -> Report:
    """`done` and `spread` are None for a dry run. `jobs` threads, `memory` the bound that was asked for, in bytes."""
    distances = [None] * len(work.picked) if spread is None else spread.distances
    outliers = [] if spread is None else spread.outliers
    recipe = work.asked.data()
    weights = work.asked.settings.weights
    nbytes = sum(file.size for file in plan.plan.layout.files)
    losses = plan.losses if done is None else done.losses
    data: dict[str, Any] = {
        "method": work.asked.settings.method,
        "inputs": [
            {
                "path": one.path,
                "step": one.step,
                "metric": one.metric,
                "weight": None if weights is None else weights[number],
                "distance": distances[number],
                "outlier": number in outliers,
                **{name: value for name, value in recipe["inputs"][number].items() if name != "path"},
            }
            for number, one in enumerate(work.picked)
        ],
        "base": recipe["base"],
        "target": plan.target,
        "format": plan.format,
        "files": [{"path": p, "bytes": f.size} for p, f in zip(plan.paths, plan.plan.layout.files, strict=True)],
        "tensors": [
            {"key": fate.key, "policy": fate.policy, "why": fate.why or None, "inputs": list(fate.inputs)}
            for fate in found.fates
        ],
        "policies": dict(Counter(fate.policy for fate in found.fates)),
        "tied": [list(group) for group in plan.tied],
        "losses": [{"kind": loss.kind, "name": loss.name, "count": loss.count, "why": loss.why} for loss in losses],
        "read": _read(work, found),
        "bytes": nbytes,
        "peak_memory": _memory(plan, len(work.picked), jobs, memory),
        "seconds": None if done is None else round(done.seconds, 6),
        "dry_run": done is None,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in found.warnings],
        "recipe": recipe,
    }
    blocks: list[Block] = [_inputs(data), _facts(data, done is None)]
    table = _fates(found, every=done is None or verbose)
    if table is not None:
        blocks.append(table)
    blocks += [Note(f"{work.picked[number].path} lies far from the others", "warning") for number in outliers]
    verb = "would become" if done is None else "->"
    many = "1 input" if len(work.picked) == 1 else f"{len(work.picked)} inputs"
    return Report(SCHEMA, f"{many} {verb} {plan.target}: {plan.format}", data, tuple(blocks))


def _read(work: Work, found: Averaged) -> int:
    """Bytes of the values that take part, what is tied once."""
    seen: dict[object, int] = {}
    for fate in found.fates:
        for number in fate.inputs:
            tensor = work.inputs[number][found.own[number][fate.key]]
            seen[number, tensor.identity or fate.key] = tensor.nbytes
    return sum(seen.values())


def _memory(plan: SavePlan, count: int, jobs: int, memory: int | None) -> int:
    """An upper bound on the bytes of blocks and of pieces in f64 that all threads hold at once."""
    blocks = min(plan.plan.memory, STRIPE + 8 * BLOCK) + 2 * BLOCK
    threads = plan.plan.threads(jobs)
    return threads * (min(blocks, (memory or blocks * threads) // threads) + min(count + 4, 12) * _PIECE)


def _inputs(data: dict[str, Any]) -> Table:
    rows = data["inputs"]
    columns, cells = [Column("input", keep=True)], [[row["path"] for row in rows]]
    for name, form in (("step", "{:,}"), ("metric", "{:g}"), ("weight", "{:g}"), ("distance", "{:.3g}")):
        if any(row[name] is not None for row in rows):
            columns.append(Column(name, number=True))
            cells.append(["" if row[name] is None else form.format(row[name]) for row in rows])
    title = (
        "Inputs; the distance is to the outcome, relative L2" if any(row["distance"] is not None for row in rows) else "Inputs"
    )
    return Table(tuple(columns), tuple(Row(row) for row in zip(*cells, strict=True)), title)


def _facts(data: dict[str, Any], dry: bool) -> Facts:
    options = {name.replace("_", "-"): value for name, value in data["recipe"].items() if name in _NUMBERS}
    rows = [("method", " ".join([data["method"], *(f"{name} {value}" for name, value in options.items())]))]
    if data["base"] is not None:
        rows.append(("base", data["base"]["path"]))
    rows.append(("would write" if dry else "wrote", f"{data['target']}, {format_size(data['bytes'])}"))
    if len(data["files"]) > 1:
        rows += [("", f"{file['path']}, {format_size(file['bytes'])}") for file in data["files"]]
    rows += [(name, f"{count:,} {'tensor' if count == 1 else 'tensors'}") for name, count in data["policies"].items()]
    if data["tied"]:
        count = len(data["tied"])
        rows.append(("tied", f"{count:,} {'group' if count == 1 else 'groups'}"))
    if dry:
        rows.append(("would read", format_size(data["read"])))
        rows.append(("memory", f"at most {format_size(data['peak_memory'])} for blocks"))
    else:
        rows.append(("time", f"{data['seconds']:.2f} s"))
    return Facts(tuple(rows))


def _fates(found: Averaged, *, every: bool) -> Table | None:
    """What happens to which keys, those of repeated layers together; what is simply averaged only in a plan."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for fate in found.fates:
        if every or fate.policy != "mean":
            why = "" if fate.policy == "mean" and len(found.fates) > _ROWS and not every else fate.why
            groups.setdefault((fate.policy, why, pattern(fate.key)), []).append(fate.key)
    rows = [
        Row((policy, f"{len(keys):,}", merged(sorted(keys, key=natural)), why))
        for (policy, why, _), keys in sorted(groups.items(), key=lambda item: (item[0][0], natural(item[1][0])))
    ]
    if not rows:
        return None
    cut = rows[:_ROWS] if not every else rows
    title = "What happens to which keys" if len(cut) == len(rows) else f"The first {_ROWS} of {len(rows)} rows; --verbose all"
    columns = (Column("policy"), Column("tensors", number=True), Column("keys", keep=True), Column("why", below=True))
    return Table(columns, tuple(cut), title)
