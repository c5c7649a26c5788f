"""The recipes that come with wtool, and those in files."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from wtool.bytesource import LocalFile
from wtool.errors import NotFoundError, RecipeError
from wtool.maps.recipe import Recipe, parse_recipe

_LARGEST = 4 << 20  # bytes of a recipe


@cache
def names() -> tuple[str, ...]:
    """The shipped recipes as they are written: `bert-tf1-to-hf`; each is also read backwards as `hf-to-bert-tf1`."""
    folder = files("wtool.maps").joinpath("recipes")
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def turned_name(name: str) -> str:
    """`y-to-x` for `x-to-y`."""
    left, _, right = name.partition("-to-")
    return f"{right}-to-{left}"


def source_text(name: str) -> str:
    """The TOML of a shipped recipe."""
    return files("wtool.maps").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")


def shipped_recipe(name: str) -> Recipe | None:
    """The shipped recipe of this name, read backwards if the name is; None if there is none."""
    if name in names():
        return parse_recipe(source_text(name), name)
    if turned_name(name) in names():
        from dataclasses import replace

        return replace(parse_recipe(source_text(turned_name(name)), turned_name(name)).reverse(), name=name)
    return None


def load(name: str) -> Recipe:
    """A shipped recipe by name, or the recipe in a file. NotFoundError, UnreadableError, RecipeError."""
    recipe = shipped_recipe(name)
    return recipe or parse_recipe(file_text(name), os.path.basename(name).removesuffix(".toml"), name)


def file_text(path: str) -> str:
    """The text of a recipe's file. NotFoundError, UnreadableError, RecipeError for what is no text."""
    try:
        file = LocalFile(path)
    except NotFoundError:
        known = [*names(), *map(turned_name, names())]
        near = [name for name in known if path and (name in path or path in name)] or get_close_matches(path, known, 1)
        hint = f"did you mean {near[0]}?" if near else "`wtool map list` names the recipes; anything else is a file"
        raise NotFoundError(f"there is no recipe or file '{path}'", hint=hint) from None
    if file.size > _LARGEST:
        raise RecipeError("is too large for a recipe", path=path)
    try:
        return file.pread(0, file.size).decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise RecipeError(f"is no text: byte {error.start} is not UTF-8", path=path) from None
