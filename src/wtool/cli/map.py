"""`wtool map`: the recipes between frameworks, listed, shown and checked."""

from __future__ import annotations

from typing import Annotated

import typer

from wtool.cli import options
from wtool.cli.console import Console, report_kind, write_report
from wtool.cli.map_draft import draft
from wtool.cli.mapping import checked_policy
from wtool.errors import UsageError

_RECIPE = "The name of a shipped recipe, forwards or backwards, or a TOML file."


def application(settings: dict[str, object]) -> typer.Typer:
    """The group of commands, mounted. `settings` are those of every command."""
    app = typer.Typer(context_settings=settings)
    app.callback(invoke_without_command=True)(_group)
    app.command("list", context_settings=settings)(list_)
    app.command("show", context_settings=settings)(show)
    app.command("check", context_settings=settings)(check)
    app.command("draft", context_settings=settings)(draft)
    return app


def _group(ctx: typer.Context) -> None:
    """Recipes between frameworks: list, show and check them, or draft one."""
    if ctx.invoked_subcommand is None:
        Console().out(ctx.get_help() + "\n")


def list_(
    kinds: Annotated[
        bool, typer.Option("--kinds", help="The kinds of layers instead, and what their tensors are called in each layout.")
    ] = False,
    json: options.Json = False,
    format: options.Format = None,
    report: options.ReportFile = None,
) -> int:
    """List the recipes that come with wtool, or with --kinds the kinds of layers that they speak of."""
    from wtool.cli.map_report import kinds_report, list_report

    kind = options.output_kind(json, format)
    if report is not None:
        report_kind(report)
    found = kinds_report() if kinds else list_report()
    Console().show([found], kind)
    if report is not None:
        write_report(report, [found])
    return 0


def show(
    recipe: Annotated[
        str, typer.Argument(metavar="NAME", help=_RECIPE, show_default=False, autocompletion=options.recipe_names)
    ],
    json: options.Json = False,
    format: options.Format = None,
    report: options.ReportFile = None,
) -> int:
    """Show a recipe as it is written: TOML that can be saved, changed and given to --map."""
    from wtool.cli.map_report import show_report, shown_source

    kind = options.output_kind(json, format)
    if report is not None:
        report_kind(report)
    source = shown_source(recipe)
    if kind == "text":
        Console().out(source.text)
    else:
        Console().show([show_report(source)], kind)
    if report is not None:
        write_report(report, [show_report(source)])
    return 0


def check(
    recipe: Annotated[
        str, typer.Argument(metavar="FILE", help=_RECIPE, show_default=False, autocompletion=options.recipe_names)
    ],
    on: Annotated[str | None, typer.Option("--on", metavar="CKPT", help="A checkpoint that the recipe is for.")] = None,
    like: options.Like = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Check the recipe backwards.")] = False,
    set_: options.Variables = None,
    unmatched: options.Unmatched = None,
    section: options.SectionName = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Unused rules, assumed kinds and no way back are faults too (exit 1).")
    ] = False,
    json: options.Json = False,
    format: options.Format = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Check a recipe: its TOML, and with --on whether it fits a checkpoint, there and back. Reads headers only.

    Exit 0 if it fits, 1 if it does not (the report says why), 2 if that could not be found out: a bad recipe, no such file.
    """
    from wtool.cli.map_check import check as run
    from wtool.cli.map_report import check_report

    kind = options.output_kind(json, format)
    checked_policy(unmatched)
    given = options.variables(set_ or [])
    if on is None:
        alone = {"--like": like, "--unmatched": unmatched, "--section": section, "--set": set_, "--strict": strict}
        odd = next((name for name, value in alone.items() if value), None)
        if odd is not None:
            raise UsageError(f"{odd} needs --on", hint="--on CHECKPOINT says what to check the recipe on")
    if report is not None:
        report_kind(report)
    checked = run(recipe, on, like, reverse=reverse, given=given, unmatched=unmatched, section=section, strict=strict)
    found = check_report(checked)
    console = Console(quiet=quiet, verbose=verbose)
    for warning in checked.warnings:
        console.warn(warning, on)
    if kind != "text" or not quiet:
        console.show([found], kind)
    if report is not None:
        write_report(report, [found])
    return found.exit_code
