"""Recipes: TOML files of schema wtool.map/1, read, checked and turned round. The language is taught in docs/recipes.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wtool.errors import RecipeError
from wtool.keys import matcher
from wtool.maps.grammar import Grammar, each, list_of, table_of, text_of
from wtool.maps.kinds import LAYOUTS, Kind, kinds, numbers_of, shipped, variables
from wtool.maps.places import in_toml, line_of
from wtool.maps.rules import AliasRule as AliasRule
from wtool.maps.rules import FillRule as FillRule
from wtool.maps.rules import ModuleRule as ModuleRule
from wtool.maps.rules import ShapeRule as ShapeRule
from wtool.maps.rules import TensorRule as TensorRule

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
    "need",
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
Sentences = tuple[tuple[str, str], ...]  # (glob, sentence)


@dataclass(frozen=True)
class Recipe:
    """`sides` are (name, layout), the source first; `turned` says that this is the written recipe read backwards.

    `whys` are (glob, sentence) by side: why a key that no rule takes has no partner. `needs` likewise: a key must match the
    glob, or the recipe does not hold, as the sentence says.
    """

    name: str
    sides: tuple[tuple[str, str], tuple[str, str]]
    about: str = ""
    notes: tuple[str, ...] = ()
    vars: Mapping[str, int | str] = field(default_factory=dict)
    drop: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    whys: tuple[Sentences, Sentences] = ((), ())
    needs: tuple[Sentences, Sentences] = ((), ())
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
            needs=(self.needs[1], self.needs[0]),
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

    def speaks_of(self, prefix: str, side: int = 0) -> bool:
        """Whether a rule of this side has it, at the start of a key or of one of its parts."""
        texts = [template.source for rule in self.tensors for template in rule.sides[side]]
        texts += [rule.sides[side].source for rule in self.modules]
        return any(text.startswith(prefix) or f"/{prefix}" in text for text in (*texts, *self.drop[side]))

    def has_dots(self, side: int) -> bool:
        """Whether a dot stands in a template of this side, itself or as one of a slot's words."""
        templates = [template for rule in self.tensors for template in rule.sides[side]]
        templates += [rule.sides[side] for rule in self.modules]
        parts = [part for template in templates for part in template.parts]
        return any("." in text for part in parts for text in ((part,) if isinstance(part, str) else part.words))

    def behind(self, other: Recipe) -> Recipe:
        """This recipe with the rules of another, of the same layouts, behind its own; its own kinds win.

        The other's rules are for what is left: they may meet no key.
        """
        own = {name: kind for name, kind in self.kinds.items() if shipped().get(name) is not kind}
        return replace(
            self,
            kinds={**other.kinds, **own},
            notes=(*self.notes, *(note for note in other.notes if note not in self.notes)),
            vars={**other.vars, **self.vars},
            drop=(self.drop[0] + other.drop[0], self.drop[1] + other.drop[1]),
            whys=(self.whys[0] + other.whys[0], self.whys[1] + other.whys[1]),
            needs=(self.needs[0] + other.needs[0], self.needs[1] + other.needs[1]),
            fills=self.fills + other.fills,
            shapes=self.shapes + other.shapes,
            aliases=self.aliases + other.aliases,
            tensors=self.tensors + tuple(replace(rule, optional=True) for rule in other.tensors),
            modules=self.modules + tuple(replace(rule, optional=True) for rule in other.modules),
        )


