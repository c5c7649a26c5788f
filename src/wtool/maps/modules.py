"""Module rules on the keys of one checkpoint: which modules there are, of what kind each is, and what its leaves become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wtool.errors import MapError
from wtool.maps.kinds import (
    HUB,
    LAYOUTS,
    Kind,
    Leaf,
    another,
    joined,
    leaf_steps,
    module_kinds,
    substituted,
    taken_apart,
)
from wtool.maps.recipe import ModuleRule, Recipe
from wtool.maps.step import Step, Wanted
from wtool.maps.steps import backwards, chain, parse_step
from wtool.tensor import LazyTensor, Shape

Values = Callable[[Mapping[str, int | str]], Mapping[str, int]]  # a rule's own variables -> all of them
_NEAR = 2  # parts of a module's name, from its end, that are looked at for words


@dataclass(frozen=True)
class Row:
    """Some keys become others by these steps. `doubt` says what was assumed, if anything was; `rule` where it is written.

    `kind` is the module's, which the rule told or which was inferred; empty for a tensor rule.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    steps: tuple[Step, ...]
    rule: str
    evidence: str = ""
    doubt: str = ""
    kind: str = ""
    told: bool = False


@dataclass
class Made:
    """What one module rule did. `reasons`: why a key of a module that it matches was left.

    `held` are keys of a layer that cannot be: what they look like one by one must not be taken for it.
    """

    rows: list[Row] = field(default_factory=list)
    fills: list[tuple[str, float, str | None]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)


class _Choice(NamedTuple):
    kind: Kind
    evidence: str
    doubt: str


def match_modules(
    rule: ModuleRule,
    recipe: Recipe,
    tensors: Mapping[str, LazyTensor],
    names: dict[str, None],
    values: Values,
    likely: Mapping[str, Shape] | None,
) -> Made:
    """Rows of a module rule; takes their keys out of `names`. See match.match for the arguments."""
    source, target = rule.sides
    layouts = (recipe.sides[0][1], recipe.sides[1][1])
    written = module_kinds(recipe.kinds, layouts) if rule.kind is None else [recipe.kinds[rule.kind]]
    known = [kind.named(values({**kind.vars, **rule.values})) for kind in written]
    made = Made()
    start = source.parts[0] if source.parts and isinstance(source.parts[0], str) else ""
    paths = _paths([name for name in names if start in name], known, layouts[0])
    alike: dict[object, list[Kind]] = {}  # modules of the same leaves and shapes are of the same kinds
    for path in sorted(paths, key=lambda path: path.count(LAYOUTS[layouts[0]])):
        bound = source.match(path) if path or not source.parts else None
        here = {key: leaf for key, leaf in paths[path].items() if key in names}
        present = [key for key in here if key not in made.held]
        if bound is None or not present:
            continue
        place = _Place(rule, layouts, path, target.write(bound), tensors, names, values)
        if rule.kind is not None:
            choice = place.only(known[0])
        else:
            leaves = frozenset(here.values()), frozenset(here[key] for key in present)
            signature = (
                leaves[1],
                frozenset((leaf, tensors[key].dtype.name, tensors[key].shape) for key, leaf in here.items()),
            )
            fitting = alike.get(signature)
            if not fitting:
                candidates = [kind for kind in known if _has_leaves(kind, layouts[0], *leaves)]
                fitting = alike[signature] = place.fitting(candidates, present, made)
            choice = place.choose(fitting, present, likely, made) if fitting else None
        if choice is not None:
            place.take(choice, made)
    stems = {stem for kind in written for stem in _stems(kind, layouts[0])}
    for key in names:
        if key not in made.reasons and any(stem in key for stem in stems):
            near = key.rpartition(LAYOUTS[layouts[0]])[0]
            beside = {row.kind for row in made.rows if row.sources[0].rpartition(LAYOUTS[layouts[0]])[0] == near}
            for kind in sorted(written, key=lambda kind: kind.name not in beside):
                for name, value in another(kind, layouts[0], key).items():
                    hint = f"a rule with kind = '{kind.name}' and with = {{ {name} = {value} }} takes it"
                    made.reasons.setdefault(key, f"{name} {value} of a {kind.name}: {hint}")
    for path, keys in paths.items():
        for key in keys:
            if key in names and path and source.match(path) is not None and key not in made.reasons:
                made.reasons[key] = f"no kind of layer fits '{path}'"
    return made


