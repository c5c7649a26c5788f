"""How a module becomes its partner: by a kind of layer where one fits, else by what the shapes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from wtool.errors import MapError
from wtool.maps.align import AMBIGUOUS, FUSED, Match
from wtool.maps.fused import Fused, fused_ops
from wtool.maps.kinds import LAYOUTS, Kind, module_kinds, shipped, variables
from wtool.maps.match import Variables
from wtool.maps.modules import match_modules
from wtool.maps.recipe import Recipe
from wtool.maps.rules import ModuleRule
from wtool.maps.signatures import Part
from wtool.maps.step import Wanted
from wtool.maps.steps import chain
from wtool.maps.templates import Template
from wtool.tensor import LazyTensor, Shape

_OUT_FIRST = ("torch", "mlx")  # layouts whose matrices are (out, in)
_CONVS = {"torch": "oi*", "mlx": "o*i"}  # axes of a convolution, * being the places in their order; of others, *io
_EMBEDDING = {"embedding", "token", "position"}


@dataclass(frozen=True)
class Rule:
    """What a recipe is to say of one module (`paths`) or of some tensors. `rows` are (sources, targets) by name.

    `doubt` is the question that this rule leaves open.
    """

    rows: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    verdict: str
    paths: tuple[str, str] | None = None
    kind: str | None = None
    values: tuple[tuple[str, int], ...] = ()
    ops: tuple[str, ...] = ()
    doubt: str = ""


class Fitting(NamedTuple):
    """A kind that takes one module to another. `rows` are the roles of the leaves that become roles of others."""

    kind: str
    values: tuple[tuple[str, int], ...]
    rows: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@dataclass
class Guesses:
    """Rules for matches between two sides. `fitted` keeps what was found for modules of the same leaves and shapes."""

    layouts: tuple[str, str]
    tensors: Mapping[str, LazyTensor]
    shapes: Mapping[str, Shape]
    fitted: dict[object, list[Fitting]] = field(default_factory=dict)

    def rules(self, matches: Sequence[Match]) -> list[list[Rule]]:
        """Rules for each match; matrices whose sizes are equal are turned as all the others of their leaves are."""
        ways: dict[object, set[bool]] = {}
        for match in matches:
            way = self._turned(match)
            if way is not None:
                ways.setdefault(self._leaves(match), set()).add(way)
        return [self._rules(match, ways.get(self._leaves(match), set())) for match in matches]

    def fused(self, found: Fused) -> list[Rule]:
        """Rules for a module that is three on the other side."""
        rules = []
        first = {True: self._out_first(0), False: self._out_first(1)}
        for role, name in found.one.leaves.items():
            ops = fused_ops(found, role, first) if all(role in part.leaves for part in found.three) else None
            if ops is not None:
                three = tuple(part.leaves[role] for part in found.three)
                row = ((name,), three) if found.first else (three, (name,))
                rules.append(Rule((row,), FUSED, ops=tuple(ops)))
        return rules

    def _out_first(self, side: int) -> bool:
        return self.layouts[side] in _OUT_FIRST

    def _leaves(self, match: Match) -> tuple[str, str]:
        """What the two weights are called behind their modules; matrices of the same names lie the same way."""
        names = [part.leaves[part.main] for part in (match.left, match.right)]
        ends = [n.rpartition(LAYOUTS[layout])[2] for n, layout in zip(names, self.layouts, strict=True)]
        return ends[0], ends[1]

    def _turned(self, match: Match) -> bool | None:
        """Whether a matrix is transposed; None where its shape cannot tell, or where it is no matrix of a layer."""
        one, two = (_core(part.shapes.get("weight", ())) for part in (match.left, match.right))
        if len(one) != 2 or one[0] == one[1] or sorted(one) != sorted(two) or _embeds(match) or match.verdict == AMBIGUOUS:
            return None
        return one != two

    def _rules(self, match: Match, ways: set[bool]) -> list[Rule]:
        kinds = self._kinds(match)
        doubt = ""
        if kinds and _square(match) and (kinds[0].kind == "dense" or self.layouts[0] == self.layouts[1]):
            usual = self._out_first(0) != self._out_first(1)
            nothing = not ways and self.layouts[0] == self.layouts[1]
            if nothing or len(ways) > 1 or (_embeds(match) and ways == {not usual}):
                doubt = _SQUARE
            elif ways == {not usual}:
                kinds = []  # every other matrix of these names lies the other way
        if kinds:
            if len(kinds) > 1:
                doubt = f"could be {' or '.join(fitting.kind for fitting in kinds)}: shapes and names do not tell"
            name, values, roles = kinds[0]
            one, two = match.left.leaves, match.right.leaves
            rows = tuple((tuple(one[role] for role in row[0]), tuple(two[role] for role in row[1])) for row in roles)
            kind = None if self.layouts[0] == self.layouts[1] else name
            return [Rule(rows, match.verdict, (match.left.path, match.right.path), kind, values, doubt=doubt)]
        found = []
        for role, name in match.left.leaves.items():
            other = match.right.leaves.get(role)
            if other is None or (role == "count" and self.layouts[0] != self.layouts[1]):
                continue
            ops, doubt = self._ops(match, role, ways)
            if ops is not None:
                found.append(Rule((((name,), (other,)),), match.verdict, ops=ops, doubt=doubt))
        return found

    def _ops(self, match: Match, role: str, ways: set[bool]) -> tuple[tuple[str, ...] | None, str]:
        """Operations that make one shape of the other, and the doubt that is left."""
        one, two = match.left.shapes[role], match.right.shapes[role]
        mine, theirs = _core(one), _core(two)
        doubt = ""
        if sorted(mine) != sorted(theirs):
            return None, ""
        if len(mine) < 2:
            order = tuple(range(len(mine)))
        elif len(mine) == 2:
            order = (0, 1) if mine == theirs else (1, 0)
            if mine[0] == mine[1]:
                names = self._leaves(match)
                if len(ways) == 1 and role == "weight" and not _embeds(match):
                    order = (1, 0) if True in ways else (0, 1)
                elif names[0] != names[1] or ways or self._out_first(0) != self._out_first(1):
                    doubt = _SQUARE
        else:
            order = _places(self.layouts, len(mine))
            doubt = (
                "how the axes lie is a guess"
                if len(set(mine)) < len(mine) or tuple(mine[at] for at in order) != theirs
                else ""
            )
            if tuple(mine[at] for at in order) != theirs:
                if mine != theirs:
                    return None, ""
                order = tuple(range(len(mine)))
                doubt = doubt if self.layouts[0] != self.layouts[1] else ""
        return _written(one, two, order), doubt

    def _kinds(self, match: Match) -> list[Fitting]:
        """The kinds that make the right side of the left, one for each thing that may be done; the likeliest first."""
        if match.left.odd or match.right.odd:
            return []
        key = tuple(
            tuple((role, _end(name, part, layout), part.shapes[role]) for role, name in part.leaves.items())
            for part, layout in zip((match.left, match.right), self.layouts, strict=True)
        )
        if key not in self.fitted:
            roles = tuple({name: role for role, name in part.leaves.items()} for part in (match.left, match.right))
            does: dict[object, Fitting] = {}
            for kind in module_kinds(shipped(), self.layouts):
                for values in self._values(kind, match):
                    found = self._try(match, kind.name, values)
                    if found is not None:
                        rows = tuple((tuple(roles[0][n] for n in s), tuple(roles[1][n] for n in t)) for s, t, _ in found)
                        does.setdefault(tuple(found), Fitting(kind.name, values, rows))
                        break
            self.fitted[key] = list(does.values())
        return self.fitted[key]

    def _values(self, kind: Kind, match: Match) -> list[tuple[tuple[str, int], ...]]:
        """What the kind's variables may be, told by the shapes of the two modules."""
        shapes = [shape for part in (match.left, match.right) for shape in part.shapes.values()]
        if "layer" in kind.vars:
            layer = max(match.left.layer, match.right.layer)
            return [(("layer", layer),) if layer else ()]
        asked = {name for leaf in kind.leaves for ops in leaf.ops.values() for op in ops for name in variables(op)}
        if "m" in asked:
            return [(("m", m),) for m in dict.fromkeys(shape[-1] for shape in shapes if shape) if m > 1]
        if "heads" in asked:
            return [*((("heads", h),) for h in dict.fromkeys(shape[1] for shape in shapes if len(shape) == 3)), ()]
        return [()]

    def _try(
        self, match: Match, kind: str | None, values: tuple[tuple[str, int], ...]
    ) -> list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] | None:
        """(sources, targets, operations) if this kind takes all of the left module to all of the right one."""
        (left, right) = (match.left, match.right)
        sides = (
            Template(left.path, (left.path,) if left.path else ()),
            Template(right.path, (right.path,) if right.path else ()),
        )
        rule = ModuleRule("draft", sides, kind, values=dict(values))
        recipe = Recipe("draft", (("left", self.layouts[0]), ("right", self.layouts[1])), kinds=shipped())
        names = dict.fromkeys(left.leaves.values())
        tensors = {name: self.tensors[name] for name in names}
        try:
            made = match_modules(rule, recipe, tensors, names, lambda own: Variables(recipe, {}, own), None)
            found = []
            for row in made.rows:
                wanted = Wanted(len(row.targets), tuple(self.shapes.get(target) for target in row.targets))
                after = chain(row.steps, [tensors[name] for name in row.sources], wanted)
                if any(tensor.shape != self.shapes.get(name) for tensor, name in zip(after, row.targets, strict=True)):
                    return None
                found.append((row.sources, row.targets, tuple(step.text for step in row.steps)))
        except (MapError, KeyError):
            return None
        reached = {target for _, targets, _ in found for target in targets} | {target for target, *_ in made.fills}
        return found if not names and reached == set(right.leaves.values()) else None


