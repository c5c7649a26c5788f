"""`wtool diff`: do two checkpoints hold the same weights?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from wtool.cli import options
from wtool.cli.console import Console, report_kind, write_report
from wtool.errors import UsageError

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint

_CLASSES = ("structure", "dtype", "values")
_IGNORABLE = ("dtype", "order", "renamed", "transposed")


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, in any format, dtype or sharding.", show_default=False)],
    structure: Annotated[bool, typer.Option("--structure", help="Keys, shapes and dtypes only; read no values.")] = False,
    rtol: Annotated[float, typer.Option("--rtol", metavar="X", min=0, help="Equal within X times the value of B.")] = 0.0,
    atol: Annotated[float, typer.Option("--atol", metavar="X", min=0, help="Equal within X.")] = 0.0,
    strip_prefix: Annotated[
        str | None,
        typer.Option("--strip-prefix", metavar="PREFIX", help="Take PREFIX off the keys of the side that has it."),
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option("--rename", metavar="REGEX=>REPL", help="Rename keys of A. Repeatable, in order.")
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="NAME_OR_FILE",
            help="Compare A as this recipe maps it, or renamed by a file of REGEX=>REPL lines.",
        ),
    ] = None,
    reverse: options.Reverse = False,
    set_: options.Variables = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="WHAT",
            help="Does not count: dtype, order, renamed, transposed. Repeatable.",
            autocompletion=options.one_of(*_IGNORABLE),
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="WHAT",
            help="Only these differ: structure, dtype, values. Repeatable; default all.",
            autocompletion=options.one_of(*_CLASSES),
        ),
    ] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 also if they differ.")] = False,
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="N", min=1, help="Rows of values to show, those that moved most; default 20."),
    ] = None,
    section: options.SectionName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    jobs: options.Jobs = None,
    json: options.Json = False,
    format: options.Format = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Say whether two checkpoints hold the same weights, and what differs: structure first, then how far values moved.

    Exit 0: the same; 1: they differ; 2: could not. Equal means equal bits for equal dtypes, else equal values. Renamed tensors
    are found by what they hold, transposed ones recognised.
    """
    from wtool.analysis.diff import diff as compare
    from wtool.analysis.diff_report import Judgement, diff_report

    kind = options.output_kind(json, format)
    if report is not None:
        report_kind(report)
    judgement = Judgement(_words(fail_on, _CLASSES, "--fail-on") or _CLASSES, _words(ignore, _IGNORABLE, "--ignore"))
    preparing = _Preparing(section, include or [], exclude or [], strip_prefix, rename or [], maps or [], reverse, set_ or [])
    console = Console(quiet=quiet, verbose=verbose)
    one, two = preparing(a, b)
    for side in (one, two):
        for warning in side.warnings:
            if warning.code != "short-keys":
                console.warn(warning.message, side.source.path)
    with console.progress("comparing", 0 if structure else one.nbytes) as advance:
        found = compare(
            one, two, values=not structure, rtol=rtol, atol=atol, jobs=options.worker_count(jobs), progress=advance
        )
    whole = diff_report(found, judgement, top=None, exit_zero=exit_zero)
    shown = whole if verbose or kind == "json" else diff_report(found, judgement, top=top or 20, exit_zero=exit_zero)
    if not (quiet and kind == "text"):
        console.show([shown], kind)
    if report is not None:
        write_report(report, [shown if top else whole])
    return whole.exit_code


@dataclass(frozen=True)
class _Preparing:
    """How both sides are opened and named before they are compared."""

    section: str | None
    include: list[str]
    exclude: list[str]
    strip_prefix: str | None
    rename: list[str]
    maps: list[str]
    reverse: bool
    given: list[str]

    def __call__(self, a: str, b: str) -> tuple[Checkpoint, Checkpoint]:
        from wtool.api import open_checkpoint
        from wtool.keys import Rename, parse_rename
        from wtool.ops.convert import Convert

        renames: list[Rename] = [parse_rename(text) for text in self.rename]
        recipes = []
        for name in self.maps:
            lines = _rename_lines(name)
            if lines is None:
                recipes.append(name)
            else:
                renames += [parse_rename(line) for line in lines]
        if (self.reverse or self.given) and not recipes:
            raise UsageError("--reverse and --set need a recipe", hint="--map NAME_OR_FILE gives one")
        wholes = [open_checkpoint(path, section="all") for path in (a, b)]
        sides = [self._section(whole, other) for whole, other in zip(wholes, reversed(wholes), strict=True)]
        if self.include or self.exclude:
            sides = [Convert(include=tuple(self.include), exclude=tuple(self.exclude))(side) for side in sides]
        if self.strip_prefix:
            having = [any(key.startswith(self.strip_prefix) for key in side) for side in sides]
            if not any(having):
                raise UsageError(f"no key of either side begins with '{self.strip_prefix}'")
            sides = [Convert(strip_prefix=self.strip_prefix)(s) if has else s for s, has in zip(sides, having, strict=True)]
        one, two = sides
        if recipes:
            from wtool.between import map_checkpoint

            given = options.variables(self.given)
            one, _ = map_checkpoint(one, recipes, reverse=self.reverse, given=given, unmatched="keep", whole=wholes[0])
        if renames:
            one = Convert(renames=tuple(renames))(one)
        return one, two

    def _section(self, whole: Checkpoint, other: Checkpoint) -> Checkpoint:
        """The section that was asked for; a flat file stands for the section of that name of the other side."""
        if self.section not in (None, "all") and len(whole.sections) == 1 and len(other.sections) > 1:
            return whole.section()
        return whole.section(self.section)


def _rename_lines(path: str) -> list[str] | None:
    """The lines of a file of renames; None for anything else, which is then a recipe."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file.read(1 << 20).splitlines()]
    except (OSError, ValueError):
        return None
    lines = [line for line in lines if line and not line.startswith("#")]
    return lines if lines and all("=>" in line for line in lines) else None


def _words(given: list[str] | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    found = [word.strip() for text in given or () for word in text.split(",") if word.strip()]
    odd = next((word for word in found if word not in known), None)
    if odd is not None:
        raise UsageError(f"{option} does not know '{odd}'", hint="one of " + ", ".join(known))
    return tuple(found)
