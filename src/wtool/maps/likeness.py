"""Which names of two models mean the same module, where shapes do not tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from wtool.maps.signatures import Named

_ORDERED = 0.4  # what the order says, in likeness of names


def clear_names(left: Sequence[Named], right: Sequence[Named]) -> dict[int, int]:
    """Pairs whose names leave no doubt, among modules that shapes do not tell apart.

    What tells a module from the others of its side, its words and numbers, must be the same on both sides: the same words, up
    to known synonyms and to what all of a side have; the same numbers, or all shifted by one amount behind the same word. So
    `attention_norm` is not `post_attention_layernorm`, and numbers that Keras gave unasked say nothing.
    """
    if len(left) != len(right):
        return {}
    sides = [_by_pattern(left), _by_pattern(right)]
    marks = [_marks(side) for side in sides]
    owners = [Counter(side.values()) for side in marks]
    found: dict[int, int] = {}
    others = {mark: pattern for pattern, mark in marks[1].items()}
    met = {p: others[mark] for p, mark in marks[0].items() if mark and owners[0][mark] == owners[1][mark] == 1}
    rest = [p for p in sides[0] if p not in met], [p for p in sides[1] if p not in met.values()]
    if len(rest[0]) == len(rest[1]) == 1 and not marks[0][rest[0][0]] and not marks[1][rest[1][0]]:
        met[rest[0][0]] = rest[1][0]  # the one that has nothing of its own, on both sides
    for pattern, other in met.items():
        mine, theirs = sides[0][pattern], sides[1][other]
        if len(mine) == len(theirs):
            numbered = _shifted([left[a] for a in mine], [right[b] for b in theirs])
            found |= {mine[x]: theirs[y] for x, y in numbered.items()}
    return found


def _by_pattern(side: Sequence[Named]) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for place, named in enumerate(side):
        found.setdefault(named.pattern, []).append(place)
    return found


def _marks(patterns: Mapping[tuple[str, ...], list[int]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The words of each pattern that not all of the patterns have, in their order."""
    everywhere = set.intersection(*(set(pattern) for pattern in patterns))
    return {pattern: tuple(word for word in pattern if word not in everywhere and word != "#") for pattern in patterns}


def _shifted(left: Sequence[Named], right: Sequence[Named]) -> dict[int, int]:
    """Members of two patterns by their numbers; empty if those are not the same up to one shift for each place."""
    if len(left) == 1:
        return {0: 0}
    free = [_varying(side) for side in (left, right)]
    if len(free[0]) != len(free[1]) or not free[0]:
        return {}
    vectors = [
        [tuple(named.numbers[at] for at in slots) for named in side] for side, slots in zip((left, right), free, strict=True)
    ]
    if any(len(set(some)) < len(some) for some in vectors):
        return {}
    shifts = tuple(min(v[at] for v in vectors[1]) - min(v[at] for v in vectors[0]) for at in range(len(free[0])))
    for shift, one, two in zip(shifts, *free, strict=True):
        unasked = left[0].generic[one] or right[0].generic[two]
        if unasked or (shift and (left[0].before[one] != right[0].before[two] or left[0].before[one] in ("", "#"))):
            return {}
    places = {vector: place for place, vector in enumerate(vectors[1])}
    found = {x: places.get(tuple(n + s for n, s in zip(v, shifts, strict=True))) for x, v in enumerate(vectors[0])}
    return {} if None in found.values() else {x: y for x, y in found.items() if y is not None}


def _varying(side: Sequence[Named]) -> list[int]:
    return [at for at in range(len(side[0].numbers)) if len({named.numbers[at] for named in side}) > 1]


def near_names(left: Sequence[Named], right: Sequence[Named], order: Mapping[int, int]) -> list[tuple[int, int, bool]]:
    """Pairs by likeness of names, helped by `order`, the likest first. True where each is the other's likest by far.

    Taking the likest pair that is left, again and again, is the best assignment only where likenesses do not compete: those
    are the pairs that are said to be likest by far, and nothing sure is built on the rest.
    """
    if not left or not right:
        return []
    ranks = _ranks(left), _ranks(right)
    seen = Counter(word for side in (left, right) for named in side for word in set(named.words))
    total = len(left) + len(right)
    weight = {word: 1.05 - count / total for word, count in seen.items()}
    scores: dict[tuple[int, int], float] = {}
    for a, one in enumerate(left):
        for b, two in enumerate(right):
            near = _words(one, two, weight) + 0.5 * _ranked(ranks[0][a], ranks[1][b]) + 0.3 * _ranked(one.numbers, two.numbers)
            scores[a, b] = near + (_ORDERED if order.get(a) == b else 0.0)
    rows = [sorted((scores[a, b] for b in range(len(right))), reverse=True)[:2] for a in range(len(left))]
    columns = [sorted((scores[a, b] for a in range(len(left))), reverse=True)[:2] for b in range(len(right))]
    found = []
    used: tuple[set[int], set[int]] = (set(), set())
    for (a, b), score in sorted(scores.items(), key=lambda item: (-item[1], item[0])):
        if a not in used[0] and b not in used[1]:
            used[0].add(a)
            used[1].add(b)
            runner = max([*rows[a][1:], *columns[b][1:], 0.0])
            far = score == rows[a][0] == columns[b][0] and score - runner > 0.15
            found.append((a, b, far and len(left) == len(right)))
    return found


def _ranks(side: Sequence[Named]) -> list[tuple[int, ...]]:
    """Each number as its rank among those at the same place of the same pattern."""
    values: defaultdict[tuple[object, int], set[int]] = defaultdict(set)
    for named in side:
        for at, number in enumerate(named.numbers):
            values[named.pattern, at].add(number)
    order = {place: sorted(some) for place, some in values.items()}
    return [tuple(order[named.pattern, at].index(n) for at, n in enumerate(named.numbers)) for named in side]


def _words(one: Named, two: Named, weight: Mapping[str, float]) -> float:
    mine, theirs = set(one.words), set(two.words)
    both = sum(weight[word] for word in mine & theirs)
    return 2 * both / (sum(weight[word] for word in mine) + sum(weight[word] for word in theirs) or 1.0)


def _ranked(one: tuple[int, ...], two: tuple[int, ...]) -> float:
    longest = max(len(one), len(two))
    return sum(a == b for a, b in zip(one, two, strict=False)) / longest if longest else 0.0