_SQUARE = "square: whether to transpose it, no shape and no name tells"


def doubted(rule: Rule, doubt: str) -> Rule:
    """The rule with a question more."""
    return replace(rule, doubt="; ".join(text for text in (rule.doubt, doubt) if text))


def _core(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _square(match: Match) -> bool:
    core = _core(match.left.shapes.get("weight", ()))
    return len(core) == 2 and core[0] == core[1] and not match.left.whole


def _embeds(match: Match) -> bool:
    return any(
        _EMBEDDING & set(part.named.words) or "embedding" in part.leaves.get("weight", "")
        for part in (match.left, match.right)
    )


def _end(name: str, part: Part, layout: str) -> str:
    return (
        name.removeprefix(part.path).lstrip(LAYOUTS[layout])
        if name.startswith(part.path)
        else name.rpartition(LAYOUTS[layout])[2]
    )


def _places(layouts: tuple[str, str], rank: int) -> tuple[int, ...]:
    """The order of axes that a convolution has on the second side, in terms of the first."""

    def axes(layout: str) -> list[str]:
        inner = [str(at) for at in range(rank - 2)]
        return [name for char in _CONVS.get(layout, "*io") for name in (inner if char == "*" else [char])]

    mine, theirs = axes(layouts[0]), axes(layouts[1])
    return tuple(mine.index(name) for name in theirs)


def _written(one: Shape, two: Shape, order: tuple[int, ...]) -> tuple[str, ...]:
    """The operation, `order` being that of the axes longer than one."""
    if one == two and order == tuple(sorted(order)):
        return ()
    if len(one) == len(two) == 2 == len(order):
        return ("t",)
    if len(one) == len(two) == len(order):
        return (f"permute {' '.join(map(str, order))}",)
    letters = "abcdefgh"[: len(order)]
    mine, theirs = iter(letters), iter([letters[at] for at in order])
    left = " ".join("1" if size == 1 else next(mine) for size in one)
    right = " ".join("1" if size == 1 else next(theirs) for size in two)
    return (f"rearrange {left} -> {right}",)
