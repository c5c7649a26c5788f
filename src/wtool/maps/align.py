"""Which module of one model is which of another, by shapes, order and names, and how far each can be trusted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from wtool.maps.likeness import clear_names, near_names
from wtool.maps.signatures import Named, Part, Signature
from wtool.tensor import Shape

UNIQUE = "only tensor of that shape"
AGREED = "complete order and clear name agree"
ORDER = "order only"
NAME = "name only"
FUSED = "fused guessed"
AMBIGUOUS = "ambiguous"
SURE = (UNIQUE, AGREED)

LONGEST = 20_000  # modules of a side up to which orders that differ are aligned: the table has a bit for each pair
_KEPT = 0.75  # share of the modules that must be in one order for it to be believed
_COMPARED = 80  # modules of one signature up to which their names are compared one by one


@dataclass(frozen=True)
class Match:
    """A module of either side. `verdict` is one of the above."""

    left: Part
    right: Part
    verdict: str


@dataclass(frozen=True)
class Aligned:
    """`complete`: both sides have the same modules, by roles and sizes, in the same order from first to last."""

    matches: tuple[Match, ...]
    complete: bool


def align(left: Sequence[Part], right: Sequence[Part], alike: bool) -> Aligned:
    """Modules in pairs, in the order of the left side. `alike`: both sides keep their axes in the same order.

    UNIQUE: both sides have one module whose leaves have these roles and sizes. AGREED: the two sides have the same modules in
    the same order from first to last, and names alone would have said the same of every module of these roles and sizes. All
    else is a guess.
    """
    some = ([part.signature or (("empty", ()),) for part in side] for side in (left, right))
    plain = _reduced(*some)
    mine, theirs = _oriented(left, right, *plain, alike)
    complete = (
        len(left) == len(right)
        and mine == theirs
        and all(a.signature == b.signature for a, b in zip(left, right, strict=True))
    )
    order = {a: a for a in range(len(left))} if complete else dict(common(mine, theirs))
    # An order that is lost on one side (sorted by name) says less than nothing.
    kept = len(order) >= _KEPT * max(len(left), len(right)) and _counted(left) and _counted(right)
    told = order if complete or kept else {}
    members: tuple[defaultdict[Hashable, list[int]], ...] = (defaultdict(list), defaultdict(list))
    for places, side in zip(members, plain, strict=True):
        for place, signature in enumerate(side):
            places[signature].append(place)
    lone = [Counter(size for part in side for _, size in part.signature) for side in (left, right)]
    found: dict[int, tuple[int, str]] = {}
    for signature, lefts in members[0].items():
        rights = members[1].get(signature, [])
        if len(lefts) == len(rights) == 1:
            found[lefts[0]] = rights[0], _only(left[lefts[0]], right[rights[0]], lone)
        elif rights:
            names = {a: left[a].named for a in lefts}, {b: right[b].named for b in rights}
            sides = {a: mine[a] for a in lefts}, {b: theirs[b] for b in rights}
            found |= _in_class(names, sides, told, complete)
    return Aligned(tuple(Match(left[a], right[b], verdict) for a, (b, verdict) in sorted(found.items())), complete)


def _counted(side: Sequence[Part]) -> bool:
    """Whether first numbers rise along the model: where `layers.10` stands before `layers.2`, names were sorted."""
    last: dict[object, tuple[int, ...]] = {}
    for part in side:
        named = part.named
        if named.numbers[:1] < last.get(named.pattern, ()):
            return False
        last[named.pattern] = named.numbers[:1]
    return True


def _only(a: Part, b: Part, lone: Sequence[Counter[Shape]]) -> str:
    if a.signature != b.signature:
        return AMBIGUOUS  # one of them has a leaf that the other has not
    if a.odd or b.odd:
        # The role is a guess, so that not even another role may have this size.
        return UNIQUE if all(side[size] == 1 for side in lone for _, size in a.signature) else AMBIGUOUS
    return UNIQUE


def _reduced(left: list[Signature], right: list[Signature]) -> tuple[list[Hashable], list[Hashable]]:
    """Signatures without the roles that the other side's modules of the same weight never have (a bias before a norm)."""

    def main(signature: Signature) -> tuple[str, object]:
        return next((entry for entry in signature if entry[0] == "weight"), signature[0])

    roles: tuple[defaultdict[object, set[str]], ...] = (defaultdict(set), defaultdict(set))
    for some, side in zip(roles, (left, right), strict=True):
        for signature in side:
            some[main(signature)].update(role for role, _ in signature)

    def less(signature: Signature) -> Hashable:
        shared = roles[0][main(signature)] & roles[1][main(signature)]
        return tuple(entry for entry in signature if not shared or entry[0] in shared)

    return [less(signature) for signature in left], [less(signature) for signature in right]


