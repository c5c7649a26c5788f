"""The operations of a recipe: a list of tensors becomes another list, by arrangement alone wherever that is possible.

Each is frozen data, answers shapes without reading, and knows its way back. `status` says how much the values may change:

    exact     the same bits, elsewhere           function   other bits, the same model
    lossy     something is gone                  a step without a way back is one-way

    t                            swap the two axes of a matrix
    permute 2 3 1 0              the axes in this order
    rearrange A -> B ; h=12      cut axes, move them, join them: `(h d) i -> i h d`; sizes that follow from others are left out
    flip AX                      reverse an axis
    blocks AX 1 0 2              cut an axis into equal blocks and put them in this order
    split AX [sizes]             one tensor into several; the way back of concat AX [sizes]
    stack AX, unstack AX         several along a new axis, and back
    tie                          one tensor under several keys; back: they must be equal, and some may be missing
    sum                          several added up; back: the first has it all, the others are zero
    gru                          a GRU's two biases -> one a gate, and the candidate's second one; back: the second is zero
    unabsorb                     [mean] -> [zero bias, mean]; back: mean - bias
    add C                        a number added to every value
    cast DTYPE                   one-way
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import isfinite

from wtool.dtypes import dtype
from wtool.errors import MapError, RecipeError, WtoolError
from wtool.maps.arrangements import Blocks, Concat, Flip, Permute, Rearrange, Split, Stack, Swap, Unstack
from wtool.maps.step import Step as Step
from wtool.maps.step import Tensors
from wtool.maps.step import Wanted as Wanted
from wtool.maps.values import Add, Cast, Gru, Sum, Tie, Unabsorb
from wtool.tensor import LazyTensor, Shape


@lru_cache(1024)
def parse_step(text: str) -> Step:
    """One operation of a recipe, its variables filled in already. RecipeError if it is none."""
    name, _, rest = text.strip().partition(" ")
    make = _MAKERS.get(name)
    if make is None:
        raise RecipeError(f"there is no operation '{name}'", hint="one of " + ", ".join(_MAKERS))
    try:
        return make(text.strip(), rest.strip())
    except WtoolError:
        raise
    except ValueError as error:
        raise RecipeError(f"'{text}' is no '{name}': {error}") from None


def chain(steps: Sequence[Step], tensors: Sequence[LazyTensor], wanted: Wanted) -> Tensors:
    """The steps one after the other. MapError if the tensors do not fit, or the number that comes out is not the wanted."""
    found = list(tensors)
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        found = step(found, wanted if last else replace(wanted, shapes=_still(steps[index + 1 :], wanted)))
    if len(found) != wanted.count:
        said = " + ".join(step.text for step in steps) or "no operation"
        raise MapError(f"{said} gives {len(found)} tensors from '{tensors[0].key}', not {wanted.count}")
    return found


def _still(rest: Sequence[Step], wanted: Wanted) -> tuple[Shape | None, ...]:
    """The shapes before `rest`, where it only swaps axes, so that an earlier step may use what the template says."""
    shapes = list(wanted.shapes)
    for step in reversed(rest):
        if isinstance(step, Swap):
            shapes = [shape and shape[::-1] for shape in shapes]
        elif isinstance(step, Permute):
            before = step.order
            shapes = [shape and tuple(shape[before.index(axis)] for axis in range(len(before))) for shape in shapes]
        else:
            return ()
    return tuple(shapes)


def backwards(steps: Sequence[Step]) -> list[Step]:
    """The steps that undo these. RecipeError naming the one that cannot be undone."""
    return [step.back() for step in reversed(steps)]


def _plain(kind: Callable[[str], Step]) -> Callable[[str, str], Step]:
    def make(text: str, rest: str) -> Step:
        if rest:
            raise ValueError("it takes nothing behind it")
        return kind(text)

    return make


def _numbers(rest: str) -> tuple[int, ...]:
    words = re.sub(r"[\[\],]", " ", rest).split()
    if not all(re.fullmatch("-?[0-9]{1,12}", word) for word in words):
        raise ValueError("it takes whole numbers")
    return tuple(int(word) for word in words)


def _axis_and(rest: str, least: int) -> tuple[int, tuple[int, ...]]:
    numbers = _numbers(rest)
    if len(numbers) < 1 + least:
        raise ValueError("it takes an axis" + (" and an order" if least else ""))
    return numbers[0], numbers[1:]


def _permutation(order: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(order) != list(range(len(order))) or not order:
        raise ValueError("each number from 0 on must stand once")
    return order


def _one_axis(kind: Callable[[str, int], Step]) -> Callable[[str, str], Step]:
    def make(text: str, rest: str) -> Step:
        axis, more = _axis_and(rest, 0)
        if more:
            raise ValueError("it takes one axis")
        return kind(text, axis)

    return make


def _blocks(text: str, rest: str) -> Step:
    axis, order = _axis_and(rest, 1)
    return Blocks(text, axis, _permutation(order))


def _sized(kind: Callable[[str, int, tuple[int, ...]], Step]) -> Callable[[str, str], Step]:
    def make(text: str, rest: str) -> Step:
        axis, sizes = _axis_and(rest, 0)
        if any(size < 1 for size in sizes):
            raise ValueError("sizes are positive")
        return kind(text, axis, sizes)

    return make


def _rearrange(text: str, rest: str) -> Step:
    pattern, _, given = rest.partition(";")
    left, arrow, right = pattern.partition("->")
    if not arrow:
        raise ValueError("write LEFT -> RIGHT")
    sizes: list[tuple[str, int]] = []
    guesses: list[tuple[str, int]] = []
    asked: list[tuple[str, str]] = []
    for word in given.split():
        name, _, number = word.partition("=")
        if name.isidentifier() and number.startswith("$"):
            asked.append((name, number[1:]))
            continue
        found = guesses if name.endswith("?") else sizes
        name = name.removesuffix("?")
        if not name.isidentifier() or not re.fullmatch("[0-9]{1,12}", number) or not int(number):
            raise ValueError(f"'{word}' is no size; write h=12")
        found.append((name, int(number)))
    sides = _groups(left), _groups(right)
    names = [[name for group in side for name in group if name != "1"] for side in sides]
    twice = next((name for side in names for name in side if side.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' stands twice on one side")
    odd = set(names[0]) ^ set(names[1])
    if odd:
        raise ValueError(f"'{min(odd)}' stands on one side only")
    given_names = [name for name, *_ in (*sizes, *guesses, *asked)]
    twice = next((name for name in given_names if given_names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the size of '{twice}' is given twice")
    unused = set(given_names) - set(names[0])
    if unused:
        raise ValueError(f"there is no axis '{min(unused)}'")
    return Rearrange(text, *sides, tuple(sizes), tuple(guesses), tuple(asked))


def _groups(text: str) -> tuple[tuple[str, ...], ...]:
    groups: list[tuple[str, ...]] = []
    for word in re.findall(r"\([^()]*\)|[^\s()]+|[()]", text):
        names = tuple(word[1:-1].split()) if word.startswith("(") and word.endswith(")") else (word,)
        for name in names:
            if name != "1" and not name.isidentifier():
                raise ValueError(f"'{name}' is no axis")
        groups.append(names)
    return tuple(groups)


def _add(text: str, rest: str) -> Step:
    number = float(rest)
    if not isfinite(number):
        raise ValueError("it takes a finite number")
    return Add(text, number)


def _cast(text: str, rest: str) -> Step:
    try:
        return Cast(text, dtype(rest).name)
    except WtoolError as error:
        raise ValueError(error.message) from None


_MAKERS: dict[str, Callable[[str, str], Step]] = {
    "t": _plain(Swap),
    "permute": lambda text, rest: Permute(text, _permutation(_numbers(rest))),
    "rearrange": _rearrange,
    "flip": _one_axis(Flip),
    "blocks": _blocks,
    "split": _sized(Split),
    "concat": _sized(Concat),
    "stack": _one_axis(Stack),
    "unstack": _one_axis(Unstack),
    "tie": _plain(Tie),
    "sum": _plain(Sum),
    "gru": _plain(Gru),
    "unabsorb": _plain(Unabsorb),
    "add": _add,
    "cast": _cast,
}