def parse_recipe(text: str, name: str, path: str | None = None) -> Recipe:
    """A recipe, checked as far as it can be without a checkpoint. RecipeError with the line where the fault stands."""
    try:
        return replace(_recipe(tomllib.loads(text), name), path=path)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"is no TOML: {in_toml(text, str(error))}", path=path or name) from None
    except (ValueError, RecursionError) as error:
        said = "too deep" if isinstance(error, RecursionError) else "a number is too long"
        raise RecipeError(f"is no TOML: {said}", path=path or name) from None
    except RecipeError as error:
        line = line_of(text, error)
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
        about=text_of(table.get("about", ""), "about"),
        notes=tuple(text_of(note, "a note") for note in list_of(table.get("notes", []), "notes")),
        vars=numbers_of(table.get("vars", {}), "[vars]"),
        drop=_drops(table.get("drop", {}), sides),
        whys=_sentences(table, "why", sides),
        needs=_sentences(table, "need", sides),
        kinds=kinds(table_of(table.get("kind", {}), "kind"), shipped()),
        unmatched=unmatched,
    )
    names = (sides[0][0], sides[1][0])
    grammar = Grammar(names, (words[0], words[1]), (seps[0], seps[1]), recipe.kinds, (sides[0][1], sides[1][1]))
    tensors = each(table, "tensor", grammar.tensor)
    modules = each(table, "module", grammar.module)
    fills = each(table, "fill", grammar.fill)
    aliases = each(table, "alias", grammar.alias)
    shapes = each(table, "shape", grammar.shape)
    recipe = replace(recipe, tensors=tensors, modules=modules, fills=fills, shapes=shapes, aliases=aliases)
    for other in list_of(table.get("extends", []), "extends"):
        from wtool.maps.catalog import shipped_recipe, turned_name

        base = shipped_recipe(text_of(other, "extends"))
        if base is None:
            raise RecipeError(f"extends = '{other}': there is no such recipe", hint="`wtool map list` names them")
        layouts = tuple(layout for _, layout in base.sides)
        if layouts != tuple(layout for _, layout in sides):
            raise RecipeError(f"'{other}' is between {' and '.join(layouts)}, this recipe between others")
        if base.turned:
            hint = f"extend '{turned_name(other)}' with [sides] the other way round; --reverse runs it backwards"
            raise RecipeError(f"extends = '{other}' is a recipe read backwards", hint=hint)
        recipe = recipe.behind(base)
        if "unmatched" not in table:
            recipe = replace(recipe, unmatched=base.unmatched)
    if not (recipe.tensors or recipe.modules):
        raise RecipeError("there are no rules", hint="[[module]] or [[tensor]] is one")
    return recipe


def _sides(value: Any) -> tuple[tuple[str, str], tuple[str, str]]:
    table = table_of(value, "sides") if value is not None else {}
    if len(table) != 2:
        raise RecipeError("[sides] must name two sides", hint='as in torch = "torch" and keras = "keras"')
    for name, layout in table.items():
        if not isinstance(layout, str) or layout not in LAYOUTS:
            raise RecipeError(f"side '{name}': there is no layout '{layout}'", hint="one of " + ", ".join(LAYOUTS))
    one, two = table.items()
    return one, two


def _tables(value: Any) -> list[dict[str, list[str]]]:
    """The words of every table, first for the first side."""
    left: dict[str, list[str]] = {}
    right: dict[str, list[str]] = {}
    for name, table in table_of(value, "names").items():
        pairs = table_of(table, f"names.{name}")
        left[name] = list(pairs)
        right[name] = [text_of(word, f"names.{name}") for word in pairs.values()]
        twice = next((word for word in right[name] if right[name].count(word) > 1), None)
        if twice is not None:
            raise RecipeError(f"table '{name}' has '{twice}' twice: it could not be read backwards")
    return [left, right]


def _drops(value: Any, sides: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    table = table_of(value, "drop")
    names = [name for name, _ in sides]
    odd = next((name for name in table if name not in names), None)
    if odd is not None:
        raise RecipeError(f"[drop] names a side '{odd}'", hint="the sides are " + " and ".join(names))
    found = [
        tuple(text_of(glob, "a glob of [drop]") for glob in list_of(table.get(name, []), f"drop.{name}")) for name in names
    ]
    for globs in found:
        for glob in globs:
            try:
                matcher([glob])
            except Exception as error:
                raise RecipeError(str(error)) from None
    return found[0], found[1]


def _sentences(table: Mapping[str, Any], what: str, sides: Sequence[tuple[str, str]]) -> tuple[Sentences, Sentences]:
    """[why] or [need]: by side, globs and what is said of them."""
    found = table_of(table.get(what, {}), what)
    names = [name for name, _ in sides]
    odd = next((name for name in found if name not in names), None)
    if odd is not None:
        raise RecipeError(f"[{what}] names a side '{odd}'", hint="the sides are " + " and ".join(names))
    said = [table_of(found.get(name, {}), f"{what}.{name}") for name in names]
    _drops(dict(zip(names, map(list, said), strict=True)), sides)
    one, two = (
        tuple((glob, text_of(sentence, f"{what}.{name}")) for glob, sentence in globs.items())
        for name, globs in zip(names, said, strict=True)
    )
    return one, two


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
