"""What quantization did, or would do, as a report, and the comparisons of --fail-if."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from wtool.cli.checks import Comparison, comparison
from wtool.cli.untouched import untouched
from wtool.keys import merged, natural, pattern
from wtool.report import Block, Column, Facts, Note, Report, Row, Table
from wtool.sizes import format_size

if TYPE_CHECKING:
    from wtool.analysis.damage import Damage
    from wtool.api import SavePlan, SaveReport
    from wtool.cli.quantizing import Quantizing

SCHEMA = "wtool.quantize/1"
_ROWS = 40
_WORST = 10
_HINT = "sqnr, rel_error, max_error, clipped or bits, of all with total. before it, and a number: 'sqnr<18'"


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison that makes a report fail: of any tensor that was quantized, or of all together."""

    is_so: Comparison

    @property
    def text(self) -> str:
        return self.is_so.text

    def fails(self, data: Mapping[str, Any]) -> bool:
        whole = self.is_so.prefixed or self.is_so.name == "bits"
        return any(map(self._holds, [data["totals"]] if whole else [row for row in data["tensors"] if row["scheme"]]))

    def _holds(self, row: Mapping[str, Any]) -> bool:
        value = row[self.is_so.name]
        if value is None and self.is_so.name == "sqnr" and row["rel_error"] is not None:
            value = inf if row["rel_error"] == 0 else -inf
        return value is not None and self.is_so.holds(value)


def parse_check(text: str) -> Check:
    """`sqnr<18`, `total.sqnr < 20`, `rel_error>5%`, `bits>4.6`. UsageError."""
    return Check(comparison(text, "total", ("sqnr", "rel_error", "max_error", "clipped", "bits"), _HINT))


def quantize_report(
    work: Quantizing,
    plan: SavePlan,
    done: SaveReport | None,
    lost: Mapping[str, Damage] | None,
    checks: Sequence[Check] = (),
    *,
    verbose: bool = False,
) -> Report:
    """`done` is None for a dry run; `lost` where nothing was measured."""
    bytes_of = _bytes(work, plan)
    rows = [_row(work, fate.key, fate.scheme, fate.why, bytes_of[fate.key], lost) for fate in work.fates]
    rows.sort(key=lambda row: natural(row["key"]))
    losses = plan.losses if done is None else done.losses
    files = [{"path": p, "bytes": f.size} for p, f in zip(plan.paths, plan.plan.layout.files, strict=True)]
    data: dict[str, Any] = {
        "source": work.part.source.path,
        "target": plan.target,
        "format": plan.format,
        "layout": work.layout.name,
        "asked": work.asked.told(),
        "files": files,
        "beside": list(work.beside),
        "tensors": rows,
        "totals": _totals(work, rows, lost),
        "worst": [row["key"] for row in _worst(rows)],
        "tied": [list(group) for group in plan.tied],
        "losses": [{"kind": loss.kind, "name": loss.name, "count": loss.count, "why": loss.why} for loss in losses],
        "source_bytes": sum(size for _, size in work.part.source.files),
        "bytes": sum(file["bytes"] for file in files),
        "measured": lost is not None,
        "seconds": None if done is None else round(done.seconds, 6),
        "dry_run": done is None,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in work.part.warnings],
    }
    data["failed"] = [check.text for check in checks if lost is not None and check.fails(data)]
    left = untouched(((fate.key, fate.why) for fate in work.fates if fate.scheme is None), "Left", verbose=verbose)
    tables = (_quantized(data, verbose=verbose), _table_of_worst(data), left)
    blocks: list[Block] = [_facts(data), *(table for table in tables if table is not None)]
    blocks += [Note(f"fails: {text}", "warning") for text in data["failed"]]
    verb = "would become" if done is None else "->"
    how = plan.format if plan.format == work.layout.name else f"{plan.format}, {work.layout.name}"
    title = f"{work.part.source.path} {verb} {plan.target}: {how}"
    return Report(SCHEMA, title, data, tuple(blocks), 1 if data["failed"] else 0)


def _bytes(work: Quantizing, plan: SavePlan) -> dict[str, int]:
    """Key of the source -> bytes that its values take in the outcome, with scales and all."""
    from wtool.ops.quantize import Quantize

    step = next(step for step in reversed(plan.checkpoint.history) if isinstance(step, Quantize))
    return {key: sum(tensor.nbytes for tensor in step.became(work.part[key])) for key in work.part}


def _row(work: Quantizing, key: str, scheme: Any, why: str, nbytes: int, lost: Mapping[str, Damage] | None) -> dict[str, Any]:
    tensor = work.part[key]
    found = None if lost is None else lost.get(key)
    return {
        "key": key,
        "scheme": None if scheme is None else str(scheme),
        "method": None if scheme is None else scheme.method,
        "why": why or None,
        "dtype": tensor.dtype.name,
        "shape": list(tensor.shape),
        "elements": tensor.elements,
        "bytes": nbytes,
        "bits": round(8 * nbytes / tensor.elements, 6) if tensor.elements else None,
        **_errors(found),
    }


def _errors(found: Damage | None) -> dict[str, Any]:
    if found is None:
        return {"sqnr": None, "rel_error": None, "max_error": None, "clipped": None}
    return {
        "sqnr": round(found.sqnr, 4) if isfinite(found.sqnr) else None,
        "rel_error": float(f"{found.relative:.6g}") if isfinite(found.relative) else None,
        "max_error": float(f"{found.worst:.6g}"),
        "clipped": None if found.clipped is None else float(f"{found.clipped / max(found.elements, 1):.6g}"),
    }


