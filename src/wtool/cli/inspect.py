"""`wtool inspect`: what is in a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from wtool.cli import options
from wtool.cli.console import Console, report_kind, show_error, write_report
from wtool.errors import UsageError, WtoolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wtool.checkpoint import Checkpoint
    from wtool.layout import Quantized
    from wtool.report import Report

_MANY = "checkpoints"


def inspect(
    src: options.Sources,
    tree: Annotated[bool, typer.Option("--tree", help="Tensors as a tree, repeated layers once (the default).")] = False,
    flat: Annotated[bool, typer.Option("--flat", help="One line for each tensor, with its full key.")] = False,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="ORDER",
            help="size or key; default: the order of the file.",
            autocompletion=options.one_of("size", "key"),
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option("--depth", metavar="N", min=1, help="Levels of the tree to show.")] = None,
    digest: Annotated[bool, typer.Option("--digest", help="Read the values; add a digest of each tensor and of all.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Read the values; add min, max, mean, std, zeros, NaN, Inf.")] = False,
    section: options.SectionName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    json: options.Json = False,
    format: options.Format = None,
    report: options.ReportFile = None,
    jobs: options.Jobs = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what is in a checkpoint: format, sections, tensors, sizes, ties, metadata, and names a pickle would call.

    Reads headers only, never values (unless --digest or --stats), and never runs code from the file.
    Exit 1 if a pickle in it names something dangerous.
    """
    from wtool.analysis.inspect import View

    kind = options.output_kind(json, format)
    if tree and flat:
        raise UsageError("--tree and --flat contradict each other")
    if sort not in (None, "size", "key"):
        raise UsageError(f"tensors cannot be sorted by '{sort}'", hint="--sort size or --sort key")
    if report is not None:
        report_kind(report)
    console = Console(quiet=quiet, verbose=verbose)
    order = cast(Literal["size", "key"] | None, sort)
    view = View(flat=flat or (stats and not tree), sort=order, depth=depth, verbose=verbose)
    reports: list[Report] = []
    failed = 0
    for path in src:
        try:
            found = _inspect(console, path, view, section, include, exclude, digest=digest, stats=stats, jobs=jobs)
        except WtoolError as error:
            # Of several files, people still get the others; a script gets all or an error.
            if len(src) == 1 or kind != "text":
                raise
            show_error(error.at(path), as_json=False)
            failed = error.exit_code
            continue
        if kind == "text":
            if reports:
                console.out("\n")
            console.show([found], kind)
        reports.append(found)
    if kind != "text":
        console.show(reports, kind, _MANY)
    if report is not None and reports:
        write_report(report, reports, _MANY)
    return failed or max(found.exit_code for found in reports)


def _inspect(
    console: Console,
    path: str,
    view: Any,
    section: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
    *,
    digest: bool,
    stats: bool,
    jobs: int | None,
) -> Report:
    from wtool.analysis.inspect import inspect as report
    from wtool.api import open_checkpoint

    whole = open_checkpoint(path, section="all")
    chosen = whole.section(section)
    if include or exclude:
        from wtool.ops.select import Select

        chosen = Select(tuple(include or ()), tuple(exclude or ()))(chosen)
    stored = _stored(console, chosen, path)
    if not digest and not stats:
        return report(whole, chosen, view, quantized=stored)
    values, cells, total = _values(console, chosen, digest=digest, stats=stats, jobs=jobs)
    return report(whole, chosen, view, values=values, cells=cells, digest=total, quantized=stored)


def _stored(console: Console, chosen: Checkpoint, path: str) -> Mapping[str, Quantized]:
    """What is stored quantized. Parts that do not belong together are only warned of: the rest is still shown."""
    from wtool.layout import looks_quantized

    if not looks_quantized(chosen.tensors):
        return {}
    from wtool.cli import hf_config
    from wtool.layouts import registry

    try:
        return registry.find(chosen.tensors, hf_config.read(path), chosen.metadata)
    except WtoolError as error:
        console.warn(error.message, path)
        return {}


def _values(
    console: Console, chosen: Checkpoint, *, digest: bool, stats: bool, jobs: int | None
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]], str | None]:
    """What reading the values adds: fields for scripts, cells for people, and the digest of all."""
    values: dict[str, dict[str, Any]] = {key: {} for key in chosen}
    cells: dict[str, dict[str, str]] = {key: {} for key in chosen}
    total = None
    if stats:
        from dataclasses import asdict

        from wtool.analysis.stats import sparkline
        from wtool.analysis.stats import stats as measure

        with console.progress("statistics", chosen.nbytes) as advance:
            measured = measure(chosen, options.worker_count(jobs), advance)
        for key, found in measured.items():
            values[key]["stats"] = asdict(found)
            cells[key]["values"] = sparkline(found.histogram)
            numbers = {"min": found.min, "max": found.max, "mean": found.mean, "std": found.std, "L2": found.l2}
            cells[key] |= {name: "-" if value is None else f"{value:.3g}" for name, value in numbers.items()}
            cells[key] |= {"zeros": f"{found.zeros:,}", "NaN": f"{found.nan:,}", "Inf": f"{found.inf:,}"}
    if digest:
        from wtool.analysis.digest import digest as fingerprint

        with console.progress("digest", chosen.nbytes) as advance:
            digests = fingerprint(chosen, options.worker_count(jobs), advance)
        total = digests.whole
        for key, text in digests.tensors.items():
            values[key]["digest"] = text
            cells[key]["digest"] = text
    return values, cells, total
