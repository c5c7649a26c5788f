"""Recipes: TOML files of schema wtool.map/1, read, checked and turned round. The language is taught in docs/recipes.md."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wtool.errors import RecipeError
from wtool.keys import matcher
from wtool.maps.kinds import LAYOUTS, Kind, kinds, shipped, substituted, variables
from wtool.maps.rules import AliasRule as AliasRule
from wtool.maps.rules import FillRule as FillRule
from wtool.maps.rules import ModuleRule as ModuleRule
from wtool.maps.rules import ShapeRule as ShapeRule
from wtool.maps.rules import TensorRule as TensorRule
from wtool.maps.shapes import check_axes
from wtool.maps.steps import parse_step
from wtool.maps.templates import Template, paired, parse

SCHEMA = "wtool.map/1"
_TOP = {
    "schema",
    "about",
    "notes",
    "sides",
    "vars",
    "names",
    "drop",
    "why",
    "fill",
    "shape",
    "alias",
    "module",
    "tensor",
    "kind",
    "extends",
    "unmatched",
}
_UNMATCHED = ("error", "keep", "drop")


@dataclass(frozen=True)
class Recipe:
    """`sides` are (name, layout), the source first; `turned` says that this is the written recipe read backwards.

    `whys` are (glob, sentence) by side: why a key that no rule takes has no partner.
    """

    name: str
    sides: tuple[tuple[str, str], tuple[str, str]]
    about: str = ""
    notes: tuple[str, ...] = ()
    vars: Mapping[str, int | str] = field(default_factory=dict)
    drop: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    whys: tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = ((), ())
    fills: tuple[FillRule, ...] = ()
    shapes: tuple[ShapeRule, ...] = ()
    aliases: tuple[AliasRule, ...] = ()
    tensors: tuple[TensorRule, ...] = ()
    modules: tuple[ModuleRule, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    unmatched: str = "error"
    turned: bool = False
    path: str | None = None

    def reverse(self) -> Recipe:
        """The same recipe from its second side to its first."""
        return replace(
            self,
            sides=(self.sides[1], self.sides[0]),
            drop=(self.drop[1], self.drop[0]),
            whys=(self.whys[1], self.whys[0]),
            fills=tuple(replace(fill, side=1 - fill.side) for fill in self.fills),
            shapes=tuple(replace(shape, side=1 - shape.side) for shape in self.shapes),
            aliases=tuple(replace(alias, side=1 - alias.side) for alias in self.aliases),
            tensors=tuple(replace(rule, sides=rule.sides[::-1], when=rule.when[::-1]) for rule in self.tensors),
            modules=tuple(replace(rule, sides=(rule.sides[1], rule.sides[0])) for rule in self.modules),
            turned=not self.turned,
        )

    def real(self, name: str, side: int) -> str:
        """The name that the rules know for one of this side: its aliases, one after the other."""
        for alias in self.aliases:
            values = alias.template.match(name) if alias.side == side else None
            name = name if values is None else alias.real.write(values)
        return name

    def behind(self, other: Recipe) -> Recipe:
        """This recipe with the rules of another, of the same layouts, behind its own."""
        return replace(
            self,
            notes=(*self.notes, *(note for note in other.notes if note not in self.notes)),
            vars={**other.vars, **self.vars},
            drop=(self.drop[0] + other.drop[0], self.drop[1] + other.drop[1]),
            whys=(self.whys[0] + other.whys[0], self.whys[1] + other.whys[1]),
            fills=self.fills + other.fills,
            shapes=self.shapes + other.shapes,
            aliases=self.aliases + other.aliases,
            tensors=self.tensors + other.tensors,
            modules=self.modules + other.modules,
            unmatched=self.unmatched,
        )


def parse_recipe(text: str, name: str, path: str | None = None) -> Recipe:
    """A recipe, checked as far as it can be without a checkpoint. RecipeError with the line where the fault stands."""
    try:
        return replace(_recipe(tomllib.loads(text), name), path=path)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"is no TOML: {_decapitalized(str(error))}", path=path or name) from None
    except RecipeError as error:
        line = _line(text, error.message)
        where = f"line {line}: " if line else ""
        raise RecipeError(where + error.message, path=path or name, hint=error.hint) from None


def _recipe(table: Mapping[str, Any], name: str) -> Recipe:
    if table.get("schema") != SCHEMA:
        said = f"'{table['schema']}'" if "schema" in table else "missing"
        raise RecipeError(f"the schema is {said}, not '{SCHEMA}'", hint=f'a recipe begins with schema = "{SCHEMA}"')
    odd = next((key for key in table if key not in _TOP), None)
    if odd is not None:
        raise RecipeError(f"a recipe has no '{odd}'", hint="it may have " + ", ".join(sorted(_TOP)))
    sides = _sides(table.get("sides"))
    words = _tables(table.get("names", {}))
    seps = [LAYOUTS[layout] for _, layout in sides]
    unmatched = table.get("unmatched", "error")
    if unmatched not in _UNMATCHED:
        raise RecipeError(f"unmatched = '{unmatched}'", hint="one of " + ", ".join(_UNMATCHED))
    recipe = Recipe(
        name,
        sides,
        about=_text(table.get("about", ""), "about"),
        notes=tuple(_text(note, "a note") for note in _list(table.get("notes", []), "notes")),
        vars=_vars(table.get("vars", {})),
        drop=_drops(table.get("drop", {}), sides),
        whys=_whys(table.get("why", {}), sides),
        kinds=kinds(_table(table.get("kind", {}), "kind"), shipped()),
        unmatched=unmatched,
    )
    names = (sides[0][0], sides[1][0])
    tensors = tuple(
        _tensor(number, rule, names, words, seps) for number, rule in enumerate(_list(table.get("tensor", []), "tensor"), 1)
    )
    modules = tuple(
        _module(number, rule, names, words, seps, recipe)
        for number, rule in enumerate(_list(table.get("module", []), "module"), 1)
    )
    fills = tuple(_fill(n, rule, names, words, seps) for n, rule in enumerate(_list(table.get("fill", []), "fill"), 1))
    aliases = tuple(_alias(n, rule, names, words, seps) for n, rule in enumerate(_list(table.get("alias", []), "alias"), 1))
    shapes = tuple(_shape(n, rule, names, words, seps) for n, rule in enumerate(_list(table.get("shape", []), "shape"), 1))
    recipe = replace(recipe, tensors=tensors, modules=modules, fills=fills, shapes=shapes, aliases=aliases)
    for other in _list(table.get("extends", []), "extends"):
        from wtool.maps.library import shipped_recipe

        base = shipped_recipe(_text(other, "extends"))
        if base is None:
            raise RecipeError(f"extends = '{other}': there is no such recipe", hint="`wtool map list` names them")
        layouts = tuple(layout for _, layout in base.sides)
        if layouts != tuple(layout for _, layout in sides):
            raise RecipeError(f"'{other}' is between {' and '.join(layouts)}, this recipe between others")
        recipe = recipe.behind(base)
    if not (recipe.tensors or recipe.modules):
        raise RecipeError("there are no rules", hint="[[module]] or [[tensor]] is one")
    return recipe


def _sides(value: Any) -> tuple[tuple[str, str], tuple[str, str]]:
    table = _table(value, "sides") if value is not None else {}
    if len(table) != 2:
        raise RecipeError("[sides] must name two sides", hint='as in torch = "torch" and keras = "keras"')
    for name, layout in table.items():
        if layout not in LAYOUTS:
            raise RecipeError(f"side '{name}': there is no layout '{layout}'", hint="one of " + ", ".join(LAYOUTS))
    one, two = table.items()
    return one, two


def _tables(value: Any) -> list[dict[str, list[str]]]:
    """The words of every table, first for the first side."""
    left: dict[str, list[str]] = {}
    right: dict[str, list[str]] = {}
    for name, table in _table(value, "names").items():
        pairs = _table(table, f"names.{name}")
        left[name] = list(pairs)
        right[name] = [_text(word, f"names.{name}") for word in pairs.values()]
        twice = next((word for word in right[name] if right[name].count(word) > 1), None)
        if twice is not None:
            raise RecipeError(f"table '{name}' has '{twice}' twice: it could not be read backwards")
    return [left, right]


def _vars(value: Any) -> dict[str, int | str]:
    """A number; a text that begins with $ (another variable); or any other text, which says what must be given."""
    found = _table(value, "vars")
    for name, number in found.items():
        if not isinstance(number, (int, str)) or isinstance(number, bool) or (isinstance(number, int) and number < 1):
            raise RecipeError(f"the variable '{name}' is {number!r}", hint="a whole number, or a text that says what it is")
    return dict(found)


def _drops(value: Any, sides: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    table = _table(value, "drop")
    names = [name for name, _ in sides]
    odd = next((name for name in table if name not in names), None)
    if odd is not None:
        raise RecipeError(f"[drop] names a side '{odd}'", hint="the sides are " + " and ".join(names))
    found = [tuple(_text(glob, "a glob of [drop]") for glob in _list(table.get(name, []), f"drop.{name}")) for name in names]
    for globs in found:
        for glob in globs:
            try:
                matcher([glob])
            except Exception as error:
                raise RecipeError(str(error)) from None
    return found[0], found[1]


def _whys(value: Any, sides: Sequence[tuple[str, str]]) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    table = _table(value, "why")
    names = [name for name, _ in sides]
    odd = next((name for name in table if name not in names), None)
    if odd is not None:
        raise RecipeError(f"[why] names a side '{odd}'", hint="the sides are " + " and ".join(names))
    found = []
    for name in names:
        said = _table(table.get(name, {}), f"why.{name}")
        _drops({name: list(said)}, sides)
        found.append(tuple((glob, _text(sentence, f"why.{name}")) for glob, sentence in said.items()))
    return found[0], found[1]


def _tensor(
    number: int, table: Any, names: tuple[str, str], words: Sequence[Mapping[str, list[str]]], seps: Sequence[str]
) -> TensorRule:
    table = _rule("tensor", number, table, {*names, "ops", "optional", "when"})
    sides = []
    for side, tables, separator in zip(names, words, seps, strict=True):
        texts = _list(table.get(side), f"side '{side}' of tensor rule {number}")
        if not texts:
            raise RecipeError(f"tensor rule {number} has no '{side}'")
        sides.append([parse(_text(text, f"'{side}' of tensor rule {number}"), tables, separator) for text in texts])
    ops = tuple(_text(op, "an operation") for op in _list(table.get("ops", []), f"ops of tensor rule {number}"))
    steps = [parse_step(substituted(op, None)) for op in ops]
    left, right = paired(*sides)
    said = f"tensor rule {number} ({left[0].source})"
    several = any(step.joins or step.parts for step in steps)
    slots = [[set(t.slots) for t in side] for side in (left, right)]
    for here, there, other in ((slots[0], slots[1], right), (slots[1], slots[0], left)):
        for one in here:
            extra = one - set[str].intersection(*there)
            consumed = any(step.text.startswith(("stack", "unstack")) for step in steps) and len(extra) == 1 and len(here) == 1
            if extra and not consumed:
                name = min(extra)
                raise RecipeError(
                    f"tensor rule {number}: the slot '{{{name}}}' stands on one side only, not in '{other[0].source}'",
                    hint="a number that stack or unstack consumes may stand on one side",
                )
    if not several and len(left) != len(right):
        raise RecipeError(
            f"{said} has {len(left)} keys on one side and {len(right)} on the other", hint="split, concat, tie ..."
        )
    given = _table(table.get("when", {}), f"when of tensor rule {number}")
    odd = next((name for name in given if name not in names), None)
    if odd is not None:
        raise RecipeError(f"tensor rule {number}: when names a side '{odd}'", hint="the sides are " + " and ".join(names))
    asked = [
        parse(_text(given[side], f"when of tensor rule {number}"), tables, separator) if side in given else None
        for side, tables, separator in zip(names, words, seps, strict=True)
    ]
    return TensorRule(said, (tuple(left), tuple(right)), ops, _flag(table, "optional"), (asked[0], asked[1]))


def _module(
    number: int,
    table: Any,
    names: tuple[str, str],
    words: Sequence[Mapping[str, list[str]]],
    seps: Sequence[str],
    recipe: Recipe,
) -> ModuleRule:
    table = _rule("module", number, table, {*names, "kind", "flatten", "with", "optional"})
    sides = []
    for side, tables, separator in zip(names, words, seps, strict=True):
        if side not in table:
            raise RecipeError(f"module rule {number} has no '{side}'")
        text = _text(table[side], f"'{side}' of module rule {number}")
        sides.append(parse(text, tables, separator) if text else Template("", (), separator))
    (left,), (right,) = paired([sides[0]], [sides[1]])
    odd = set(left.slots) ^ set(right.slots)
    if odd:
        name = min(odd)
        where = right if name in left.slots else left
        raise RecipeError(f"module rule {number}: the slot '{{{name}}}' stands on one side only, not in '{where.source}'")
    kind = table.get("kind")
    if kind is not None:
        if kind not in recipe.kinds:
            raise RecipeError(f"there is no kind '{kind}'", hint="`wtool map list --kinds` names them")
        for _, layout in recipe.sides:
            if layout not in recipe.kinds[kind].layouts():
                raise RecipeError(f"kind '{kind}' has no layout '{layout}'")
    flatten = str(table.get("flatten", "")).split()
    if flatten and (not 2 <= len(flatten) <= 4 or not all(re.fullmatch(r"[1-9][0-9]{0,8}|\$\w+", size) for size in flatten)):
        raise RecipeError(f"flatten = '{table['flatten']}'", hint='the channels and the sizes before Flatten: "512 7 7"')
    values = _table(table.get("with", {}), f"with of module rule {number}")
    name = f"module rule {number} ({left.source})"
    return ModuleRule(name, (left, right), kind, tuple(flatten), dict(values), _flag(table, "optional"))


def _fill(
    number: int, table: Any, names: tuple[str, str], words: Sequence[Mapping[str, list[str]]], seps: Sequence[str]
) -> FillRule:
    table = _rule("fill", number, table, {*names, "value", "beside", "copy"})
    side = next((index for index, name in enumerate(names) if name in table), None)
    if side is None or "beside" not in table:
        raise RecipeError(f"fill rule {number} needs a side and 'beside', the key whose shape it takes")
    template = parse(_text(table[names[side]], "a fill"), words[side], seps[side])
    beside = parse(_text(table["beside"], "beside"), words[side], seps[side])
    odd = set(template.slots) - set(beside.slots)
    if odd:
        raise RecipeError(f"fill rule {number}: the slot '{{{min(odd)}}}' is not in '{beside.source}'")
    value = table.get("value", 0)
    if not isinstance(value, (int, float)):
        raise RecipeError(f"fill rule {number}: the value is {value!r}")
    copy = None
    if "copy" in table:
        if "value" in table:
            raise RecipeError(f"fill rule {number} has a value and 'copy': one of them")
        copy = parse(_text(table["copy"], "copy"), words[side], seps[side])
        odd = set(copy.slots) - set(beside.slots)
        if odd:
            raise RecipeError(f"fill rule {number}: the slot '{{{min(odd)}}}' is not in '{beside.source}'")
    return FillRule(f"fill rule {number} ({template.source})", side, template, beside, value, copy)


def _shape(
    number: int, table: Any, names: tuple[str, str], words: Sequence[Mapping[str, list[str]]], seps: Sequence[str]
) -> ShapeRule:
    table = _rule("shape", number, table, {*names, "shape", "wrong"})
    side = next((index for index, name in enumerate(names) if name in table), None)
    if side is None or "shape" not in table or len(set(names) & set(table)) != 1:
        raise RecipeError(f"shape rule {number} needs one side and 'shape'")
    template = parse(_text(table[names[side]], f"the side of shape rule {number}"), words[side], seps[side])
    axes = _text(table["shape"], f"the shape of shape rule {number}")
    check_axes(axes)
    wrong = _text(table["wrong"], f"wrong of shape rule {number}") if "wrong" in table else None
    return ShapeRule(f"shape rule {number} ({template.source})", side, template, axes, wrong)


def _alias(
    number: int, table: Any, names: tuple[str, str], words: Sequence[Mapping[str, list[str]]], seps: Sequence[str]
) -> AliasRule:
    table = _rule("alias", number, table, {*names, "as"})
    side = next((index for index, name in enumerate(names) if name in table), None)
    if side is None or "as" not in table or len(table) != 2:
        raise RecipeError(f"alias rule {number} needs one side and 'as', the name that the rules know")
    (template,), (real,) = paired(
        [parse(_text(table[names[side]], "an alias"), words[side], seps[side])],
        [parse(_text(table["as"], "as"), words[side], seps[side])],
    )
    odd = set(real.slots) - set(template.slots)
    if odd:
        raise RecipeError(f"alias rule {number}: the slot '{{{min(odd)}}}' is not in '{template.source}'")
    return AliasRule(side, template, real)


def _rule(what: str, number: int, table: Any, allowed: set[str]) -> Mapping[str, Any]:
    found = _table(table, f"{what} rule {number}")
    odd = next((name for name in found if name not in allowed), None)
    if odd is not None:
        raise RecipeError(f"{what} rule {number} has no entry '{odd}'", hint="it may have " + ", ".join(sorted(allowed)))
    return found


def _table(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{what} is no table")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if value is not None and not isinstance(value, list):
        raise RecipeError(f"{what} is no list")
    return value or []


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{what} is no text")
    return value


def _flag(table: Mapping[str, Any], name: str) -> bool:
    value = table.get(name, False)
    if not isinstance(value, bool):
        raise RecipeError(f"{name} = '{value}'", hint="true or false")
    return value


def used_variables(recipe: Recipe) -> list[str]:
    """Every variable that its rules name, in their order."""
    texts = [op for rule in recipe.tensors for op in rule.ops]
    texts += [rule.axes for rule in recipe.shapes]
    for rule in recipe.modules:
        texts += [*rule.flatten, *(str(value) for value in rule.values.values())]
        if rule.kind is not None:
            texts += [
                f"${name}"
                for leaf in recipe.kinds[rule.kind].leaves
                for ops in leaf.ops.values()
                for op in ops
                for name in variables(op)
                if name not in rule.values and name not in recipe.kinds[rule.kind].vars
            ]
    return list(dict.fromkeys(name for text in texts for name in variables(text)))


def _line(text: str, message: str) -> int | None:
    """The line of the fault: where the first thing that the message quotes stands in the file."""
    for quoted in re.findall(r"'([^']+)'", message):
        for number, line in enumerate(text.splitlines(), 1):
            if quoted in line:
                return number
    return None


def _decapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]
