"""Templates: keys with named slots. `layer{s}.{b}.conv{c:1|2|3}` matches whole keys, and the same slots make the partner's.

    {i}         one letter: a number          {i+1}      the same number, one higher here than on the other side
    {word}      one part                      {i:03}     a number written with at least three digits
    {path*}     one or more parts             {x:a|b}    one of these; the other side may have others, in the same order
    {x:table}   a name of the recipe's table

Parts are divided by `.` and `/`. All else stands for itself. A template matches a key only if it would write that same key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from wtool.errors import RecipeError

Bindings = Mapping[str, object]  # slot -> number, part, tuple of parts, or the index of a word

_SLOT = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:([+-][0-9]+)|(\*)|:(0[0-9]+)|:([^{}]+))?")
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_PART = r"[^./]+"
_LONGEST = 1000  # several parts within a part are tried in all ways: a power of the length
_MOST_DIGITS = 17


@dataclass(frozen=True, slots=True)
class Slot:
    """`kind`: number, part, path, or word (one of `words`; the binding is its index)."""

    name: str
    kind: str
    shift: int = 0
    width: int = 0
    words: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        if self.kind == "number":
            return f"(?:[0-9]{{{self.width}}}|[1-9][0-9]{{{self.width},17}})" if self.width else _NUMBER
        if self.kind == "word":
            return "|".join(map(re.escape, self.words))
        return _PART if self.kind == "part" else rf"{_PART}(?:[./]{_PART})*"

    def value(self, text: str) -> object:
        if self.kind == "number":
            return int(text) - self.shift
        if self.kind == "word":
            return self.words.index(text)
        return tuple(re.split("[./]", text)) if self.kind == "path" else text

    def text(self, value: object, separator: str) -> str:
        if self.kind == "number":
            assert isinstance(value, int)
            return f"{value + self.shift:0{self.width}d}"
        if self.kind == "word":
            assert isinstance(value, int)
            return self.words[value]
        return separator.join(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Template:
    """Literal text and slots in turn. `separator` joins the parts of a path when a key is written."""

    source: str
    parts: tuple[str | Slot, ...]
    separator: str = "."

    @cached_property
    def slots(self) -> dict[str, Slot]:
        return {part.name: part for part in self.parts if isinstance(part, Slot)}

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        seen: set[str] = set()
        text = ""
        for part in self.parts:
            if isinstance(part, str):
                text += re.escape(part)
            else:
                text += f"(?P={part.name})" if part.name in seen else f"(?P<{part.name}>{part.pattern})"
                seen.add(part.name)
        return re.compile(text, re.DOTALL)

    def match(self, key: str) -> Bindings | None:
        """The slots' values, if this template writes exactly this key. One of more than 1000 characters is no model's."""
        found = self._regex.fullmatch(key) if len(key) <= _LONGEST else None
        if found is None:
            return None
        values = {name: slot.value(found[name]) for name, slot in self.slots.items()}
        if any(isinstance(value, int) and value < 0 for value in values.values()) or self.write(values) != key:
            return None
        return values

    def write(self, values: Bindings) -> str:
        """The key. KeyError if a slot has no value."""
        return "".join(part if isinstance(part, str) else part.text(values[part.name], self.separator) for part in self.parts)

    def loosened(self) -> list[tuple[Slot, Template]]:
        """Each number slot in turn as a part, to hint at why a key did not match."""
        found = []
        for slot in self.slots.values():
            if slot.kind == "number":
                loose = tuple(
                    replace(p, kind="part") if isinstance(p, Slot) and p.name == slot.name else p for p in self.parts
                )
                found.append((slot, replace(self, parts=loose)))
        return found


def parse(source: str, tables: Mapping[str, Sequence[str]], separator: str = ".") -> Template:
    """A template; `tables` are the words of each table on this template's side. RecipeError for bad syntax."""
    parts: list[str | Slot] = []
    at = 0
    for found in _SLOT.finditer(source):
        parts += [source[at : found.start()]] if found.start() > at else []
        parts.append(_slot(found[1], source, tables))
        at = found.end()
    rest = source[at:]
    parts += [rest] if rest else []
    literal = "".join(part for part in parts if isinstance(part, str))
    if "{" in literal or "}" in literal:
        raise RecipeError(f"'{source}' has a brace that is no slot", hint="slots are {i}, {word}, {path*}, {i+1}, {x:a|b}")
    if not source:
        raise RecipeError("a template is empty")
    kinds: dict[str, Slot] = {}
    for part in parts:
        if isinstance(part, Slot) and kinds.setdefault(part.name, part) != part:
            raise RecipeError(f"'{source}' has two different slots '{part.name}'")
    for one, two in pairwise(parts):
        if isinstance(one, Slot) and isinstance(two, Slot) and "word" not in (one.kind, two.kind):
            raise RecipeError(
                f"'{source}': nothing stands between '{{{one.name}}}' and '{{{two.name}}}'",
                hint="a key could be read in several ways; name the choices of one, as in {x:conv|bn}{i}",
            )
    if sum(slot.kind == "path" for slot in kinds.values()) > 1:
        raise RecipeError(f"'{source}' has two slots of several parts", hint="a template may have one {name*}")
    return Template(source, tuple(parts), separator)


