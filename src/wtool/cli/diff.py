"""`wtool diff`: do two checkpoints hold the same weights?"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from wtool.cli import options
from wtool.cli.console import Console, report_kind, write_report
from wtool.cli.dequantizing import stored
from wtool.cli.diff_sides import Preparing
from wtool.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from wtool.analysis.diff_report import Judgement

_CLASSES = ("structure", "dtype", "values")
_IGNORABLE = ("dtype", "order", "renamed", "transposed", "tied")


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
            autocompletion=options.recipe_names,
        ),
    ] = None,
    reverse: options.Reverse = False,
    set_: options.Variables = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="WHAT",
            help="Does not count: dtype, order, renamed, transposed, tied. Repeatable.",
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
        typer.Option("--top", metavar="N", min=1, help="Rows of each table to show, the values that moved most; default 20."),
    ] = None,
    section: options.SectionName = None,
    section_b: Annotated[
        str | None,
        typer.Option("--section-b", metavar="NAME", help="The part of B, where it is another than that of A."),
    ] = None,
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

    Exit 0: the same; 1: they differ; 2: could not. Equal means equal bits for equal dtypes, else equal values; what differs by
    a cast alone differs in dtype. Renamed tensors are found by what they hold, transposed ones recognised. Order, metadata
    and what is no tensor never count. --include and --exclude are matched against keys as they are compared.
    """
    from wtool.analysis.diff import diff as compare
    from wtool.analysis.diff_report import Judgement, diff_report

    kind = options.output_kind(json, format)
    if report is not None:
        report_kind(report)
    judgement = Judgement(
        _words(fail_on, _CLASSES, "--fail-on") or _CLASSES, _words(ignore, _IGNORABLE, "--ignore"), rtol, atol
    )
    _check(judgement, structure=structure)
    console = Console(quiet=quiet, verbose=verbose)
    preparing = Preparing(
        (section, section_b or section),
        include or [],
        exclude or [],
        strip_prefix,
        rename or [],
        maps or [],
        reverse,
        set_ or [],
    )
    one, two = preparing(a, b, console)
    for path, side in ((a, one), (b, two)):
        if (said := stored(side, path)) is not None:
            console.note(f"{path} is stored quantized ({said}): parts are compared; `wtool convert --dequantize` gives values")
    with console.progress("comparing", 0 if structure else one.nbytes) as advance:
        found = compare(
            one, two, values=not structure, rtol=rtol, atol=atol, jobs=options.worker_count(jobs), progress=advance
        )
    rows = top or (None if verbose else 20)
    shown = diff_report(found, judgement, top=rows, exit_zero=exit_zero)
    if shown.data["verdict"] == "same" and (len(one) or len(two)) and not judgement.compared(found):
        hint = found.hints[0] if found.hints else "--rename, --strip-prefix and --map make keys alike"
        raise MismatchError("nothing was compared: the two have no key in common", hint=hint)
    if not (quiet and kind == "text"):
        console.show([shown], kind)
    if report is not None:
        write_report(report, [shown])
    return shown.exit_code


def _check(judgement: Judgement, *, structure: bool) -> None:
    """UsageError for options that contradict each other, so that none is quietly without effect."""
    for name in ("rtol", "atol"):
        if not isfinite(getattr(judgement, name)):
            raise UsageError(f"--{name} is no finite number")
    if structure:
        idle = "--rtol" if judgement.rtol else "--atol" if judgement.atol else None
        idle = idle or next((f"--ignore {word}" for word in ("renamed", "transposed") if word in judgement.ignore), None)
        idle = idle or ("--fail-on values" if judgement.fail_on == ("values",) else None)
        if idle is not None:
            raise UsageError(f"--structure reads no values, and {idle} needs them")


def _words(given: list[str] | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    found = list(dict.fromkeys(word.strip() for text in given or () for word in text.split(",")))
    odd = next((word for word in found if word not in known), None)
    if odd is not None:
        raise UsageError(f"{option} does not know '{odd}'", hint="one of " + ", ".join(known))
    return tuple(found)
