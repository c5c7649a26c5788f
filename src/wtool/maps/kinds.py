"""Kinds of layers as data: kinds.toml, and the kinds that a recipe adds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from wtool.dtypes import BY_NAME
from wtool.errors import MapError, RecipeError
from wtool.maps.step import Step
from wtool.maps.steps import backwards, parse_step

LAYOUTS = {
    "torch": ".",
    "keras": "/",
    "object": "/",
    "tf1": "/",
    "flax": ".",
    "nnx": ".",
    "mlx": ".",
}  # layout -> what divides the parts of a key
# What the metadata of a safetensors file calls the framework, as Hugging Face's loaders look for it.
FORMATS = {"torch": "pt", "keras": "tf", "object": "tf", "tf1": "tf", "flax": "flax", "nnx": "flax", "mlx": "mlx"}
HUB = "torch"
_COLLECTION = "params"
_LEAF = {"torch", "keras", "object", "flax", "nnx", "mlx", "shape", "optional", "fill", "dtype", "ops", "wrong"}
_KIND = {"about", "words", "against", "vars", "leaf", "explicit", "rare"}
_LONG = 4  # letters of a word that is looked for inside other words
_VARIABLE = re.compile(r"\$(\{)?([A-Za-z_][A-Za-z0-9_]*)(?(1)\})")  # $heads or ${heads}


@dataclass(frozen=True)
class Leaf:
    """One row of a kind: names by layout (several where several tensors take part), operations from torch by layout.

    `shape` is torch's, a letter an axis: the same letter is the same size throughout the kind, a number is that size, `4u`
    is four times u.
    """

    names: Mapping[str, tuple[str, ...]]
    ops: Mapping[str, tuple[str, ...]]
    shape: tuple[str, ...] | None = None
    optional: bool = False
    fill: float | None = None
    dtype: str | None = None
    wrong: str | None = None  # what to say when it is this kind's leaf by all names, but the shape is another


@dataclass(frozen=True)
class Kind:
    """`words` in a module's name speak for it where shapes cannot tell. `explicit` kinds are never inferred.

    `rare` kinds are inferred only by words or a template. Where one would fit in silence that is said, unless a word `against`
    it is in the name. `vars` may stand in names of leaves, too (see `named`).
    """

    name: str
    about: str
    leaves: tuple[Leaf, ...]
    words: tuple[str, ...] = ()
    vars: Mapping[str, int | str] = field(default_factory=dict)
    explicit: bool = False
    rare: bool = False
    against: tuple[str, ...] = ()

    def layouts(self) -> list[str]:
        return [layout for layout in LAYOUTS if any(layout in leaf.names for leaf in self.leaves)]

    def named(self, values: Mapping[str, int]) -> Kind:
        """The kind with the $variables in the names of its leaves filled in. KeyError names one that has no value."""
        if not any("$" in name for leaf in self.leaves for names in leaf.names.values() for name in names):
            return self
        return replace(self, leaves=tuple(_filled(leaf, values) for leaf in self.leaves))

    def called(self, part: str) -> bool:
        """Whether a part of a module's name has one of the kind's words: whole (`fc1`), or inside if it is long."""
        return _has(part, self.words)

    def denied(self, part: str) -> bool:
        """Whether a part of a module's name has a word that speaks against the kind."""
        return _has(part, self.against)


def _has(part: str, words: Sequence[str]) -> bool:
    part = part.lower()
    tokens = {token for found in re.findall("[a-z0-9]+", part) for token in (found, found.rstrip("0123456789"))}
    return any(word in tokens or (len(word) >= _LONG and word in part) for word in words)


@cache
def shipped() -> Mapping[str, Kind]:
    """The kinds of kinds.toml by name, in its order."""
    text = files("wtool.maps").joinpath("kinds.toml").read_text(encoding="utf-8")
    return kinds(tomllib.loads(text), {})


