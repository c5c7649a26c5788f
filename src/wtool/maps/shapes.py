"""Shapes that a recipe states: sizes that must agree wherever their name stands, whatever rule takes the key.

They catch what no rule can see by itself: a number of heads that divides one matrix but cuts heads of another size from the
next, or a file that holds only a part of every matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod

from wtool.errors import MapError, RecipeError
from wtool.maps.kinds import substituted
from wtool.maps.rules import ShapeRule
from wtool.tensor import LazyTensor

_FACTOR = re.compile(r"[1-9][0-9]{0,11}|[A-Za-z_]\w*")
Sizes = dict[str, tuple[int, str]]  # the name of a size -> the size, and the key that showed it first


def check_axes(axes: str) -> None:
    """RecipeError if this is no shape: an axis is `6`, `dim`, `4*half`, or several of these with `=` between."""
    for axis in substituted(axes, None).split():
        for term in axis.split("="):
            factors = term.split("*")
            names = [factor for factor in factors if not factor.isdigit()]
            if not all(_FACTOR.fullmatch(factor) for factor in factors) or len(names) > 1:
                raise RecipeError(f"'{axis}' is no axis of a shape", hint="write 6, dim, 4*half, or dim=$heads*head")


def check_shapes(
    rules: Iterable[ShapeRule], side: int, tensors: Mapping[str, LazyTensor], values: Mapping[str, int], known: Sizes
) -> None:
    """The tensors of one side against the rules of that side; `known`: the sizes met so far. MapError names the first fault.

    `values` are the recipe's variables, asked only for rules that meet a key.
    """
    for rule in rules:
        found = [name for name in tensors if rule.template.match(name) is not None] if rule.side == side else []
        if not found:
            continue
        axes = substituted(rule.axes, values)
        for name in found:
            fault = _fault(axes.split(), name, tensors[name].shape, known)
            if fault is not None:
                raise MapError(
                    f"'{name}' is {list(tensors[name].shape)}, not [{', '.join(axes.split())}]{fault}", hint=rule.wrong
                )


def _fault(axes: list[str], name: str, shape: tuple[int, ...], known: Sizes) -> str | None:
    if len(axes) != len(shape):
        return ""
    for axis, size in zip(axes, shape, strict=True):
        for term in axis.split("="):
            factors = term.split("*")
            number = prod(int(factor) for factor in factors if factor.isdigit())
            letter = next((factor for factor in factors if not factor.isdigit()), None)
            if letter is None:
                if number != size:
                    return ""
            elif size % number:
                return f": {size} is no multiple of {number}"
            else:
                there, owner = known.setdefault(letter, (size // number, name))
                if there != size // number:
                    return f": {letter} is {there} in '{owner}'"
    return None
