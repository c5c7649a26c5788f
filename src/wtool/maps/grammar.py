"""How the rules of a recipe are written: a TOML table becomes a rule, or an error that says what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from wtool.errors import RecipeError
from wtool.maps.kinds import Kind, numbers_of, substituted
from wtool.maps.places import placed
from wtool.maps.rules import AliasRule, FillRule, ModuleRule, ShapeRule, TensorRule
from wtool.maps.shapes import check_axes
from wtool.maps.steps import parse_step
from wtool.maps.templates import Template, paired, parse

Rule = TypeVar("Rule")


def each(table: Mapping[str, Any], what: str, make: Callable[[int, Any], Rule]) -> tuple[Rule, ...]:
    """The rules of one sort, counted from 1. RecipeError knows which one is at fault."""
    found = []
    for number, rule in enumerate(list_of(table.get(what, []), what), 1):
        with placed(what, number):
            found.append(make(number, rule))
    return tuple(found)


@dataclass(frozen=True)
class Grammar:
    """What the rules of one recipe may speak of: its sides by name, their tables, separators and layouts, and its kinds."""

    names: tuple[str, str]
    words: tuple[Mapping[str, list[str]], Mapping[str, list[str]]]
    seps: tuple[str, str]
    kinds: Mapping[str, Kind]
    layouts: tuple[str, str]

    def tensor(self, number: int, table: Any) -> TensorRule:
        table = _rule("tensor", number, table, {*self.names, "ops", "optional", "when"})
        sides = []
        for side, tables, separator in zip(self.names, self.words, self.seps, strict=True):
            texts = list_of(table.get(side), f"side '{side}' of tensor rule {number}")
            if not texts:
                raise RecipeError(f"tensor rule {number} has no '{side}'")
            sides.append([parse(text_of(text, f"'{side}' of tensor rule {number}"), tables, separator) for text in texts])
        ops = tuple(text_of(op, "an operation") for op in list_of(table.get("ops", []), f"ops of tensor rule {number}"))
        steps = [parse_step(substituted(op, None)) for op in ops]
        left, right = paired(*sides)
        said = f"tensor rule {number} ({left[0].source})"
        several = any(step.joins or step.parts for step in steps)
        for here, there, word in ((left, right, "stack"), (right, left, "unstack")):
            shared = set[str].intersection(*(set(template.slots) for template in there))
            for template in here:
                extra = set(template.slots) - shared
                counted = len(extra) == len(here) == 1 and any(step.text.split()[0] == word for step in steps)
                if extra and not (counted and template.slots[min(extra)].kind == "number"):
                    alone = f"the slot '{{{min(extra)}}}' stands on one side only, not in '{there[0].source}'"
                    raise RecipeError(
                        f"tensor rule {number}: {alone}",
                        hint="a number that stack or unstack consumes may stand on one side",
                    )
        if not several and len(left) != len(right):
            raise RecipeError(
                f"{said} has {len(left)} keys on one side and {len(right)} on the other", hint="split, concat, tie ..."
            )
        given = table_of(table.get("when", {}), f"when of tensor rule {number}")
        odd = next((name for name in given if name not in self.names), None)
        if odd is not None:
            raise RecipeError(
                f"tensor rule {number}: when names a side '{odd}'", hint="the sides are " + " and ".join(self.names)
            )
        asked = [
            parse(text_of(given[side], f"when of tensor rule {number}"), tables, separator) if side in given else None
            for side, tables, separator in zip(self.names, self.words, self.seps, strict=True)
        ]
        return TensorRule(said, (tuple(left), tuple(right)), ops, flag_of(table, "optional"), (asked[0], asked[1]))

    def module(self, number: int, table: Any) -> ModuleRule:
        table = _rule("module", number, table, {*self.names, "kind", "flatten", "with", "optional"})
        sides = []
        for side, tables, separator in zip(self.names, self.words, self.seps, strict=True):
            if side not in table:
                raise RecipeError(f"module rule {number} has no '{side}'")
            text = text_of(table[side], f"'{side}' of module rule {number}")
            sides.append(parse(text, tables, separator) if text else Template("", (), separator))
        (left,), (right,) = paired([sides[0]], [sides[1]])
        odd = set(left.slots) ^ set(right.slots)
        if odd:
            name = min(odd)
            where = right if name in left.slots else left
            raise RecipeError(f"module rule {number}: the slot '{{{name}}}' stands on one side only, not in '{where.source}'")
        kind = table.get("kind")
        if kind is not None:
            if not isinstance(kind, str) or kind not in self.kinds:
                raise RecipeError(f"there is no kind '{kind}'", hint="`wtool map list --kinds` names them")
            for layout in self.layouts:
                if layout not in self.kinds[kind].layouts():
                    raise RecipeError(f"kind '{kind}' has no layout '{layout}'")
        flatten = str(table.get("flatten", "")).split()
        if flatten and (
            not 2 <= len(flatten) <= 4 or not all(re.fullmatch(r"[1-9][0-9]{0,8}|\$\w+", size) for size in flatten)
        ):
            raise RecipeError(f"flatten = '{table['flatten']}'", hint='the channels and the sizes before Flatten: "512 7 7"')
        values = numbers_of(table.get("with", {}), f"with of module rule {number}")
        name = f"module rule {number} ({left.source})"
        return ModuleRule(name, (left, right), kind, tuple(flatten), values, flag_of(table, "optional"))

    def fill(self, number: int, table: Any) -> FillRule:
        table = _rule("fill", number, table, {*self.names, "value", "beside", "copy"})
        side = next((index for index, name in enumerate(self.names) if name in table), None)
        if side is None or "beside" not in table:
            raise RecipeError(f"fill rule {number} needs a side and 'beside', the key whose shape it takes")
        template = parse(text_of(table[self.names[side]], "a fill"), self.words[side], self.seps[side])
        beside = parse(text_of(table["beside"], "beside"), self.words[side], self.seps[side])
        odd = set(template.slots) - set(beside.slots)
        if odd:
            raise RecipeError(f"fill rule {number}: the slot '{{{min(odd)}}}' is not in '{beside.source}'")
        value = table.get("value", 0)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise RecipeError(f"fill rule {number}: the value is {value!r}")
        copy = None
        if "copy" in table:
            if "value" in table:
                raise RecipeError(f"fill rule {number} has a value and 'copy': one of them")
            copy = parse(text_of(table["copy"], "copy"), self.words[side], self.seps[side])
            odd = set(copy.slots) - set(beside.slots)
            if odd:
                raise RecipeError(f"fill rule {number}: the slot '{{{min(odd)}}}' is not in '{beside.source}'")
        return FillRule(f"fill rule {number} ({template.source})", side, template, beside, value, copy)

    def shape(self, number: int, table: Any) -> ShapeRule:
        table = _rule("shape", number, table, {*self.names, "shape", "wrong"})
        side = next((index for index, name in enumerate(self.names) if name in table), None)
        if side is None or "shape" not in table or len(set(self.names) & set(table)) != 1:
            raise RecipeError(f"shape rule {number} needs one side and 'shape'")
        template = parse(
            text_of(table[self.names[side]], f"the side of shape rule {number}"), self.words[side], self.seps[side]
        )
        axes = text_of(table["shape"], f"the shape of shape rule {number}")
        check_axes(axes)
        wrong = text_of(table["wrong"], f"wrong of shape rule {number}") if "wrong" in table else None
        return ShapeRule(f"shape rule {number} ({template.source})", side, template, axes, wrong)

    def alias(self, number: int, table: Any) -> AliasRule:
        table = _rule("alias", number, table, {*self.names, "as"})
        side = next((index for index, name in enumerate(self.names) if name in table), None)
        if side is None or "as" not in table or len(table) != 2:
            raise RecipeError(f"alias rule {number} needs one side and 'as', the name that the rules know")
        (template,), (real,) = paired(
            [parse(text_of(table[self.names[side]], "an alias"), self.words[side], self.seps[side])],
            [parse(text_of(table["as"], "as"), self.words[side], self.seps[side])],
        )
        odd = set(real.slots) - set(template.slots)
        if odd:
            raise RecipeError(f"alias rule {number}: the slot '{{{min(odd)}}}' is not in '{template.source}'")
        return AliasRule(side, template, real)


def _rule(what: str, number: int, table: Any, allowed: set[str]) -> Mapping[str, Any]:
    found = table_of(table, f"{what} rule {number}")
    odd = next((name for name in found if name not in allowed), None)
    if odd is not None:
        raise RecipeError(f"{what} rule {number} has no entry '{odd}'", hint="it may have " + ", ".join(sorted(allowed)))
    return found


def table_of(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{what} is no table")
    return value


def list_of(value: Any, what: str) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if value is not None and not isinstance(value, list):
        raise RecipeError(f"{what} is no list")
    return value or []


def text_of(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{what} is no text")
    return value


def flag_of(table: Mapping[str, Any], name: str) -> bool:
    value = table.get(name, False)
    if not isinstance(value, bool):
        raise RecipeError(f"{name} = '{value}'", hint="true or false")
    return value