def kinds(tables: Mapping[str, Any], known: Mapping[str, Kind]) -> Mapping[str, Kind]:
    """`known` and the kinds of these tables, which may override them. RecipeError for what makes no sense."""
    found = dict(known)
    for name, table in tables.items():
        found[name] = _kind(name, table)
    return found


def _kind(name: str, table: Any) -> Kind:
    if isinstance(table, list):
        table = {"leaf": table}
    if not isinstance(table, Mapping) or not isinstance(table.get("leaf"), list) or not table["leaf"]:
        raise RecipeError(f"kind '{name}' has no leaves", hint=f"[[kind.{name}.leaf]] is one")
    _only(f"kind '{name}'", table, _KIND)
    try:
        leaves = tuple(_leaf(name, leaf) for leaf in table["leaf"])
        words = _texts(table.get("words", []))
    except RecipeError as error:
        said = "" if f"kind '{name}'" in error.message else f"kind '{name}': "
        raise RecipeError(said + error.message, hint=error.hint) from None
    return Kind(
        name,
        str(table.get("about", "")),
        leaves,
        words,
        numbers_of(table.get("vars", {}), f"vars of kind '{name}'"),
        bool(table.get("explicit", False)),
        bool(table.get("rare", False)),
        tuple(table.get("against", ())),
    )


def _leaf(kind: str, table: Any) -> Leaf:
    if not isinstance(table, Mapping):
        raise RecipeError(f"a leaf of kind '{kind}' is no table")
    _only(f"a leaf of kind '{kind}'", table, _LEAF)
    names = {layout: _texts(table[layout]) for layout in LAYOUTS if layout in table}
    if HUB not in names:
        raise RecipeError(f"a leaf of kind '{kind}' has no torch name", hint="operations lead from torch to the others")
    given = table.get("ops", {})
    if isinstance(given, (str, list)):
        given = {layout: given for layout in names if layout != HUB}
    if not isinstance(given, Mapping):
        raise RecipeError(f"ops of a leaf of kind '{kind}' is no table")
    ops = {layout: _texts(given[layout]) for layout in given}
    if "keras" in names:
        names.setdefault("object", names["keras"])
    if "keras" in ops:
        ops.setdefault("object", ops["keras"])
    for layout in ops:
        if layout not in LAYOUTS:
            raise RecipeError(f"kind '{kind}': there is no layout '{layout}'", hint="one of " + ", ".join(LAYOUTS))
        for op in ops[layout]:
            parse_step(substituted(op, None))
    shape = tuple(str(table["shape"]).split()) if "shape" in table else None
    fill, dtype = table.get("fill"), table.get("dtype")
    if fill is not None and (not isinstance(fill, (int, float)) or isinstance(fill, bool)):
        raise RecipeError(f"a leaf of kind '{kind}': the fill is {fill!r}, no number")
    if dtype is not None and (not isinstance(dtype, str) or dtype not in BY_NAME):
        raise RecipeError(f"a leaf of kind '{kind}': there is no dtype '{dtype}'", hint="one of " + ", ".join(BY_NAME))
    wrong = table.get("wrong")
    return Leaf(names, ops, shape, bool(table.get("optional")), fill, dtype, None if wrong is None else str(wrong))


