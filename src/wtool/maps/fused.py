"""Query, key and value: three modules on one side that are one on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wtool.maps.signatures import Part

_THREE = ("q", "k", "v")
_JOINED = {"qkv", "wqkv", "attention", "in", "kqv"}  # words of a module that may hold all three


@dataclass(frozen=True)
class Fused:
    """`one` holds what `three` hold one after the other, on the first side if `first`."""

    one: Part
    three: tuple[Part, ...]
    first: bool


def fused(left: Sequence[Part], right: Sequence[Part]) -> list[Fused]:
    """Guesses, by words and sizes; the n-th of either side, by their numbers, belong together."""
    mine, theirs = triples(left), triples(right)
    if mine and not theirs:
        return [Fused(one, three, False) for three, one in _paired(mine, right)]
    if theirs and not mine:
        return [Fused(one, three, True) for three, one in _paired(theirs, left)]
    return []


def triples(side: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Modules that differ in nothing but being called query, key and value."""
    groups: dict[object, dict[str, Part]] = {}
    for part in side:
        pattern = part.named.pattern
        for at, word in enumerate(pattern):
            if word in _THREE and "weight" in part.shapes:
                groups.setdefault(((*pattern[:at], "*", *pattern[at + 1 :]), part.named.numbers), {})[word] = part
    return [tuple(group[word] for word in _THREE) for group in groups.values() if len(group) == 3]


def joined_words(part: Part) -> bool:
    """Whether a module's name says that query, key and value are one in it."""
    last = part.path.replace("/", ".").split(".")[-1].lower()
    return any(word in last for word in ("qkv", "in_proj", "c_attn", "query_key_value", "wqkv", "kqv"))


def _paired(three: list[tuple[Part, ...]], side: Sequence[Part]) -> list[tuple[tuple[Part, ...], Part]]:
    found = []
    wanted: dict[object, list[tuple[Part, ...]]] = {}
    for group in three:
        wanted.setdefault(_sum(group), []).append(group)
    for total, groups in wanted.items():
        ones = [part for part in side if _total(part) == total and _JOINED & set(part.named.words)]
        patterns: dict[object, list[Part]] = {}
        for part in ones:
            patterns.setdefault(part.named.pattern, []).append(part)
        fitting = [some for some in patterns.values() if len(some) == len(groups)]
        if len(fitting) == 1:
            by_number = sorted(fitting[0], key=lambda part: part.named.numbers)
            found += list(zip(sorted(groups, key=lambda group: group[0].named.numbers), by_number, strict=True))
    return found


def _sum(group: Sequence[Part]) -> object:
    return tuple(
        (role, sum(_elements(part.shapes.get(role, ())) for part in group)) for role in ("weight", "bias") if _all(group, role)
    )


def _total(part: Part) -> object:
    return tuple((role, _elements(part.shapes[role])) for role in ("weight", "bias") if role in part.shapes)


def _all(group: Sequence[Part], role: str) -> bool:
    return all(role in part.shapes for part in group)


def _elements(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def fused_ops(found: Fused, role: str, layouts: Mapping[bool, bool]) -> list[str] | None:
    """Operations from the first side to the second; `layouts` says for each side (True: the first) if outputs come first.

    None where sizes do not fit.
    """
    shapes = [part.shapes[role] for part in found.three]
    rank = len(found.one.shapes[role])
    if rank not in (1, 2) or any(len(shape) != rank for shape in shapes):
        return None
    one_first, three_first = layouts[found.first], layouts[not found.first]
    axis = 0 if rank == 1 or one_first else 1
    mine = 0 if rank == 1 or three_first else 1
    out = [shape[mine] for shape in shapes]
    if sum(out) != found.one.shapes[role][axis]:
        return None
    sized = "" if len(set(out)) == 1 else " " + " ".join(map(str, out))
    turn = ["t"] if rank == 2 and one_first != three_first else []
    return [f"split {axis}{sized}", *turn] if found.first else [*turn, f"concat {axis}{sized}"]