def _oriented(
    left: Sequence[Part], right: Sequence[Part], mine: list[Hashable], theirs: list[Hashable], alike: bool
) -> tuple[list[Hashable], list[Hashable]]:
    """Signatures with which way the weight lies (512 to 256 or 256 to 512), where both sides have as many of either way."""

    def way(part: Part, turned: bool) -> int:
        shape = [size for size in part.shapes[part.main] if size != 1]
        if len(shape) < 2 or part.whole:
            return 0
        ends = (shape[0], shape[1]) if not turned else (shape[-1], shape[-2])
        return (ends[0] > ends[1]) - (ends[0] < ends[1])

    ways = [way(part, False) for part in left], [way(part, not alike) for part in right]
    counts: tuple[defaultdict[Hashable, Counter[int]], ...] = (defaultdict(Counter), defaultdict(Counter))
    for count, signatures, some in zip(counts, (mine, theirs), ways, strict=True):
        for signature, sign in zip(signatures, some, strict=True):
            count[signature][sign] += 1
    told = {signature for signature, count in counts[0].items() if len(count) > 1 and counts[1].get(signature) == count}

    def more(signatures: list[Hashable], some: list[int]) -> list[Hashable]:
        return [(sig, sign) if sig in told else sig for sig, sign in zip(signatures, some, strict=True)]

    return more(mine, ways[0]), more(theirs, ways[1])


def _in_class(
    names: tuple[dict[int, Named], dict[int, Named]],
    ways: tuple[dict[int, Hashable], dict[int, Hashable]],
    order: Mapping[int, int],
    complete: bool,
) -> dict[int, tuple[int, str]]:
    """Modules of one signature: first where names are clear, then by order, then by likeness. All by place in the model."""
    found: dict[int, tuple[int, str]] = {}
    used: set[int] = set()

    def take(a: int, b: int, verdict: str) -> None:
        if a not in found and b not in used:
            found[a] = b, verdict
            used.add(b)

    lefts, rights = list(names[0]), list(names[1])
    clear = {lefts[x]: rights[y] for x, y in clear_names(list(names[0].values()), list(names[1].values())).items()}
    # One name that is not clear, or not where the order has it, speaks against all the others of its kind.
    agreed = complete and len(clear) == len(lefts) and all(order.get(a) == b for a, b in clear.items())
    for a, b in clear.items():
        take(a, b, AGREED if agreed else NAME)
    if complete:
        for a in lefts:
            take(a, order[a], ORDER)
    for way in dict.fromkeys(ways[0].values()):
        some = [a for a in lefts if a not in found and ways[0][a] == way]
        others = [b for b in rights if b not in used and ways[1][b] == way]
        if len(some) * len(others) <= _COMPARED**2:
            places = {b: y for y, b in enumerate(others)}
            told = {x: places[order[a]] for x, a in enumerate(some) if order.get(a) in places}
            for x, y, far in near_names([names[0][a] for a in some], [names[1][b] for b in others], told):
                same = told.get(x) == y and len(some) == len(others)
                take(some[x], others[y], NAME if far else ORDER if same else AMBIGUOUS)
        for a in some:
            if order.get(a) in others:
                take(a, order[a], AMBIGUOUS)
        for a, b in zip([a for a in some if a not in found], [b for b in others if b not in used], strict=False):
            take(a, b, AMBIGUOUS)
    return found


def common(left: Sequence[Hashable], right: Sequence[Hashable]) -> list[tuple[int, int]]:
    """A longest common subsequence, as pairs of places; beyond LONGEST, only what begins and ends alike.

    Bit-parallel (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): a row of the table is one long integer.
    """
    start = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    stop = 0
    while stop < min(len(left), len(right)) - start and left[-1 - stop] == right[-1 - stop]:
        stop += 1
    ends = [(at, at) for at in range(start)] + [(len(left) - at, len(right) - at) for at in range(stop, 0, -1)]
    a, b = left[start : len(left) - stop], right[start : len(right) - stop]
    if not a or not b or max(len(a), len(b)) > LONGEST:
        return ends
    where: defaultdict[Hashable, int] = defaultdict(int)
    for at, entry in enumerate(a):
        where[entry] |= 1 << at
    full = (1 << len(a)) - 1
    row = full
    rows = []
    for entry in b:
        same = row & where.get(entry, 0)
        row = ((row + same) | (row - same)) & full
        rows.append(row)
    found = []
    i, j = len(a), len(b)
    while i and j:
        if rows[j - 1] >> (i - 1) & 1:
            i -= 1
        elif j > 1 and not rows[j - 2] >> (i - 1) & 1:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found.append((start + i, start + j))
    return ends[:start] + found[::-1] + ends[start:]
