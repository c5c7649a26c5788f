"""Which keys become which: the rules of a recipe on the keys of one checkpoint.

Drops first, then tensor rules, then module rules, in their order; each key is taken once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wtool.errors import MapError
from wtool.keys import matcher
from wtool.maps.kinds import substituted
from wtool.maps.modules import Row as Row
from wtool.maps.modules import match_modules
from wtool.maps.recipe import Recipe, TensorRule
from wtool.maps.step import Step, Wanted
from wtool.maps.steps import backwards, parse_step
from wtool.maps.templates import Bindings, Template
from wtool.maps.values import Untie
from wtool.tensor import LazyTensor


class Fill(NamedTuple):
    """A key without a partner: made of `value`, with the shape and dtype of the target key `beside` it, or scalar.

    With `copy` it is that target key under another name.
    """

    target: str
    value: float
    beside: str | None
    dtype: str | None
    rule: str
    copy: str | None = None


@dataclass(frozen=True)
class Matched:
    """`used` are the names of rules that took a key. `left` are keys that no rule took, with the reason where one is known."""

    rows: tuple[Row, ...]
    dropped: tuple[str, ...]
    fills: tuple[Fill, ...]
    left: Mapping[str, str]
    used: frozenset[str]


class UnsetVariable(MapError):
    """A rule needs a number that neither the recipe nor the user gives."""


class Variables(Mapping[str, int]):
    """A recipe's variables, with those that were set. KeyError for one without a number."""

    def __init__(self, recipe: Recipe, given: Mapping[str, int], own: Mapping[str, int | str] | None = None) -> None:
        self._values: dict[str, int | str] = {**recipe.vars, **given, **(own or {})}
        self._recipe = recipe

    def __getitem__(self, name: str) -> int:
        value: int | str | None = self._values.get(name)
        seen = {name}
        while isinstance(value, str) and value.startswith("$"):
            name = value[1:]
            if name in seen:
                break
            seen.add(name)
            value = self._values.get(name)
        if not isinstance(value, int):
            about = self._recipe.vars.get(name)
            said = f": {about}" if isinstance(about, str) and not about.startswith("$") else ""
            raise UnsetVariable(f"the variable '{name}' is not set{said}", hint=f"--set {name}=N")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def match(
    recipe: Recipe,
    tensors: Mapping[str, LazyTensor],
    given: Mapping[str, int],
    likely: Mapping[str, tuple[int, ...]] | None = None,
) -> Matched:
    """The rows for tensors by their names on the recipe's source side.

    `given` are variables that were set, `likely` the names and shapes of a template: what a kind would make must be in it.
    """
    names = dict.fromkeys(tensors)
    rows: list[Row] = []
    fills: list[Fill] = []
    used: set[str] = set()
    dropped = _drop(recipe, names, used)
    for rule in recipe.tensors:
        found = list(_by_tensors(rule, names, recipe, given, tensors))
        rows += found
        used |= {rule.name} if found else set()
    reasons: dict[str, str] = {}
    for module in recipe.modules:
        made = match_modules(module, recipe, tensors, names, lambda own: Variables(recipe, given, own), likely)
        rows += made.rows
        fills += [Fill(target, value, None, dtype, module.name) for target, value, dtype in made.fills]
        dropped += made.dropped
        reasons |= made.reasons
        used |= {module.name} if made.rows else set()
    targets = dict.fromkeys(target for row in rows for target in row.targets)
    for fill in recipe.fills:
        if fill.side == 1:
            for target in targets:
                values = fill.beside.match(target)
                if values is None:
                    continue
                name, copy = fill.template.write(values), None if fill.copy is None else fill.copy.write(values)
                if copy is None or (copy in targets and name not in targets):
                    fills.append(Fill(name, fill.value, target, None, fill.name, copy))
                    used.add(fill.name)
        elif fill.copy is None:
            for name in list(names):
                if fill.template.match(name) is not None:
                    names.pop(name)
                    dropped.append(name)
                    used.add(fill.name)
    for glob, sentence in recipe.whys[0]:
        matches = matcher([glob])
        reasons |= {name: sentence for name in names if name not in reasons and matches(name)}
    return Matched(tuple(rows), tuple(dropped), tuple(fills), {name: reasons.get(name, "") for name in names}, frozenset(used))


def _drop(recipe: Recipe, names: dict[str, None], used: set[str]) -> list[str]:
    found: dict[str, None] = {}
    for glob in recipe.drop[0]:
        matches = matcher([glob])
        some = [name for name in names if matches(name)]
        found |= dict.fromkeys(some)
        if some:
            used.add(f"drop {glob}")
    for name in found:
        del names[name]
    return list(found)


def _by_tensors(
    rule: TensorRule, names: dict[str, None], recipe: Recipe, given: Mapping[str, int], tensors: Mapping[str, LazyTensor]
) -> Iterator[Row]:
    """Rows of a tensor rule; takes their keys out of `names`."""
    condition = rule.when[0]
    if condition is not None and all(condition.match(name) is None for name in tensors):
        return
    sources, targets = rule.sides
    shared = set(targets[0].slots)
    groups: dict[tuple[object, ...], dict[tuple[int, int], str]] = {}
    bound: dict[tuple[object, ...], Bindings] = {}
    literal = not any(template.slots for template in sources)
    written = [template.write({}) for template in sources] if literal else []
    for name in [name for name in written if name in names] if literal else names:
        for place, template in enumerate(sources):
            values = template.match(name)
            if values is None:
                continue
            common: tuple[object, ...] = tuple(sorted((slot, value) for slot, value in values.items() if slot in shared))
            number = next((value for slot, value in values.items() if slot not in shared), -1)
            assert isinstance(number, int)
            groups.setdefault(common, {})[place, number] = name
            bound.setdefault(common, values)
            break
    if not groups:
        return
    steps = [parse_step(substituted(op, Variables(recipe, given))) for op in rule.ops]
    steps = backwards(steps) if recipe.turned else steps
    may_lack = any(isinstance(step, Untie) for step in steps)
    for common, found in groups.items():
        keys = tuple(found[place] for place in sorted(found))
        places = {place for place, _ in found}
        lacking = next((template for place, template in enumerate(sources) if place not in places), None)
        if lacking is not None and not may_lack:
            wants = lacking.write(bound[common]) if set(lacking.slots) <= set(bound[common]) else lacking.source
            raise MapError(f"{rule.name}: '{keys[0]}' has no partner '{wants}'")
        numbers = sorted(number for _, number in found if number >= 0)
        if numbers != list(range(len(numbers))):
            raise MapError(f"{rule.name}: '{keys[0]}' and its like are not numbered from 0 without a gap")
        yield Row(keys, _written(targets, bound[common], steps, [tensors[key] for key in keys]), tuple(steps), rule.name)
        for key in keys:
            del names[key]


def _written(
    targets: Sequence[Template], values: Bindings, steps: Sequence[Step], tensors: list[LazyTensor]
) -> tuple[str, ...]:
    """The keys of the other side; as many as there are parts, where one template has a number that the parts count."""
    free = set(targets[0].slots) - set(values)
    if not free:
        return tuple(template.write(values) for template in targets)
    for step in steps:
        tensors = step(tensors, Wanted(1))
    return tuple(targets[0].write({**values, min(free): number}) for number in range(len(tensors)))
