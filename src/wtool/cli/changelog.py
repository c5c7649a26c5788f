"""`wtool changelog`: what happened to a model from version to version."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import typer

from wtool.cli import options
from wtool.cli.console import Console, report_kind, write_report
from wtool.errors import UsageError

_MANY = "changes"


def changelog(
    versions: Annotated[
        list[str],
        typer.Argument(metavar="A B [C...]", help="Checkpoints of one model, the oldest first.", show_default=False),
    ],
    strip_prefix: Annotated[
        str | None, typer.Option("--strip-prefix", metavar="PREFIX", help="Take PREFIX off the keys where they have it.")
    ] = None,
    section: options.SectionName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    jobs: options.Jobs = None,
    json: options.Json = False,
    format: options.Format = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
) -> int:
    """Write a Markdown changelog of the versions of a model: what was added, frozen, retrained, cast, and how far it moved.

    The newest version comes first. --format text, json or html for another form.
    """
    from wtool.analysis.changelog import changelog as reports
    from wtool.analysis.diff import diff
    from wtool.api import open_checkpoint
    from wtool.ops.convert import Convert

    kind = options.output_kind(json, format or (None if json else "markdown"))
    if report is not None:
        report_kind(report)
    if len(versions) < 2:
        raise UsageError("a changelog needs two versions or more", hint="wtool changelog v1.safetensors v2.safetensors")
    console = Console(quiet=quiet)
    opened = [open_checkpoint(path, section=section) for path in versions]
    if strip_prefix:
        with_it = [any(key.startswith(strip_prefix) for key in checkpoint) for checkpoint in opened]
        if not any(with_it):
            raise UsageError(f"no key of any version begins with '{strip_prefix}'")
        strip = Convert(strip_prefix=strip_prefix)
        opened = [strip(checkpoint) if has else checkpoint for checkpoint, has in zip(opened, with_it, strict=True)]
    if include or exclude:
        select = Convert(include=tuple(include or ()), exclude=tuple(exclude or ()))
        opened = [select(checkpoint) for checkpoint in opened]
    count = options.worker_count(jobs)
    with console.progress("comparing", sum(checkpoint.nbytes for checkpoint in opened[:-1])) as advance:
        diffs = [diff(one, two, jobs=count, progress=advance) for one, two in pairwise(opened)]
    for path, step in zip(versions, diffs, strict=False):
        for hint in step.hints:
            console.note(f"{path} (A) and the version after it (B): {hint}")
    found = reports(diffs)
    console.show(found, kind, _MANY)
    if report is not None:
        write_report(report, found, _MANY)
    return 0