def _totals(work: Quantizing, rows: Sequence[Mapping[str, Any]], lost: Mapping[str, Damage] | None) -> dict[str, Any]:
    """Of what was quantized (tied tensors once), and bits a weight of all."""
    once = {work.part[row["key"]].identity or row["key"]: row for row in rows}
    coded = [row for row in once.values() if row["scheme"]]
    damages = None if lost is None else [lost[row["key"]] for row in coded if row["key"] in lost]
    total = None
    for one in damages or ():
        total = one if total is None else total + one
    elements, everything = sum(row["elements"] for row in coded), sum(row["elements"] for row in once.values())
    nbytes, whole = sum(row["bytes"] for row in coded), sum(row["bytes"] for row in once.values())
    return {
        "tensors": len(coded),
        "elements": elements,
        "bytes": nbytes,
        "bits_quantized": round(8 * nbytes / elements, 6) if elements else None,
        "all_elements": everything,
        "all_bytes": whole,
        "bits": round(8 * whole / everything, 6) if everything else None,
        **_errors(total),
    }


def _worst(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    known = [row for row in rows if row["rel_error"]]
    return sorted(known, key=lambda row: (-row["rel_error"], natural(row["key"])))[:_WORST]


def _facts(data: Mapping[str, Any]) -> Facts:
    dry, totals = data["dry_run"], data["totals"]
    rows = [
        (
            "would quantize" if dry else "quantized",
            f"{totals['tensors']:,} of {len(data['tensors']):,} tensors, {totals['elements']:,} of "
            f"{totals['all_elements']:,} weights, {totals['bits_quantized'] or 0:.4g} bits each, scales and all",
        ),
        (
            "would write" if dry else "wrote",
            f"{data['target']}, {format_size(data['bytes'])} ({data['bytes']:,} bytes) for "
            f"{format_size(data['source_bytes'])}; {totals['bits'] or 0:.4g} bits a weight",
        ),
    ]
    if len(data["files"]) > 1:
        rows += [("", f"{file['path']}, {format_size(file['bytes'])}") for file in data["files"]]
    if data["beside"]:
        rows.append(("beside", ", ".join(data["beside"])))
    if data["measured"]:
        said = "exact" if not totals["rel_error"] else f"{_db(totals)}, relative error {totals['rel_error']:.4g}"
        rows.append(("SQNR", f"{said}, of all that was quantized"))
    if data["tied"]:
        rows.append(("tied", f"{len(data['tied']):,} {'group' if len(data['tied']) == 1 else 'groups'}"))
    if not dry:
        rows.append(("time", f"{data['seconds']:.2f} s"))
    return Facts(tuple(rows))


def _db(row: Mapping[str, Any]) -> str:
    if row["sqnr"] is not None:
        return f"{row['sqnr']:.2f} dB"
    return "exact" if row["rel_error"] == 0 else ""


_COLUMNS = (
    Column("tensor", keep=True),
    Column("scheme"),
    Column("bits", number=True),
    Column("SQNR", number=True),
    Column("rel. error", number=True),
    Column("max error", number=True, spare=True),
    Column("clipped", number=True, spare=True),
)


def _cells(name: str, rows: Sequence[Mapping[str, Any]]) -> Row:
    """One row, or several (of repeated layers, alike in scheme) with their least SQNR and largest errors."""
    worst = max(rows, key=lambda row: row["rel_error"] or 0)
    known = worst["rel_error"] is not None
    clipped = [row["clipped"] for row in rows if row["clipped"] is not None]
    return Row(
        (
            name,
            rows[0]["scheme"],
            f"{rows[0]['bits']:.4g}",
            _db(worst) if known else "",
            f"{worst['rel_error']:.4g}" if known else "",
            f"{max(row['max_error'] for row in rows):.3g}" if known else "",
            f"{max(clipped):.2%}" if clipped else "",
        )
    )


def _quantized(data: Mapping[str, Any], *, verbose: bool) -> Table | None:
    """Repeated layers in one row, with the worst of them."""
    rows = [row for row in data["tensors"] if row["scheme"]]
    if not rows:
        return None
    if verbose:
        return Table(_COLUMNS, tuple(_cells(row["key"], [row]) for row in rows), "Quantized")
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((pattern(row["key"]), row["scheme"], row["bits"]), []).append(row)
    cells = [_cells(merged([row["key"] for row in group]), group) for group in groups.values()]
    more = "; of repeated layers the worst" if len(cells) < len(rows) else ""
    cut = cells[:_ROWS]
    title = f"Quantized{more}" if len(cut) == len(cells) else f"The first {_ROWS} of {len(cells)} rows; --verbose shows all"
    return Table(_COLUMNS, tuple(cut), title)


def _table_of_worst(data: Mapping[str, Any]) -> Table | None:
    rows = {row["key"]: row for row in data["tensors"]}
    many = sum(1 for row in data["tensors"] if row["scheme"])
    if many <= _WORST or not data["worst"]:
        return None
    return Table(_COLUMNS, tuple(_cells(key, [rows[key]]) for key in data["worst"]), "The worst ten")
