"""What a conversion did, or would do, as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wtool import between
from wtool.api import SavePlan, SaveReport
from wtool.checkpoint import Checkpoint
from wtool.maps.resolve import Resolved
from wtool.maps.table import mapped_blocks, mapped_data
from wtool.report import Block, Column, Facts, Note, Report, Row, Table
from wtool.sizes import format_size
from wtool.tensor import BLOCK, STRIPE

SCHEMA = "wtool.convert/1"


class Reports(NamedTuple):
    """`whole` names the losses; `brief`, for a screen where stderr names them, does not. `notes` are of a mapping."""

    whole: Report
    brief: Report
    notes: tuple[str, ...]


def convert_report(
    source: Checkpoint,
    plan: SavePlan,
    done: SaveReport | None,
    *,
    renamed: int,
    verified: str | None,
    jobs: int,
    memory: int | None,
    resolved: Sequence[Resolved] = (),
) -> Reports:
    """`done` is None for a dry run. `renamed` is a number of keys, `memory` the bound that was asked for, in bytes.

    `resolved` is what each recipe did; the rows of a dry run's table.
    """
    sizes = [file.size for file in plan.plan.layout.files]
    tensors = plan.checkpoint.tensors
    nbytes = sum(tensor.nbytes for tensor in plan.tensors.values())
    seconds = None if done is None else done.seconds
    data: dict[str, Any] = {
        "source": source.source.path,
        "source_format": source.source.format,
        "target": plan.target,
        "format": plan.format,
        "files": [{"path": path, "bytes": size} for path, size in zip(plan.paths, sizes, strict=True)],
        "tensors": len(tensors),
        "bytes": sum(sizes),
        "tensor_bytes": nbytes,
        "seconds": None if seconds is None else round(seconds, 6),
        "rate": None if not seconds else round(sum(sizes) / seconds),
        "dtype_changes": _casts(plan, done),
        "losses": [
            {"kind": loss.kind, "name": loss.name, "count": loss.count, "bytes": loss.nbytes, "why": loss.why}
            for loss in (plan.losses if done is None else done.losses)
        ],
        "tied": [list(group) for group in plan.tied],
        "tied_policy": plan.tied_policy,
        "renamed": renamed,
        "copied_bytes": plan.plan.copied,
        "peak_memory": min(memory or _default(plan, jobs), _default(plan, jobs)),
        "verified": verified,
        "dry_run": done is None,
        "notes": list(plan.notes),
        "warnings": [{"code": warning.code, "message": warning.message} for warning in plan.checkpoint.warnings],
    }
    data |= mapped_data(resolved)
    notes = between.notes(resolved, plan.format)
    data["notes"] += notes
    facts = _facts(data)
    title = f"{source.source.path} -> {plan.target}: {'would write ' if done is None else ''}{plan.format}"
    blocks: tuple[Block, ...] = (*(mapped_blocks(resolved) if done is None else ()), facts)
    brief = Report(SCHEMA, title, data, blocks)
    blocks = (*blocks, *(Note(note) for note in notes))
    if data["losses"]:
        blocks = (*blocks, _losses(data["losses"], future=done is None))
    return Reports(Report(SCHEMA, title, data, blocks), brief, tuple(notes))


def _default(plan: SavePlan, jobs: int) -> int:
    """An upper bound on the bytes of blocks that all threads hold at once."""
    return min(plan.plan.memory, STRIPE + 8 * BLOCK) * plan.plan.threads(jobs)


def _casts(plan: SavePlan, done: SaveReport | None) -> list[dict[str, Any]]:
    """One entry for each pair of dtypes; the counts of values are null in a dry run, which reads none."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, tensor in plan.tensors.items():
        if tensor.dtype is tensor.stored:
            continue
        pair = (tensor.stored.name, tensor.dtype.name)
        row = found.setdefault(
            pair, {"from": pair[0], "to": pair[1], "tensors": 0, "elements": 0, "overflow": None, "underflow": None}
        )
        row["tensors"] += 1
        row["elements"] += tensor.elements
        if done is not None:
            row["overflow"] = (row["overflow"] or 0) + done.overflow.get(key, 0)
            row["underflow"] = (row["underflow"] or 0) + done.underflow.get(key, 0)
    return list(found.values())


def _facts(data: Mapping[str, Any]) -> Facts:
    dry, files = data["dry_run"], data["files"]
    rows = [("would write" if dry else "wrote", f"{file['path']}, {format_size(file['bytes'])}") for file in files[:1]]
    if len(files) > 1:
        rows = [(rows[0][0], f"{len(files):,} files, {format_size(data['bytes'])}")]
        rows += [("", f"{file['path']}, {format_size(file['bytes'])}") for file in files]
    rows.append(("tensors", f"{data['tensors']:,}, {format_size(data['tensor_bytes'])}"))
    for cast in data["dtype_changes"]:
        text = f"{cast['from']} -> {cast['to']}, {_tensors(cast['tensors'])}"
        if cast["overflow"]:
            text += f", {cast['overflow']:,} values overflow to Inf"
        if cast["underflow"]:
            text += f", {cast['underflow']:,} values underflow to 0"
        rows.append(("cast", text))
    if data["map"]:
        exact = [row["exact"] for row in data["map"]]
        counts = [f"{exact.count(kind):,} {kind}" for kind in ("exact", "function", "lossy") if kind in exact]
        rows.append(("mapped", f"{', '.join(data['recipes'])}: {', '.join(counts)}"))
    for name, word in (("dropped", "dropped"), ("filled", "filled"), ("kept", "kept as is")):
        if data[name]:
            keys = data[name]
            more = f" and {len(keys) - 3:,} more" if len(keys) > 3 else ""
            rows.append((word, f"{len(keys):,}: {', '.join(keys[:3])}{more}"))
    if data["renamed"]:
        rows.append(("renamed", f"{data['renamed']:,} keys"))
    if data["tied"]:
        rows.append(
            ("tied", f"{len(data['tied']):,} {'group' if len(data['tied']) == 1 else 'groups'}, {data['tied_policy']}")
        )
    rows.append(("copied", f"{format_size(data['copied_bytes'])} as they are"))
    kinds: dict[str, list[str]] = {}
    for loss in data["losses"]:
        many = f" ({_tensors(loss['count'])})" if loss["kind"] == "section" else ""
        many = f" ({loss['count']:,})" if loss["kind"] == "overflow" else many
        kinds.setdefault(loss["kind"], []).append(f"{loss['name']}{many}")
    for kind, names in kinds.items():
        rows.append(("would be lost" if dry else "lost", f"{kind} {', '.join(names)}"))
    if dry:
        rows.append(("memory", f"at most {format_size(data['peak_memory'])} for blocks"))
    else:
        rows.append(("time", f"{data['seconds']:.2f} s, {format_size(data['rate'] or 0)}/s"))
    if data["verified"]:
        rows.append(("verified", f"equal, by {data['verified']}"))
    return Facts(tuple(rows))


def _tensors(count: int) -> str:
    return f"{count:,} {'tensor' if count == 1 else 'tensors'}"


def _losses(losses: list[dict[str, Any]], *, future: bool) -> Table:
    columns = (
        Column("kind"),
        Column("name"),
        Column("count", number=True),
        Column("size", number=True),
        Column("why"),
    )
    rows = tuple(
        Row(
            (
                loss["kind"],
                loss["name"],
                f"{loss['count']:,}",
                format_size(loss["bytes"]) if loss["bytes"] else "",
                loss["why"],
            )
        )
        for loss in losses
    )
    return Table(columns, rows, "Would be lost" if future else "Lost")
