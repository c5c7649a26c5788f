"""What pruning did, or would do, as a report, and the comparisons of --fail-if."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wtool.api import SavePlan, SaveReport
from wtool.errors import UsageError
from wtool.keys import merged, natural, pattern
from wtool.ops.prune import Fate, layer_of
from wtool.report import Block, Column, Facts, Note, Report, Row, Table
from wtool.sizes import format_size

if TYPE_CHECKING:
    from wtool.analysis.shares import Shares
    from wtool.checkpoint import Checkpoint

SCHEMA = "wtool.prune/1"
_ROWS = 40
_CHECK = re.compile(r"\s*(any\.)?(sparsity|energy)\s*(<=|>=|<|>)\s*([0-9.]+(?:e-?[0-9]+)?)\s*(%?)\s*")


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison that makes a report fail: of the whole, or of any tensor that was pruned."""

    text: str
    any: bool
    name: str
    sign: str
    bound: float

    def fails(self, data: Mapping[str, Any]) -> bool:
        """Whether it holds. A sparsity is compared by counts: the one nearest to the bound is equal to it."""
        if not self.any:
            return self._holds(data, data["weights"])
        return any(self._holds(row, row["elements"]) for row in data["tensors"] if row["pruned"])

    def _holds(self, row: Mapping[str, Any], elements: int) -> bool:
        value, bound = row[self.name], self.bound
        if self.name == "sparsity":
            value, bound = row["zeros"], round(self.bound * elements)
        return bool({"<": value < bound, ">": value > bound, "<=": value <= bound, ">=": value >= bound}[self.sign])


def parse_check(text: str) -> Check:
    """`sparsity<0.9`, `energy < 95%`, `any.sparsity>0.99`. UsageError."""
    found = _CHECK.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        bound = float(found[4]) / (100 if found[5] else 1)
    except ValueError:
        hint = "sparsity or energy, of any tensor with any. before it, then < > <= or >= and a number: 'sparsity<0.9'"
        raise UsageError(f"'{text}' is no comparison", hint=hint) from None
    return Check(text, found[1] is not None, found[2], found[3], bound)


