"""What pruning did, or would do, as a report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wtool.api import SavePlan, SaveReport
from wtool.cli.prune_checks import Check
from wtool.cli.prune_text import facts, pruned
from wtool.cli.untouched import untouched
from wtool.keys import SEPARATORS, natural, short_key
from wtool.ops.prune import Fate, layer_of
from wtool.report import Block, Note, Report

if TYPE_CHECKING:
    from wtool.analysis.shares import Shares
    from wtool.checkpoint import Checkpoint

SCHEMA = "wtool.prune/1"


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
    groups: Mapping[str, Any] | None = None,
    dropped: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
    store: str | None = None,
    layouts: Mapping[str, str] | None = None,
    verbose: bool = False,
) -> Report:
    """`done` is None for a dry run, and `shares` where values were not read, of which `expected` zeros are told.

    `owners` says for each pruned key under which one its shares were collected: that of a tied tensor.

    `groups` are those of --structure. `dropped` is what was left out before, and `beside` names the other files of a folder.
    `store` is what was asked for, and `layouts` key -> layout of the tensors that are stored sparse.
    """
    found = sorted(found, key=lambda fate: natural(fate.key))
    rows = [_row(source, fate, shares, owners) for fate in found]
    once = list(dict.fromkeys(owners.values()))
    elements = sum(source[key].elements for key in once)
    zeros = expected if shares is None else elements - sum(shares.kept[key] for key in once)
    losses = plan.losses if done is None else done.losses
    filters = [key for key in once if len(source[key].shape) > 2]
    matrices = [key for key in once if len(source[key].shape) == 2]
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
        "groups": None if groups is None else dict(groups),
        "rows": sum(source[key].shape[0] for key in matrices),
        "dead_rows": None if shares is None else sum(shares.dead(key) or 0 for key in matrices),
        "filters": sum(source[key].shape[0] for key in filters),
        "dead_filters": None if shares is None else sum(shares.dead(key) or 0 for key in filters),
        "tensors": rows,
        "layers": _groups(source, shares, _by(once, lambda key: [layer_of(key)]), "layer"),
        "modules": _groups(source, shares, _modules(once), "module"),
        "tied": [list(group) for group in plan.tied],
        "losses": [{"kind": loss.kind, "name": loss.name, "count": loss.count, "why": loss.why} for loss in losses],
        "bytes_before": sum(size for _, size in source.source.files),
        "bytes": sum(file.size for file in plan.plan.layout.files),
        "nonzero_bytes": None if shares is None else sum(shares.kept[key] * source[key].dtype.bits // 8 for key in once),
        "mask_bytes": sum(-(-source[key].elements // 8) for key in once),
        "stored": _stored(source, plan, store, layouts or {}),
        "seconds": None if done is None else round(done.seconds, 6),
        "dry_run": done is None,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in source.warnings],
    }
    data["dead"] = [row["key"] for row in rows if row["pruned"] and row["zeros"] == row["elements"]]
    data["failed"] = [check.text for check in checks if shares is not None and check.fails(data)]
    blocks: list[Block] = [facts(data)]
    kept = untouched(((fate.key, fate.why) for fate in found if not fate.pruned), "Kept", verbose=verbose)
    blocks += [table for table in (*pruned(data, verbose=verbose), kept) if table is not None]
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
    row["dead_rows"] = shares.dead(owners[fate.key]) if shares is not None and known else None
    return row


def _by(keys: Sequence[str], names: Callable[[str], Sequence[str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key in keys:
        for name in names(key):
            groups.setdefault(name, []).append(key)
    return groups


def _modules(keys: Sequence[str]) -> dict[str, list[str]]:
    """Every module, at any depth, that holds more than one of these tensors."""

    def above(key: str) -> list[str]:
        return [key[: found.start()] for found in re.finditer(f"[{re.escape(SEPARATORS)}]", short_key(key)) if found.start()]

    return {name: inside for name, inside in _by(keys, above).items() if len(inside) > 1}


def _groups(source: Checkpoint, shares: Shares | None, groups: Mapping[str, Sequence[str]], name: str) -> list[dict[str, Any]]:
    if shares is None:
        return []
    rows = []
    for group in sorted(groups, key=natural):
        elements = sum(source[key].elements for key in groups[group])
        zeros = elements - sum(shares.kept[key] for key in groups[group])
        row = {name: group, "elements": elements, "zeros": zeros, "sparsity": _share(zeros, elements)}
        row["energy"] = shares.energy(groups[group])
        row["dead_rows"] = sum(shares.dead(key) or 0 for key in groups[group])
        rows.append(row)
    return rows


def _stored(source: Checkpoint, plan: SavePlan, store: str | None, layouts: Mapping[str, str]) -> dict[str, Any] | None:
    """Bytes of the tensors' values as they are stored, and dense."""
    if store is None:
        return None
    names = list(layouts.values())
    return {
        "layout": store,
        "tensors": {name: names.count(name) for name in sorted(set(names))},
        "bytes": plan.checkpoint.nbytes,
        "dense_bytes": source.nbytes,
    }
