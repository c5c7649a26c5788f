"""The commands by name. Only the one that is called is imported: all of them together take longer than a small file."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

# The module wtool.cli.NAME (_ for -) has a function NAME, or an application of several commands. The line is the first of its
# own help.
COMMANDS = {
    "inspect": "Show what is in a checkpoint: format, sections, tensors, sizes, ties, metadata, and names a pickle "
    "would call.",
    "convert": "Write a checkpoint in another format, dtype, sharding, or with other keys.",
    "diff": "Say whether two checkpoints hold the same weights, and what differs: structure first, then how far values moved.",
    "average": "Average checkpoints: a mean, SWA, EMA, model soups, task arithmetic; in float64, rounded once, in "
    "constant memory.",
    "prune": "Set weights to zero by magnitude, at random, in patterns or groups: an exact share of them, with masks.",
    "apply-mask": "Set to zero what masks say, as after training went on without them, and keep all else bit for bit.",
    "quantize": "Make checkpoints smaller that real runtimes load: int8, int4, fp8, nvfp4, nf4, GGUF types; and say what "
    "it cost.",
    "changelog": "Write a Markdown changelog of the versions of a model: what was added, frozen, retrained, cast, and "
    "how far it moved.",
    "git": "Show in `git diff` and `git log -p` what changed in checkpoints, tensor by tensor.",
    "map": "Recipes between frameworks: list, show and check them, or draft one.",
}


class Commands(TyperGroup):
    """A group whose commands are names with a line of help, until one of them is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and command(name or ""), rest


def announce(app: typer.Typer) -> None:
    """Give the app, of the class Commands, the names of all commands."""
    for name, about in COMMANDS.items():
        app.command(name, help=about)(_unknown)


def command(name: str) -> Any:
    """The command itself, its module imported. KeyError if there is none of this name."""
    place = name.replace("-", "_")
    module = import_module(f"wtool.cli.{place}")
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    app.callback()(_unknown)
    if hasattr(module, "application"):
        app.add_typer(module.application(SETTINGS), name=name)
    else:
        app.command(name, context_settings=SETTINGS)(getattr(module, place))
    return get_command(app).commands[name]  # type: ignore[attr-defined]  # a callback makes it a group


def _unknown() -> None:
    """Stands for what has not been imported."""