def numbers_of(value: Any, what: str) -> dict[str, int | str]:
    """Variables: numbers, or texts (a `$name`, or what must be given). RecipeError for anything else, and for circles."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{what} is no table")
    least = int(what == "[vars]")  # the number of a layer may be 0
    for name, number in value.items():
        if not isinstance(number, (int, str)) or isinstance(number, bool) or (isinstance(number, int) and number < least):
            raise RecipeError(f"the variable '{name}' is {number!r}", hint="a whole number, or a text that says what it is")
        seen = {name}
        while isinstance(number, str) and number.startswith("$"):
            if number[1:] in seen:
                # `with = { m = "$m" }` takes the recipe's variable of that name.
                if len(seen) == 1 and what.startswith("with"):
                    break
                raise RecipeError(f"the variable '{name}' leads to itself", hint="one of them must be a number or a sentence")
            seen.add(number[1:])
            number = value.get(number[1:])
    return dict(value)


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if (not texts and value != []) or not all(isinstance(text, str) for text in texts):
        raise RecipeError(f"'{value}' is no text, nor a list of them")
    return texts


def _only(what: str, table: Mapping[str, Any], allowed: set[str]) -> None:
    odd = next((name for name in table if name not in allowed), None)
    if odd is not None:
        raise RecipeError(f"{what} has no entry '{odd}'", hint="it may have " + ", ".join(sorted(allowed)))


def variables(text: str) -> list[str]:
    """The names of the variables in a text."""
    return [found[2] for found in _VARIABLE.finditer(text)]


def substituted(text: str, values: Mapping[str, int] | None) -> str:
    """The text with its $variables filled in (None: with any number). KeyError names one that has no value."""
    return _VARIABLE.sub(lambda found: str(1 if values is None else values[found[2]]), text)


def _filled(leaf: Leaf, values: Mapping[str, int]) -> Leaf:
    filled = {layout: tuple(substituted(name, values) for name in names) for layout, names in leaf.names.items()}
    return replace(leaf, names=filled)


def leaf_steps(leaf: Leaf, source: str, target: str, values: Mapping[str, int]) -> list[Step]:
    """The operations from one layout to another, by way of torch's.

    A variable without a value stays in its operation: a size in `rearrange` may follow from the shapes.
    """
    there = [parse_step(_as_far_as_known(op, values)) for op in leaf.ops.get(source, ())]
    on = [parse_step(_as_far_as_known(op, values)) for op in leaf.ops.get(target, ())]
    return [] if source == target else backwards(there) + on


def _as_far_as_known(op: str, values: Mapping[str, int]) -> str:
    try:
        return substituted(op, values)
    except (KeyError, MapError):
        if not op.startswith("rearrange"):
            raise
        return op


def another(kind: Kind, layout: str, key: str) -> Mapping[str, int]:
    """The values of the kind's variables with which this key would be one of its leaves; empty if there are none."""
    for leaf in kind.leaves:
        for name in leaf.names.get(layout, ()):
            found = _numbered(name, LAYOUTS[layout]).search(key) if "$" in name else None
            if found is not None:
                return {variable: int(value) for variable, value in found.groupdict().items()}
    return {}


@cache
def _numbered(name: str, separator: str) -> re.Pattern[str]:
    """A leaf's name with numbers for its variables, at the end of a key."""
    pattern, at = "", 0
    for variable in _VARIABLE.finditer(name):
        pattern += re.escape(name[at : variable.start()]) + f"(?P<{variable[2]}>[0-9]{{1,4}})"
        at = variable.end()
    return re.compile(rf"(?:^|{re.escape(separator)}){pattern}{re.escape(name[at:])}$")


def joined(layout: str, path: str, leaf: str) -> str:
    """The key of a module's leaf."""
    collection, colon, name = leaf.rpartition(":")
    separator = LAYOUTS[layout]
    key = separator.join(part for part in (path, name) if part)
    return f"{collection if colon else _COLLECTION}{separator}{key}" if layout == "flax" else key


def taken_apart(layout: str, key: str, leaf: str) -> str | None:
    """The path of the module whose leaf this key is; None if the key does not end in the leaf."""
    collection, colon, name = leaf.rpartition(":")
    separator = LAYOUTS[layout]
    if layout == "flax":
        start = (collection if colon else _COLLECTION) + separator
        if not key.startswith(start):
            return None
        key = key[len(start) :]
    if key == name:
        return ""
    return key[: -len(name) - 1] if key.endswith(separator + name) else None


def module_kinds(known: Mapping[str, Kind], layouts: Sequence[str]) -> list[Kind]:
    """Those that all these layouts have and that may be inferred."""
    return [kind for kind in known.values() if not kind.explicit and all(layout in kind.layouts() for layout in layouts)]
