"""The greedy soup: which of several checkpoints to average, found by trying (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from wtool.errors import NoTensorsError
from wtool.keys import natural

ACCEPT = ("ge", "gt")

Score = Callable[[tuple[int, ...], int, int], "float | None"]


@dataclass(frozen=True, slots=True)
class Objective:
    """What makes a score better.

    `accept`: a soup with one more ingredient is kept if its score is not worse than before (`ge`, Recipe 1 of the paper) or
    strictly better (`gt`, as in the authors' code), by at least `min_delta` in either case.
    """

    maximize: bool
    accept: str = "ge"
    min_delta: float = 0.0

    def accepts(self, score: float, before: float) -> bool:
        # As the decimal numbers that people see: 0.3 is better than 0.2 by 0.1, which it is not in binary.
        gain, least = _exact(score) - _exact(before), _exact(self.min_delta)
        gain = gain if self.maximize else -gain
        return gain >= least and (gain > 0 or self.accept == "ge")

    def rank(self, score: float) -> float:
        """Lower is better."""
        return -score if self.maximize else score


@dataclass(frozen=True, slots=True)
class Trial:
    """An ingredient's turn. `own` and `score` (of the soup with it) are None where they could not be found.

    `round` 0 are the best ingredient, which begins the soup, and those without a score of their own. `tried` is the soup with
    it.
    """

    round: int
    ingredient: int
    tried: tuple[int, ...]
    own: float | None
    score: float | None
    accepted: bool


@dataclass(frozen=True, slots=True)
class Soup:
    """`ingredients` that were accepted, best first, `score` of their mean, and how it went."""

    ingredients: tuple[int, ...]
    score: float
    trials: tuple[Trial, ...]


def greedy(names: Sequence[str], score: Score, objective: Objective, passes: int = 1) -> Soup:
    """Recipe 1 of the paper: from the best ingredient on, add each that does not make the mean worse.

    `score(ingredients, tried, round)` is that of the mean of these, by number, best first; None leaves `tried` out. It is
    asked for every ingredient alone, in round 0 and in the order given, then for each soup to be tried in rounds from 1 on.
    Equal scores are tried in natural order of `names`. Later passes try again what was left out, until one takes nothing in.
    NoTensorsError if no ingredient has a score.
    """
    own = [score((number,), number, 0) for number in range(len(names))]
    known = [(objective.rank(value), natural(names[number]), number) for number, value in enumerate(own) if value is not None]
    order = [number for _, _, number in sorted(known)]
    if not order:
        raise NoTensorsError("no ingredient has a score: there is nothing to make a soup of")
    soup = [order[0]]
    best = own[order[0]]
    assert best is not None
    trials = [Trial(0, order[0], (order[0],), best, best, True)]
    number = 0
    for _ in range(passes):
        size = len(soup)
        for ingredient in [one for one in order if one not in soup]:
            number += 1
            mixed = tuple(one for one in order if one in soup or one == ingredient)
            found = score(mixed, ingredient, number)
            accepted = found is not None and objective.accepts(found, best)
            trials.append(Trial(number, ingredient, mixed, own[ingredient], found, accepted))
            if accepted and found is not None:
                soup, best = list(mixed), found
        if len(soup) == size:
            break
    trials += [Trial(0, ingredient, (ingredient,), None, None, False) for ingredient, value in enumerate(own) if value is None]
    return Soup(tuple(soup), best, tuple(trials))


def most(count: int, passes: int = 1) -> int:
    """The most scores that `greedy` may ask for."""
    return count + sum(max(count - 1 - done, 0) for done in range(passes))


def _exact(value: float) -> Fraction:
    return Fraction(repr(float(value)))
