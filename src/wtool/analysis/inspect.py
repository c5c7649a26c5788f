"""What is in a checkpoint, from its headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from wtool.analysis.looks import looks_like
from wtool.analysis.plain import Plain, lines, short
from wtool.analysis.tree import Branch, tree
from wtool.checkpoint import Checkpoint
from wtool.dtypes import DType
from wtool.keys import natural, short_key
from wtool.report import Block, Column, Facts, Note, Report, Row, Table
from wtool.sizes import format_count, format_size
from wtool.sparse import stored_sparse
from wtool.tensor import LazyTensor, TensorSpec

if TYPE_CHECKING:
    from wtool.layout import Quantized

SCHEMA = "wtool.inspect/1"

_FAMILIES = {"torch": "PyTorch", "tensorflow": "TensorFlow", "gguf": "GGUF"}
_LINES = 24  # lines of metadata, extras, ties and names that people see unless they ask for all
_WORDS = ("digest", "values")  # added columns that are no numbers
_DANGER = "dangerous-globals"  # the code of a reader's own warning
_SETTINGS = ("hyper_parameters", "hparams", "args", "cfg", "config", "train_args", "model_args")
_WIDTHS = (("f32", 32), ("f16", 16), ("int8", 8), ("int4", 4))

Values = Mapping[str, Mapping[str, Any]]
Cells = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class View:
    """What to show: the choices of the command line.

    `sort` None is the order of the file. `depth` is the number of levels of the tree. `verbose` shows every line.
    """

    flat: bool = False
    sort: Literal["size", "key"] | None = None
    depth: int | None = None
    verbose: bool = False


def inspect(
    whole: Checkpoint,
    chosen: Checkpoint | None = None,
    view: View = View(),
    *,
    values: Values | None = None,
    cells: Cells | None = None,
    digest: str | None = None,
    quantized: Mapping[str, Quantized] | None = None,
) -> Report:
    """The report of `whole` (all sections, as opened), with the tensors of `chosen`, a part of it (None: the model's weights).

    `values` adds fields to single tensors, by key (a digest, statistics), and `cells` columns to the flat list, by key and by
    title; `digest` is that of all chosen tensors. `quantized`: what stands for what is stored in parts; the tree shows it.
    Exit code 1 if the checkpoint names something dangerous.
    """
    chosen = whole.section() if chosen is None else chosen
    tensors = list(chosen.tensors.values())
    plain = Plain()
    extras = plain(dict(whole.extras))
    data = _data(whole, chosen, values or {}, digest, extras, quantized or {})
    if plain.cut:
        data["warnings"].append({"code": "extras-cut", "message": "the extras are too large to be shown whole"})
    blocks: list[Block] = [_facts(whole, chosen, data)]
    if len(whole.sections) > 1:
        blocks.append(_sections(data))
    if tensors:
        blocks.append(_flat(tensors, view, cells or {}) if view.flat else _tree(tensors, view, quantized or {}))
    blocks += _others(data, view)
    dangerous = any(found.verdict == "dangerous" for found in whole.globals)
    return Report(SCHEMA, _title(whole, data), data, tuple(blocks), exit_code=int(dangerous))


def _data(
    checkpoint: Checkpoint,
    chosen: Checkpoint,
    values: Values,
    digest: str | None,
    extras: Any,
    quantized: Mapping[str, Quantized],
) -> dict[str, Any]:
    parts = {part for one in quantized.values() for part in one.parts}
    homes = {key: section.name for section in chosen.sections for key in section.keys}
    order = sorted(chosen.tensors, key=natural)
    tied = _tied(chosen, order)
    first = {key: group[0] for group in tied for key in group[1:]}
    tensors: list[dict[str, Any]] = []
    dtypes: dict[str, dict[str, int]] = {}
    unique = 0
    floats = other = 0
    for key in order:
        tensor = chosen.tensors[key]
        dtype = tensor.spec.dtype
        elements = prod(tensor.spec.shape)
        nbytes = dtype.nbytes(elements)
        row = {
            "key": key,
            "section": homes.get(key),
            "dtype": dtype.name,
            "shape": list(tensor.spec.shape),
            "elements": elements,
            "bytes": nbytes,
            "tied_to": first.get(key),
        }
        row.update(values.get(key, {}))
        tensors.append(row)
        sums = dtypes.setdefault(dtype.name, {"tensors": 0, "bytes": 0})
        sums["tensors"] += 1
        sums["bytes"] += nbytes
        if key not in first:
            unique += nbytes
            if key in parts:
                continue
            if dtype.kind == "float":
                floats += elements
            else:
                other += nbytes
    floats += sum(prod(one.shape) for one in quantized.values())
    source = checkpoint.source
    sizes = {"disk": sum(size for _, size in source.files), "unique": unique}
    sizes.update({name: (floats * bits + 7) // 8 + other for name, bits in _WIDTHS})
    data: dict[str, Any] = {
        "path": source.path,
        "format": source.format,
        "variant": source.variant,
        "framework": source.framework,
        "looks_like": looks_like(map(short_key, order)),
        "files": [{"path": path, "bytes": size} for path, size in source.files],
        "sections": _section_rows(checkpoint),
        "tensors": tensors,
        "totals": {
            "tensors": len(tensors),
            "elements": sum(row["elements"] for row in tensors),
            "bytes": sum(row["bytes"] for row in tensors),
            "parameters": floats,
        },
        "dtypes": dict(sorted(dtypes.items(), key=lambda item: (-item[1]["bytes"], item[0]))),
        "sizes": sizes,
        "tied": tied,
        "sparse": len(stored_sparse(chosen.tensors, checkpoint.extras)),
        "quantized": _quantized(quantized),
        "metadata": dict(checkpoint.metadata),
        "extras": extras,
        "globals": [{"name": found.name, "verdict": found.verdict} for found in checkpoint.globals],
        "warnings": [{"code": warning.code, "message": warning.message} for warning in chosen.warnings],
    }
    if digest is not None:
        data["digest"] = digest
    return data


def _quantized(found: Mapping[str, Quantized]) -> list[dict[str, Any]]:
    rows = []
    for key in sorted(found, key=natural):
        one = found[key]
        elements = prod(one.shape)
        row = {"key": key, "layout": one.layout, "scheme": one.scheme, "dtype": one.dtype.name, "shape": list(one.shape)}
        bits = round(8 * one.nbytes / elements, 6) if elements else None
        rows.append({**row, "elements": elements, "bytes": one.nbytes, "bits": bits, "parts": list(one.parts)})
    return rows


def _tied(chosen: Checkpoint, order: list[str]) -> list[list[str]]:
    place = {key: index for index, key in enumerate(order)}
    groups = [sorted(group, key=place.__getitem__) for group in chosen.tied()]
    return sorted(groups, key=lambda group: place[group[0]])


def _section_rows(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    rows = []
    for section in checkpoint.sections:
        members = [checkpoint.tensors[key] for key in section.keys]
        rows.append(
            {
                "name": section.name,
                "kind": section.kind,
                "tensors": len(members),
                "elements": sum(tensor.elements for tensor in members),
                "bytes": sum(tensor.nbytes for tensor in members),
            }
        )
    return rows


def _title(checkpoint: Checkpoint, data: Mapping[str, Any]) -> str:
    source = checkpoint.source
    name = _FAMILIES.get(source.format, source.format)
    known = f"{name} ({source.variant})" if source.variant not in ("", "single") else name
    words = [known]
    if source.framework and source.framework.lower() not in (name.lower(), source.format):
        words.append(f"from {source.framework}")
    if data["looks_like"]:
        words.append(f"looks like {data['looks_like']}")
    parameters = data["totals"]["parameters"]
    if parameters:
        words.append(f"{format_count(parameters)} parameters")
    return f"{source.path}: {', '.join(words)}"


def _facts(checkpoint: Checkpoint, chosen: Checkpoint, data: Mapping[str, Any]) -> Facts:
    totals, sizes, files = data["totals"], data["sizes"], checkpoint.source.files
    rows = [
        ("on disk", format_size(sizes["disk"]) + (f" in {len(files):,} files" if len(files) > 1 else "")),
        ("tensors", f"{totals['tensors']:,}, {totals['elements']:,} elements, {format_size(totals['bytes'])}"),
    ]
    if len(checkpoint.sections) > 1:
        name = chosen.sections[0].name if len(chosen.sections) == 1 else "all sections"
        rows[-1] = (rows[-1][0], f"{rows[-1][1]} ({name})")
    if data["dtypes"]:
        kinds = [f"{name} {sums['tensors']:,} ({format_size(sums['bytes'])})" for name, sums in data["dtypes"].items()]
        rows.append(("dtypes", ", ".join(kinds)))
        rows.append(("would be", ", ".join(f"{name} {format_size(sizes[name])}" for name, _ in _WIDTHS)))
    if data["sparse"]:
        text = f"{_counted(data['sparse'], 'tensor')} stored as several: `wtool convert --densify` makes them dense"
        rows.append(("sparse", text))
    for layout, scheme in dict.fromkeys((row["layout"], row["scheme"]) for row in data["quantized"]):
        some = [row for row in data["quantized"] if (row["layout"], row["scheme"]) == (layout, scheme)]
        elements = sum(row["elements"] for row in some)
        bits = 8 * sum(row["bytes"] for row in some) / max(elements, 1)
        many = f"{_counted(len(some), 'tensor')}, {format_count(elements)} weights"
        rows.append(("quantized", f"{layout} {scheme}: {many} in {bits:.4g} bits each, with scales"))
    if data["tied"]:
        saved = totals["bytes"] - sizes["unique"]
        rows.append(("tied", f"{_counted(len(data['tied']), 'group')}, {format_size(saved)} counted more than once"))
    if "digest" in data:
        rows.append(("digest", data["digest"]))
    return Facts(tuple(rows))


def _sections(data: Mapping[str, Any]) -> Table:
    columns = (Column("section", keep=True), Column("kind"), Column("tensors", number=True), Column("size", number=True))
    rows = tuple(
        Row((section["name"], section["kind"], f"{section['tensors']:,}", format_size(section["bytes"])))
        for section in data["sections"]
    )
    return Table(columns, rows)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


_TREE = (Column("tensor"), Column("dtype", keep=True), Column("shape", keep=True), Column("size", number=True, keep=True))


def _logical(tensors: list[LazyTensor], quantized: Mapping[str, Quantized]) -> Iterator[TensorSpec]:
    """What a file says of its tensors, and of those in parts what they stand for: the scheme as dtype, the bytes of all."""
    first = {one.parts[0]: one for one in quantized.values()}
    parts = {part for one in quantized.values() for part in one.parts}
    kinds: dict[tuple[str, int, int], DType] = {}
    for tensor in tensors:
        if tensor.key in first:
            one = first[tensor.key]
            what = (one.scheme, prod(one.shape), one.nbytes)
            row = kinds.setdefault(what, DType(one.scheme, 1, "float", block=what[1:]))
            yield TensorSpec(one.key, row, one.shape)
        elif tensor.key not in parts:
            yield tensor.spec


def _tree(tensors: list[LazyTensor], view: View, quantized: Mapping[str, Quantized]) -> Table:
    rows: list[Row] = []

    def show(branches: list[Branch], depth: int) -> None:
        if view.sort == "size":
            branches = sorted(branches, key=lambda branch: -branch.nbytes)
        elif view.sort == "key":
            branches = sorted(branches, key=lambda branch: natural(branch.name))
        for branch in branches:
            name = branch.name if depth or branch.label[:1] in "./" else branch.label
            inner = bool(branch.children) and (view.depth is None or depth + 1 < view.depth)
            if branch.spec is None:
                cells = (name, "", _counted(branch.tensors, "tensor"), format_size(branch.nbytes))
            else:
                one = branch.spec.nbytes
                size = format_size(one) if branch.repeats == 1 else f"{branch.repeats:,} × {format_size(one)}"
                cells = (name, branch.spec.dtype.name, _shape(branch.spec.shape), size)
            rows.append(Row(cells, depth, heading=branch.spec is None))
            if inner:
                show(branch.children, depth + 1)

    show(tree(_logical(tensors, quantized)), 0)
    return Table(_TREE, tuple(rows))


def _flat(tensors: list[LazyTensor], view: View, cells: Cells) -> Table:
    if view.sort == "size":
        tensors = sorted(tensors, key=lambda tensor: (-tensor.nbytes, natural(tensor.key)))
    elif view.sort == "key":
        tensors = sorted(tensors, key=lambda tensor: natural(tensor.key))
    titles = list(dict.fromkeys(title for row in cells.values() for title in row))
    # Beside numbers of the values there is no room for what the dtype and the shape tell already.
    base = _TREE[:3] if titles else _TREE
    columns = (*base, *(Column(title, number=title not in _WORDS, keep=True) for title in titles))
    rows = []
    for tensor in tensors:
        spec = tensor.spec
        found = cells.get(spec.key, {})
        more = (found.get(title, "-") for title in titles)
        cells_of = (short_key(spec.key), spec.dtype.name, _shape(spec.shape), format_size(spec.nbytes))
        rows.append(Row((*cells_of[: len(base)], *more)))
    return Table(columns, tuple(rows))


def _others(data: Mapping[str, Any], view: View) -> list[Block]:
    """Ties, metadata, extras, names and warnings, each cut to a screen unless everything was asked for."""
    blocks: list[Block] = []
    tied = [(short_key(group[0]), " = ".join(map(short_key, group[1:]))) for group in data["tied"]]
    metadata = [(key, short(value)) for key, value in sorted(data["metadata"].items())]
    extras = list(lines(_by_interest(data["extras"])))
    for title, rows in (("Tied", tied), ("Metadata", metadata), ("Extras", extras)):
        if rows:
            blocks += _facts_cut(title, rows, None if view.verbose else _LINES)
    by_verdict: dict[str, list[str]] = {}
    for found in data["globals"]:
        by_verdict.setdefault(found["verdict"], []).append(found["name"])
    dangerous = by_verdict.get("dangerous", [])
    unknown = by_verdict.get("unknown", [])
    if unknown:
        names = [(name, "unknown") for name in unknown]
        blocks += _facts_cut("Names that the pickle would import (none was)", names, None if view.verbose else _LINES)
    said = False
    for warning in data["warnings"]:
        said = said or warning["code"] == _DANGER
        blocks.append(Note(warning["message"], "danger" if warning["code"] == _DANGER else "warning"))
    if dangerous and not said:
        blocks.append(Note(f"loading this with pickle would call {', '.join(dangerous)}; wtool called nothing", "danger"))
    return blocks


def _by_interest(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Single values (epoch, step) first, then hyper-parameters, then the state of whatever else was saved."""

    def rank(item: tuple[str, Any]) -> int:
        if not isinstance(item[1], (dict, list)):
            return 0
        return 1 if item[0] in _SETTINGS else 2

    return dict(sorted(extras.items(), key=rank))


def _facts_cut(title: str, rows: list[tuple[str, str]], most: int | None) -> list[Block]:
    if most is None or len(rows) <= most:
        return [Facts(tuple(rows), title)]
    return [Facts((*rows[:most], ("...", f"{len(rows) - most:,} more, shown by --verbose")), title)]