def _has_leaves(kind: Kind, layout: str, here: frozenset[str], present: frozenset[str]) -> bool:
    """Whether a module with these leaves may be of a kind, by their names alone: it must account for all of `present`."""
    known = {name for leaf in kind.leaves for name in leaf.names.get(layout, ())}
    needed = {name for leaf in kind.leaves if not leaf.optional for name in leaf.names.get(layout, ())}
    return needed <= here and present <= known


def _stems(kind: Kind, layout: str) -> list[str]:
    """What stands before the first variable in the names of a kind's leaves that have one."""
    return [name.partition("$")[0] for leaf in kind.leaves for name in leaf.names.get(layout, ()) if "$" in name]


def _paths(names: Iterable[str], kinds: list[Kind], layout: str) -> dict[str, dict[str, str]]:
    """Modules by path, with those of their keys that a kind knows, and the leaves that these are."""
    leaves = dict.fromkeys(name for kind in kinds for leaf in kind.leaves for name in leaf.names.get(layout, ()))
    separator = LAYOUTS[layout]
    by_end: dict[str, list[str]] = {}
    for leaf in leaves:
        by_end.setdefault(leaf.rpartition(":")[2].rpartition(separator)[2], []).append(leaf)
    paths: dict[str, dict[str, str]] = {}
    for key in names:
        for leaf in by_end.get(key.rpartition(separator)[2], ()):
            path = taken_apart(layout, key, leaf)
            if path is not None:
                paths.setdefault(path, {})[key] = leaf
    return paths


