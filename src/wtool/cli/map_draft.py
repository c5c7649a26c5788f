"""`wtool map draft`: a recipe guessed from a checkpoint and a template."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from wtool.cli import options
from wtool.cli.console import Console
from wtool.errors import OutputExistsError, UsageError, WriteError

if TYPE_CHECKING:
    from wtool.maps.draft import Draft


def draft(
    src: options.Source,
    like: options.Like = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the recipe here (.toml); default: print it.")
    ] = None,
    section: options.SectionName = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> int:
    """Draft a recipe from SRC to --like TEMPLATE by names, shapes and order. Reads headers only.

    Every rule says what it rests on; what no file can tell stands behind `# ?` and wants an answer before the recipe is used.
    """
    from wtool.api import open_checkpoint
    from wtool.between import drafted

    if like is None:
        raise UsageError(
            "a draft needs --like TEMPLATE", hint="a checkpoint of the target model, such as one just initialised"
        )
    if output is not None and os.path.lexists(output) and not force:
        raise OutputExistsError("exists already", path=output, hint="--force overwrites it")
    whole = open_checkpoint(src, section="all")
    found = drafted(whole.section(section), like, whole)
    if output is None:
        Console().out(found.text)
    else:
        _write(output, found.text)
    for line in [] if quiet else _said(found):
        Console().note(line)
    return 0


def _said(found: Draft) -> list[str]:
    tally = Counter(rule.verdict for rule in found.rules for _ in rule.rows)
    found_by = ", ".join(f"{count:,} ({verdict})" for verdict, count in tally.most_common())
    said = [f"partners found: {found_by}"] if tally else []
    alone = len(found.left) + len(found.lacking)
    asked = found.text.count("\n# ? ")
    if alone:
        said.append(f"{alone:,} {'key has' if alone == 1 else 'keys have'} no partner")
    if asked:
        said.append(f"{asked:,} {'line asks' if asked == 1 else 'lines ask'}: look for '# ?'")
    if found.doubts():
        said.append(
            "read it before it is used: what is not the only tensor of its shape, or agreed by order and name, is a guess"
        )
    return said


def _write(path: str, text: str) -> None:
    """Whole or not at all."""
    part = f"{path}.{os.getpid()}.part"
    try:
        try:
            with open(part, "x", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, path)
        except BaseException:
            if os.path.lexists(part):
                os.unlink(part)
            raise
    except OSError as error:
        raise WriteError(f"cannot be written: {error.strerror}", path=path) from None
