"""The two sides of a diff: opened, cut to what is compared, and named alike."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wtool.cli import options
from wtool.errors import NoTensorsError, UsageError, WtoolError

if TYPE_CHECKING:
    from wtool.checkpoint import Checkpoint
    from wtool.cli.console import Console
    from wtool.keys import Rename
    from wtool.maps.resolve import Resolved

_LONGEST = 1 << 20  # bytes of a file of renames


@dataclass(frozen=True)
class Preparing:
    """What the options ask for. `sections` are those of A and of B; all else but `strip_prefix` and the globs is for A."""

    sections: tuple[str | None, str | None]
    include: list[str]
    exclude: list[str]
    strip_prefix: str | None
    rename: list[str]
    maps: list[str]
    reverse: bool
    given: list[str]

    def __call__(self, a: str, b: str, console: Console) -> tuple[Checkpoint, Checkpoint]:
        """A and B as they are compared: sections, prefix, recipes, renames, then the globs. Warnings are said."""
        from wtool.keys import matcher, parse_rename
        from wtool.ops.convert import Convert

        matcher([*self.include, *self.exclude])  # complains of a bad glob
        renames = [parse_rename(text) for text in self.rename]
        recipes = []
        for name in self.maps:
            lines = rename_lines(name)
            if lines is None:
                recipes.append(name)
            else:
                renames = [*lines, *renames]
        given = options.variables(self.given)
        if (self.reverse or given) and not recipes:
            alone = "--reverse" if self.reverse else "--set"
            raise UsageError(f"{alone} needs a recipe", hint="`wtool map list` names those of --map")
        wholes = [_opened(path, side) for path, side in ((a, "A"), (b, "B"))]
        sides = [
            _section(whole, other, name) for whole, other, name in zip(wholes, reversed(wholes), self.sections, strict=True)
        ]
        if self.strip_prefix is not None:
            sides = self._stripped(sides)
        one, two = sides
        if recipes:
            from wtool.between import map_checkpoint

            one, done = map_checkpoint(one, recipes, reverse=self.reverse, given=given, unmatched="keep", whole=wholes[0])
            for resolved in done:
                _say(resolved, console)
        if renames:
            one = Convert(renames=tuple(renames))(one)
        if self.include or self.exclude:
            one, two = self._chosen(one, two, console)
        for side in (one, two):
            for warning in side.warnings:
                if warning.code != "short-keys":
                    console.warn(warning.message, side.source.path)
        return one, two

    def _stripped(self, sides: list[Checkpoint]) -> list[Checkpoint]:
        from wtool.ops.rename import StripPrefix

        prefix = self.strip_prefix or ""
        having = [bool(prefix) and any(key.startswith(prefix) for key in side) for side in sides]
        if not any(having):
            first = [next(iter(side), "") for side in sides]
            raise UsageError(
                f"no key of either side begins with '{prefix}'", hint=f"A begins with '{first[0]}', B with '{first[1]}'"
            )
        return [StripPrefix(prefix)(side) if has else side for side, has in zip(sides, having, strict=True)]

    def _chosen(self, one: Checkpoint, two: Checkpoint, console: Console) -> tuple[Checkpoint, Checkpoint]:
        """What the globs leave of both. A glob need only match on one side: the other lacks what it asks for."""
        from wtool.keys import matcher, short_key

        def found(glob: str) -> list[set[str]]:
            matches = matcher([glob])
            return [{key for key in side if matches(key) or matches(short_key(key))} for side in (one, two)]

        chosen = [set(side) if not self.include else set() for side in (one, two)]
        for glob in self.include:
            both = found(glob)
            if not any(both):
                raise UsageError(f"no key of A or B matches --include '{glob}'", hint="'*' stays inside a part, '**' crosses")
            chosen = [kept | more for kept, more in zip(chosen, both, strict=True)]
        for glob in self.exclude:
            both = found(glob)
            if not any(both):
                console.warn(f"no key of A or B matches --exclude '{glob}'")
            chosen = [kept - less for kept, less in zip(chosen, both, strict=True)]
        if not any(chosen):
            raise NoTensorsError("no tensor is left after --include and --exclude")
        return _only(one, chosen[0]), _only(two, chosen[1])


def _only(side: Checkpoint, keys: set[str]) -> Checkpoint:
    return side.with_tensors(tensor for key, tensor in side.items() if key in keys)


def _say(resolved: Resolved, console: Console) -> None:
    """What a recipe left out of the comparison, or did not touch."""
    for keys, what in ((resolved.dropped, "left out"), (resolved.kept, "met by no rule and compared as they are")):
        if keys:
            more = f" and {len(keys) - 3:,} more" if len(keys) > 3 else ""
            console.note(f"'{resolved.recipe}': keys of A that are {what}: {', '.join(keys[:3])}{more}")


def _opened(path: str, side: str) -> Checkpoint:
    from wtool.api import open_checkpoint

    if path == "-" and not os.path.lexists(path):
        raise UsageError(f"stdin cannot be compared (this is {side})", hint="a checkpoint is read in many places: give a file")
    try:
        return open_checkpoint(path, section="all")
    except WtoolError as error:
        error.message += f" (this is {side})"
        raise


def _section(whole: Checkpoint, other: Checkpoint, name: str | None) -> Checkpoint:
    """The section that was asked for; a flat file stands for the section of that name of the other side."""
    flat = len(whole.sections) == 1 and whole.sections[0].name != name
    if name not in (None, "all") and flat and any(section.name == name for section in other.sections):
        return whole.section()
    return whole.section(name)


def rename_lines(path: str) -> list[Rename] | None:
    """The renames in a file of REGEX=>REPL lines; None for anything else, which is then a recipe.

    Empty lines and those that begin with `#` are left out. UsageError, with the line, for one that is no rename.
    """
    from wtool.keys import parse_rename

    if path.endswith(".toml") or not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except (OSError, ValueError):
        return None  # the recipe's reader says why
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not any("=>" in line for _, line in lines):
        return None
    if len(text) > _LONGEST:
        raise UsageError("is too long for a file of renames", path=path)
    found = []
    for number, line in lines:
        try:
            found.append(parse_rename(line))
        except UsageError as error:
            raise UsageError(f"line {number}: {error.message}", path=path, hint=error.hint) from None
    return found
