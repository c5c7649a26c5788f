"""What an average did, or would do, as a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from wtool.analysis.spread import Spread
from wtool.api import SavePlan, SaveReport
from wtool.ops.average import Averaged
from wtool.report import Bars, Block, Facts, Note, Report
from wtool.sizes import format_size

SCHEMA = "wtool.average/1"


def average_report(
    found: Averaged, sources: Sequence[str], plan: SavePlan, done: SaveReport | None, spread: Spread | None
) -> Report:
    """`done` and `spread` are None for a dry run."""
    distances = None if spread is None else spread.distances
    outliers = [] if spread is None else spread.outliers
    policies = Counter(fate.policy for fate in found.fates)
    nbytes = sum(file.size for file in plan.plan.layout.files)
    data: dict[str, Any] = {
        "inputs": [
            {
                "path": path,
                "distance": None if distances is None else distances[number],
                "outlier": number in outliers,
            }
            for number, path in enumerate(sources)
        ],
        "target": plan.target,
        "format": plan.format,
        "files": [{"path": p, "bytes": f.size} for p, f in zip(plan.paths, plan.plan.layout.files, strict=True)],
        "tensors": [
            {"key": fate.key, "policy": fate.policy, "why": fate.why or None, "inputs": list(fate.inputs)}
            for fate in found.fates
        ],
        "policies": dict(policies),
        "bytes": nbytes,
        "seconds": None if done is None else round(done.seconds, 6),
        "dry_run": done is None,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in found.warnings],
    }
    rows = [("would write" if done is None else "wrote", f"{plan.target}, {format_size(nbytes)}")]
    rows += [(name, f"{count:,} {'tensor' if count == 1 else 'tensors'}") for name, count in policies.items()]
    if done is not None:
        rows.append(("time", f"{done.seconds:.2f} s"))
    blocks: list[Block] = [Facts(tuple(rows))]
    if distances is not None:
        bars = tuple((path, distances[number], f"{distances[number]:.3g}") for number, path in enumerate(sources))
        blocks.append(Bars(bars, "Distance to the outcome, relative L2"))
        blocks += [Note(f"{sources[number]} lies far from the others", "warning") for number in outliers]
    title = f"{len(sources)} inputs -> {plan.target}: {plan.format}"
    return Report(SCHEMA, title, data, tuple(blocks))
