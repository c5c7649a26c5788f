"""The blocks of a report on pruning: what people read of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wtool.keys import merged, natural, pattern, short_key
from wtool.report import Column, Facts, Row, Table
from wtool.sizes import format_size

_ROWS = 40


def facts(data: Mapping[str, Any]) -> Facts:
    dry, weights = data["dry_run"], data["weights"]
    rows = [("asked", " ".join(f"{name.replace('_', '-')} {_said(value)}" for name, value in data["asked"].items()))]
    if (gone := data["dropped"]) is not None:
        rows += [("dropped", f"{_runs(numbers)} of {name}") for name, numbers in _lists(gone)]
        rows.append(("", f"{gone['tensors']:,} tensors, {format_size(gone['bytes'])}"))
    if data["zeros"] is not None and weights:
        rows.append(("would be zero" if dry else "zero", f"{data['zeros']:,} of {weights:,} weights, {data['sparsity']:.6g}"))
    if data["energy"] is not None and weights:
        rows.append(("energy kept", f"{data['energy']:.6g} of the sum of squares"))
    if (groups := data["groups"]) is not None and groups["zeroed"] is not None:
        rows.append(("groups", f"{groups['zeroed']:,} of {groups['groups']:,}, each a {groups['kind']}"))
    if weights:
        rows += _dead(data)
    before = f"; the source has {format_size(data['bytes_before'])}" if data["bytes_before"] else ""
    rows.append(("would write" if dry else "wrote", f"{data['target']}, {format_size(data['bytes'])}{before}"))
    if len(data["files"]) > 1:
        rows += [("", f"{file['path']}, {format_size(file['bytes'])}") for file in data["files"]]
    if data["beside"]:
        rows.append(("beside", ", ".join(data["beside"])))
    if (stored := data["stored"]) is not None:
        how = ", ".join(f"{count:,} {name}" for name, count in stored["tensors"].items()) or "all dense"
        rows.append(("stored", f"{how}: {format_size(stored['bytes'])} for {format_size(stored['dense_bytes'])}"))
    elif data["nonzero_bytes"] is not None and weights:
        rows.append(("not zero", f"{format_size(data['nonzero_bytes'])}, and {format_size(data['mask_bytes'])} of mask"))
    if data["tied"]:
        count = len(data["tied"])
        rows.append(("tied", f"{count:,} {'group' if count == 1 else 'groups'}"))
    if not dry:
        rows.append(("time", f"{data['seconds']:.2f} s"))
    return Facts(tuple(rows))


def _lists(gone: Mapping[str, Any]) -> list[tuple[str, Sequence[int]]]:
    """Names, and the numbers left out of them; layers that lost the same experts as one."""
    rows = [(prefix.rstrip("./_"), numbers) for prefix, numbers in gone.get("layers", {}).items()]
    groups: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for base, numbers in gone.get("experts", {}).items():
        groups.setdefault((tuple(numbers), pattern(base)), []).append(f"{base}experts")
    return [*rows, *((merged(sorted(names, key=natural)), numbers) for (numbers, _), names in groups.items())]


def _runs(numbers: Sequence[int]) -> str:
    """`1-3,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _dead(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Groups of which nothing is left, where there are such groups."""
    counts = [(data[f"dead_{name}"], data[name], name) for name in ("rows", "filters")]
    said = [f"{dead:,} of {of:,} {name}" for dead, of, name in counts if of and dead is not None]
    return [("dead", ", ".join(said))] if said else []


def pruned(data: Mapping[str, Any], *, verbose: bool) -> list[Table]:
    """Sparsity by tensor, or, where there are many, by layer; with `verbose` by tensor and by module."""
    tensors = [row for row in data["tensors"] if row["pruned"]]
    if len(tensors) > _ROWS and not verbose and data["layers"]:
        chosen = [("layer", "layer", data["layers"])]
    else:
        chosen = [("tensor", "key", tensors)]
        chosen += [("module", "module", data["modules"])] if verbose else []
    return [_table(title, name, rows, verbose=verbose) for title, name, rows in chosen if rows]


def _table(title: str, name: str, rows: Sequence[Mapping[str, Any]], *, verbose: bool) -> Table:
    cut = rows if verbose else rows[:_ROWS]
    cells = [
        Row(
            (
                short_key(row[name]),
                f"{row['elements']:,}",
                "" if row["sparsity"] is None else f"{row['sparsity']:.4f}",
                "" if row["energy"] is None else f"{row['energy']:.4f}",
                "" if row["dead_rows"] is None else f"{row['dead_rows']:,}",
            )
        )
        for row in cut
    ]
    columns = (
        Column(title, keep=True),
        Column("weights", number=True),
        Column("sparsity", number=True),
        Column("energy", number=True),
        Column("dead rows", number=True),
    )
    said = "Pruned" if len(cut) == len(rows) else f"The first {_ROWS} of {len(rows)} rows; --verbose shows all"
    return Table(columns, tuple(cells), said)