def prune_report(
    source: Checkpoint,
    found: Sequence[Fate],
    asked: Mapping[str, Any],
    plan: SavePlan,
    done: SaveReport | None,
    shares: Shares | None,
    *,
    owners: Mapping[str, str],
    checks: Sequence[Check] = (),
    expected: int | None = None,
    dropped: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
    verbose: bool = False,
) -> Report:
    """`done` and `shares` are None for a dry run, of which `expected` zeros are told.

    `dropped` is what was left out before, and `beside` names the other files of a folder.

    `owners` says for each pruned key under which one its shares were collected: that of a tied tensor.
    """
    found = sorted(found, key=lambda fate: natural(fate.key))
    rows = [_row(source, fate, shares, owners) for fate in found]
    once = list(dict.fromkeys(owners.values()))
    elements = sum(source[key].elements for key in once)
    zeros = expected if shares is None else elements - sum(shares.kept[key] for key in once)
    losses = plan.losses if done is None else done.losses
    data: dict[str, Any] = {
        "source": source.source.path,
        "target": plan.target,
        "format": plan.format,
        "asked": dict(asked),
        "files": [{"path": p, "bytes": f.size} for p, f in zip(plan.paths, plan.plan.layout.files, strict=True)],
        "beside": list(beside),
        "dropped": dict(dropped) if dropped else None,
        "weights": elements,
        "zeros": zeros,
        "sparsity": None if zeros is None else _share(zeros, elements),
        "energy": None if shares is None else shares.energy(once),
        "tensors": rows,
        "layers": _layers(source, shares, once),
        "tied": [list(group) for group in plan.tied],
        "losses": [{"kind": loss.kind, "name": loss.name, "count": loss.count, "why": loss.why} for loss in losses],
        "bytes": sum(file.size for file in plan.plan.layout.files),
        "nonzero_bytes": None if shares is None else sum(shares.kept[key] * source[key].dtype.bits // 8 for key in once),
        "mask_bytes": sum(-(-source[key].elements // 8) for key in once),
        "seconds": None if done is None else round(done.seconds, 6),
        "dry_run": done is None,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in source.warnings],
    }
    data["dead"] = [row["key"] for row in rows if row["pruned"] and row["zeros"] == row["elements"]]
    data["failed"] = [check.text for check in checks if shares is not None and check.fails(data)]
    blocks: list[Block] = [_facts(data)]
    blocks += [table for table in (_pruned(data, verbose=verbose), _spared(found, verbose=verbose)) if table is not None]
    if data["dead"]:
        many = "1 tensor is" if len(data["dead"]) == 1 else f"{len(data['dead'])} tensors are"
        text = f"{many} zero throughout, such as {data['dead'][0]}: --at-most leaves every layer some, --scope tensor as many"
        blocks.append(Note(text, "warning"))
    blocks += [Note(f"fails: {text}", "warning") for text in data["failed"]]
    verb = "would become" if done is None else "->"
    return Report(SCHEMA, f"{source.source.path} {verb} {plan.target}: {plan.format}", data, tuple(blocks))


def _share(zeros: int, elements: int) -> float:
    return round(zeros / elements, 9) if elements else 0.0


def _row(source: Checkpoint, fate: Fate, shares: Shares | None, owners: Mapping[str, str]) -> dict[str, Any]:
    tensor = source[fate.key]
    row: dict[str, Any] = {
        "key": fate.key,
        "pruned": fate.key in owners,
        "why": fate.why or None,
        "dtype": tensor.dtype.name,
        "shape": list(tensor.shape),
        "elements": tensor.elements,
    }
    known = shares is not None and row["pruned"]
    zeros = tensor.elements - shares.kept[owners[fate.key]] if shares is not None and known else None
    row["zeros"] = zeros
    row["sparsity"] = None if zeros is None else _share(zeros, tensor.elements)
    row["energy"] = shares.energy([owners[fate.key]]) if shares is not None and known else None
    return row


def _layers(source: Checkpoint, shares: Shares | None, once: Sequence[str]) -> list[dict[str, Any]]:
    if shares is None:
        return []
    groups: dict[str, list[str]] = {}
    for key in once:
        groups.setdefault(layer_of(key), []).append(key)
    rows = []
    for layer in sorted(groups, key=natural):
        elements = sum(source[key].elements for key in groups[layer])
        zeros = elements - sum(shares.kept[key] for key in groups[layer])
        row = {"layer": layer, "elements": elements, "zeros": zeros, "sparsity": _share(zeros, elements)}
        rows.append({**row, "energy": shares.energy(groups[layer])})
    return rows


def _facts(data: Mapping[str, Any]) -> Facts:
    dry, weights = data["dry_run"], data["weights"]
    rows = [("asked", " ".join(f"{name.replace('_', '-')} {_said(value)}" for name, value in data["asked"].items()))]
    if (gone := data["dropped"]) is not None:
        rows += [("dropped", f"{_runs(numbers)} of {name}") for name, numbers in _lists(gone)]
        rows.append(("", f"{gone['tensors']:,} tensors, {format_size(gone['bytes'])}"))
    if data["zeros"] is not None and weights:
        rows.append(("would be zero" if dry else "zero", f"{data['zeros']:,} of {weights:,} weights, {data['sparsity']:.6g}"))
    if data["energy"] is not None and weights:
        rows.append(("energy kept", f"{data['energy']:.6g} of the sum of squares"))
    rows.append(("would write" if dry else "wrote", f"{data['target']}, {format_size(data['bytes'])}"))
    if len(data["files"]) > 1:
        rows += [("", f"{file['path']}, {format_size(file['bytes'])}") for file in data["files"]]
    if data["beside"]:
        rows.append(("beside", ", ".join(data["beside"])))
    if data["nonzero_bytes"] is not None and weights:
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


def _pruned(data: Mapping[str, Any], *, verbose: bool) -> Table | None:
    """Sparsity by tensor, or, where there are many, by layer."""
    tensors = [row for row in data["tensors"] if row["pruned"]]
    by_layer = len(tensors) > _ROWS and not verbose and data["layers"]
    rows, name = (data["layers"], "layer") if by_layer else (tensors, "key")
    if not rows:
        return None
    cut = rows if verbose else rows[:_ROWS]
    cells = [
        Row(
            (
                row[name],
                f"{row['elements']:,}",
                "" if row["sparsity"] is None else f"{row['sparsity']:.4f}",
                "" if row["energy"] is None else f"{row['energy']:.4f}",
            )
        )
        for row in cut
    ]
    title = "Pruned" if len(cut) == len(rows) else f"The first {_ROWS} of {len(rows)} rows; --verbose shows all"
    columns = (
        Column("layer" if by_layer else "tensor", keep=True),
        Column("weights", number=True),
        Column("sparsity", number=True),
        Column("energy", number=True),
    )
    return Table(columns, tuple(cells), title)


def _spared(found: Sequence[Fate], *, verbose: bool) -> Table | None:
    groups: dict[tuple[str, str], list[str]] = {}
    for fate in found:
        if not fate.pruned:
            groups.setdefault((fate.why, pattern(fate.key)), []).append(fate.key)
    rows = [
        Row((merged(sorted(keys, key=natural)), f"{len(keys):,}", why))
        for (why, _), keys in sorted(groups.items(), key=lambda item: (item[0][0], natural(item[1][0])))
    ]
    if not rows:
        return None
    cut = rows if verbose else rows[:_ROWS]
    title = "Kept as they are" if len(cut) == len(rows) else f"Kept: the first {_ROWS} of {len(rows)} rows; --verbose all"
    return Table((Column("keys", keep=True), Column("tensors", number=True), Column("why", below=True)), tuple(cut), title)