def _slot(text: str, source: str, tables: Mapping[str, Sequence[str]]) -> Slot:
    found = _NAME.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"'{source}': '{{{text}}}' is no slot", hint="slots are {i}, {word}, {path*}, {i+1}, {i:03}, {x:a|b}"
        )
    name, shift, star, width, words = found.groups()
    if star:
        return Slot(name, "path")
    if shift:
        if len(shift) > 7:
            raise RecipeError(f"'{source}': '{{{name}{shift[:7]}...}}' is shifted too far")
        return Slot(name, "number", shift=int(shift))
    if width:
        if len(width) > 3 or int(width) > _MOST_DIGITS:
            raise RecipeError(f"'{source}': '{{{text}}}' is too wide", hint=f"numbers have at most {_MOST_DIGITS} digits")
        return Slot(name, "number", width=int(width))
    if words is not None:
        if words in tables:
            return Slot(name, "word", words=tuple(tables[words]))
        choices = tuple(words.split("|"))
        if len(choices) < 2 and words.isidentifier():
            raise RecipeError(f"'{source}': there is no table '{words}'", hint=f"[names.{words}] would be one")
        if len(set(choices)) != len(choices):
            raise RecipeError(f"'{source}': '{{{text}}}' names a choice twice")
        return Slot(name, "word", words=choices)
    return Slot(name, "number" if len(name) == 1 else "part")


def paired(left: Sequence[Template], right: Sequence[Template]) -> tuple[list[Template], list[Template]]:
    """Both sides with choices made to agree: those of one side alone hold on the other too. RecipeError if they cannot."""
    slots = [{name: slot for t in side for name, slot in t.slots.items()} for side in (left, right)]
    sides = (list(left), list(right))
    for name in slots[0].keys() & slots[1].keys():
        one, two = slots[0][name], slots[1][name]
        if one.kind == two.kind == "word":
            if len(one.words) != len(two.words):
                raise RecipeError(f"'{{{name}}}' has {len(one.words)} choices on one side and {len(two.words)} on the other")
        elif "word" in (one.kind, two.kind):
            given, side = (one, 1) if one.kind == "word" else (two, 0)
            sides[side][:] = [_with(template, replace(given, shift=0)) for template in sides[side]]
        elif one.kind != two.kind:
            raise RecipeError(f"'{{{name}}}' is a {one.kind} on one side and a {two.kind} on the other")
    return sides


def _with(template: Template, slot: Slot) -> Template:
    parts = tuple(slot if isinstance(part, Slot) and part.name == slot.name else part for part in template.parts)
    return replace(template, parts=parts)