@dataclass
class _Place:
    """One module: where it is on both sides, and what there is of it."""

    rule: ModuleRule
    layouts: tuple[str, str]
    path: str
    onto: str
    tensors: Mapping[str, LazyTensor]
    names: dict[str, None]
    values: Values

    def only(self, kind: Kind) -> _Choice | None:
        """The kind that the rule names. MapError if the module is of another; None if nothing of it is here."""
        if not any(key in self.names for leaf in kind.leaves for key in self._keys(leaf) or ()):
            return None
        fault = self._fault(kind, [])
        if fault:
            raise MapError(f"{self.rule.name}: '{self.path}' is no {kind.name}: {fault}")
        return _Choice(kind, f"kind {kind.name}", "")

    def fitting(self, kinds: list[Kind], present: list[str], made: Made) -> list[Kind]:
        """The kinds that fit keys and shapes; if none does, it is noted why."""
        found = []
        wrong = ""
        for kind in kinds:
            fault = self._fault(kind, present)
            if not fault:
                found.append(kind)
            elif fault != _OTHER:
                wrong = next((leaf.wrong for leaf in kind.leaves if leaf.wrong == fault), wrong) or ""
                made.reasons.update(dict.fromkeys(present, wrong or fault))
        if not found:
            made.held.update(present if wrong else ())
        return found

    def choose(self, fitting: list[Kind], present: list[str], likely: Mapping[str, Shape] | None, made: Made) -> _Choice:
        """The kind of those that fit: where several do, the template, then the name, then the first decide."""
        for key in present:
            made.reasons.pop(key, None)
        found = self._unlike(fitting)
        if len(found) == 1:
            return _Choice(found[0], f"kind {found[0].name}: the only one that fits", "")
        fits = self._unlike([kind for kind in found if self._makes(kind, likely)]) if likely is not None else []
        if fits:
            usual = [kind for kind in fits if not kind.rare] or fits
            if len(usual) == 1:
                return self._but(usual[0], fits, "the template says so")
            found = fits
        named = self._named(found)
        if len(named) == 1:
            return _Choice(named[0], f"kind {named[0].name}: by its name", "")
        several = named or found
        found = named or [kind for kind in found if not kind.rare] or found
        if len(found) == 1:
            return self._but(found[0], several, "the usual one")
        others = " or ".join(kind.name for kind in found)
        return _Choice(found[0], f"kind {found[0].name}: assumed", f"{others}: taken as {found[0].name}")

    def _but(self, kind: Kind, fitting: Sequence[Kind], why: str) -> _Choice:
        """The kind, in doubt if a rarer one makes the same keys and shapes: no loader would find that out."""
        made, parts = self._onto(kind), self.path.replace("/", ".").split(".")
        twins = [other for other in fitting if other is not kind and made and self._onto(other) == made]
        twins = [other for other in twins if not any(other.denied(part) for part in parts)]
        if not twins:
            return _Choice(kind, f"kind {kind.name}: {why}", "")
        others = " or ".join(other.name for other in (kind, *twins))
        return _Choice(kind, f"kind {kind.name}: assumed", f"{others}: taken as {kind.name}")

    def _onto(self, kind: Kind) -> dict[str, Shape]:
        """Keys and shapes of what this kind would make; empty if that cannot be said."""
        found: dict[str, Shape] = {}
        for leaf in kind.leaves:
            keys, onto = self._keys(leaf), leaf.names.get(self.layouts[1])
            if keys and onto is not None and all(key in self.names for key in keys):
                try:
                    done = chain(self._steps(kind, leaf), [self.tensors[key] for key in keys], Wanted(len(onto)))
                except MapError:
                    return {}
                found |= {name: tensor.shape for name, tensor in zip(onto, done, strict=True)}
        return found

    def _named(self, kinds: Sequence[Kind]) -> list[Kind]:
        """Those that the module's name speaks for; the last part of it first, then those before."""
        parts = self.path.replace("/", ".").split(".")
        for part in parts[: -_NEAR - 1 : -1]:
            named = [kind for kind in kinds if kind.called(part)]
            if named:
                return named
        return []

    def take(self, choice: _Choice, made: Made) -> None:
        """Rows for every leaf that is here."""
        target = self.layouts[1]
        for leaf in choice.kind.leaves:
            keys = self._keys(leaf)
            onto = leaf.names.get(target)
            if keys is None:
                if onto is not None and leaf.fill is not None:
                    made.fills += [(joined(target, self.onto, name), leaf.fill, leaf.dtype) for name in onto]
                continue
            if any(key not in self.names for key in keys):
                continue
            for key in keys:
                del self.names[key]
            if onto is None:
                made.dropped += keys
                continue
            targets = tuple(joined(target, self.onto, name) for name in onto)
            steps, told = tuple(self._steps(choice.kind, leaf)), self.rule.kind is not None or bool(self.rule.flatten)
            made.rows.append(Row(keys, targets, steps, self.rule.name, *choice[1:], choice.kind.name, told))

    def _keys(self, leaf: Leaf) -> tuple[str, ...] | None:
        names = leaf.names.get(self.layouts[0])
        return None if names is None else tuple(joined(self.layouts[0], self.path, name) for name in names)

    def _variables(self, kind: Kind) -> Mapping[str, int]:
        return self.values({**kind.vars, **self.rule.values})

    def _steps(self, kind: Kind, leaf: Leaf) -> list[Step]:
        if self.rule.flatten and leaf is kind.leaves[0]:
            flat = [self._flatten(layout) for layout in self.layouts]
            return backwards(flat[0]) + flat[1]
        return leaf_steps(leaf, *self.layouts, self._variables(kind))

    def _flatten(self, layout: str) -> list[Step]:
        """The weight of a dense layer behind Flatten: torch flattens channels first, the others last."""
        if layout == HUB:
            return []
        letters = ["c", *"dhw"[-(len(self.rule.flatten) - 1) :]]
        sizes = [substituted(size, self.values(self.rule.values)) for size in self.rule.flatten]
        given = " ".join(f"{letter}={size}" for letter, size in zip(letters, sizes, strict=True))
        first, last = " ".join(letters), " ".join([*letters[1:], letters[0]])
        after = f"o ({last})" if layout == "mlx" else f"({last}) o"
        return [parse_step(f"rearrange o ({first}) -> {after} ; {given}")]

    def _fault(self, kind: Kind, present: list[str]) -> str:
        """Why this module is not of a kind; empty if it is. `present` are keys that the kind must account for."""
        claimed: set[str] = set()
        met: list[Leaf] = []
        for leaf in kind.leaves:
            keys = self._keys(leaf)
            if keys is None:
                continue
            here = [key for key in keys if key in self.names]
            if len(here) != len(keys) and (here or not leaf.optional):
                return _OTHER
            claimed.update(here)
            met += [leaf] if here else []
        if not claimed.issuperset(present) or not met:
            return _OTHER
        sizes: dict[str, int] = {}
        for leaf in met:
            fault = self._misshapen(kind, leaf, sizes)
            if fault:
                return fault
        return ""

    def _misshapen(self, kind: Kind, leaf: Leaf, sizes: dict[str, int]) -> str:
        """Whether the leaf, seen as torch's, has the kind's shape; `sizes` are the letters met so far.

        The kind's own sentence says so where the leaf is this kind's by its names and its number of axes.
        """
        if leaf.shape is None:
            return ""
        keys = self._keys(leaf) or ()
        wrong = leaf.wrong if self.layouts[0] != HUB else None
        try:
            there = self._steps_back(kind, leaf)
            tensors = chain(there, [self.tensors[key] for key in keys], Wanted(len(leaf.names[HUB])))
        except MapError as error:
            if wrong and not sizes and self._contradicted(leaf, keys):
                raise MapError(f"{self.rule.name}: {error.message}", hint="leave --set out: the file tells it") from None
            return wrong if wrong and sizes else error.message
        for tensor in tensors:
            if len(tensor.shape) != len(leaf.shape) or not all(
                _is_size(letter, size, sizes) for letter, size in zip(leaf.shape, tensor.shape, strict=True)
            ):
                return wrong or f"'{keys[0]}' has the shape {list(self.tensors[keys[0]].shape)}"
        return ""

    def _contradicted(self, leaf: Leaf, keys: tuple[str, ...]) -> bool:
        """Whether it is the variables' numbers that do not fit: without them the leaf would."""
        if not any("$" in op for op in leaf.ops.get(self.layouts[0], ())):
            return False
        try:
            steps = leaf_steps(leaf, self.layouts[0], HUB, {})
            chain(steps, [self.tensors[key] for key in keys], Wanted(len(leaf.names[HUB])))
        except MapError:
            return False
        return True

    def _steps_back(self, kind: Kind, leaf: Leaf) -> list[Step]:
        if self.rule.flatten and leaf is kind.leaves[0]:
            return backwards(self._flatten(self.layouts[0]))
        return leaf_steps(leaf, self.layouts[0], HUB, self._variables(kind))

    def _unlike(self, kinds: list[Kind]) -> list[Kind]:
        """One kind of each set that would do the same to this module."""
        found: dict[object, Kind] = {}
        for kind in kinds:
            leaves = [leaf for leaf in kind.leaves if (keys := self._keys(leaf)) and all(key in self.names for key in keys)]
            does = [(leaf.names.get(self.layouts[1]), *(leaf.ops.get(layout) for layout in self.layouts)) for leaf in leaves]
            found.setdefault(tuple(does), kind)
        return list(found.values())

    def _makes(self, kind: Kind, likely: Mapping[str, Shape]) -> bool:
        """Whether what this kind would make is in the template, with its shape."""
        for leaf in kind.leaves:
            keys, onto = self._keys(leaf), leaf.names.get(self.layouts[1])
            if not keys or onto is None or any(key not in self.names for key in keys):
                continue
            targets = [joined(self.layouts[1], self.onto, name) for name in onto]
            shapes = tuple(likely.get(target) for target in targets)
            if None in shapes:
                return False
            try:
                steps = self._steps(kind, leaf)
                done = chain(steps, [self.tensors[key] for key in keys], Wanted(len(targets), shapes))
            except MapError:
                return False
            if tuple(tensor.shape for tensor in done) != shapes:
                return False
        return True


def _is_size(letter: str, size: int, sizes: dict[str, int]) -> bool:
    """Whether an axis written `u`, `3` or `4u` may have this size; a letter that is new gets it."""
    times, name = letter.rstrip("abcdefghijklmnopqrstuvwxyz"), letter.lstrip("0123456789")
    if not name:
        return int(times) == size
    many = int(times or 1)
    return size % many == 0 and sizes.setdefault(name, size // many) == size // many


_OTHER = "its keys are those of another kind"
